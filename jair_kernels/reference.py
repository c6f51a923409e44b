"""Plain PyTorch for every op, under its name without ``fused_``: the specification of all backends."""

from jair_kernels.token_pool.reference import token_pool
from jair_kernels.tokenfuser.reference import tokenfuser
from jair_kernels.tokenlearner.reference import tokenlearner

__all__ = ["token_pool", "tokenfuser", "tokenlearner"]

"""Plain PyTorch for every op, under its name without ``fused_``: the specification of all backends."""

from jair_kernels.cross_attention.reference import cross_attention
from jair_kernels.gated_fusion.reference import gated_fusion
from jair_kernels.latent_resample.reference import latent_resample
from jair_kernels.token_pool.reference import token_pool
from jair_kernels.tokenfuser.reference import tokenfuser
from jair_kernels.tokenlearner.reference import tokenlearner
from jair_kernels.transformer_layer.reference import transformer_layer

__all__ = [
    "cross_attention",
    "gated_fusion",
    "latent_resample",
    "token_pool",
    "tokenfuser",
    "tokenlearner",
    "transformer_layer",
]

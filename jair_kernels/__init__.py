"""Fused kernels for adaptive token pooling and cross-modal fusion, with plain-PyTorch references."""

from jair_kernels import reference
from jair_kernels._backends import available_backends, use_backend, why_not
from jair_kernels.token_pool import fused_token_pool
from jair_kernels.tokenfuser import fused_tokenfuser
from jair_kernels.tokenlearner import fused_tokenlearner

__version__ = "0.1.0"

__all__ = [
    "available_backends",
    "fused_token_pool",
    "fused_tokenfuser",
    "fused_tokenlearner",
    "reference",
    "use_backend",
    "why_not",
]

"""Fused kernels for adaptive token pooling and cross-modal fusion, with plain-PyTorch references."""

from jair_kernels import reference
from jair_kernels._backends import available_backends, use_backend, why_not
from jair_kernels.cross_attention import fused_cross_attention
from jair_kernels.gated_fusion import GatedFusionParams, fused_gated_fusion
from jair_kernels.latent_resample import fused_latent_resample
from jair_kernels.token_pool import fused_token_pool
from jair_kernels.tokenfuser import fused_tokenfuser
from jair_kernels.tokenlearner import fused_tokenlearner
from jair_kernels.transformer_layer import TransformerLayerParams, fused_transformer_layer

__version__ = "0.1.0"

__all__ = [
    "GatedFusionParams",
    "TransformerLayerParams",
    "available_backends",
    "fused_cross_attention",
    "fused_gated_fusion",
    "fused_latent_resample",
    "fused_token_pool",
    "fused_tokenfuser",
    "fused_tokenlearner",
    "fused_transformer_layer",
    "reference",
    "use_backend",
    "why_not",
]

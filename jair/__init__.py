"""The JAIR model and its parts as PyTorch modules, thin over the operations of `jair_kernels`."""

from jair.config import JAIRConfig
from jair.fusion import GatedFusion, JointAdaptiveFusion
from jair.graphs import GraphedGenerate
from jair.metrics import vqa_accuracy
from jair.model import JAIR, JAIROutput
from jair.resampler import LatentResampler, SpatialResampler
from jair.sampler import AdaptiveSampler
from jair.token_fuser import TokenFuser
from jair.token_learner import TokenLearner, TokenLearnerV1
from jair.transformer_layer import TransformerLayer

__all__ = [
    "JAIR",
    "AdaptiveSampler",
    "GatedFusion",
    "GraphedGenerate",
    "JAIRConfig",
    "JAIROutput",
    "JointAdaptiveFusion",
    "LatentResampler",
    "SpatialResampler",
    "TokenFuser",
    "TokenLearner",
    "TokenLearnerV1",
    "TransformerLayer",
    "vqa_accuracy",
]

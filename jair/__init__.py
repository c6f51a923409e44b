"""Adaptive token pooling as PyTorch modules, thin over the operations of `jair_kernels`."""

from jair.token_learner import TokenFuser, TokenLearner, TokenLearnerV1

__all__ = ["TokenFuser", "TokenLearner", "TokenLearnerV1"]

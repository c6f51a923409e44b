"""The pre-LN transformer layer, T of Eq. 4 and every further layer of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from jair._checks import sequence, whole_numbers
from jair._parameters import reset_linears
from jair_kernels import TransformerLayerParams, fused_transformer_layer
from jair_kernels import _checks as check


class TransformerLayer(nn.Module):
    """One pre-LN layer: ``x + out(Attn(qkv(norm1(x))))``, then ``x + fc2(gelu(fc1(norm2(x))))``.

    One call of `jair_kernels.fused_transformer_layer`, which reads the parameters of the submodules; hooks
    on them do not run. q, k and v have no bias (our decision): the softmax does not see k's, and v's would
    only shift `out.bias`.

    Args:
        dim: width D. num_heads: h, a divisor of D. mlp_dim: hidden width M of the MLP.
        eps: added to the variance in both norms.

    Starts with truncated normals of deviation sqrt(1 / fan-in) and zero biases.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim, num_heads, mlp_dim = whole_numbers(dim=dim, num_heads=num_heads, mlp_dim=mlp_dim)
        check.divides("num_heads", num_heads, "dim", dim)
        check.head_width("num_heads", dim // num_heads)
        check.positive("eps", eps)
        self.num_heads, self.eps = num_heads, eps
        self.norm1 = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, device=device, dtype=dtype)
        self.out = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.fc1 = nn.Linear(dim, mlp_dim, device=device, dtype=dtype)
        self.fc2 = nn.Linear(mlp_dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        reset_linears(self)

    def extra_repr(self) -> str:
        """The heads; the widths show in the submodules."""
        return f"num_heads={self.num_heads}"

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x [B,N,D] -> [B,N,D]; mask: bool [B,N], True = keep. Errors as in the operation."""
        sequence("x", x, self.norm1.weight)
        params = TransformerLayerParams(
            norm1_weight=self.norm1.weight,
            norm1_bias=self.norm1.bias,
            wqkv=self.qkv.weight,
            bqkv=None,
            wo=self.out.weight,
            bo=self.out.bias,
            norm2_weight=self.norm2.weight,
            norm2_bias=self.norm2.bias,
            w1=self.fc1.weight,
            b1=self.fc1.bias,
            w2=self.fc2.weight,
            b2=self.fc2.bias,
        )
        return fused_transformer_layer(x, params, num_heads=self.num_heads, mask=mask, eps=self.eps)


def run_block(
    block: Callable[..., torch.Tensor], *inputs: torch.Tensor | None, checkpointing: bool
) -> torch.Tensor:
    """block(*inputs), with `checkpointing` computed again in the backward instead of saved."""
    if checkpointing and torch.is_grad_enabled():
        again: torch.Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return again
    y: torch.Tensor = block(*inputs)
    return y


def run_layers(
    layers: Iterable[nn.Module], x: torch.Tensor, mask: torch.Tensor | None = None, *, checkpointing: bool
) -> torch.Tensor:
    """x through the layers in turn."""
    for layer in layers:
        x = run_block(layer, x, mask, checkpointing=checkpointing)
    return x

"""From any number of tokens to a fixed one: Eq. 2's latent resampling, and what it is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from jair._attention import softmax_over_kept
from jair._checks import fits_parameters, sequence, square, whole_numbers
from jair._parameters import LATENT, reset, reset_layer, reset_linears, truncated_normal
from jair.config import JAIRConfig
from jair.token_learner import TokenLearner
from jair_kernels import _checks as check
from jair_kernels import fused_latent_resample, fused_token_pool


class LatentResampler(nn.Module):
    """Eq. 2: learned latents attend to the tokens of an input, ``f_N = W2 Phi(X_N, x)``, without a residual.

    One call of `jair_kernels.fused_latent_resample`, which reads the parameters of the submodules; hooks on
    them do not run. Phi has no bias of q, k and v (our decision, as in TransformerLayer); W2 is `out`.

    Args:
        dim: width D of the latents. num_latents: L. num_heads: h, a divisor of D.
        kv_dim: width D_kv of the tokens; None = D.
        num_kv_heads: heads of k and v, a divisor of num_heads (grouped queries); None = num_heads.
        norm: LayerNorms before the projections, over the tokens and over the latents; Eq. 2 has none.
        attend_latents: keys are the tokens and the latents, as in Flamingo's resampler; needs D_kv = D.
        method: "projected", "absorbed" or "auto", see the operation; equal to rounding.

    Starts with truncated normals of deviation sqrt(1 / fan-in), of 2 the latents, and a zero bias.
    """

    def __init__(
        self,
        dim: int,
        num_latents: int,
        num_heads: int,
        kv_dim: int | None = None,
        *,
        num_kv_heads: int | None = None,
        norm: bool = False,
        attend_latents: bool = False,
        method: str = "auto",
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kv_dim = dim if kv_dim is None else kv_dim
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        dim, num_latents, num_heads = whole_numbers(dim=dim, num_latents=num_latents, num_heads=num_heads)
        kv_dim, num_kv_heads = whole_numbers(kv_dim=kv_dim, num_kv_heads=num_kv_heads)
        check.divides("num_heads", num_heads, "dim", dim)
        check.head_width("num_heads", dim // num_heads)
        check.divides("num_kv_heads", num_kv_heads, "num_heads", num_heads)
        check.flag("norm", norm)
        check.flag("attend_latents", attend_latents)
        if attend_latents and kv_dim != dim:
            raise ValueError(f"kv_dim: expected dim = {dim} with attend_latents, got {kv_dim}")
        check.choice("method", method, ("projected", "absorbed", "auto"))
        check.positive("eps", eps)
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.attend_latents, self.method, self.eps = attend_latents, method, eps
        inner = dim // num_heads * num_kv_heads
        self.latents = truncated_normal(num_latents, dim, std=LATENT, device=device, dtype=dtype)
        self.norm_x = nn.LayerNorm(kv_dim, eps, device=device, dtype=dtype) if norm else None
        self.norm_latents = nn.LayerNorm(dim, eps, device=device, dtype=dtype) if norm else None
        self.q = nn.Linear(dim, dim, bias=False, device=device, dtype=dtype)
        self.k = nn.Linear(kv_dim, inner, bias=False, device=device, dtype=dtype)
        self.v = nn.Linear(kv_dim, inner, bias=False, device=device, dtype=dtype)
        self.out = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        reset(self.latents, LATENT)
        reset_linears(self)

    def extra_repr(self) -> str:
        """What the submodules do not show."""
        return f"num_latents={self.latents.shape[0]}, num_heads={self.num_heads}, method={self.method!r}"

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x [B,N,D_kv] -> [B,L,D]; mask: bool [B,N], True = keep. Errors as in the operation."""
        sequence("x", x, self.k.weight[0])
        return fused_latent_resample(
            x,
            self.latents,
            self.q.weight,
            self.k.weight,
            self.v.weight,
            self.out.weight,
            bo=self.out.bias,
            x_norm=None if self.norm_x is None else (self.norm_x.weight, self.norm_x.bias),
            latents_norm=None
            if self.norm_latents is None
            else (self.norm_latents.weight, self.norm_latents.bias),
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            attend_latents=self.attend_latents,
            mask=mask,
            eps=self.eps,
            method=self.method,
        )

    def attention_weights(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """What each latent looks at, head by head, in plain PyTorch:

            w[b,h,l,n] = softmax_n(q(latents)[h,l] . k(x)[b,h,n] / sqrt(d))
            forward = out(concat_h sum_n w[b,h,l,n] v(x)[b,h,n])

        Args:
            x: [B,N,D_kv]. mask: bool [B,N], True = keep; a masked token has weight 0.

        Returns:
            [B,h,L,N], or [B,h,L,N+L] with attend_latents (the latents come last); sums to 1 over the last
            axis, or to 0 where no token is kept.

        Raises:
            TypeError: a wrong type or dtype. ValueError: a wrong shape, device or layout.
        """
        sequence("x", x, self.k.weight[0])
        check.key_mask("mask", mask, x.shape[:2], x)
        latents = self.latents if self.norm_latents is None else self.norm_latents(self.latents)
        keys = x if self.norm_x is None else self.norm_x(x)
        if self.attend_latents:
            keys = torch.cat([keys, latents.expand(x.shape[0], -1, -1)], dim=1)
            mask = None if mask is None else F.pad(mask, (0, latents.shape[0]), value=True)
        q, k = self.q(latents).unflatten(-1, (self.num_heads, -1)), self.k(keys)
        k = k.unflatten(-1, (self.num_kv_heads, -1))
        k = k.repeat_interleave(self.num_heads // self.num_kv_heads, dim=2)
        scores = torch.einsum("lhd,bnhd->bhln", q * q.shape[-1] ** -0.5, k)
        return softmax_over_kept(scores, mask)


class SpatialResampler(nn.Module):
    """Convolutions over the grid give one map a token, by which x is pooled (our reading of the table).

        y[b,k] = sum_n softmax_n(conv3(gelu(conv2(gelu(conv1(gelu(conv0(x))))))))[b,n,k] x[b,n]

    conv0 to conv2 keep the D channels, conv3 has one channel a token; all are 3x3, with biases.

    Args:
        dim: width D. num_tokens: K.

    Starts with truncated normals of deviation sqrt(1 / fan-in) and zero biases.
    """

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        dim, num_tokens = whole_numbers(dim=dim, num_tokens=num_tokens)
        self.convs = nn.ModuleList(nn.Conv2d(dim, out, 3, padding=1) for out in (dim, dim, dim, num_tokens))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            reset_layer(conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool x [B,N,D], N a square, into [B,K,D].

        Raises:
            TypeError: a wrong type or dtype. ValueError: a wrong shape, device or layout.
        """
        return fused_token_pool(x, self._scores(x).transpose(1, 2))

    def attention_weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each token looks at: the weights [B,K,N] that pool x; they sum to 1. Errors of `forward`."""
        return self._scores(x).softmax(dim=-1)

    def _scores(self, x: torch.Tensor) -> torch.Tensor:
        """[B,N,D] -> [B,K,N]."""
        check.main_input("x", x, "B N D")
        fits_parameters("x", x, next(self.convs.parameters())[:, 0, 0, 0])
        *hidden, last = self.convs
        grid = square(x).movedim(-1, 1)
        for conv in hidden:
            grid = F.gelu(conv(grid))
        scores: torch.Tensor = last(grid).flatten(2)
        return scores


def image_resampler(config: JAIRConfig) -> nn.Module:
    """What `config.resampler` names: a module from image tokens [B,N,D] to [B,num_latents,D]."""
    if config.resampler == "spatial":
        return SpatialResampler(config.dim, config.num_latents)
    if config.resampler == "tokenlearner":
        return TokenLearner(config.dim, config.num_latents, eps=config.eps)
    return LatentResampler(config.dim, config.num_latents, config.num_heads, eps=config.eps)

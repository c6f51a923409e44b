"""Eq. 3 and Eq. 4: two modalities, resampled once, fused step by step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from jair._checks import modalities, sequence, whole_numbers
from jair._parameters import POSITION, reset, reset_linears, reset_parts, truncated_normal
from jair.config import JAIRConfig
from jair.resampler import LatentResampler, image_resampler
from jair.transformer_layer import TransformerLayer, run_block, run_layers
from jair_kernels import GatedFusionParams, fused_gated_fusion
from jair_kernels import _checks as check
from jair_kernels._autograd import without_autocast


class GatedFusion(nn.Module):
    """Eq. 3: t asks f, then an MLP, each behind a tanh gate that starts at 0.

        "jair"      P = norm_t(t) + tanh(alpha) Phi(norm_t(t), norm_f(f));  y = P + tanh(beta) MLP(P)
        "flamingo"  P = t + tanh(alpha) Phi(norm_t(t), f);            y = P + tanh(beta) MLP(norm_mlp(P))

    One call of `jair_kernels.fused_gated_fusion`, which reads the parameters of the submodules; hooks on
    them do not run. Phi has no bias of q, k and v (our decision, as in TransformerLayer).

    Args:
        dim: width D of t. num_heads: h, a divisor of D. mlp_dim: hidden width M of the MLP.
        kv_dim: width D_kv of f; None = D.
        form: "jair" (Eq. 3) or "flamingo" (Alayrac et al., 2204.14198).

    Starts with truncated normals of deviation sqrt(1 / fan-in), zero biases and zero gates (scalars).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        kv_dim: int | None = None,
        form: str = "jair",
        *,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kv_dim = dim if kv_dim is None else kv_dim
        dim, num_heads, mlp_dim, kv_dim = whole_numbers(
            dim=dim, num_heads=num_heads, mlp_dim=mlp_dim, kv_dim=kv_dim
        )
        check.divides("num_heads", num_heads, "dim", dim)
        check.head_width("num_heads", dim // num_heads)
        check.choice("form", form, ("jair", "flamingo"))
        check.positive("eps", eps)
        self.num_heads, self.form, self.eps = num_heads, form, eps
        jair = form == "jair"
        self.norm_t = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.norm_f = nn.LayerNorm(kv_dim, eps, device=device, dtype=dtype) if jair else None
        self.norm_mlp = None if jair else nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.q = nn.Linear(dim, dim, bias=False, device=device, dtype=dtype)
        self.k = nn.Linear(kv_dim, dim, bias=False, device=device, dtype=dtype)
        self.v = nn.Linear(kv_dim, dim, bias=False, device=device, dtype=dtype)
        self.out = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.fc1 = nn.Linear(dim, mlp_dim, device=device, dtype=dtype)
        self.fc2 = nn.Linear(mlp_dim, dim, device=device, dtype=dtype)
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        reset_linears(self)
        nn.init.zeros_(self.alpha)
        nn.init.zeros_(self.beta)

    def extra_repr(self) -> str:
        """What the submodules do not show."""
        return f"num_heads={self.num_heads}, form={self.form!r}"

    def forward(
        self,
        t: torch.Tensor,
        f: torch.Tensor,
        mask: torch.Tensor | None = None,
        kv_range: torch.Tensor | None = None,
        *,
        projected: bool = False,
    ) -> torch.Tensor:
        """t [B,L,D] and f [B,N,D_kv] -> [B,L,D].

        mask (bool [B,N], True = keep) and kv_range ([B,L,2]) concern f. With `projected` f is what
        `keys_and_values` has made of it, [B,N,2 D]. Errors as in the operation.
        """
        sequence("t", t, self.norm_t.weight)
        if not projected:
            sequence("f", f, self.k.weight[0])
        params = GatedFusionParams(
            *_affine(self.norm_t),
            *_affine(None if projected else self.norm_f),
            wq=self.q.weight,
            bq=None,
            wk=None if projected else self.k.weight,
            bk=None,
            wv=None if projected else self.v.weight,
            bv=None,
            wo=self.out.weight,
            bo=self.out.bias,
            norm_mlp_weight=_affine(self.norm_mlp)[0],
            norm_mlp_bias=_affine(self.norm_mlp)[1],
            w1=self.fc1.weight,
            b1=self.fc1.bias,
            w2=self.fc2.weight,
            b2=self.fc2.bias,
            alpha=self.alpha,
            beta=self.beta,
        )
        return fused_gated_fusion(
            t,
            f,
            params,
            num_heads=self.num_heads,
            form=self.form,
            mask=mask,
            kv_range=kv_range,
            eps=self.eps,
        )


def _affine(norm: nn.LayerNorm | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (None, None) if norm is None else (norm.weight, norm.bias)


def keys_and_values(blocks: Sequence[GatedFusion], f: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of blocks in the form "jair" that all ask the same f [B,N,D_kv]: keys and values [B,N,2 D] of each, in
    one product.

    Their norms differ in scale and shift alone, LN(f) = gamma fhat + beta, and fold into the projections:
    W LN(f) = (W diag(gamma)) fhat + W beta (docs/derivations.md, section 1).
    """
    normed = F.layer_norm(f, f.shape[-1:], eps=blocks[0].eps)
    rows = normed.to(check.autocast_dtype(f) or normed.dtype)
    parts, shifts = [], []
    with without_autocast((f,)):  # which would round the weights before they are scaled
        for block in blocks:
            assert block.norm_f is not None
            parts += [block.norm_f.weight, block.k.weight, block.v.weight]
            shifts += [block.norm_f.bias.unsqueeze(0) @ layer.weight.mT for layer in (block.k, block.v)]
        made = _folded_product(rows, _folded(parts), torch.cat(shifts, dim=1).squeeze(0), *parts)
    return made.chunk(len(blocks), dim=-1)


def _folded(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The projections of all blocks, [2 D blocks,D_kv], of each block's gamma and W of keys and of values."""
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return torch.cat([weight * gamma for gamma, *both in triples for weight in both])


def _folded_product(*inputs: torch.Tensor) -> torch.Tensor:
    """`_FoldedProduct`; or its forward alone, where a compiler says what is kept, and in forward mode."""
    function: Any = _FoldedProduct
    plain = torch.compiler.is_compiling() or forward_ad._current_level >= 0
    made: torch.Tensor = function.forward(*inputs) if plain else function.apply(*inputs)
    return made


class _FoldedProduct(torch.autograd.Function):
    """rows folded^T + shift, in the dtype of the rows. It does not keep what is folded, a copy of all the
    weights: the backward folds `parts` again. Their gradients arrive through `folded`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        rows: torch.Tensor, folded: torch.Tensor, shift: torch.Tensor, *parts: torch.Tensor
    ) -> torch.Tensor:
        return F.linear(rows, folded.to(rows.dtype), shift.to(rows.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[0], *inputs[3:])

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, *parts = ctx.saved_tensors
        with without_autocast((dy,)):
            folded, flat = _folded(parts), dy.flatten(0, -2)
            dfolded = (flat.mT @ rows.flatten(0, -2)).to(folded.dtype)
            dshift = flat.sum(0).to(folded.dtype)
            return dy @ folded.to(dy.dtype), dfolded, dshift, *(None,) * len(parts)


def transformer_layers(config: JAIRConfig, count: int) -> nn.ModuleList:
    """`count` layers of the model's width."""
    return nn.ModuleList(
        TransformerLayer(config.dim, config.num_heads, config.mlp_dim, eps=config.eps) for _ in range(count)
    )


def gated_fusions(config: JAIRConfig) -> nn.ModuleList:
    """A block of Eq. 3 for each iteration."""
    return nn.ModuleList(
        GatedFusion(config.dim, config.num_heads, config.mlp_dim, eps=config.eps)
        for _ in range(config.iterations)
    )


class JointAdaptiveFusion(nn.Module):
    """JAIR's fusion: resample both modalities once, then iterate Eq. 3 and Eq. 4, then further layers.

        f = resample(image),  t = resample(text)                          Eq. 2
        for each iteration i:
            F = block_i(t, f)                                             Eq. 3
            t = a_i F + b_i t   "weighted"  |  F + t   "residual"  |  F   "none"
            [t; f] = T_i([t; f])   stream "joint"  |  t = T_i(t)   stream "text"
        num_layers further layers on [t; f] or on t

    The scalars a_i and b_i are learned and start at 1 (our reading of "weighted"). In stream "joint" the
    next iteration asks the new f (our decision, it reproduces the published operation counts); in "text",
    Eq. 4 to the letter, f never changes, and all blocks' keys and values are one product. In "joint" each
    modality gets a type embedding after resampling.

    The interface is that of all fusions: image [B,N,D] and text [B,L,D] to the tokens that the decoder
    attends, and their mask. The text's mask ends at the resampler: what that returns is never padding.
    """

    def __init__(self, config: JAIRConfig) -> None:
        super().__init__()
        self.combination, self.stream = config.combination, config.stream
        self.checkpointing = config.gradient_checkpointing
        self.image_resampler = image_resampler(config)
        self.text_resampler = LatentResampler(
            config.dim, config.num_latents, config.num_heads, eps=config.eps
        )
        joint = config.stream == "joint"
        self.type_embedding = truncated_normal(2, config.dim, std=POSITION) if joint else None
        self.blocks = gated_fusions(config)
        weighted = config.combination == "weighted"
        self.a = nn.Parameter(torch.ones(config.iterations)) if weighted else None
        self.b = nn.Parameter(torch.ones(config.iterations)) if weighted else None
        self.layers = transformer_layers(config, config.iterations)
        self.stack = transformer_layers(config, config.num_layers)

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        reset_parts(self)
        if self.type_embedding is not None:
            reset(self.type_embedding, POSITION)
        for scalars in (self.a, self.b):
            if scalars is not None:
                nn.init.ones_(scalars)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """image [B,N,D], text [B,L,D] -> (tokens [B,K,D], None); text_mask: bool [B,L], True = keep."""
        modalities(image, text, text_mask, self.text_resampler.out.bias)
        f, t = self.image_resampler(image), self.text_resampler(text, text_mask)
        if self.type_embedding is not None:
            t, f = t + self.type_embedding[0].to(t.dtype), f + self.type_embedding[1].to(f.dtype)
        given = self._given(f)
        for i, (block, layer) in enumerate(zip(self.blocks, self.layers, strict=True)):
            if given is None:
                fused = run_block(block, t, f, checkpointing=self.checkpointing)
            else:
                fuse = partial(block, projected=True)
                fused = run_block(fuse, t, given[i], checkpointing=self.checkpointing)
            t = self._combine(fused, t, i)
            if self.stream == "joint":
                both = torch.cat([t, f], dim=1)
                both = run_block(layer, both, checkpointing=self.checkpointing)
                t, f = both.split([t.shape[1], f.shape[1]], dim=1)
            else:
                t = run_block(layer, t, checkpointing=self.checkpointing)
        tokens = both if self.stream == "joint" else t
        return run_layers(self.stack, tokens, checkpointing=self.checkpointing), None

    def _given(self, f: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        """Keys and values of all blocks where f never changes; a sharded block has its weights, and is of
        its own class, only while it runs itself.
        """
        if self.stream != "text":
            return None
        blocks = [block for block in self.blocks if type(block) is GatedFusion]
        return keys_and_values(blocks, f) if len(blocks) == len(self.blocks) else None

    def _combine(self, fused: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
        if self.combination == "none":
            return fused
        if self.a is None or self.b is None:
            return fused + t
        return self.a[i] * fused + self.b[i] * t

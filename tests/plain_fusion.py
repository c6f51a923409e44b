"""Eq. 2 to Eq. 4 and the layers around them in plain tensor operations, on a module's parameters by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
State = dict[str, Tensor]


def below(state: State, prefix: str) -> State:
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def norm(x: Tensor, p: State, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x: Tensor, p: State, name: str) -> Tensor:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Head by head, sample by sample; only the kept keys are there."""
    width = q.shape[-1] // heads
    rows = []
    for b in range(q.shape[0]):
        keep = torch.ones(k.shape[1], dtype=torch.bool) if mask is None else mask[b]
        parts = [slice(i * width, (i + 1) * width) for i in range(heads)]
        if not keep.any():
            rows.append(torch.zeros_like(q[b]))
            continue
        out = [
            torch.softmax(q[b][:, s] @ k[b][keep][:, s].T / width**0.5, dim=-1) @ v[b][keep][:, s]
            for s in parts
        ]
        rows.append(torch.cat(out, dim=-1))
    return torch.stack(rows)


def mlp(x: Tensor, p: State) -> Tensor:
    return linear(F.gelu(linear(x, p, "fc1")), p, "fc2")


def resample(x: Tensor, p: State, heads: int, mask: Tensor | None = None) -> Tensor:
    """Eq. 2."""
    latents = p["latents"].expand(x.shape[0], -1, -1)
    q, k, v = linear(latents, p, "q"), linear(x, p, "k"), linear(x, p, "v")
    return linear(attention(q, k, v, heads, mask), p, "out")


def gated_fusion(t: Tensor, f: Tensor, p: State, heads: int, mask: Tensor | None = None) -> Tensor:
    """Eq. 3."""
    a, c = norm(t, p, "norm_t"), norm(f, p, "norm_f")
    phi = attention(linear(a, p, "q"), linear(c, p, "k"), linear(c, p, "v"), heads, mask)
    middle = a + torch.tanh(p["alpha"]) * linear(phi, p, "out")
    return middle + torch.tanh(p["beta"]) * mlp(middle, p)


def flamingo(t: Tensor, f: Tensor, p: State, heads: int, mask: Tensor | None = None) -> Tensor:
    a = norm(t, p, "norm_t")
    phi = attention(linear(a, p, "q"), linear(f, p, "k"), linear(f, p, "v"), heads, mask)
    middle = t + torch.tanh(p["alpha"]) * linear(phi, p, "out")
    return middle + torch.tanh(p["beta"]) * mlp(norm(middle, p, "norm_mlp"), p)


def transformer_layer(x: Tensor, p: State, heads: int, mask: Tensor | None = None) -> Tensor:
    q, k, v = linear(norm(x, p, "norm1"), p, "qkv").chunk(3, dim=-1)
    x = x + linear(attention(q, k, v, heads, mask), p, "out")
    return x + mlp(norm(x, p, "norm2"), p)


def stack(x: Tensor, p: State, heads: int, name: str = "stack", mask: Tensor | None = None) -> Tensor:
    i = 0
    while layer := below(p, f"{name}.{i}."):
        x, i = transformer_layer(x, layer, heads, mask), i + 1
    return x


def joint_adaptive(
    image: Tensor,
    text: Tensor,
    mask: Tensor | None,
    p: State,
    heads: int,
    iterations: int,
    combination: str,
    stream: str,
) -> Tensor:
    """Eq. 2 once, then Eq. 3 and Eq. 4."""
    f = resample(image, below(p, "image_resampler."), heads)
    t = resample(text, below(p, "text_resampler."), heads, mask)
    if stream == "joint":
        t, f = t + p["type_embedding"][0], f + p["type_embedding"][1]
    for i in range(iterations):
        fused = gated_fusion(t, f, below(p, f"blocks.{i}."), heads)
        if combination == "weighted":
            t = p["a"][i] * fused + p["b"][i] * t
        else:
            t = fused + t if combination == "residual" else fused
        layer = below(p, f"layers.{i}.")
        if stream == "joint":
            both = transformer_layer(torch.cat([t, f], dim=1), layer, heads)
            t, f = both[:, : t.shape[1]], both[:, t.shape[1] :]
        else:
            t = transformer_layer(t, layer, heads)
    return stack(torch.cat([t, f], dim=1) if stream == "joint" else t, p, heads)

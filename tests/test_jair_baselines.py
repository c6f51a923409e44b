"""The fusions JAIR is compared with, against plain definitions in float64."""

from __future__ import annotations

import plain_fusion as plain
import pytest
import torch
from test_jair_fusion import CONFIG, MASK, D, H, L, assert_same_function, randn, scrambled

import jair
from jair.baselines import FUSIONS

Tensor = torch.Tensor


def sequence(image: Tensor, text: Tensor, p: plain.State) -> tuple[Tensor, Tensor]:
    both = torch.cat([image + p["type_embedding"][0], text + p["type_embedding"][1]], dim=1)
    return both, torch.cat(
        [torch.ones(len(image), image.shape[1], dtype=torch.bool), MASK[: len(image)]], dim=1
    )


def concat(image: Tensor, text: Tensor, p: plain.State) -> Tensor:
    x, mask = sequence(image, text, p)
    return plain.stack(x, p, H, mask=mask)


def cross_attention(image: Tensor, text: Tensor, p: plain.State) -> Tensor:
    mask = MASK[: len(text)]
    for i in range(2):
        text = plain.gated_fusion(text, image, plain.below(p, f"blocks.{i}."), H)
        text = plain.transformer_layer(text, plain.below(p, f"layers.{i}."), H, mask)
    return plain.stack(text, p, H, mask=mask)


def perceiver(image: Tensor, text: Tensor, p: plain.State) -> Tensor:
    inputs, mask = sequence(image, text, p)
    x = p["latents"].expand(len(image), -1, -1)
    for i in range(2):
        x = plain.gated_fusion(x, inputs, plain.below(p, f"blocks.{i}."), H, mask)
        x = plain.transformer_layer(x, plain.below(p, f"layers.{i}."), H)
    return plain.stack(x, p, H)


def cotokenization(image: Tensor, text: Tensor, p: plain.State) -> Tensor:
    y, _ = sequence(image, text, p)
    n = image.shape[1]
    state = torch.zeros(len(image), 2 * L, D, dtype=torch.float64)
    for i in range(2):
        hidden = torch.nn.functional.gelu(plain.linear(y, p, f"fc1.{i}"))
        y = y + plain.linear(hidden, p, f"fc2.{i}")
        of_image = plain.linear(y[:, :n], p, f"image_scores.{i}").softmax(1).mT @ y[:, :n]
        scores = plain.linear(y[:, n:], p, f"text_scores.{i}")
        weights = scores.masked_fill(~MASK[: len(text), :, None], float("-inf")).softmax(1)
        state = state + torch.cat([of_image, weights.mT @ y[:, n:]], dim=1)
        state = plain.transformer_layer(state, plain.below(p, f"layers.{i}."), H)
    return plain.stack(state, p, H)


DEFINITIONS = {
    "concat": concat,
    "cross_attention": cross_attention,
    "perceiver": perceiver,
    "cotokenization": cotokenization,
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", list(DEFINITIONS))
def test_values_and_all_gradients(name: str, checkpointing: bool) -> None:
    config = jair.JAIRConfig(**CONFIG, fusion=name, gradient_checkpointing=checkpointing)
    module = scrambled(FUSIONS[name](config))
    mask = MASK[:2]

    def kept(tokens: Tensor) -> Tensor:  # what stands in padding means nothing
        shown = module(image, text, mask)[1]
        return tokens if shown is None else tokens * shown.unsqueeze(-1)

    image, text = randn(2, 9, D), randn(2, 5, D)
    assert_same_function(
        module,
        lambda image, text: kept(module(image, text, mask)[0]),
        lambda image, text, p: kept(DEFINITIONS[name](image, text, p)),
        *(image, text),
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_keeps_no_hidden_layer_of_cotokenization(checkpointing: bool) -> None:
    config = jair.JAIRConfig(**CONFIG, fusion="cotokenization", gradient_checkpointing=checkpointing)
    module = scrambled(FUSIONS["cotokenization"](config))
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(randn(2, 9, D), randn(2, 5, D))
    assert ((2, 9 + 5, 4 * D) in kept) != checkpointing


@pytest.mark.parametrize("name", list(FUSIONS))
@pytest.mark.parametrize("stream", ["joint", "text"])
def test_parameters_are_drawn_anew(name: str, stream: str) -> None:
    """Every one of them, from the distribution that it started from."""
    config = jair.JAIRConfig(**{**CONFIG, "dim": 48}, fusion=name, stream=stream)
    module = FUSIONS[name](config)
    first = {key: value.clone() for key, value in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    module.reset_parameters()
    for key, value in module.state_dict().items():
        assert value.isfinite().all(), key
        if first[key].numel() > 1 and first[key].std() > 0:
            assert not torch.equal(value, first[key]), key
            torch.testing.assert_close(value.std(), first[key].std(), rtol=0.25, atol=0)
        else:
            assert torch.equal(value, first[key]), key


@pytest.mark.parametrize("name", list(FUSIONS))
def test_text_without_a_token_is_finite(name: str) -> None:
    module = scrambled(FUSIONS[name](jair.JAIRConfig(**CONFIG, fusion=name)))
    image, text = randn(3, 9, D), randn(3, 5, D)
    tokens, mask = module(image, text, MASK)
    (tokens if mask is None else tokens[mask]).sum().backward()
    assert tokens.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert torch.count_nonzero(text.grad[~MASK]) == 0

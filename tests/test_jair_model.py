"""JAIR: its forward pass against its parts, padding, labels; every fusion learns to use the image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jair
from jair import JAIR, JAIRConfig
from jair.baselines import FUSIONS

pytest.importorskip("transformers", reason="the extra 'models' is not installed")

SMALL = {
    "image_size": 64,
    "vocab_size": 40,
    "dim": 32,
    "mlp_dim": 64,
    "encoder_layers": 1,
    "num_latents": 4,
    "iterations": 2,
    "num_layers": 1,
    "decoder_layers": 2,
    "max_text_length": 10,
    "max_target_length": 8,
}

TINY_VIT = {
    "model_type": "vit",
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 16,
    "image_size": 64,
}


def small(**changes: object) -> JAIR:
    """A small model in float64 whose gates are open, whose answers vary with all that goes in."""
    torch.manual_seed(0)
    model = JAIR(JAIRConfig.preset("tiny", **{**SMALL, **changes})).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch(size: int = 3, length: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pixels = torch.randn(size, 3, 64, 64, dtype=torch.float64)
    return pixels, torch.randint(2, 40, (size, length)), torch.randint(2, 40, (size, 5))


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_padding_on_either_side_changes_nothing(fusion: str) -> None:
    model = small(fusion=fusion)
    pixels, words, labels = batch()
    expected = model(pixels, words, labels=labels)
    pad = torch.full((3, 2), 7)  # any word: the mask says that it is padding
    keep, drop = torch.ones(3, 6), torch.zeros(3, 2)
    for ids, mask in (
        (torch.cat([words, pad], 1), torch.cat([keep, drop], 1)),
        (torch.cat([pad, words], 1), torch.cat([drop, keep], 1)),
        (torch.cat([pad, words, pad], 1), torch.cat([drop, keep, drop], 1)),
    ):
        for attention_mask in (mask.long(), mask.bool()):
            got = model(pixels, ids, attention_mask, labels=labels)
            assert_close(got.logits, expected.logits)
            assert_close(got.loss, expected.loss)
    zeros = torch.zeros(3, 2, dtype=torch.long)  # without a mask the pad token tells
    assert_close(model(pixels, torch.cat([zeros, words], 1), labels=labels).logits, expected.logits)


def test_a_batch_is_its_samples_one_by_one() -> None:
    model = small()
    pixels, words, labels = batch()
    words[1, 4:], words[2, 1:] = 0, 0
    together = model(pixels, words, labels=labels).logits
    for i, length in enumerate((6, 4, 1)):
        alone = model(pixels[i : i + 1], words[i : i + 1, :length], labels=labels[i : i + 1]).logits
        assert_close(together[i : i + 1], alone)


def test_logits_depend_on_image_text_and_earlier_words_alone() -> None:
    model = small()
    pixels, words, answers = batch(1)
    logits = model(pixels, words, decoder_input_ids=answers).logits
    assert (model(pixels.flip(3), words, decoder_input_ids=answers).logits - logits).abs().max() > 1e-3
    assert (model(pixels, words.flip(1), decoder_input_ids=answers).logits - logits).abs().max() > 1e-3
    later = answers.clone()
    later[0, 3] = 39 - later[0, 3]
    changed = model(pixels, words, decoder_input_ids=later).logits
    assert_close(changed[:, :3], logits[:, :3])
    assert (changed[:, 3:] - logits[:, 3:]).abs().max() > 1e-3


def test_labels_are_shifted_and_ignored_ones_have_no_part() -> None:
    model = small()
    pixels, words, labels = batch(2)
    labels[0, 3:], labels[1, 0] = -100, -100
    out = model(pixels, words, labels=labels)
    inputs = torch.cat([torch.zeros(2, 1, dtype=torch.long), labels[:, :-1]], 1)
    inputs[inputs == -100] = 0
    assert_close(out.logits, model(pixels, words, decoder_input_ids=inputs).logits)
    log_p = out.logits.log_softmax(-1)
    kept = [log_p[b, i, labels[b, i]] for b in range(2) for i in range(5) if labels[b, i] != -100]
    torch.testing.assert_close(out.loss, -torch.stack(kept).mean().float(), rtol=1e-6, atol=0)
    nothing = model(pixels, words, labels=torch.full_like(labels, -100)).loss
    assert nothing == 0


def test_head_is_the_embedding() -> None:
    model = small()
    assert [name for name, p in model.named_parameters() if p.shape[0] == 40] == ["embedding.weight"]
    hidden = torch.randn(2, 3, 32, dtype=torch.float64)
    assert_close(model.lm_head(hidden), hidden @ model.embedding.weight.T)


def test_image_tokens_are_the_grid_of_the_last_stage() -> None:
    model = small(image_size=80)
    features = []
    stages = model.image_encoder.backbone.encoder.stages
    stages[-1].register_forward_hook(lambda _module, _inputs, output: features.append(output))
    pixels = torch.randn(1, 3, 80, 80, dtype=torch.float64)
    tokens = model.image_encoder(pixels)
    assert features[0].shape == (1, 96, 10, 10)
    project = model.image_encoder.project
    rows = features[0][0].permute(1, 2, 0).reshape(100, 96) @ project.weight.T + project.bias
    assert_close(tokens[0], rows + model.image_encoder.positions)


def test_vit_image_encoder() -> None:
    model = small(image_encoder_config=TINY_VIT)
    pixels, words, labels = batch(2)
    assert model.image_encoder(pixels).shape == (2, 16, 32)
    assert not any("pooler" in name for name, _ in model.named_parameters())
    model(pixels, words, labels=labels).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    larger = small(image_encoder_config=TINY_VIT, image_size=96)
    assert larger.image_encoder(torch.zeros(1, 3, 96, 96, dtype=torch.float64)).shape == (1, 36, 32)


def test_checkpointing_changes_no_gradient() -> None:
    pixels, words, labels = batch()
    grads = []
    for checkpointing in (False, True):
        model = small(gradient_checkpointing=checkpointing).train()
        model(pixels, words, labels=labels).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for have, want in zip(grads[1], grads[0], strict=True):
        assert_close(have, want)


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_every_fusion_fits_one_batch_and_uses_image_and_text(fusion: str) -> None:
    torch.manual_seed(0)
    model = JAIR(JAIRConfig.preset("tiny", **{**SMALL, "fusion": fusion}))
    pixels = torch.randn(2, 3, 64, 64).repeat_interleave(2, dim=0)
    words = torch.tensor([[5, 6, 0], [7, 8, 9]]).repeat(2, 1)  # two images, two questions each, four answers
    labels = torch.tensor([[10, 11, 1], [12, 13, 1], [14, 15, 1], [16, 1, -100]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(pixels, words, labels=labels).loss
        if loss < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02
    with torch.no_grad():
        for _ in range(50):  # the running statistics of the batch norms lag behind the weights
            model(pixels, words, labels=labels)
    answers = model.eval().generate(pixels, words, max_new_tokens=3)
    assert answers[:, 1:].tolist() == labels.masked_fill(labels == -100, 0).tolist()


def test_autocast_is_close() -> None:
    torch.manual_seed(0)
    model = JAIR(JAIRConfig.preset("tiny", **SMALL)).eval()
    pixels, words, labels = batch()
    exact = model(pixels.float(), words, labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(pixels.float(), words, labels=labels)
    assert (low.logits.float() - exact.logits).norm() < 0.03 * exact.logits.norm()
    assert low.loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p, w, a: m(p, w), "decoder_input_ids: expected them or labels, got neither"),
        (
            lambda m, p, w, a: m(p[:2], w, labels=a),
            "pixel_values: expected shape .* = .3, 3, 64, 64., got .2, 3",
        ),
        (lambda m, p, w, a: m(p[..., :32], w, labels=a), "pixel_values: expected shape"),
        (lambda m, p, w, a: m(p, w + 400, labels=a), "input_ids: expected words from 0 to 39, got 4"),
        (lambda m, p, w, a: m(p, w, labels=a - 99), "labels: expected words from 0 to 39 or -100, got -"),
        (lambda m, p, w, a: m(p, w, None, a + 400, a), "decoder_input_ids: expected words from 0 to 39, got"),
        (
            lambda m, p, w, a: m(p, w.repeat(1, 2), labels=a),
            "input_ids: expected shape .B, 1 to 10., got .3, 12.",
        ),
        (lambda m, p, w, a: m(p, w[:, :0], labels=a), "input_ids: expected shape"),
        (
            lambda m, p, w, a: m(p, w, w[:, :2], labels=a),
            "attention_mask: expected shape .3, 6. like input_ids",
        ),
        (
            lambda m, p, w, a: m(p, w, labels=a.repeat(1, 2)),
            "labels: expected shape .B, 1 to 8., got .3, 10.",
        ),
        (
            lambda m, p, w, a: m(p, w, None, a[:, :2], a),
            "labels: expected shape .3, 2. like decoder_input_ids",
        ),
        (
            lambda m, p, w, a: m.generate(p, w, max_new_tokens=9),
            "max_new_tokens: expected at most .* = 8, got 9",
        ),
        (lambda m, p, w, a: m.generate(p, w, num_beams=0), "num_beams: expected an int >= 1, got 0"),
        (
            lambda m, p, w, a: m.generate(p, w, max_new_tokens=2, num_beams=2, do_sample=True),
            "num_beams: .* 1",
        ),
        (lambda m, p, w, a: m.generate(p, w, max_new_tokens=2, do_sample=True, top_p=1.5), "top_p: expected"),
        (
            lambda m, p, w, a: m.generate(p, w, max_new_tokens=2, do_sample=True, temperature=0),
            "temperature: ",
        ),
    ],
)
def test_wrong_values(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(small(), *batch())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, p, w, a: m(p, w.float(), labels=a),
            "input_ids: expected dtype int64 or int32, got float32",
        ),
        (lambda m, p, w, a: m(p.long(), w, labels=a), "pixel_values: expected dtype float32, .* got int64"),
        (lambda m, p, w, a: m(p, w, [1], labels=a), "attention_mask: expected a tensor or None, got list"),
        (lambda m, p, w, a: m(p, w, labels=[1]), "labels: expected a tensor, got list"),
    ],
)
def test_wrong_types(call: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(small(), *batch())


def test_without_transformers_only_the_model_is_missing() -> None:
    code = """
import sys
sys.modules["transformers"] = sys.modules["safetensors"] = None
import torch, jair
jair.TokenLearner(8, 2)(torch.zeros(1, 4, 8))
jair.JointAdaptiveFusion(jair.JAIRConfig.preset("tiny"))
try:
    jair.JAIR(jair.JAIRConfig.preset("tiny"))
except ImportError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("transformers: expected for JAIR models")
    assert "pip install 'jair-kernels[models]'" in out
    assert jair.JAIR is JAIR


@pytest.mark.parametrize("stream", ["joint", "text"])
def test_compiles_whole(stream: str) -> None:
    model = small(stream=stream)
    pixels, words, labels = batch(2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for run in (compiled, model):
        model.zero_grad()
        output = run(pixels, words, labels=labels)
        output.loss.backward()
        found.append([output.logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 50
    for ours, eager in zip(*found, strict=True):
        assert_close(ours, eager)


def test_layers_keep_the_size_of_what_passes() -> None:
    model = JAIR(JAIRConfig.preset("tiny"))
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            # Cut off at two deviations, a normal distribution of deviation 1 has 0.88.
            assert layer.weight.std().item() * layer.in_features**0.5 == pytest.approx(0.88, rel=0.06), name
            assert layer.bias is None or not layer.bias.any(), name
    stds = {"embedding.weight": 128**-0.5, "decoder.positions": 0.3, "fusion.text_resampler.latents": 2.0}
    for name, std in stds.items():
        assert model.get_parameter(name).std().item() == pytest.approx(0.88 * std, rel=0.06), name
    assert model.embed(torch.arange(384)).std().item() == pytest.approx(0.88, rel=0.06)


def test_latents_start_with_different_tokens() -> None:
    model = JAIR(JAIRConfig.preset("tiny"))
    words, mask = torch.randint(2, 384, (64, 12)), torch.ones(64, 12, dtype=torch.bool)
    text = model.text_encoder(model.embed(words), mask)
    image = model.image_encoder(torch.randn(8, 3, 64, 64))
    for resampler, tokens in ((model.fusion.text_resampler, text), (model.fusion.image_resampler, image)):
        pooled = resampler(tokens)
        assert pooled.std(dim=1).mean() > 0.1 * pooled.std()  # 0.02 where all start with the mean


@pytest.mark.parametrize("encoder", ["resnet_tiny", "vit"])
def test_for_inference_changes_only_rounding(encoder: str, tmp_path: Path) -> None:
    changes = {} if encoder == "resnet_tiny" else {"image_encoder_config": TINY_VIT}
    model = small(**changes).eval()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # as after some training
            torch.nn.init.normal_(norm.running_mean, std=0.3)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
            torch.nn.init.uniform_(norm.weight, 0.5, 2)
    pixels, words, labels = batch()
    before = model(pixels, words, labels=labels).logits
    count = sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    after = model.for_inference()(pixels, words, labels=labels).logits
    assert (count > 0) == (encoder == "resnet_tiny")
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert_close(after, before)
    assert not after.requires_grad
    with pytest.raises(ValueError, match="mode: expected False after for_inference"):
        model.train()
    with pytest.raises(ValueError, match="save_pretrained: expected a model before for_inference"):
        model.save_pretrained(tmp_path)

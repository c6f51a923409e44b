"""Costs: closed forms against counted operations, the table of variants, parameters, saved activations."""

from __future__ import annotations

import functools
import weakref

import pytest
import torch

from jair import JAIR, GatedFusion, JAIRConfig, LatentResampler, TransformerLayer
from jair_kernels import use_backend

pytest.importorskip("transformers", reason="the extra 'models' is not installed")
from jair import cost
from jair.memory import batch_memory, memory

# What our decisions cost, in GMAC of one sample: preset, changes, length of the text.
TABLE = [
    (38.8, "base", {}, 64),
    (60.7, "base", {"fusion": "concat"}, 64),
    (25.2, "base", {"fusion": "cross_attention"}, 64),
    (40.5, "base", {"fusion": "perceiver"}, 64),
    (41.9, "base", {"fusion": "cotokenization"}, 64),
    (41.7, "base", {"resampler": "spatial"}, 64),
    (35.5, "base", {"iterations": 1}, 64),
    (36.6, "base", {"iterations": 2}, 64),
    (43.1, "base", {"iterations": 8}, 64),
    (17.0, "base", {"num_latents": 16}, 64),
    (24.2, "base", {"num_latents": 32}, 64),
    (69.4, "base", {"num_latents": 128}, 64),
    (21.3, "base", {"num_layers": 8}, 64),
    (27.1, "base", {"num_layers": 16}, 64),
    (66.6, "large", {}, 64),
    (105.6, "large", {"fusion": "concat"}, 64),
    (51.9, "base", {"image_size": 384}, 64),
    (59.1, "base", {"image_size": 448}, 64),
    (159.8, "base", {"image_size": 384, "fusion": "concat"}, 64),
    (220.1, "base", {"image_size": 448, "fusion": "concat"}, 64),
    (55.3, "base", {"image_size": 384, "fusion": "perceiver"}, 64),
    (63.3, "base", {"image_size": 448, "fusion": "perceiver"}, 64),
    (61.9, "base", {"image_size": 384, "fusion": "cotokenization"}, 64),
    (72.8, "base", {"image_size": 448, "fusion": "cotokenization"}, 64),
    (39.8, "base", {"image_size": 384, "fusion": "cross_attention"}, 64),
    (47.7, "base", {"image_size": 448, "fusion": "cross_attention"}, 64),
    (36.9, "base", {}, 10),
    (37.7, "base", {}, 32),
    (47.8, "base", {"fusion": "concat"}, 10),
    (53.0, "base", {"fusion": "concat"}, 32),
    (13.7, "base", {"stream": "text", "num_latents": 16}, 64),
    (17.4, "base", {"stream": "text", "num_latents": 32}, 64),
    (25.0, "base", {"stream": "text"}, 64),
    (40.5, "base", {"stream": "text", "num_latents": 128}, 64),
]


@pytest.mark.parametrize(("gmac", "preset", "changes", "text"), TABLE, ids=lambda value: str(value))
def test_table_of_variants(gmac: float, preset: str, changes: dict[str, object], text: int) -> None:
    total = cost.macs(JAIRConfig.preset(preset, **changes), text_length=text).total
    assert abs(total / 1e9 - gmac) < 0.005 * gmac


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fusion": "concat"},
        {"fusion": "cross_attention"},
        {"fusion": "perceiver"},
        {"fusion": "cotokenization"},
        {"resampler": "spatial", "stream": "text"},
        {"resampler": "tokenlearner", "combination": "none"},
        {"image_size": 72, "iterations": 1, "num_layers": 0},
        {"image_encoder_config": {"model_type": "resnet", "depths": [2, 1, 1], "hidden_sizes": [8, 16, 64]}},
        {
            "image_encoder_config": {
                "model_type": "resnet",
                "embedding_size": 8,
                "depths": [1, 2],
                "hidden_sizes": [16, 32],
                "downsample_in_bottleneck": True,
                "downsample_in_first_stage": True,
            }
        },
        {
            "image_encoder_config": {
                "model_type": "vit",
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "image_size": 64,
            }
        },
    ],
    ids=str,
)
def test_closed_form_is_what_is_counted(changes: dict[str, object]) -> None:
    config = JAIRConfig.preset("tiny", **changes)
    assert cost.counted_macs(config, 9, 5) == cost.macs(config, 9, 5).total


def test_closed_form_is_what_is_counted_in_base() -> None:
    config = JAIRConfig.preset("base")
    assert cost.counted_macs(config) == cost.macs(config).total


def test_resnet_50_with_stride_1_in_its_last_stage() -> None:
    of_image = cost.macs(JAIRConfig()).image_encoder - 196 * 2048 * 768
    assert round(of_image / 1e9, 3) == 6.207


def test_cheaper_than_concatenation_at_every_size() -> None:
    def ratio(**changes: object) -> float:
        ours = cost.macs(JAIRConfig.preset("base", **changes)).total
        return ours / cost.macs(JAIRConfig.preset("base", **changes, fusion="concat")).total

    assert ratio() < 0.65
    assert ratio(image_size=448) < 0.28


def test_parameters() -> None:
    assert abs(cost.parameters(JAIRConfig.preset("base")) / 355e6 - 1) < 0.005
    assert abs(cost.parameters(JAIRConfig.preset("large")) / 658e6 - 1) < 0.005
    tiny = JAIRConfig.preset("tiny")
    assert cost.parameters(tiny) == sum(p.numel() for p in JAIR(tiny).parameters())


@functools.cache
def saved(fusion: str, image_size: int = 224, backend: str | None = "reference") -> float:
    """MiB of one sample of base."""
    config = JAIRConfig.preset("base", fusion=fusion, image_size=image_size)
    return memory(config, backend=backend).saved / 2**20


def test_saved_activations_against_concatenation() -> None:
    assert saved("joint_adaptive") < 0.68 * saved("concat")
    assert saved("joint_adaptive", 448) < 0.42 * saved("concat", 448)


def test_saved_activations_of_fused_operations() -> None:
    assert saved("joint_adaptive", backend=None) < 130
    assert saved("concat", backend=None) < 0.75 * saved("concat")


@pytest.mark.parametrize("stream", ["joint", "text"])
def test_no_copy_of_a_weight_of_the_fused_layers_is_kept(stream: str) -> None:
    config = JAIRConfig.preset("base", stream=stream)
    of_a_sample, of_one = memory(config), batch_memory(config, 1)
    with torch.device("meta"):
        model = JAIR(config)
    fused = (LatentResampler, GatedFusion, TransformerLayer)
    inside = {p for module in model.modules() if isinstance(module, fused) for p in module.parameters()}
    others = sum(p.numel() for p in model.parameters() if p not in inside)
    assert of_one.saved - of_a_sample.saved <= 2 * others


class Holder:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def test_saved_activations_are_those_of_a_real_step() -> None:
    config = JAIRConfig.preset("tiny")
    kept: list[int] = []
    for batch in (1, 2):
        model = JAIR(config)
        inputs = {
            "pixel_values": torch.randn(batch, 3, 64, 64),
            "input_ids": torch.ones(batch, 9, dtype=torch.long),
            "attention_mask": torch.ones(batch, 9, dtype=torch.bool),
            "labels": torch.ones(batch, 5, dtype=torch.long),
        }
        given = (*model.parameters(), *model.buffers(), *inputs.values())
        own = {tensor.untyped_storage().data_ptr() for tensor in given}
        holders: weakref.WeakSet[Holder] = weakref.WeakSet()

        def keep(tensor: torch.Tensor, holders: weakref.WeakSet[Holder] = holders) -> Holder:
            holder = Holder(tensor)
            holders.add(holder)
            return holder

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda holder: holder.tensor)
        with use_backend("reference"), torch.autocast("cpu", torch.bfloat16), hooks:
            _loss = model(**inputs).loss
        storages = [holder.tensor.untyped_storage() for holder in holders]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        kept.append(sum(size for address, size in sizes.items() if address not in own))
    # Tensors without memory have statistics of a bfloat16 LayerNorm in bfloat16, real ones in float32.
    want = kept[1] - kept[0]
    assert abs(memory(config, 9, 5, backend="reference").saved - want) < 0.001 * want


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: cost.macs(c, 65), "text_length: expected at most max_text_length = 64, got 65"),
        (lambda c: cost.macs(c, 64, 0), "target_length: expected an int >= 1, got 0"),
        (lambda c: cost.counted_macs(c, target_length=65), "target_length: expected at most"),
    ],
)
def test_wrong_lengths(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(JAIRConfig.preset("tiny"))

"""Every op on every GPU backend: accuracy, bits, streams, graphs, compiled code, large strides."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import pytest
import torch
from cases import far_apart

import jair_kernels
from jair import JAIR, GraphedGenerate, JAIRConfig
from jair_kernels._fusion_samples import FUSION_OPS, arguments
from jair_kernels.testing import (
    Case,
    Expectation,
    FusionCase,
    Sample,
    faults,
    poisoned_empty,
    required,
    run,
    run_float64,
)

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available")

POOLING_OPS = ("fused_tokenlearner", "fused_token_pool", "fused_tokenfuser")
OPS = (*POOLING_OPS, *FUSION_OPS)
POOLING = [(op, "triton") for op in POOLING_OPS] + [
    ("fused_token_pool", "cuda"),
    ("fused_tokenlearner", "cuda"),
]
KERNELS = POOLING + [(op, "triton") for op in FUSION_OPS]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BUSY = 1 << 26  # GPU clock cycles that a stream is kept busy: some 30 ms


def shapes(op: str) -> list[Case]:
    sizes = (
        (2, 1, 48, 1), (2, 7, 1000, 8), (1, 1025, 17, 3), (5, 16, 31, 9), (3, 197, 96, 111), (2, 197, 768, 8),
        (0, 7, 48, 8), (1, 50176, 96, 8), (2, 9, 40, 130),
    )  # fmt: skip
    return [Case(op, b, n, d, k, h=24) for b, n, d, k in sizes]


def special(op: str) -> list[Case]:
    found = [Case(op, 2, 70, 96, 8, values=v) for v in ("shifted", "huge_score", "constant", "repeated")]
    found += [Case(op, 3, 70, 100, 5, layout=layout) for layout in ("transposed", "sliced", "expanded")]
    if op != "fused_tokenfuser":
        found += [Case(op, 3, 70, 96, 5, mask=mask) for mask in ("some", "nan", "all")]
    if (
        op == "fused_tokenlearner"
    ):  # widths that its CUDA kernels take: one step of tokens and several, cut images
        sizes = ((3, 1, 384, 8), (300, 33, 384, 5), (2, 197, 512, 20), (5, 100, 768, 32), (2, 1025, 1024, 16))
        found += [
            Case(op, b, n, d, k, h=h) for (b, n, d, k), h in zip(sizes, (64, 24, 64, 33, 64), strict=True)
        ]
        found += [Case(op, 3, 70, 768, 8, h=64, mask=mask) for mask in ("some", "nan", "all")]
        found += [
            Case(op, 3, 70, 384, 5, values=v) for v in ("shifted", "huge_score", "constant", "repeated")
        ]
        found += [Case(op, 3, 70, 512, 5, layout=layout) for layout in ("transposed", "sliced", "expanded")]
        found.append(Case(op, 2, 70, 768, 8, h=64, options={"approximate": "none"}))
    if op == "fused_token_pool":
        found.append(Case(op, 2, 300, 96, 8, values="far_scores"))
        for weighting, reduction in (("softmax", "mean"), ("sigmoid", "sum"), ("sigmoid", "mean")):
            options = {"weighting": weighting, "reduction": reduction}
            found += [Case(op, 3, 300, 64, 5, mask=mask, options=options) for mask in (None, "nan")]
    return found


ATTENTION, RESAMPLE, GATED, LAYER = FUSION_OPS
FUSION_CASES = [
    # Real models: queries to image tokens, JAIR's layers, Flamingo's, the Q-Former's, Idefics2's resampler.
    *(FusionCase(ATTENTION, 2, l, n, 64, h=12) for l, n in ((64, 196), (64, 64), (32, 257), (128, 185))),
    FusionCase(ATTENTION, 2, 64, 320, 64, h=8, ranges="media"),
    FusionCase(ATTENTION, 2, 64, 321, 96, h=16),
    FusionCase(ATTENTION, 1, 64, 4964, 96, h=16, h_kv=4, mask="row"),
    *(FusionCase(ATTENTION, 2, 5, 33, d) for d in (1, 16, 40, 128, 256)),
    *(FusionCase(ATTENTION, 2, l, n, 24) for l in (1, 17) for n in (1, 1025)),
    *(FusionCase(ATTENTION, 2, 5, 130, 24, values=v) for v in ("shifted", "huge_score", "repeated")),
    *(
        FusionCase(ATTENTION, 3, 9, 70, 24, h=4, h_kv=2, mask="nan", ranges=r)
        for r in (None, "media", "wild")
    ),
    *(FusionCase(ATTENTION, 2, 5, 20, 24, layout=layout) for layout in ("transposed", "sliced", "expanded")),
    FusionCase(ATTENTION, 3, 5, 9, 24, mask="all"),
    FusionCase(ATTENTION, 0, 5, 9, 24),
    *(
        FusionCase(RESAMPLE, 3, l, 196, 64, h=12, h_kv=h_kv, mask=mask, options={"method": method, **more})
        for method in ("projected", "absorbed")
        for l, h_kv, mask, more in ((16, None, "nan", {}), (64, 4, None, {"attend_latents": True}))
    ),
    *(FusionCase(RESAMPLE, 2, 7, 20, 16, h=3, kv_width=40, shared=shared) for shared in (True, False)),
    *(
        FusionCase(GATED, 2, 64, 64, 64, h=12, hidden=2048, gates=gates, options={"form": form})
        for form, gates in (("jair", "scalar"), ("flamingo", "channels"))
    ),
    FusionCase(GATED, 3, 33, 9, 16, h=3, kv_width=40, mask="nan", ranges="wild"),
    FusionCase(GATED, 2, 5, 9, gates="zero"),
    FusionCase(LAYER, 2, 128, 128, 64, h=12, hidden=2048),
    FusionCase(LAYER, 3, 66, 66, 16, h=3, mask="nan", options={"causal": True}),
    FusionCase(LAYER, 2, 1, 1, 16, h=3, options={"approximate": "tanh"}),
]


def on_device(sample: Sample) -> Sample:
    """The same call on the GPU, strides and what lies between the elements included."""

    def move(t: torch.Tensor | None) -> torch.Tensor | None:
        if t is None:
            return None
        size = t.untyped_storage().nbytes() // t.itemsize
        whole = t.as_strided((size,), (1,), 0).to(DEVICE)
        return whole.as_strided(t.shape, t.stride(), t.storage_offset())

    tensors = {name: move(t) for name, t in sample.tensors.items()}
    return replace(sample, tensors=tensors, dy=sample.dy.to(DEVICE))


@cache
def _cases() -> dict[str, Case | FusionCase]:
    pooling = [case for op in POOLING_OPS for case in shapes(op) + special(op)]
    return {f"{case.op}-{case.name}": case for case in (*pooling, *FUSION_CASES)}


@lru_cache(maxsize=16)
def expectation(key: str, dtype: torch.dtype) -> Expectation:
    """On the device: the eager expression that sets the limit is what runs there."""
    return Expectation.of(on_device(_cases()[key].sample(dtype)))


def needs(op: str, backend: str, *inputs: object) -> None:
    reason = jair_kernels.why_not(op, backend, *inputs)
    if reason is not None:
        pytest.skip(f"{op} on {backend}: {reason}")


def small(op: str, dtype: torch.dtype = torch.bfloat16, b: int = 3, n: int = 70) -> Sample:
    if op in FUSION_OPS:
        queries = n if op == "fused_transformer_layer" else 9
        return on_device(FusionCase(op, b, queries, n, 32, h=3, mask="some").sample(dtype))
    return on_device(Case(op, b, n, 384 if op == "fused_tokenlearner" else 96, 8).sample(dtype))


def needs_for(sample: Sample, backend: str) -> None:
    needs(sample.op, backend, *required(sample.op, sample.tensors))


def floating(sample: Sample) -> dict[str, torch.Tensor]:
    return {name: t for name, t in sample.tensors.items() if t is not None and t.is_floating_point()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


kernels = pytest.mark.parametrize(("op", "backend"), KERNELS, ids=lambda word: word.removeprefix("fused_"))
pooling_kernels = pytest.mark.parametrize(
    ("op", "backend"), POOLING, ids=lambda word: word.removeprefix("fused_")
)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@kernels
def test_compiled_code(op: str, backend: str) -> None:
    """One code for all sizes cuts tokens into other shares than a call of known size: the bits may differ."""
    needs(op, backend)
    function, options = getattr(jair_kernels, op), small(op).options

    def step(tensors: dict[str, torch.Tensor | None]) -> torch.Tensor:
        y: torch.Tensor = function(**arguments(op, tensors), **options, backend=backend)
        return y

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for n in (70, 33):
        sample = small(op, torch.bfloat16 if backend == "cuda" else torch.float32, n=n)
        needs_for(sample, backend)
        leaves = {name: t.detach().requires_grad_() for name, t in floating(sample).items()}
        y = compiled({**sample.tensors, **leaves})
        grads = torch.autograd.grad(y, list(leaves.values()), sample.dy)
        results = {"y": y.detach()} | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}
        held = Expectation.of(sample)
        assert not faults(results, held.eager, held.expected, held.allowed)


ACCURACY = [(key, backend) for key, case in _cases().items() for op, backend in KERNELS if op == case.op]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("key", "backend"), ACCURACY)
def test_accuracy(key: str, backend: str, dtype: torch.dtype) -> None:
    """Forward and every gradient within twice eager's error, held against float64."""
    held = expectation(key, dtype)
    needs_for(held.sample, backend)
    held.check(backend)


@pooling_kernels
def test_one_token_has_no_score_gradient(op: str, backend: str) -> None:
    needs(op, backend)
    if op == "fused_tokenfuser":
        pytest.skip("its weights are not normalised over tokens")
    results = run(on_device(Case(op, 4, 1, 384, 8).sample(torch.bfloat16)), backend)
    for name in ("dscores", "dw2", "db2"):
        if name in results:
            assert not results[name].any(), name


@pooling_kernels
@pytest.mark.parametrize("axis", [0, 1], ids=["image", "token"])
def test_more_than_two_to_the_31_elements(op: str, backend: str, axis: int) -> None:
    needs(op, backend)
    free, _ = torch.cuda.mem_get_info()
    if free < 6 << 30:
        pytest.skip(f"it needs 6 GiB of GPU memory, {free >> 30} are free")
    near = on_device(Case(op, 2, 2, 384, 3).sample(torch.bfloat16))
    held = Expectation.of(near)  # PyTorch's own products do not take rows that lie so far apart
    assert not faults(run(far_apart(near, axis), backend), held.eager, held.expected, held.allowed)


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_bits_are_equal_from_run_to_run(op: str, backend: str, dtype: torch.dtype) -> None:
    needs(op, backend)
    for b, n in ((1, 1500), (64, 197)):
        sample = small(op, dtype, b, n)
        needs_for(sample, backend)
        first = run(sample, backend)
        for _ in range(100):
            assert_same(run(sample, backend), first)
        with poisoned_empty():
            assert_same(run(sample, backend), first)


def test_two_processes_share_the_gpu() -> None:
    """Both get the same bits while the other's kernels run beside theirs."""
    program = [sys.executable, str(Path(__file__).with_name("small_calls.py"))]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    both = [
        subprocess.Popen(
            program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        for _ in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=150)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    first, second = (output.splitlines()[-1] for output in outputs)
    assert "results" in first
    assert first == second


@kernels
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: str(dtype)[6:])
def test_autocast(op: str, backend: str, dtype: torch.dtype) -> None:
    """Within twice the error of eager code under the same autocast; gradients in the inputs' own dtype."""
    sample = small(op, torch.float32)
    needs_for(sample, backend)
    expected = run_float64(sample)
    allowed = Expectation.of(sample.to(dtype)).allowed  # the dtype that is computed in sets the floor
    lowered = replace(sample, dy=sample.dy.to(dtype))
    with torch.autocast(DEVICE, dtype):
        ours, eager = run(lowered, backend), run(lowered, "reference")
    assert ours["y"].dtype == dtype
    assert {t.dtype for name, t in ours.items() if name != "y"} == {torch.float32}
    assert not faults(ours, eager, expected, allowed)


def _warmed_up(call: Callable[[], object]) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)


@kernels
def test_cuda_graph(op: str, backend: str) -> None:
    """Captured once, replayed on other values: what the op computes by itself."""
    needs(op, backend)
    sample, other = small(op), small(op)
    for tensor in floating(other).values():
        tensor.mul_(0.5)
    expected = run(other, backend)
    _warmed_up(lambda: run(sample, backend))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(sample, backend)
    for name, tensor in floating(sample).items():
        tensor.copy_(other.tensors[name])
    for _ in range(2):
        for tensor in captured.values():
            tensor.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert_same(captured, expected)


def test_recorded_answers() -> None:
    """CUDA graphs of the model say what the model says, for other inputs and after its weights change."""
    pytest.importorskip("transformers", reason="the extra 'models' is not installed")
    torch.manual_seed(0)
    model = JAIR(JAIRConfig.preset("tiny")).to(DEVICE).eval()
    answer = GraphedGenerate(model, text_length=12)
    for length in (12, 5):
        pixels = torch.randn(1, 3, 64, 64, device=DEVICE)
        words = torch.randint(3, 300, (1, length), device=DEVICE)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        assert torch.equal(answer(pixels, words), model.generate(pixels, words))


@kernels
def test_side_stream(op: str, backend: str) -> None:
    """On a stream that is still busy making x, the op waits its turn: it is launched on that stream."""
    needs(op, backend)
    sample = small(op)
    expected = run(sample, backend)
    x = next(iter(floating(sample).values()))
    good = x.clone()
    x.fill_(torch.nan)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(BUSY)
        x.copy_(good)
        results = run(sample, backend)
    side.synchronize()
    assert_same(results, expected)


@kernels
def test_second_device(op: str, backend: str) -> None:
    needs(op, backend)
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    first = small(op)
    moved = {name: t if t is None else t.to("cuda:1") for name, t in first.tensors.items()}
    results = run(replace(first, tensors=moved, dy=first.dy.to("cuda:1")), backend)
    assert torch.cuda.current_device() == 0
    assert_same({name: t.to("cuda:0") for name, t in results.items()}, run(first, backend))


def test_token_pool_passes_opcheck() -> None:
    needs("fused_token_pool", "cuda")
    ops = torch.ops.jair_kernels
    sample = small("fused_token_pool", torch.float32)
    x, scores = sample.tensors["x"], sample.tensors["scores"]
    mask = torch.rand(x.shape[:2], device=DEVICE) < 0.7
    for sigmoid in (False, True):
        y, softmax = ops.token_pool_forward(x, scores, mask, sigmoid, True)
        torch.library.opcheck(ops.token_pool_forward.default, (x, scores, mask, sigmoid, True))
        arguments = (sample.dy, x, scores, mask, y, softmax, sigmoid, True)
        torch.library.opcheck(ops.token_pool_backward.default, arguments)


def test_passes_of_tokenlearner_pass_opcheck() -> None:
    x = torch.randn(2, 70, 384, device=DEVICE, dtype=torch.bfloat16)
    needs("fused_tokenlearner", "cuda", x)
    ops, check = torch.ops.jair_kernels, torch.library.opcheck
    wg, w2, b2 = (torch.randn(size, device=DEVICE).to(x) for size in ((24, 384), (8, 24), (8,)))
    c, e = wg.float().sum(1), torch.randn(24, device=DEVICE)
    dy, mask = torch.randn(2, 8, 384, device=DEVICE).to(x), torch.rand(2, 70, device=DEVICE) < 0.7
    operands = (wg, c, e, w2, b2, mask)
    for shares, tokens in ((1, 96), (3, 32)):
        check(ops.tokenlearner_pool.default, (x, *operands, 1e-6, True, shares, tokens))
    y, softmax, stats = ops.tokenlearner_pool(x, *operands, 1e-6, True, 1, 96)
    given = (softmax.view(2, 8, 2), stats, (y.float() * dy.float()).sum(2))
    check(ops.tokenlearner_inputs.default, (dy, x, *operands, *given, True, 3, 32))
    _, *kept = ops.tokenlearner_inputs(dy, x, *operands, *given, True, 3, 32)
    check(ops.tokenlearner_sums.default, (x, mask, stats, *kept, 24, 8, 32))

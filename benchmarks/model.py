"""The whole model as the benchmarks see it: a training step and a generation, on photographs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch

from benchmarks import fusion, measure
from jair_kernels import use_backend

Tensor = torch.Tensor
OPS = ("JAIR", "JAIR.generate")
WORDS, ANSWER = 64, 16  # of the text, padded, and of the answer


@dataclass(frozen=True)
class ModelCase:
    """A preset with a fusion, B samples and the side of the image in pixels."""

    b: int
    preset: str = "base"
    fusion: str = "joint_adaptive"
    image_size: int = 224

    def __str__(self) -> str:
        return f"{self.preset},{self.fusion},{self.b}x{self.image_size}px"

    @property
    def n(self) -> int:
        """Words that are read, for the count of tokens."""
        return WORDS

    def counts(self, training: bool) -> dict[str, int]:
        """FLOPs, the backward as twice the forward; bytes: weights read, and for training gradients written
        and weights read again.
        """
        from jair import cost

        config = self.config()
        passes = 3 if training else 1
        flops = 2 * self.b * cost.macs(config, WORDS, ANSWER).total * passes
        return {"flops": flops, "bytes": 4 * cost.parameters(config) * passes}

    def config(self):  # type: ignore[no-untyped-def]
        """The model's JAIRConfig."""
        from jair import JAIRConfig

        return JAIRConfig.preset(self.preset, fusion=self.fusion, image_size=self.image_size)


@functools.lru_cache(maxsize=1)
def _model(case: ModelCase, device: str) -> torch.nn.Module:
    """The model of a case, made once for neighbouring rows that differ in the batch alone."""
    from jair import JAIR

    torch.manual_seed(0)
    with torch.device(device):
        return JAIR(case.config())


@dataclass(frozen=True)
class Problem:
    """Model and inputs of a measurement; contestants differ in what computes the layers."""

    op: str
    case: ModelCase
    dtype: str
    training: bool
    device: str

    @functools.cached_property
    def model(self) -> torch.nn.Module:
        """Shared by all contestants."""
        return _model(replace(self.case, b=1), self.device).train(self.training).requires_grad_(self.training)

    @functools.cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Photographs, and random words of lengths from half of WORDS up to it."""
        from benchmarks.inputs import photographs

        case, generator = self.case, torch.Generator().manual_seed(1)
        vocabulary = case.config().vocab_size
        words = torch.randint(2, vocabulary, (case.b, WORDS), generator=generator)
        length = torch.linspace(WORDS, WORDS // 2, case.b).long()
        given = {
            "pixel_values": photographs(case.b, case.image_size),
            "input_ids": words,
            "attention_mask": torch.arange(WORDS) < length[:, None],
        }
        if self.op == "JAIR":
            given["labels"] = torch.randint(2, vocabulary, (case.b, ANSWER), generator=generator)
        return {name: value.to(self.device) for name, value in given.items()}

    def function(self, backend: str) -> Callable[..., Tensor]:
        """The loss or the answer, as this contestant computes it."""
        step = self._answer(backend) if self.op == "JAIR.generate" else self._loss(backend)

        def run(**inputs: Tensor) -> Tensor:
            with _computed_by(backend), self._autocast():
                return step(**inputs)

        return run

    def _loss(self, backend: str) -> Callable[..., Tensor]:
        model = torch.compile(self.model) if backend == "compile" else self.model
        return lambda **inputs: model(**inputs).loss

    def _answer(self, backend: str) -> Callable[..., Tensor]:
        if backend != "triton":
            return functools.partial(self.model.generate, max_new_tokens=ANSWER)  # type: ignore[arg-type]
        from jair import JAIR, GraphedGenerate

        assert isinstance(self.model, JAIR)
        with self._autocast():
            return GraphedGenerate(self.model, batch_size=self.case.b, max_new_tokens=ANSWER)

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        low = self.dtype == "bf16"
        return torch.autocast(self.device, torch.bfloat16) if low else nullcontext()

    def call(self, run: Callable[..., Tensor]) -> Callable[[int], tuple[Tensor, ...]]:
        """One timed call: the answer, or the loss and the gradient of every parameter."""

        def forward(index: int) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (run(**self.inputs),)

        def both(index: int) -> tuple[Tensor, ...]:
            loss = run(**self.inputs)
            return (loss, *torch.autograd.grad(loss, list(self.model.parameters())))

        return both if self.training else forward

    def largest_batch(self, backend: str) -> int:
        """Samples of the largest call that fits into the GPU's memory, computed by this contestant."""

        def step(batch: int) -> None:
            problem = replace(self, case=replace(self.case, b=batch))
            problem.call(problem.function(backend))(0)

        return measure.largest_batch(step)

    def arguments(self, index: int) -> dict[str, Tensor]:
        """The same for every call."""
        return self.inputs

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What the model holds."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}


@contextmanager
def _computed_by(backend: str) -> Iterator[None]:
    """Ours: what the device offers. Peers: the definitions in plain PyTorch, in "sdpa" with its attention; so
    too in the decoder, whose masks the definition of attention would meet by scanning all keys for NaN.
    """
    by_sdpa = backend in ("sdpa", "compile")
    with ExitStack() as stack:
        if by_sdpa or backend == "eager":
            attention = fusion.attention_by_sdpa if by_sdpa else fusion.attention_by_softmax
            stack.enter_context(patch("jair.decoder.fused_cross_attention", attention))
            stack.enter_context(use_backend("reference"))
        if by_sdpa:
            for op in fusion.COMPOSED:
                stack.enter_context(fusion.sdpa_inside(op))
        yield

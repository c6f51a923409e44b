"""What is measured: cases, dtypes, directions, peers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.fusion import OPS as FUSION_OPS
from benchmarks.fusion import FusionCase
from benchmarks.model import OPS as MODEL_OPS
from benchmarks.model import ModelCase

DTYPES = ("bf16", "fp16", "fp32")
DIRECTIONS = ("fwd", "fwdbwd")
OURS = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
PEERS = ("eager", "compile")
# Attention as matmul and softmax, as PyTorch's own, and torch.compile of either.
FUSION_PEERS = ("eager", "sdpa", "compile", "compile_sdpa")
COMPILED = {"compile": "eager", "compile_sdpa": "sdpa", "flex": "flex"}  # peers by torch.compile, and of what
POOLING_OPS = ("fused_tokenlearner", "fused_token_pool", "fused_tokenfuser")
OPS = (*POOLING_OPS, *FUSION_OPS, *MODEL_OPS)
COMPOSED_OPS = FUSION_OPS[1:]  # most of whose work is PyTorch's matrix products
MODEL_PEERS = ("eager", "sdpa")  # of the layers; compiling the whole takes minutes on a CPU


@dataclass(frozen=True)
class Case:
    """Sizes of a problem: B images, N tokens of width D, hidden width H of the score MLP, K output tokens."""

    b: int
    n: int
    d: int
    h: int
    k: int
    data: str = "random"

    def __str__(self) -> str:
        suffix = "" if self.data == "random" else f",{self.data}"
        return f"{self.b}x{self.n}x{self.d},h{self.h},k{self.k}{suffix}"

    @classmethod
    def parse(cls, text: str) -> Case:
        """The case that prints as `text`."""
        sizes, h, k, *data = text.split(",")
        b, n, d = map(int, sizes.split("x"))
        return cls(b, n, d, int(h[1:]), int(k[1:]), *data)


@dataclass(frozen=True)
class Group:
    """One measurement: what its contestants, ours and peers, do in turns on the same inputs; `finds_batch`:
    and by itself each with the largest batch that fits.
    """

    op: str
    case: Case | FusionCase | ModelCase
    dtype: str
    direction: str
    peers: tuple[str, ...] = PEERS
    full: bool = False
    finds_batch: bool = False

    @property
    def latency(self) -> bool:
        """Whether somebody waits for one call: then launches on a GPU are part of its time."""
        return self.op == "JAIR.generate"

    def __str__(self) -> str:
        return " ".join(self.key)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What its rows have in common in a result."""
        return self.op, str(self.case), self.dtype, self.direction


VIT = Case(16, 196, 768, 64, 8)
WIDE = Case(8, 1024, 1024, 64, 32)
SINGLE = Case(1, 196, 768, 64, 8)
PHOTOS = Case(16, 196, 768, 64, 8, "photos")

# Shapes of real models: queries to image tokens, within a layer of 64, a resampler over a large image
# (grouped heads).
TO_IMAGE = FusionCase("fused_cross_attention", 8, 64, 196, 12, 64)
PADDED = replace(TO_IMAGE, masked=True)
SHORT = FusionCase("fused_cross_attention", 8, 64, 64, 12, 64)
TO_MANY = FusionCase("fused_cross_attention", 1, 64, 4964, 16, 96, 4)
RESAMPLE = FusionCase("fused_latent_resample", 8, 16, 196, 12, 64)
FUSE = FusionCase("fused_gated_fusion", 8, 64, 64, 12, 64, hidden=2048)
LAYER = FusionCase("fused_transformer_layer", 8, 128, 128, 12, 64, hidden=2048)
_FUSION_TABLE: tuple[tuple[FusionCase, str], ...] = (
    (TO_IMAGE, "bf16"),
    (TO_IMAGE, "fp32"),
    (PADDED, "bf16"),
    (SHORT, "bf16"),
    (TO_MANY, "bf16"),
    (RESAMPLE, "bf16"),
    (RESAMPLE, "fp32"),
    (FUSE, "bf16"),
    (LAYER, "bf16"),
    (LAYER, "fp32"),
)
# OpenFlamingo's, Idefics-9b's, the Q-Former's and Perceiver-VL's attention: L, N, h, d.
_OF_MODELS = ((64, 320, 8, 64), (64, 321, 16, 96), (32, 257, 12, 64), (128, 185, 12, 64))
_FUSION_MORE: tuple[tuple[FusionCase, str], ...] = (
    (SHORT, "fp32"),
    (TO_MANY, "fp32"),
    (FUSE, "fp32"),
    (LAYER, "fp16"),
    *(
        (FusionCase("fused_cross_attention", 8, *sizes), dtype)
        for sizes in _OF_MODELS
        for dtype in ("bf16", "fp32")
    ),
)


def _methods(*latents: int) -> list[FusionCase]:
    """Resampling to these numbers of latents, projected and absorbed."""
    methods = ("projected", "absorbed")
    return [
        FusionCase("fused_latent_resample", 8, l, 196, 12, 64, method=m) for l in latents for m in methods
    ]


# Which method takes less time changes with the number of latents. Both are ours, and eager PyTorch is peer
# enough; --full has all.
_CROSSING = [(case, dtype) for case in _methods(16, 128) for dtype in ("fp32", "bf16")]
_CROSSING_MORE = [(case, "fp32") for case in _methods(8, 32, 64)]

# On a GPU the batch is what fills it; the single image stays.
_GPU_FUSION_TABLE: tuple[tuple[FusionCase, str], ...] = (
    (replace(TO_IMAGE, b=256), "bf16"),
    (replace(SHORT, b=256), "bf16"),
    (TO_MANY, "bf16"),
    (replace(TO_IMAGE, b=1), "bf16"),
    (replace(RESAMPLE, b=256), "bf16"),
    (replace(FUSE, b=256), "bf16"),
    (replace(LAYER, b=64), "bf16"),
)
# JAIR's attention, that of the models above, Idefics2's with its grouped heads.
_GPU_FUSION_MORE: tuple[tuple[FusionCase, str], ...] = (
    *(
        (FusionCase("fused_cross_attention", b, *sizes), "bf16")
        for sizes in (
            (64, 196, 12, 64),
            (64, 64, 12, 64),
            *_OF_MODELS,
            (64, 4964, 16, 96, 4),
        )
        for b in (1, 16, 256)
    ),
    (replace(RESAMPLE, b=16), "bf16"),
    (replace(FUSE, b=16), "bf16"),
    (replace(PADDED, b=256), "bf16"),
    (replace(RESAMPLE, b=256), "fp16"),
    (replace(LAYER, b=64), "fp32"),
)
_FUSION = {"cpu": (_FUSION_TABLE, _FUSION_MORE), "cuda": (_GPU_FUSION_TABLE, _GPU_FUSION_MORE)}

STEP, GPU_STEP = ModelCase(8), ModelCase(64)
ANSWER = ModelCase(1)
# Of "JAIR" a training step, of "JAIR.generate" an answer: case, dtype, whether it is slow.
_MODEL_ROWS = {
    ("JAIR", "cpu"): (
        (STEP, "bf16", False),
        (ANSWER, "fp32", True),
        (STEP, "fp32", True),
        (ModelCase(8, fusion="concat"), "bf16", True),
        (ModelCase(2, image_size=448), "bf16", True),
        (ModelCase(2, fusion="concat", image_size=448), "bf16", True),
    ),
    ("JAIR", "cuda"): (
        (GPU_STEP, "bf16", False),
        (ModelCase(64, fusion="concat"), "bf16", True),
        *(
            (ModelCase(64, fusion=fusion, image_size=size), "bf16", True)
            for size in (384, 448)
            for fusion in ("joint_adaptive", "concat")
        ),
    ),
    **{
        ("JAIR.generate", device): (
            (ANSWER, "bf16", False),
            (ANSWER, "fp32", False),
            (ModelCase(1, fusion="concat"), "fp32", True),
        )
        for device in ("cpu", "cuda")
    },
}

_Rows = tuple[tuple[Case, str], ...]
_CPU_TABLE: _Rows = ((VIT, "bf16"), (VIT, "fp32"), (WIDE, "bf16"), (WIDE, "fp32"), (SINGLE, "bf16"))
_CPU_MORE: _Rows = ((VIT, "fp16"), (SINGLE, "fp32"))

# On a GPU the tokens of one call exceed the L2 cache, but for the single image.
_GPU_VIT = Case(256, 196, 768, 64, 8)
_GPU_TABLE: _Rows = (
    (_GPU_VIT, "bf16"),
    (Case(1024, 81, 512, 64, 16), "bf16"),
    (Case(64, 1024, 1024, 64, 32), "bf16"),
    (Case(16, 4096, 768, 64, 64), "bf16"),
    (SINGLE, "bf16"),
)
_GPU_MORE: _Rows = ((_GPU_VIT, "fp16"), (_GPU_VIT, "fp32"))

# Tokens of a call while N or K varies, up to the point where one image has more.
_SWEEP_TOKENS = {"cpu": 3136, "cuda": 50176}
_SWEEP_N = {"quick": (64, 784, 12544, 50176), "full": (64, 196, 784, 3136, 12544, 50176)}
_SWEEP_K = {"quick": (1, 32, 128), "full": (1, 2, 4, 8, 16, 32, 64, 128)}


def n_sweep_case(n: int, device: str) -> Case:
    """The case of a given N in the sweep of tokens per second against N."""
    return Case(max(1, _SWEEP_TOKENS[device] // n), n, 768, 64, 8)


def k_sweep_case(k: int, device: str) -> Case:
    """The case of a given K in the sweep of tokens per second against K."""
    return Case(_SWEEP_TOKENS[device] // 196, 196, 768, 64, k)


def sweep_axis(case: Case, device: str) -> frozenset[str]:
    """The sweeps, "n" and "k", that a case is a point of."""
    axes = {"n": n_sweep_case(case.n, device), "k": k_sweep_case(case.k, device)}
    return frozenset(axis for axis, point in axes.items() if point == case)


def only_on_curve(case: Case, dtype: str, device: str) -> bool:
    """Whether a row is there for the curves alone."""
    tables = _CPU_TABLE + _CPU_MORE if device == "cpu" else _GPU_TABLE + _GPU_MORE
    return bool(sweep_axis(case, device)) and (case, dtype) not in tables


def peers_of(op: str) -> tuple[str, ...]:
    """Peers that a row must have to be compared with the fastest."""
    return MODEL_PEERS if op in MODEL_OPS else PEERS


def groups(op: str, device: str, full: bool) -> list[Group]:
    """Measurements of an op; with `full` also those that do not fit into ten minutes on two cores."""
    if op in MODEL_OPS:
        way = "fwdbwd" if op == "JAIR" else "fwd"
        for_minutes = full and device == "cuda" and op == "JAIR"  # to compile the model, to find a batch
        peers = (*MODEL_PEERS, "compile") if for_minutes else MODEL_PEERS
        return [
            Group(op, c, dtype, way, peers, late, for_minutes and c.image_size == 224)
            for c, dtype, late in _MODEL_ROWS[op, device]
        ]
    if op in FUSION_OPS:
        table, more = ([row for row in rows if row[0].op == op] for rows in _FUSION[device])
        rest = [row for row in more if row not in table]
        flex = ("flex",) if (op, device) == ("fused_cross_attention", "cuda") else ()
        crossing = op == "fused_latent_resample" and device == "cpu"
        few = FUSION_PEERS if full else FUSION_PEERS[:1]
        parts = [(False, FUSION_PEERS + flex, table), (True, FUSION_PEERS + flex, rest)]
        parts += [(False, few, _CROSSING), (True, few, _CROSSING_MORE)] if crossing else []
        return [
            Group(op, c, dtype, way, peers, late)
            for late, peers, rows in parts
            for c, dtype in rows
            for way in DIRECTIONS
        ]
    table, more = (_CPU_TABLE, _CPU_MORE) if device == "cpu" else (_GPU_TABLE, _GPU_MORE)
    if op != "fused_tokenlearner":
        count = 2 if device == "cpu" else 1
        table, more = table[:count], (*table[count:], *more)
    elif device == "cpu":
        table = (*table[:2], (PHOTOS, "bf16"), (PHOTOS, "fp32"), *table[2:])
    rows = [Group(op, case, dtype, way) for case, dtype in table for way in DIRECTIONS]
    rows += [Group(op, case, dtype, way, full=True) for case, dtype in more for way in DIRECTIONS]
    if op == "fused_tokenlearner":
        rows += _sweeps(op, device, full)
    unique: dict[str, Group] = {}
    for row in rows:  # a point of a sweep may be a row of the table
        unique.setdefault(str(row), row)
    return list(unique.values())


def _sweeps(op: str, device: str, full: bool) -> list[Group]:
    """A few points against eager PyTorch alone, as compiling takes seconds a point; with `full` all peers."""
    points: dict[Case, str] = {}
    for size in ("full", "quick"):
        cases = [n_sweep_case(n, device) for n in _SWEEP_N[size]] + [
            k_sweep_case(k, device) for k in _SWEEP_K[size]
        ]
        points.update(dict.fromkeys(cases, size))
    peers = PEERS if full else PEERS[:1]
    return [
        Group(op, case, "bf16", way, peers, full=size == "full")
        for case, size in points.items()
        for way in DIRECTIONS
    ]

"""One and more threads of the pool, threads made later, workers after a fork, each with its tile state."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from cases import by_name
from torch.utils.data import DataLoader, Dataset

from jair_kernels.testing import Case, Expectation, FusionCase, run

OPS = ("fused_token_pool", "fused_tokenlearner", "fused_tokenfuser")
CASES = [Case(op, b, n, 96, 8, h=24) for op in OPS for b, n in ((1, 1), (1, 197), (3, 197), (2, 40))]
CASES += [Case(op, 1, 197, 96, 8, h=24, mask="some") for op in OPS[:2]]
FUSION_CASES = {
    "attention": FusionCase("fused_cross_attention", 2, 20, 70, h=4, h_kv=2, mask="some"),
    "attention_to_many": FusionCase("fused_cross_attention", 1, 20, 700, h=2, ranges="media"),
    "projected": FusionCase("fused_latent_resample", 2, 20, 70, options={"method": "projected"}),
    "absorbed": FusionCase("fused_latent_resample", 2, 8, 70, mask="some", options={"method": "absorbed"}),
    "gated_fusion": FusionCase("fused_gated_fusion", 2, 40, 70, h=4, mask="some"),
    "transformer_layer": FusionCase("fused_transformer_layer", 2, 70, 70, h=4, options={"causal": True}),
}
KINDS = {op: Case(op, 2, 70, 96, 8, h=24) for op in OPS} | FUSION_CASES
each_kind = pytest.mark.parametrize("kind", KINDS)


@contextmanager
def pool_threads(count):
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def sample(kind, dtype=torch.bfloat16):
    return KINDS[kind].sample(dtype)


def assert_same(ours, theirs):
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{by_name(case)}")
def test_thread_counts(case, count, target_dtype):
    expectation = Expectation.of(case.sample(target_dtype))
    with pool_threads(count):
        expectation.check("cpu")


@pytest.mark.parametrize("kind", FUSION_CASES)
def test_thread_counts_of_fusion(kind, dtype):
    expectation = Expectation.of(sample(kind, dtype))
    for count in (1, 2, 5):
        with pool_threads(count):
            expectation.check("cpu")


@each_kind
@pytest.mark.parametrize("count", [1, 2, 5])
def test_bits_of_as_many_threads(kind, count):
    with pool_threads(count):
        first = run(sample(kind), "cpu")
    with pool_threads(2 if count == 1 else 1):
        run(sample(kind), "cpu")
    with pool_threads(count):
        assert_same(run(sample(kind), "cpu"), first)


@each_kind
def test_threads_made_later(kind, target_dtype):
    expected = run(sample(kind, target_dtype), "cpu")
    results = [None] * 4

    def work(i):
        results[i] = run(sample(kind, target_dtype), "cpu")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert_same(result, expected)


class Calls(Dataset):
    """Item i is the result of a call, made in the worker."""

    def __len__(self):
        return 2 * len(KINDS)

    def __getitem__(self, i):
        return run(sample(list(KINDS)[i % len(KINDS)]), "cpu")


def test_data_loader_workers(isa):
    expected = [run(sample(kind), "cpu") for kind in KINDS]
    loader = DataLoader(Calls(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for i, result in enumerate(loader):
        assert_same(result, expected[i % len(KINDS)])


FORK = """
import os, sys, torch
sys.path.insert(0, sys.argv[2])
from test_threads import KINDS
from jair_kernels.testing import run, cpu_isa
cases = KINDS.values()
with cpu_isa(sys.argv[1]):
    if sys.argv[3] == "used":
        torch.set_num_threads(1)
        expected = [run(case.sample(torch.bfloat16), "cpu") for case in cases]
    child = os.fork()
    torch.set_num_threads(1)  # as in a DataLoader worker: OpenMP's threads do not survive a fork
    results = [run(case.sample(torch.bfloat16), "cpu") for case in cases]
    if sys.argv[3] == "used":
        same = all(torch.equal(r[name], e[name]) for r, e in zip(results, expected) for name in e)
    else:
        same = all(value.isfinite().all() for r in results for value in r.values())
    if child == 0:
        os._exit(0 if same else 1)
    assert same and os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("parent", ["used", "fresh"])
def test_after_fork(parent, isa):
    """In a process of its own, whose parent has or has not run the kernels before it forked."""
    command = [sys.executable, "-c", FORK, isa, str(Path(__file__).parent), parent]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 0, done.stderr

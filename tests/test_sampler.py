"""AdaptiveSampler: each rule's update by hand, draws, broken losses, sources that end, resuming."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from jair import AdaptiveSampler

SEEN = [1, 1, 1]


def assert_close(sampler: AdaptiveSampler, expected: list[float]) -> None:
    np.testing.assert_allclose(sampler.probabilities, expected, rtol=1e-12, atol=1e-15)
    assert sampler.probabilities.sum() == pytest.approx(1, abs=1e-14)


def test_difficulty_by_hand() -> None:
    sampler = AdaptiveSampler([10, 20, 30], temperature=2.0, epsilon=0.06, smoothing=0.5, warmup_steps=2)
    assert_close(sampler, [1 / 3] * 3)
    sampler.update([4.0, 1.0, 9.0], [3, 1, 0])  # the third is not seen: its 9 counts for nothing
    assert_close(sampler, [1 / 3] * 3)
    sampler.update([2.0, 3.0, 5.0], [1, 1, 1])
    assert_close(sampler, [1 / 3] * 3)
    # Warm-up losses: (4 + 2) / 2 = 3, (1 + 3) / 2 = 2, 5.
    sampler.update([1.0, 8.0, 7.0], [1, 1, 0])
    # EMAs: 0.5 * 3 + 0.5 * 1 = 2, 0.5 * 2 + 0.5 * 8 = 5, 5 as before; d = 2/3, 5/2, 1; their square roots:
    roots = [math.sqrt(2 / 3), math.sqrt(2.5), 1.0]
    assert_close(sampler, [0.94 * root / sum(roots) + 0.02 for root in roots])
    sampler.update([2.0, 1.0, 0.0], [1, 1, 1])
    roots = [math.sqrt(2 / 3), math.sqrt(3 / 2), math.sqrt(2.5 / 5)]
    assert_close(sampler, [0.94 * root / sum(roots) + 0.02 for root in roots])


def test_difficulty_without_a_loss_in_the_warm_up_is_1() -> None:
    sampler = AdaptiveSampler([1, 1], epsilon=0.0, smoothing=0.5, warmup_steps=1)
    sampler.update([2.0, 5.0], [1, 0])
    sampler.update([6.0, 9.0], [1, 1])  # d = (0.5 * 2 + 0.5 * 6) / 2 = 2 and 1
    assert_close(sampler, [2 / 3, 1 / 3])


def test_defaults_are_those_of_the_interface() -> None:
    sampler = AdaptiveSampler([5, 5])
    for _ in range(100):
        sampler.update([1.0, 2.0], [1, 1])
        assert_close(sampler, [0.5, 0.5])
    sampler.update([2.0, 2.0], [1, 1])  # EMA 0.9 + 0.2 = 1.1 over 1, and 2 over 2
    assert_close(sampler, [0.95 * 1.1 / 2.1 + 0.025, 0.95 / 2.1 + 0.025])


def test_odm_by_hand() -> None:
    sampler = AdaptiveSampler([1, 1, 1], "odm")
    assert_close(sampler, [1 / 3] * 3)
    e = [min(1 / 3, math.sqrt(math.log(3) / (3 * t))) for t in (1, 2, 3, 4, 5)]
    r = [0.0, 0.0, 0.0]
    for step in range(5):
        losses = [0.5, 1.0 + step, 2.0]
        sampler.update(losses, [1, 1, step % 2])
        r = [0.9 * r[i] + 0.1 * math.exp(losses[i]) if (i < 2 or step % 2) else r[i] for i in range(3)]
        assert_close(sampler, [(1 - 3 * e[step]) * r[i] / sum(r) + e[step] for i in range(3)])


def test_odm_does_not_overflow() -> None:
    sampler = AdaptiveSampler([1, 1], "odm")
    for _ in range(50):
        sampler.update([5000.0, 4999.0], [1, 1])
    e = math.sqrt(math.log(2) / 100)
    share = math.e / (1 + math.e)
    assert_close(sampler, [(1 - 2 * e) * share + e, (1 - 2 * e) * (1 - share) + e])


def test_exp3_by_hand() -> None:
    sampler = AdaptiveSampler([1, 1, 1], "odm_exp3", warmup_steps=1)
    sampler.update([3.0, 6.0, 1.0], [1, 1, 0])
    assert_close(sampler, [1 / 3] * 3)
    r = [3.0 / 10 * 3, 6.0 / 10 * 3, 0.0]  # each had probability 1/3
    sampler.update([2.0, 1.0, 4.0], [0, 1, 1])
    r = [r[0], r[1] + 0.1 * 3, 0.4 * 3]
    e1, e2 = (min(1 / 3, math.sqrt(math.log(3) / (3 * t))) for t in (1, 2))
    weights = [math.exp(e1 * value) for value in r]
    assert_close(sampler, [(1 - 3 * e2) * w / sum(weights) + e2 for w in weights])


def test_exp3_divides_by_what_was_drawn_with() -> None:
    sampler = AdaptiveSampler([1, 1], "odm_exp3", warmup_steps=0)
    for _ in range(3):
        sampler.update([1.0, 3.0], [1, 1])
    before, reward = sampler.probabilities, sampler.reward.copy()
    sampler.update([1.0, 3.0], [1, 1])
    reward += np.array([0.1, 0.3]) / before
    assert not np.allclose(before, sampler.probabilities)
    sampler.update([2.0, 1.0], [1, 1], drawn_with=before)
    np.testing.assert_allclose(sampler.reward, reward + np.array([0.2, 0.1]) / before, rtol=1e-12)
    with pytest.raises(ValueError, match=r"^drawn_with: expected shape \[2\], got \[3\]$"):
        sampler.update([2.0, 1.0], [1, 1], drawn_with=[0.5, 0.25, 0.25])


def test_exp3_is_uniform_for_2000_steps() -> None:
    sampler = AdaptiveSampler([1, 1], "odm_exp3")
    for _ in range(2000):
        sampler.update([1.0, 3.0], [1, 1])
    assert_close(sampler, [0.5, 0.5])
    sampler.update([1.0, 3.0], [1, 1])
    assert sampler.probabilities[1] > 0.9


def test_doremi_by_hand() -> None:
    sampler = AdaptiveSampler([1, 1], "doremi")
    sampler.update([3.0, 2.0], [1, 1], reference_losses=[1.0, 2.5])  # excess 2, and 0 for what is below 0
    a = [math.exp(2) / (math.exp(2) + 1), 1 / (math.exp(2) + 1)]
    a = [(1 - 1e-4) * value + 1e-4 / 2 for value in a]
    assert_close(sampler, a)
    sampler.update([9.0, 3.5], [0, 1], reference_losses=[0.0, 2.5])  # the first is not seen; excess 1
    b = [a[0], a[1] * math.e]
    assert_close(sampler, [(1 - 1e-4) * value / sum(b) + 1e-4 / 2 for value in b])


def test_temperature_and_uniform() -> None:
    assert_close(AdaptiveSampler([100, 400], "temperature"), [0.2, 0.8])
    assert_close(AdaptiveSampler([100, 400], "temperature", temperature=2.0), [1 / 3, 2 / 3])
    sampler = AdaptiveSampler([100, 400], "uniform")
    sampler.update([9.0, 1.0], [1, 1])
    assert_close(sampler, [0.5, 0.5])


RULES = ("difficulty", "odm", "odm_exp3", "doremi", "temperature", "uniform")


def updated(sampler: AdaptiveSampler, losses: list[float], counts: list[int]) -> None:
    reference = [1.0] * len(losses) if sampler.rule == "doremi" else None
    sampler.update(losses, counts, reference)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_loss_is_ignored_and_counted(rule: str, broken: float) -> None:
    one, other = (AdaptiveSampler([5, 6, 7], rule, warmup_steps=1) for _ in range(2))
    for step in range(4):
        updated(one, [2.0, broken, 3.0 + step], SEEN)
        updated(other, [2.0, 0.0, 3.0 + step], [1, 0, 1])
    assert np.array_equal(one.probabilities, other.probabilities)
    assert (one.ignored, other.ignored) == (4, 0)


@pytest.mark.parametrize("rule", RULES)
def test_resumed_draws_are_those_of_an_unbroken_run(rule: str) -> None:
    def run(sampler: AdaptiveSampler, steps: range) -> list[list[int]]:
        drawn = []
        for step in steps:
            drawn.append(sampler.sample(20).tolist())
            updated(sampler, [1.0 + step % 3, 2.0, 5.0 / (step + 1)], np.bincount(drawn[-1], minlength=3))
        return drawn

    whole = AdaptiveSampler([5, 60, 7], rule, warmup_steps=3, seed=4)
    expected = run(whole, range(12))
    first = AdaptiveSampler([5, 60, 7], rule, warmup_steps=3, seed=4)
    drawn = run(first, range(7))
    state = json.loads(json.dumps(first.state_dict(), allow_nan=False))
    second = AdaptiveSampler([5, 60, 7], rule, warmup_steps=3, seed=99)
    second.load_state_dict(state)
    drawn += run(second, range(7, 12))
    assert drawn == expected
    assert np.array_equal(second.probabilities, whole.probabilities)


def test_draws_follow_the_probabilities() -> None:
    sampler = AdaptiveSampler([100, 400, 500], "temperature", seed=3)
    drawn = sampler.sample(100_000)
    assert drawn.dtype == np.int64
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    np.testing.assert_allclose(shares, [0.1, 0.4, 0.5], atol=5e-3)  # three deviations
    other = AdaptiveSampler([100, 400, 500], "temperature", seed=3)
    assert np.array_equal(other.sample(100_000), drawn)


def test_a_source_that_ends_is_drawn_no_more() -> None:
    sampler = AdaptiveSampler([10, 20, 70], "temperature")
    sampler.end(2)
    assert_close(sampler, [1 / 3, 2 / 3, 0])
    assert set(sampler.sample(1000)) == {0, 1}
    sampler.update([1.0, 1.0, 0.0], [1, 1, 0])
    assert_close(sampler, [1 / 3, 2 / 3, 0])
    sampler.end(1)
    with pytest.raises(ValueError, match="source: expected another to be left, got the last one, 0"):
        sampler.end(0)
    with pytest.raises(ValueError, match="source: expected 0 to 2, got 3"):
        sampler.end(3)


@pytest.mark.parametrize("rule", RULES)
def test_no_source_starves(rule: str) -> None:
    sampler = AdaptiveSampler([5, 5, 5], rule, epsilon=0.3, warmup_steps=1)
    for _ in range(30):
        updated(sampler, [1e-9, 1e-9, 1e6], SEEN)
        assert sampler.probabilities.min() > 0
    if rule == "difficulty":
        assert sampler.probabilities.min() >= 0.1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: AdaptiveSampler([]), ValueError, "sizes: expected at least one source, got none"),
        (
            lambda: AdaptiveSampler([3, 0]),
            ValueError,
            "sizes: expected at least 1 example in each source, got 0",
        ),
        (lambda: AdaptiveSampler([3.5]), TypeError, "sizes: expected ints, got float"),
        (lambda: AdaptiveSampler([3], "best"), ValueError, "rule: expected 'difficulty' or .*, got 'best'"),
        (
            lambda: AdaptiveSampler([3], temperature=0),
            ValueError,
            "temperature: expected a finite number > 0, got 0",
        ),
        (
            lambda: AdaptiveSampler([3], epsilon=1.5),
            ValueError,
            "epsilon: expected a number from 0 to 1, got 1.5",
        ),
        (lambda: AdaptiveSampler([3], smoothing="x"), TypeError, "smoothing: expected a number, got str"),
        (
            lambda: AdaptiveSampler([3], warmup_steps=-1),
            ValueError,
            "warmup_steps: expected an int >= 0, got -1",
        ),
        (lambda: AdaptiveSampler([3], smoothing=1.0), ValueError, "smoothing: .* below 1, got 1.0"),
        (lambda: AdaptiveSampler([3], warmup_steps=False), TypeError, "warmup_steps: .* or None, got bool"),
        (lambda: AdaptiveSampler([3], warmup_steps=0.0), TypeError, "warmup_steps: .* or None, got float"),
        (
            lambda: AdaptiveSampler([3]).load_state_dict(
                {name: value for name, value in AdaptiveSampler([3]).state_dict().items() if name != "total"}
            ),
            ValueError,
            "state: expected all that state_dict gives, got no total",
        ),
        (lambda: AdaptiveSampler([3]).sample(0), ValueError, "n: expected an int >= 1, got 0"),
        (
            lambda: AdaptiveSampler([3]).update([1, 2], [1]),
            ValueError,
            r"losses: expected shape \[1\], got \[2\]",
        ),
        (lambda: AdaptiveSampler([3]).update([1], [-1]), ValueError, "counts: expected numbers >= 0, got -1"),
        (
            lambda: AdaptiveSampler([3], "doremi").update([1], [1]),
            ValueError,
            "reference_losses: expected those of a reference model, got None",
        ),
        (
            lambda: AdaptiveSampler([3]).update([1], [1], [1]),
            ValueError,
            "reference_losses: expected None with rule 'difficulty', got some",
        ),
        (
            lambda: AdaptiveSampler([3]).load_state_dict(AdaptiveSampler([4]).state_dict()),
            ValueError,
            r"state: expected sizes = \[3\], got \[4\]",
        ),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("options", [{"rule": "temperature"}, {"rule": "difficulty", "epsilon": 0.0}])
def test_what_is_left_shares_the_draws_however_unlikely_it_was(options: dict[str, object]) -> None:
    sampler = AdaptiveSampler([1, 2, 10**9], temperature=0.01, warmup_steps=1, **options)  # type: ignore[arg-type]
    for loss in (1.0, 1e9):
        sampler.update([1.0, 1.0, loss], SEEN)
    assert sampler.probabilities[2] == 1
    sampler.end(2)
    shares = [2**-100, 1.0] if sampler.rule == "temperature" else [0.5, 0.5]
    assert_close(sampler, [*(share / sum(shares) for share in shares), 0])
    sampler.update([1.0, 1.0, 0.0], [1, 1, 0])
    assert_close(sampler, [*(share / sum(shares) for share in shares), 0])


@pytest.mark.parametrize("rule", RULES)
def test_the_only_source_seen_ends(rule: str) -> None:
    sampler = AdaptiveSampler([5, 5, 5], rule, warmup_steps=0 if rule == "odm" else 1)
    for _ in range(3):
        updated(sampler, [2.0, 0.0, 0.0], [1, 0, 0])
    sampler.end(0)
    assert_close(sampler, [0, 0.5, 0.5])
    updated(sampler, [0.0, 3.0, 3.0], [0, 1, 1])
    assert_close(sampler, [0, 0.5, 0.5])

"""The identities of docs/derivations.md, in float64; gradients are autograd's."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

N, D, H, K, EPS = 7, 12, 5, 3, 1e-6
DOCUMENT = Path(__file__).parents[1] / "docs" / "derivations.md"


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.fixture
def t() -> SimpleNamespace:
    """One image through a TokenLearner, under the letters of the document, with all gradients by autograd."""
    torch.manual_seed(0)
    t = SimpleNamespace(
        x=randn(N, D) + 2 * randn(N, 1),
        gamma=randn(D),
        beta=randn(D),
        w1=randn(H, D),
        b1=randn(H),
        w2=randn(K, H),
        b2=randn(K),
        dy=randn(K, D),
    )
    names = ("x", "gamma", "beta", "w1", "b1", "w2", "b2")
    leaves = [getattr(t, name).requires_grad_() for name in names]
    t.h = F.linear(F.layer_norm(t.x, (D,), t.gamma, t.beta, EPS), t.w1, t.b1)
    t.s = F.linear(F.gelu(t.h, approximate="tanh"), t.w2, t.b2)
    t.p = t.s.softmax(0)
    t.y = t.p.T @ t.x
    wanted = torch.autograd.grad(t.y, [*leaves, t.h, t.s, t.p], t.dy, retain_graph=True)
    t.want = dict(zip((*names, "h", "s", "p"), wanted, strict=True))
    (t.slope,) = torch.autograd.grad(F.gelu(t.h, approximate="tanh").sum(), t.h)
    for name in (*names, "h", "s", "p", "y"):
        setattr(t, name, getattr(t, name).detach())

    t.mean = t.x.mean(1, keepdim=True)
    t.r = (t.x.var(1, correction=0, keepdim=True) + EPS).rsqrt()
    t.wg = t.w1 * t.gamma
    t.c = t.wg.sum(1)
    t.e = t.w1 @ t.beta + t.b1
    return t


def test_layer_norm_folds_into_the_product(t: SimpleNamespace) -> None:
    assert_close(t.r * (t.x @ t.wg.T - t.mean * t.c) + t.e, t.h)


def test_row_shift_changes_nothing(t: SimpleNamespace) -> None:
    for shift in (t.x[:, :1], t.mean, randn(N, 1)):
        assert_close(t.r * ((t.x - shift) @ t.wg.T - (t.mean - shift) * t.c) + t.e, t.h)


def test_row_shift_removes_the_cancellation(t: SimpleNamespace) -> None:
    """In float32, rows of mean 1000 to 7000 and deviation near 1 need a shift, one for each row."""
    x = (t.x / 3 + 1000 * torch.arange(1, N + 1).unsqueeze(1)).float()
    exact = F.linear(F.layer_norm(x.double(), (D,), t.gamma, t.beta, EPS), t.w1, t.b1)
    mean = x.double().mean(1, keepdim=True)
    r = (x.double().var(1, correction=0, keepdim=True) + EPS).rsqrt()

    def error(shift: torch.Tensor) -> float:
        product = (x - shift.float()) @ t.wg.float().T - (mean - shift.float()).float() * t.c.float()
        return ((r.float() * product + t.e.float()).double() - exact).norm().item() / exact.norm().item()

    none, per_image, per_row = error(torch.zeros(1)), error(x.mean()), error(x[:, :1])
    assert per_row < 1e-5
    assert none > 30 * per_row
    assert per_image > 10 * per_row


def state(s: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maximum, sum of exponentials and pooled tokens of a part of an image."""
    if len(s) == 0:
        return torch.full((K,), -torch.inf, dtype=s.dtype), s.new_zeros(K), x.new_zeros(K, D)
    top = s.max(0).values
    weights = (s - top).exp()
    return top, weights.sum(0), weights.T @ x


def merge(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    top = torch.maximum(a[0], b[0])
    fa, fb = (a[0] - top).exp(), (b[0] - top).exp()
    return top, fa * a[1] + fb * b[1], fa[:, None] * a[2] + fb[:, None] * b[2]


def test_online_softmax_merges_parts_in_any_cut(t: SimpleNamespace) -> None:
    for cuts in ((0, 3, 0, 4), (1,) * N, (N,)):
        parts = [state(s, x) for s, x in zip(t.s.split(cuts), t.x.split(cuts), strict=True)]
        whole = parts[0]
        for part in parts[1:]:
            whole = merge(whole, part)
        assert_close(whole[2] / whole[1][:, None], t.y)
        assert_close((t.s - whole[0]).exp() / whole[1], t.p)


def test_a_log_sum_exp_loses_what_max_and_sum_keep() -> None:
    torch.manual_seed(0)
    s = torch.randn(200, K) + 1e4
    p, top = s.double().softmax(0), s.max(0).values
    two = (s - top).exp() / (s - top).exp().sum(0)
    one = (s - s.logsumexp(0)).exp()
    assert (two / p - 1).abs().max() < 1e-6
    assert (one / p - 1).abs().max() > 1e-5


def test_softmax_backward_needs_one_number_per_token(t: SimpleNamespace) -> None:
    dp = t.x @ t.dy.T
    assert_close(dp, t.want["p"])
    delta = (t.p * dp).sum(0)
    assert_close(delta, (t.y * t.dy).sum(1))
    assert_close(t.p * (dp - delta), t.want["s"])


def test_delta_from_the_tile_is_exact_for_one_token() -> None:
    """With one token p is 1 and dS must be 0: sum p dP gives dP to the bit, y . dy only to rounding."""
    torch.manual_seed(0)
    x, dy = torch.randn(200, 1, 768), torch.randn(200, 8, 768)
    dp = x @ dy.transpose(1, 2)
    p = torch.ones_like(dp)
    assert torch.equal(p * (dp - (p * dp).sum(1, keepdim=True)), torch.zeros_like(dp))
    in_another_order = (x.expand_as(dy) * dy).sum(2).unsqueeze(1)
    assert (dp - in_another_order).abs().max() > 0


def test_delta_as_a_mean_does_not_see_a_rounding_that_all_tokens_share(t: SimpleNamespace) -> None:
    """With a rounded sum every p is off by one factor, which the quotient cancels."""
    dp = t.x @ t.dy.T
    off = t.p * torch.exp(1e-3 * randn(K))
    delta = (off * dp).sum(0) / off.sum(0)
    assert_close(delta, (t.p * dp).sum(0))
    assert ((off * dp).sum(0) - delta).abs().min() > 1e-6


def test_hidden_gradients(t: SimpleNamespace) -> None:
    ds = t.want["s"]
    dh = (ds @ t.w2) * t.slope
    assert_close(dh, t.want["h"])
    assert_close(dh.sum(0), t.want["b1"])
    assert_close(ds.T @ F.gelu(t.h, approximate="tanh"), t.want["w2"])
    assert_close(ds.sum(0), t.want["b2"])


def test_input_gradient_takes_both_means_from_hidden_products(t: SimpleNamespace) -> None:
    dh = t.want["h"]
    xhat = t.r * (t.x - t.mean)
    # the two means over the width that LayerNorm's backward needs, from products of length H
    g = dh @ t.wg
    assert_close(g.mean(1), dh @ t.c / D)
    assert_close((g * xhat).mean(1), (dh * (t.h - t.e)).sum(1) / D)
    product = torch.cat((t.p, t.r * dh), dim=1) @ torch.cat((t.dy, t.wg))
    means = (dh @ t.c / D)[:, None] + xhat * ((dh * (t.h - t.e)).sum(1) / D)[:, None]
    assert_close(product - t.r * means, t.want["x"])


def test_weight_gradients_come_from_one_product(t: SimpleNamespace) -> None:
    dh, db1 = t.want["h"], t.want["b1"]
    for shift in (torch.zeros(N, 1, dtype=torch.float64), t.x[:, :1], randn(N, 1)):
        m = (t.r * dh).T @ (t.x - shift) - (t.r * (t.mean - shift) * dh).sum(0)[:, None]
        assert_close(m, dh.T @ (t.r * (t.x - t.mean)))
        assert_close(m * t.gamma + db1[:, None] * t.beta, t.want["w1"])
        assert_close((t.w1 * m).sum(0), t.want["gamma"])
        assert_close(t.w1.T @ db1, t.want["beta"])


def test_sigmoid_weights_need_no_delta(t: SimpleNamespace) -> None:
    """The token fuser, y = sigmoid(s) tokens, and pooling, y = sigmoid(s)^T x."""
    s, tokens, dy = t.s.clone().requires_grad_(), randn(K, D).requires_grad_(), randn(N, D)
    want = torch.autograd.grad(s.sigmoid() @ tokens, (s, tokens), dy)
    w = t.s.sigmoid()
    assert_close(w * (1 - w) * (dy @ tokens.detach().T), want[0])
    assert_close(w.T @ dy, want[1])
    x, dy = t.x.clone().requires_grad_(), randn(K, D)
    want = torch.autograd.grad(s.sigmoid().T @ x, (s, x), dy)
    assert_close(w * (1 - w) * (t.x @ dy.T), want[0])
    assert_close(w @ dy, want[1])


HEADS, HEAD, L = 2, 6, 4


def heads(rows: torch.Tensor) -> torch.Tensor:
    """[M, heads * d] -> [heads, M, d]."""
    return rows.unflatten(1, (HEADS, HEAD)).transpose(0, 1)


def test_resampling_absorbs_the_projections() -> None:
    """Keys are LayerNorm(x) and the latents; both projections have biases."""
    torch.manual_seed(0)
    x, latents, gamma, beta = randn(N, D) + 1, randn(L, D), randn(D), randn(D)
    wq, wk, wv = (randn(HEADS * HEAD, D) for _ in range(3))
    bk, bv = randn(HEADS * HEAD), randn(HEADS * HEAD)
    keys = torch.cat((F.layer_norm(x, (D,), gamma, beta, EPS), latents))
    scores = heads(latents @ wq.T) @ heads(keys @ wk.T + bk).mT / HEAD**0.5
    expected = scores.softmax(2) @ heads(keys @ wv.T + bv)

    queries = (
        heads(latents @ wq.T) @ wk.unflatten(0, (HEADS, HEAD)) / HEAD**0.5
    )  # [heads, L, D], once for all inputs
    mean, r = x.mean(1), (x.var(1, correction=0) + EPS).rsqrt()
    folded = queries * gamma
    score_x = r * (folded @ x.T - mean * folded.sum(2, keepdim=True)) + (queries @ beta)[..., None]
    p = torch.cat((score_x, queries @ latents.T), dim=2).softmax(
        2
    )  # without b_k: the same for all keys of a query
    p_x, p_latents = p.split((N, L), dim=2)
    pooled_x = gamma * ((p_x * r) @ x - (p_x @ (r * mean))[..., None]) + beta * p_x.sum(2, keepdim=True)
    pooled = pooled_x + p_latents @ latents
    actual = pooled @ wv.unflatten(0, (HEADS, HEAD)).mT + bv.unflatten(0, (HEADS, 1, HEAD))
    assert_close(actual, expected)


def test_query_pooling_takes_both_means_from_products_over_the_outputs() -> None:
    torch.manual_seed(0)
    x, q, dy = (randn(N, D) + 2 * randn(N, 1)).requires_grad_(), randn(K, D).requires_grad_(), randn(K, D)
    xhat = F.layer_norm(x, (D,), eps=EPS)
    s = xhat @ q.T
    p = s.softmax(0)
    dx, dq, g = torch.autograd.grad(p.T @ xhat, (x, q, xhat), dy)

    r, dp = (x.var(1, correction=0, keepdim=True) + EPS).rsqrt(), xhat @ dy.T
    ds = p * (dp - (p * dp).sum(0))
    assert_close(p @ dy + ds @ q, g)
    assert_close(ds.T @ xhat, dq)
    mean, along = p @ dy.sum(1) + ds @ q.sum(1), (p * dp + ds * s).sum(1)
    assert_close(mean / D, g.mean(1))
    assert_close(along / D, (g * xhat).mean(1))
    assert_close(r * (g - (mean[:, None] + xhat * along[:, None]) / D), dx)


@pytest.mark.parametrize(("n", "d", "h"), [(196, 768, 12), (196, 768, 1), (49, 512, 8), (50176, 1024, 16)])
def test_absorbing_pays_below_a_number_of_latents(n: int, d: int, h: int) -> None:
    """Multiply-accumulates of both forms cross where the document says."""
    limit = d / ((h - 1) + d / (2 * n))
    for latents in (1, 16, 64, 128, int(limit), int(limit) + 1):
        projected = 2 * n * d * d + 2 * latents * n * d
        absorbed = 2 * latents * n * h * d + latents * d * d
        assert (absorbed < projected) == (latents < limit)


def test_gradients_of_a_folded_norm_come_from_those_of_the_weights() -> None:
    d, width, keys, queries = 5, 8, 7, 3
    xhat, q = randn(keys, width), randn(queries, d)
    wk, wv, bv = (randn(*size).requires_grad_() for size in ((d, width), (d, width), (d,)))
    gamma, beta = randn(width).requires_grad_(), randn(width).requires_grad_()
    normed, dy = xhat * gamma + beta, randn(queries, d)
    plain = (q @ (normed @ wk.T).T).softmax(1) @ (normed @ wv.T) + bv
    expected = torch.autograd.grad(plain, (wk, wv, bv, gamma, beta), dy)

    wk_folded, wv_folded = ((w * gamma).detach().requires_grad_() for w in (wk, wv))
    bv_folded = (bv + wv @ beta).detach().requires_grad_()
    folded = (q @ wk_folded @ xhat.T).softmax(1) @ xhat @ wv_folded.T + bv_folded
    assert_close(folded, plain)
    dwk, dwv, dbv = torch.autograd.grad(folded, (wk_folded, wv_folded, bv_folded), dy)
    unfolded = (dwk * gamma, dwv * gamma + torch.outer(dbv, beta), dbv)
    norms = ((dwk * wk).sum(0) + (dwv * wv).sum(0), wv.T @ dbv)
    for got, want in zip((*unfolded, *norms), expected, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("size", [1, 6])
def test_a_gate_learns_from_the_weight_gradient(size: int) -> None:
    o, weight, bias = randn(9, 4), randn(6, 4).requires_grad_(), randn(6)
    for start in (torch.zeros(size, dtype=torch.float64), randn(size)):
        gate, dz = start.requires_grad_(), randn(9, 6)
        branch = gate.tanh() * (o @ weight.T + bias)
        dweight, dgate = torch.autograd.grad(branch, (weight, gate), dz)
        product = dz.T @ o
        assert_close(gate.tanh().unsqueeze(1) * product, dweight)
        along = (weight * product).sum(1) + bias * dz.sum(0)
        along = along if size > 1 else along.sum(0, keepdim=True)
        assert_close((1 - gate.tanh().square()) * along, dgate)


def test_a_gate_learns_from_rows_less_their_mean() -> None:
    o, weight, bias = randn(9, 4) + 3, randn(6, 4), randn(6)
    gate, dz = randn(6).requires_grad_(), randn(9, 6)
    (dgate,) = torch.autograd.grad(gate.tanh() * (o @ weight.T + bias), gate, dz)
    mean, total = o.mean(0), dz.sum(0)
    centred = dz.T @ (o - mean)
    assert_close(centred + torch.outer(total, mean), dz.T @ o)
    along = (weight * centred).sum(1) + (weight @ mean + bias) * total
    assert_close((1 - gate.tanh().square()) * along, dgate)


def test_document_and_tests_name_each_other() -> None:
    named = re.findall(r"`(test_\w+)`", DOCUMENT.read_text(encoding="utf-8"))
    here = [name for name in globals() if name.startswith("test_") and "document" not in name]
    assert sorted(named) == sorted(here)

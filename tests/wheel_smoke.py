"""Run where the wheel and torch are installed and nothing else: do the kernels load, and are they right?

Not a pytest file: pytest is not there. ``make wheel-check`` pipes it into that environment's Python.
"""

import torch

import jair
import jair_kernels
from jair_kernels import reference


def main() -> None:
    torch.manual_seed(0)
    b, n, d, h, k = 3, 50, 96, 32, 8
    x, scores, tokens = torch.randn(b, n, d), torch.randn(b, n, k), torch.randn(b, k, d)
    mlp = (torch.randn(h, d) / d**0.5, torch.randn(h), torch.randn(k, h) / h**0.5, torch.randn(k))
    q, keys, v = (torch.randn(b, h // 8, rows, d) for rows in (k, n, n))
    calls = {
        "token_pool": (x, scores),
        "tokenlearner": (x, *mlp),
        "tokenfuser": (x, tokens, *mlp),
        "cross_attention": (q, keys, v),
    }
    for name, inputs in calls.items():
        fused, definition = getattr(jair_kernels, f"fused_{name}"), getattr(reference, name)
        leaves, exact = (
            [t.to(dtype).requires_grad_() for t in inputs] for dtype in (torch.float32, torch.float64)
        )
        y, expected = fused(*leaves, backend="cpu"), definition(*exact)
        dy = torch.randn_like(y)
        grads = torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, exact, dy.double())
        for got, want in zip((y, *grads[0]), (expected, *grads[1]), strict=True):
            error, size = (got - want).norm().item(), want.norm().item()
            assert error <= 1e-5 * (size + 1), f"{name}: off by {error} of {size}"
    print(f"jair_kernels {jair_kernels.__version__} with torch {torch.__version__}: {', '.join(calls)} agree")
    print(jair_kernels.__file__)
    layer = jair.TransformerLayer(d, 4, 2 * d)  # modules need no optional package
    assert layer(x).shape == x.shape


if __name__ == "__main__":
    main()

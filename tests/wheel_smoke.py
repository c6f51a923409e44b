"""Run by an environment that has the wheel and torch and nothing else: do the kernels load, and are they right?

Not a pytest file: pytest is not there. ``make wheel-check`` pipes it into that environment's Python.
"""

import torch

import jair_kernels
from jair_kernels import reference


def main() -> None:
    torch.manual_seed(0)
    b, n, d, h, k = 3, 50, 96, 32, 8
    x, scores, tokens = torch.randn(b, n, d), torch.randn(b, n, k), torch.randn(b, k, d)
    mlp = (torch.randn(h, d) / d**0.5, torch.randn(h), torch.randn(k, h) / h**0.5, torch.randn(k))
    calls = {
        "token_pool": (x, scores),
        "tokenlearner": (x, *mlp),
        "tokenfuser": (x, tokens, *mlp),
    }
    for name, inputs in calls.items():
        fused, definition = getattr(jair_kernels, f"fused_{name}"), getattr(reference, name)
        leaves = [t.clone().requires_grad_() for t in inputs]
        exact = [t.double().requires_grad_() for t in inputs]
        y, expected = fused(*leaves, backend="cpu"), definition(*exact)
        torch.testing.assert_close(y.double(), expected)
        grads = torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(expected.sum(), exact)
        for grad, want in zip(*grads, strict=True):
            torch.testing.assert_close(grad.double(), want, rtol=1e-4, atol=1e-4)
    print(f"jair_kernels {jair_kernels.__version__}, torch {torch.__version__}: {', '.join(calls)} agree on cpu")
    print(jair_kernels.__file__)


if __name__ == "__main__":
    main()

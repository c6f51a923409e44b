"""A small ViT with a TokenLearner in the middle, in plain PyTorch and fused: the same numbers, less memory.

Two blocks run on the 196 patches of a 224 x 224 photograph, the TokenLearner makes 8 tokens of them, two more
blocks run on those. Run it with ``python examples/vit_token_learner.py``. The photographs are scikit-learn's;
reading them needs Pillow.
"""

from __future__ import annotations

import copy
import statistics
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import nn

import jair

PATCH, SIZE, DIM, NUM_TOKENS = 16, 224, 192, 8


class PlainTokenLearner(nn.Module):
    """TokenLearner v1.1 as one writes it in PyTorch, under the parameter names of `jair.TokenLearner`."""

    def __init__(self, dim: int, num_tokens: int, bottleneck_dim: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, bottleneck_dim)
        self.fc2 = nn.Linear(bottleneck_dim, num_tokens)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.fc2(F.gelu(self.fc1(self.norm(x)), approximate="tanh"))
        return scores.softmax(dim=1).transpose(1, 2) @ x


class ViT(nn.Module):
    """Patches [B,N,768] -> class scores [B,10], with `token_learner` between the two halves."""

    def __init__(self, token_learner: nn.Module, blocks: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH * 3, DIM)
        self.position = nn.Parameter(0.02 * torch.randn((SIZE // PATCH) ** 2, DIM))
        self.before = nn.Sequential(*(self.block() for _ in range(blocks)))
        self.token_learner = token_learner
        self.after = nn.Sequential(*(self.block() for _ in range(blocks)))
        self.head = nn.Linear(DIM, classes)

    @staticmethod
    def block() -> nn.Module:
        return nn.TransformerEncoderLayer(
            DIM, DIM // 64, 4 * DIM, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        tokens = self.token_learner(self.before(self.embed(patches) + self.position))
        return self.head(self.after(tokens).mean(dim=1))


def photographs() -> torch.Tensor:
    """Patches [8,196,768] of four crops of each of scikit-learn's two photographs, in 0..1."""
    crops = []
    for image in load_sample_images().images:
        pixels = torch.tensor(image, dtype=torch.float32) / 255
        crops += [pixels[y : y + SIZE, x : x + SIZE] for y in (0, 200) for x in (0, 400)]
    grid = torch.stack(crops).unflatten(1, (-1, PATCH)).unflatten(3, (-1, PATCH))
    return grid.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


def step(model: ViT, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Class scores, and all gradients of a loss in one vector."""
    labels = torch.arange(len(patches)) % 10
    scores = model(patches)
    gradients = torch.autograd.grad(F.cross_entropy(scores, labels), list(model.parameters()))
    return scores, torch.cat([gradient.flatten() for gradient in gradients])


def milliseconds(module: nn.Module, x: torch.Tensor, rounds: int = 9) -> float:
    """Median time of forward and backward."""
    x = x.detach().requires_grad_()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        module(x).sum().backward()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def saved_bytes(module: nn.Module, x: torch.Tensor) -> int:
    """What the module keeps for its backward, without its input and its parameters."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *module.parameters())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x.requires_grad_())  # holding y keeps the addresses from being used twice
    return sum(size for address, size in kept.items() if address not in own and y is not None)


def main() -> dict[str, dict[str, float]]:
    """Compare both models with a float64 one, and the two TokenLearners with each other."""
    torch.manual_seed(0)
    plain = ViT(PlainTokenLearner(DIM, NUM_TOKENS))
    fused = ViT(jair.TokenLearner(DIM, NUM_TOKENS))
    fused.load_state_dict(plain.state_dict())  # the one line that changes is the one above
    patches = photographs()
    exact = step(copy.deepcopy(plain).double(), patches.double())
    with torch.no_grad():
        tokens = plain.before(plain.embed(patches) + plain.position)

    results = {}
    for name, model in (("plain", plain), ("fused", fused)):
        errors = [
            ((got.double() - want).norm() / want.norm()).item()
            for got, want in zip(step(model, patches), exact, strict=True)
        ]
        results[name] = {
            "scores": errors[0],
            "gradients": errors[1],
            "saved_kb": saved_bytes(model.token_learner, tokens.clone()) / 1000,
            "ms": milliseconds(model.token_learner, tokens),
        }
    print(
        f"ViT on {len(patches)} photographs, {patches.shape[1]} patches each, then {NUM_TOKENS} tokens each"
    )
    print("relative error against float64 | TokenLearner alone: saved for backward, forward + backward")
    for name, row in results.items():
        print(
            f"{name}  scores {row['scores']:.1e}  gradients {row['gradients']:.1e}"
            f"  |  {row['saved_kb']:7.0f} kB  {row['ms']:6.2f} ms"
        )
    return results


if __name__ == "__main__":
    main()

"""
All four granularities
======================

Units, single weights, layers and cells in one plan, on one model, in a run that may be stopped anywhere and goes on.

A small vision transformer learns to tell scanned digits apart. Its hidden neurons grow by GradMax, a cell is added
whenever the loss has stopped falling, heads are pruned, then four fifths of its weights, which RigL goes on to move.

::

    python docs/gallery/mixed.py run/ [--stop 150]     # again, to go on from there
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import regrow as rg

STEPS = 240

PLAN = rg.chain(
    rg.every(20, rg.Grow(rg.GradMax(beyond_rank="random"), 8, where="blocks.*.mlp*"), stop=60),
    rg.every(15, rg.Grow(rg.AutoGrow(when="plateau", threshold=0.15), 1, kind="cell"), start=30, stop=120),
    rg.at(140, rg.Prune(rg.L1(), 0.25, kind="head")),
    rg.at(160, rg.Prune(rg.Magnitude(), rg.Sparsity(0.8), kind="weight")),
    rg.every(10, rg.Rewire(rg.RigL(), rg.cosine(0.3, 0.0)), start=160, stop=220),
)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm_2, self.mlp = (
            nn.LayerNorm(width),
            nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(self.norm_2(x))


class Transformer(nn.Module):
    """Patches of two by two pixels of an eight by eight image."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


def data() -> tuple[Tensor, Tensor]:
    """Pixels between −1 and 1, and labels."""
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(digits.target)


def train(folder: Path, stop: int = STEPS, say: bool = True) -> tuple[nn.Module, float]:
    """Train until a step, from where the folder has got to; the model, and its loss on all digits."""
    torch.manual_seed(0)
    x, y = data()
    model = Transformer()
    saved = torch.load(folder / "training.pt", weights_only=True) if (folder / "training.pt").exists() else None
    if saved is not None:
        model = rg.load(folder, model)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    shaper = rg.Shaper(model, optimizer, PLAN, example=x[:8])
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
        shaper.load_state_dict(saved["shaper"])
    while shaper.steps < stop:
        batch = torch.randperm(len(x), generator=torch.Generator().manual_seed(shaper.steps))[:128]

        def loss(batch: Tensor = batch) -> Tensor:
            return F.cross_entropy(model(x[batch]), y[batch])

        value = loss() + shaper.penalty()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        for edit in shaper.step(loss):
            if say:
                print(f"step {shaper.steps}, loss {value.item():.3f}: {edit}")
    rg.save(model, folder)
    torch.save({"optimizer": optimizer.state_dict(), "shaper": shaper.state_dict()}, folder / "training.pt")
    with torch.no_grad():
        return model, float(F.cross_entropy(model(x), y))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stop", type=int, default=STEPS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print(f"loss on all digits: {train(given.folder, given.stop)[1]:.3f}")

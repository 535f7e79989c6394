"""A model on the workbench: trained a little, with its optimizer, an example and its structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import regrow as rg
import zoo
from state import snapshot, train_step

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adamw_amsgrad": partial(torch.optim.AdamW, lr=0.01, amsgrad=True),
    "rmsprop_centered": partial(torch.optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
}
REPRESENTATIVE = ("residual", "grouped", "shared", "flatten")


@dataclass
class Bench:
    """A model, its optimizer after two steps of training, an example and the structure."""

    model: Any
    x: Tensor
    optimizer: torch.optim.Optimizer
    structure: rg.Structure

    def step(self) -> Tensor:
        return train_step(self.model, self.optimizer, self.x)

    def snapshot(self) -> dict[str, Any]:
        return snapshot(self.model, self.optimizer)


def bench(
    name: str, variant: str = "module", optimizer: str = "sgd", dtype: torch.dtype = torch.float32, **options: Any
) -> Bench:
    model = zoo.build(name, variant, dtype)
    x = zoo.example(name, dtype=dtype)
    made = OPTIMIZERS[optimizer](model.parameters(), **options)
    result = Bench(model, x, made, rg.analyze(model, x))
    for _ in range(2):
        result.step()
    return result


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(structure: rg.Structure) -> list[rg.Axis]:
    """The first, the middle, the last and the most entangled axis."""
    axes = structure.axes
    busiest = max(axes, key=lambda axis: len(axis.entries))
    return list({axis.name: axis for axis in (axes[0], axes[len(axes) // 2], axes[-1], busiest)}.values())

"""What is measured of the pruned ResNet."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import interleaved, paired_ratio, summary
from torch import Tensor, nn
from torch.optim import Optimizer

import regrow as rg

from .looks import carried, cpu_seconds, held, lines, mark, moved, shapes, size
from .resnets import LR, MOMENTUM, regrow_halves, resnet, torch_pruning_halves
from .saving import regrow_saves, torch_pruning_saves

Row = dict[str, Any]

#: Way -> the fraction of channels, and the number of steps to it.
STEPS: Mapping[str, tuple[float, int]] = {"0.3 of the channels at once": (0.3, 1), "0.05 at a time": (0.5, 10)}
WARMUP = 3


class Training:
    """A ResNet in the middle of its training on noise.

    Args:
        batch: Images.
        pixels: Their height and width.
    """

    def __init__(self, batch: int, pixels: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, 3, pixels, pixels, generator=generator)
        self.y = torch.randint(10, (batch,), generator=generator)
        self.model = resnet()
        self.optimizer: Optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM)
        for _ in range(WARMUP):
            self.step()

    @property
    def example(self) -> Tensor:
        """Two images: batch norm takes no single value."""
        return self.x[:2]

    def loss(self) -> Tensor:
        """Of the batch."""
        return F.cross_entropy(self.model(self.x), self.y)

    def step(self) -> None:
        """One step of the optimizer."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


#: Prunes a training's model, and returns the optimizer to go on with, and what a later save needs.
Prunes = Callable[[Training], tuple[Optimizer, Any]]


def torch_prunings(ratio: float, steps: int) -> Prunes:
    """Torch-Pruning's side."""
    return lambda training: torch_pruning_halves(training.model, training.example, ratio, steps)


def regrows(training: Training) -> tuple[Optimizer, Any]:
    """regrow's side."""
    return training.optimizer, regrow_halves(training.model, training.example, training.optimizer)


def facts(training: Training, prune: Prunes, restore: Callable[[Training, Any, Path], nn.Module]) -> Row:
    """What a pruning leaves, and whether training and saving go on."""
    model, old = training.model, training.optimizer
    before, flops, params = shapes(model), rg.measure.flops(model, training.example), size(model)
    mark(model, old)
    optimizer, needed = prune(training)
    found: Row = {
        "flops_left": rg.measure.flops(model, training.example) / flops,
        "params_left": size(model) / params,
        "parameters": len(before),
        "old_optimizer_holds": held(model, old),
        "held": held(model, optimizer),
        "carried": carried(model, optimizer, before),
        "moved": moved(model, optimizer, training.loss),
    }
    return found | {"restored": _same(training, restore, needed)}


def _same(training: Training, restore: Callable[[Training, Any, Path], nn.Module], needed: Any) -> bool:
    """Whether a fresh model becomes the pruned one from what was saved, no module having been pickled."""
    with tempfile.TemporaryDirectory() as folder:
        again = restore(training, needed, Path(folder))
    again.eval(), training.model.eval()
    with torch.no_grad():
        return torch.equal(again(training.x), training.model(training.x))


def torch_pruning_restores(training: Training, pruner: Any, folder: Path) -> nn.Module:
    """By the history of what went."""
    return torch_pruning_saves(training.model, pruner, resnet(1), training.example, folder / "saved.pt")


def regrow_restores(training: Training, _: Any, folder: Path) -> nn.Module:
    """By shapes."""
    return regrow_saves(training.model, resnet(1), folder / "saved")


def pruning_seconds(batch: int, pixels: int, prune: Prunes) -> float:
    """CPU time of it; the training before doesn't count."""
    training = Training(batch, pixels)
    return cpu_seconds(lambda: prune(training))


def pass_seconds(batch: int, pixels: int) -> float:
    """CPU time of a forward and a backward pass."""
    training = Training(batch, pixels)
    return cpu_seconds(lambda: training.loss().backward())


def contestants() -> dict[tuple[str, str], tuple[Prunes, Callable[..., nn.Module], int]]:
    """Library and way -> what prunes, what restores, and lines of code to prune."""
    theirs = lines(torch_pruning_halves)
    found: dict[tuple[str, str], tuple[Prunes, Callable[..., nn.Module], int]] = {
        ("Torch-Pruning", way): (torch_prunings(*how), torch_pruning_restores, theirs) for way, how in STEPS.items()
    }
    return found | {("regrow", "half of the FLOPs"): (regrows, regrow_restores, lines(regrow_halves))}


def resnet_rows(repeats: int, batch: int = 128, pixels: int = 32) -> list[Row]:
    """A row for each library and way."""
    entered = contestants()
    runs = {
        " ".join(who): (lambda prune=prune: pruning_seconds(batch, pixels, prune))
        for who, (prune, _, _) in entered.items()
    }
    times = interleaved({"pass": lambda: pass_seconds(batch, pixels), **runs}, repeats, warmup=1)
    rows = []
    for (library, way), (prune, restore, length) in entered.items():
        taken = times[f"{library} {way}"]
        row: Row = {"task": "resnet", "library": library, "way": way, "lines": length, **summary(taken)}
        row |= {"passes": paired_ratio(taken, times["pass"]), **facts(Training(batch, pixels), prune, restore)}
        row["setup"] = f"images of {pixels} × {pixels}, batches of {batch}"
        row["met"] = library != "regrow" or (row["flops_left"] <= 0.5 and kept(row) and row["restored"])
        rows.append(row)
    return rows


def kept(row: Row) -> bool:
    """Whether the optimizer went on with all parameters and their momentum."""
    return row["held"] == row["carried"] == row["moved"] == row["parameters"]

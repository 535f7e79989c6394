"""Growing depth against training the deep network from scratch, at equal training FLOPs, on CIFAR-10.

A ResNet-20 has three stages of three blocks. It is trained as it is, or starts with one block a stage and is deepened
one block at a time, by copies that start as the identity, between 10 % and half of the training FLOPs. Cheaper steps
buy the grown network more of them.

Runs that have been done are kept, a line each, in a file that is committed beside the results, and aren't done again.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, write
from growth_runs import Setup
from runs import do_missing, kept
from torch import Tensor, nn

import regrow as rg
from regrow.bench.probe import evaluate, evaluating

STAGES, FULL = 3, 3
NAMES = ("small", "full", "deepened")


class Block(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs)
        self.conv2, self.bn2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs)
        self.skip = nn.Sequential()
        if stride != 1 or ins != outs:
            self.skip = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.skip(x))


def resnet(blocks: int) -> nn.Module:
    """A ResNet for images of 32x32, with as many blocks in each stage."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    ins = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        stage = []
        for number in range(blocks):
            stage.append(Block(ins, width, stride if number == 0 else 1))
            ins = width
        layers.append(nn.Sequential(*stage))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Config:
    """A run: "small" and "full" keep their depth, "deepened" grows from the one to the other."""

    name: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.name}__{self.seed}"


def run(setup: Setup, config: Config) -> dict[str, Any]:
    """Train one network until its FLOPs are used up; what it reached, as plain values."""
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    x, y, *test = setup.load()
    budget = setup.steps * rg.analyze(resnet(FULL), x[:2]).flops()
    model = resnet(FULL if config.name == "full" else 1)
    optimizer = torch.optim.SGD(model.parameters(), setup.lr, setup.momentum, weight_decay=setup.weight_decay)
    structure = rg.analyze(model, x[:2])
    events = STAGES * (FULL - 1) if config.name == "deepened" else 0
    due = [0.1 + 0.4 * i / (events - 1) for i in range(events)]
    jumps, steps, used = [], 0, 0.0
    batches = _batches(setup, x, y, torch.Generator().manual_seed(100 + config.seed))
    while used < budget:
        if due and used / budget >= due[0]:
            stage = 3 + (events - len(due)) % STAGES
            due.pop(0)
            jumps.append(_deepened(model, structure, optimizer, stage, (x[:512], y[:512])))
        for group in optimizer.param_groups:
            group["lr"] = setup.lr * (1 + math.cos(math.pi * used / budget)) / 2
        batch, labels = next(batches)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(batch), labels).backward()
        optimizer.step()
        steps, used = steps + 1, used + structure.flops()
    with evaluating(model):
        train_loss, _ = evaluate(model, zip(x.split(1000), y.split(1000), strict=True))
        test_loss, test_accuracy = evaluate(model, zip(test[0].split(1000), test[1].split(1000), strict=True))
    found = {"train_loss": train_loss, "test_loss": test_loss, "test_accuracy": test_accuracy, "steps": steps}
    params = sum(parameter.numel() for parameter in model.parameters())
    return {**asdict(config), **found, "params": params, "jump_largest": max(map(abs, jumps), default=0.0)}


def _batches(setup: Setup, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        for index in torch.randperm(len(x), generator=generator).split(setup.batch):
            if len(index) == setup.batch:
                yield x[index], y[index]


def _deepened(
    model: nn.Module,
    structure: rg.Structure,
    optimizer: torch.optim.Optimizer,
    stage: int,
    probe: tuple[Tensor, Tensor],
) -> float:
    """Copy the last block of a stage; by how much the loss jumped at that in eval mode, relative."""
    with evaluating(model):
        before = evaluate(model, iter([probe]))[0]
    last = [layer for layer in structure.layers if layer.name.startswith(f"{stage}.") and layer.name.count(".") == 1][
        -1
    ]
    rg.grow_(last, 1, rg.Deepen("copy"), optimizer=optimizer)
    with evaluating(model):
        return evaluate(model, iter([probe]))[0] / before - 1


def summarise(runs: list[dict[str, Any]]) -> None:
    """Means over seeds; what is grown is to reach what the full network reaches."""
    rows = []
    for name in NAMES:
        here = [r for r in runs if r["name"] == name]
        if here:
            row: dict[str, Any] = {"model": "cifar10/resnet20", "edit": name, "seeds": len(here)}
            for key in ("test_accuracy", "train_loss", "steps", "params", "jump_largest"):
                row[key] = statistics.mean(r[key] for r in here)
            rows.append(row | {"least": min(r["test_accuracy"] for r in here), "met": True})
    full = next((row for row in rows if row["edit"] == "full"), None)
    for row in rows:
        if full is not None and row["edit"] == "deepened":
            row["met"] = row["test_accuracy"] >= full["test_accuracy"]
    write("depth_growth", "test accuracy at equal training FLOPs", "deepened at least full", rows)


def main() -> None:
    """Do the runs that are missing, and summarise all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 as parquet files")
    parser.add_argument("--store", type=Path, default=RESULTS / "depth_growth.jsonl", help="where runs are kept")
    parser.add_argument("--images", type=int, default=Setup.images)
    parser.add_argument("--epochs", type=int, default=6, help="of the full network")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each on one core")
    given = parser.parse_args()
    setup = Setup(given.data, given.images, given.epochs, lr=0.1)
    wanted = [Config(name, seed) for seed in range(given.seeds) for name in NAMES]
    do_missing(given.store, setup, wanted, run, given.jobs)
    summarise(list(kept(given.store, setup).values()))


if __name__ == "__main__":
    main()

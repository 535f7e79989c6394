"""Sparse from beginning to end: RigL, SET and static masks at 80, 90 and 98 %, beside dense training.

A VGG11 of a quarter width learns CIFAR-10, in equally many epochs for all. The learning rate is the best of a few for
the dense network, and the same for all others. Masks start at random, distributed by Erdős–Rényi-kernel; with RigL and
SET a fraction of each tensor's weights moves every 20 steps, 0.3 at first and along a cosine to none at three quarters
of the training.

Runs that have been done are kept, a line each, in a file that is committed beside the results, and aren't done again.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, write
from growth_runs import Setup
from runs import do_missing, kept

import regrow as rg
from regrow.bench.probe import evaluate, evaluating

METHODS: dict[str, Any] = {"static": None, "set": rg.SET(), "rigl": rg.RigL()}
SPARSITIES = (0.8, 0.9, 0.98)
RATES = (0.02, 0.05, 0.1)
PERIOD, MOVING, UNTIL = 20, 0.3, 0.75


@dataclass(frozen=True)
class Config:
    """A run: its method ("dense" for none), sparsity, seed and learning rate."""

    name: str
    sparsity: float
    seed: int
    lr: float

    @property
    def key(self) -> str:
        return f"{self.name}__{self.sparsity}__{self.lr}__{self.seed}"


def run(setup: Setup, config: Config) -> dict[str, Any]:
    """Train one network to the end; what it reached, as plain values."""
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    model = setup.network("conv-norm-relu", full=True)
    x, y, *test = setup.load()
    optimizer = torch.optim.SGD(model.parameters(), config.lr, setup.momentum, weight_decay=setup.weight_decay)
    structure = rg.analyze(model, x[:2])
    if config.sparsity:
        rg.prune_(structure.weights, rg.Sparsity(config.sparsity, "erk"), rg.Random(), optimizer=optimizer)
    shaper = None
    if METHODS.get(config.name) is not None:
        moving = rg.Rewire(METHODS[config.name], rg.cosine(MOVING, 0.0))
        shaper = rg.Shaper(model, optimizer, rg.every(PERIOD, moving, stop=round(UNTIL * setup.steps)), example=x[:2])
    order = torch.Generator().manual_seed(100 + config.seed)
    step = 0
    while step < setup.steps:
        for index in torch.randperm(len(x), generator=order).split(setup.batch):
            if len(index) < setup.batch:
                continue
            for group in optimizer.param_groups:
                group["lr"] = config.lr * (1 + math.cos(math.pi * step / setup.steps)) / 2
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            step += 1
            if shaper is not None:
                shaper.step()
    with evaluating(model):
        train_loss, train_accuracy = evaluate(model, zip(x.split(1000), y.split(1000), strict=True))
        test_loss, test_accuracy = evaluate(model, zip(test[0].split(1000), test[1].split(1000), strict=True))
    found = {"train_loss": train_loss, "train_accuracy": train_accuracy}
    found |= {"test_loss": test_loss, "test_accuracy": test_accuracy}
    alive = sum(weights.alive for weights in structure.weights)
    return {**asdict(config), **found, "alive": alive, "size": sum(weights.size for weights in structure.weights)}


def summarise(runs: list[dict[str, Any]], lr: float) -> None:
    """Means over seeds, with the spread, and whether RigL ≥ SET ≥ static."""
    rows: list[dict[str, Any]] = []
    for sparsity in (0.0, *SPARSITIES):
        for name in ("dense",) if not sparsity else METHODS:
            here = [r for r in runs if r["name"] == name and r["sparsity"] == sparsity and r["lr"] == lr]
            if not here:
                continue
            accuracies, losses = [r["test_accuracy"] for r in here], [r["train_loss"] for r in here]
            row = {"model": "cifar10/vgg11 --width 0.25", "edit": name, "sparsity": sparsity, "seeds": len(here)}
            row |= {"lr": lr, "test_accuracy": statistics.mean(accuracies), "train_loss": statistics.mean(losses)}
            row |= {"test_accuracy_least": min(accuracies), "test_accuracy_largest": max(accuracies), "met": True}
            rows.append(row)
    for sparsity in SPARSITIES:
        order = [row for row in rows if row["sparsity"] == sparsity]
        for lower, higher in pairwise(order):
            higher["met"] = higher["test_accuracy"] >= lower["test_accuracy"]
    write("sparse_training", "test accuracy of sparse training", "RigL at least SET at least static", rows)


def main() -> None:
    """Choose the learning rate, do the runs that are missing, and summarise all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 as parquet files")
    parser.add_argument("--store", type=Path, default=RESULTS / "sparse_training.jsonl", help="where runs are kept")
    parser.add_argument("--images", type=int, default=Setup.images)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each on one core")
    given = parser.parse_args()
    setup = Setup(given.data, given.images, given.epochs)
    do_missing(given.store, setup, [Config("dense", 0.0, 0, lr) for lr in RATES], run, given.jobs)
    dense = [r for r in kept(given.store, setup).values() if r["name"] == "dense" and r["seed"] == 0]
    lr = max(dense, key=lambda r: r["test_accuracy"])["lr"]
    seeds = range(given.seeds)
    wanted = [Config("dense", 0.0, seed, lr) for seed in seeds]
    wanted += [Config(name, sparsity, seed, lr) for seed in seeds for sparsity in SPARSITIES for name in METHODS]
    do_missing(given.store, setup, wanted, run, given.jobs)
    summarise(list(kept(given.store, setup).values()), lr)


if __name__ == "__main__":
    main()

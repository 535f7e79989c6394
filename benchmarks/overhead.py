"""What does a training step cost under a Shaper that has nothing to do, and what do the pruners' penalties add?

One model trains with one optimizer, and its steps are in turn plain, under a Shaper whose plan edits much later, and
with each method that adds a penalty to the loss. Copies of a model that trained side by side differed from each other
by more than what is measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from common import interleaved, paired_ratio, repeats, seconds, summary, write
from torch import Tensor, nn

import regrow as rg
from regrow.bench.models import VGG11_WIDTHS, scaled, vgg11

FAR_AWAY = 10**9
IDLE, PENALTY = 1.02, 1.01


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, plan: Any = None
) -> Callable[[], float]:
    """A function that trains one step, with a Shaper if there is a plan, and returns its seconds."""
    shaper = None if plan is None else rg.Shaper(model, optimizer, plan, example=x)

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        if shaper is not None:
            loss = loss + shaper.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if shaper is not None:
            shaper.step()

    return lambda: seconds(step)


def main() -> None:
    number = repeats("Training steps under a Shaper against the plain loop.", 200)
    cases = {
        "vgg11, width 1/4, batch 128, 32x32": (vgg11(scaled(VGG11_WIDTHS, 0.25), 3, 10), (128, 3, 32, 32)),
        "resnet18, batch 32, 64x64": (torchvision.models.resnet18(num_classes=10), (32, 3, 64, 64)),
    }
    plans = {
        "idle": rg.Grow(rg.Random(), 2),
        "l1": rg.Prune(rg.L1(1e-4), 2),
        "polarization": rg.Prune(rg.Polarization(1e-4), 2),
    }
    idle, penalties = [], []
    for model_name, (model, shape) in cases.items():
        torch.manual_seed(0)
        x, y = torch.randn(shape), torch.randint(10, shape[:1])
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        steps = {"plain": training_step(model, optimizer, x, y)}
        for name, action in plans.items():
            steps[name] = training_step(model, optimizer, x, y, rg.at(FAR_AWAY, action))
        times = interleaved(steps, number)
        for name in plans:
            row = {"model": model_name, "edit": name, "ratio": paired_ratio(times[name], times["plain"])}
            row["met"] = row["ratio"] <= (IDLE if name == "idle" else PENALTY)
            row |= {"repeats": number, "plain": summary(times["plain"]), "time": summary(times[name])}
            (idle if name == "idle" else penalties).append(row)
    write("overhead", "training step under an idle Shaper / plain training step", f"at most {IDLE}", idle)
    write("penalties", "training step with a pruner's penalty / plain training step", f"at most {PENALTY}", penalties)


if __name__ == "__main__":
    main()

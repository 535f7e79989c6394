"""What does a training step cost under a Shaper that has nothing to do?

Two copies of a model train side by side, step by step in turn: one in a plain loop, one under a Shaper whose
plan edits much later. The third copy also carries an L1 penalty, which is arithmetic that any implementation
pays for; it is reported, not held to the goal.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from common import interleaved, paired_ratio, repeats, seconds, summary, write
from torch import Tensor, nn

import regrow as rg

FAR_AWAY = 10**9
GOAL = 1.02


def training_step(model: nn.Module, x: Tensor, y: Tensor, plan: Any = None) -> Callable[[], float]:
    """A function that trains one step, with a Shaper if there is a plan, and returns its seconds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
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


def small_vgg() -> nn.Module:
    """A narrow VGG11 for 32×32 images: short steps, on which overhead shows most."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 0, 32, 0, 64, 64, 0, 128, 128, 0, 128, 128, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))


def main() -> None:
    number = repeats("Training step under an idle Shaper against the plain loop.", 100)
    cases = {
        "vgg11, width 1/4, batch 64, 32x32": (small_vgg(), (64, 3, 32, 32)),
        "resnet18, batch 8, 64x64": (torchvision.models.resnet18(num_classes=10), (8, 3, 64, 64)),
    }
    rows = []
    for name, (model, shape) in cases.items():
        torch.manual_seed(0)
        x, y = torch.randn(shape), torch.randint(10, shape[:1])
        grow = rg.at(FAR_AWAY, rg.Grow(rg.Random(), 2))
        slim = rg.at(FAR_AWAY, rg.Prune(rg.L1(1e-4), 2))
        plain = training_step(copy.deepcopy(model), x, y)
        idle = training_step(copy.deepcopy(model), x, y, grow)
        penalised = training_step(copy.deepcopy(model), x, y, slim)
        times = interleaved({"plain": plain, "idle": idle, "penalty": penalised}, number)
        ratio = paired_ratio(times["idle"], times["plain"])
        rows.append(
            {
                "model": name,
                "ratio": ratio,
                "met": ratio <= GOAL,
                "ratio_with_l1_penalty": paired_ratio(times["penalty"], times["plain"]),
                "repeats": number,
                **{key: summary(values) for key, values in times.items()},
            }
        )
    write("overhead", "training step under an idle Shaper / plain training step", f"at most {GOAL}", rows)


if __name__ == "__main__":
    main()

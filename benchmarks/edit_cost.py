"""What does an edit cost, beside copying once what it touches?

The edit of an axis and a copy of all that follows it (parameters, buffers, gradients, optimizer state) are
timed in turn; each edit is undone outside the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from common import interleaved, repeats, seconds, summary, write
from torch import Tensor, nn

import regrow as rg

PART = 0.25
COPIES, PER_TENSOR = 3, 1e-3  # the goal: so many copies, and so many seconds for each tensor


def touched(model: nn.Module, axes: tuple[rg.Axis, ...], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All tensors that follow these axes, each once."""
    found: dict[int, Tensor] = {}
    for tensor in (entry.tensor for axis in axes for entry in axis.entries):
        states = optimizer.state.get(tensor, {}).values()
        mirrored = (s for s in states if isinstance(s, Tensor) and s.shape == tensor.shape)
        for follower in (tensor, tensor.grad, *mirrored):
            if follower is not None:
                found[id(follower)] = follower
    return list(found.values())


def timed_and_undone(edit: Callable[[], rg.Edit]) -> float:
    made: list[rg.Edit] = []
    taken = seconds(lambda: made.append(edit()))
    made[0].undo_()
    return taken


def measure(
    name: str,
    model: nn.Module,
    x: Tensor,
    optimizer_class: Callable[..., torch.optim.Optimizer],
    number: int,
    which: str,
) -> list[dict[str, Any]]:
    optimizer = optimizer_class(model.parameters(), lr=1e-3)
    model(x).square().mean().backward()
    optimizer.step()
    structure = rg.analyze(model, x)
    axes = structure.select(which)
    tensors = touched(model, axes, optimizer)
    followed = {entry.name for axis in axes for entry in axis.entries}

    def copy() -> None:
        with torch.no_grad():
            for tensor in tensors:
                tensor.clone()

    target = axes if len(axes) > 1 else axes[0]
    gone = {axis.name: PART for axis in axes}
    contestants: dict[str, Callable[[], float]] = {
        "copy": lambda: seconds(copy),
        "grow": lambda: timed_and_undone(lambda: rg.grow_(target, PART, optimizer=optimizer)),
        "prune": lambda: timed_and_undone(lambda: rg.prune_(target, gone, rg.L1(), optimizer=optimizer)),
    }
    times = {key: summary(values) for key, values in interleaved(contestants, number).items()}
    copying = times["copy"]["median_ms"] / 1e3
    goal = COPIES * copying + PER_TENSOR * len(followed)
    return [
        {
            "model": name,
            "optimizer": type(optimizer).__name__,
            "axes": len(axes),
            "edit": kind,
            "ratio_to_copy": times[kind]["median_ms"] / times["copy"]["median_ms"],
            "part_of_goal": times[kind]["median_ms"] / 1e3 / goal,
            "met": times[kind]["median_ms"] / 1e3 <= goal,
            "goal_ms": 1e3 * goal,
            "tensors": len(followed),
            "tensors_with_gradients_and_state": len(tensors),
            "megabytes": sum(t.numel() * t.element_size() for t in tensors) / 1e6,
            "repeats": number,
            "time": times[kind],
            "copy": times["copy"],
        }
        for kind in ("grow", "prune")
    ]


def main() -> None:
    number = repeats("An edit against copying the tensors it touches once.", 20)
    x = torch.randn(2, 3, 64, 64)
    rows = []
    for name, which in (
        ("resnet18", "layer1.0.conv1"),
        ("resnet18", "layer4.0.conv1"),
        ("resnet18", "*"),
        ("densenet121", "features.denseblock1.denselayer1.conv2"),
        ("vgg11_bn", "classifier.0"),
    ):
        for optimizer_class in (torch.optim.SGD, torch.optim.Adam):
            model = torchvision.models.get_model(name, weights=None, num_classes=10)
            rows += measure(f"{name}: {which}", model, x, optimizer_class, number, which)
    write(
        "edit_cost",
        "one structural edit / copying what it touches once",
        f"at most {COPIES} copies + {1e3 * PER_TENSOR:g} ms per tensor",
        rows,
    )


if __name__ == "__main__":
    main()

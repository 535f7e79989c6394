"""What a plan will do to a model, before anything runs: sizes, FLOPs and the cost of training, step by step."""

from __future__ import annotations

import copy
import dataclasses
import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .actions import Action, Grow
from .cutoffs import Threshold, Valley
from .edit import Edit
from .errors import NotPermissible
from .growing.deepen import Deepen
from .growing.random import Random
from .measure import parameters
from .plan import Plan
from .structure import Axis, Layer, Weights
from .structure.example import tensors_in

#: A training step is a forward pass and a backward pass of twice its cost.
PASSES = 3


@dataclass(frozen=True)
class Event:
    """What happens at a step.

    Attributes:
        step: At which.
        what: The edit, or why it can't be foreseen, as it prints.
        params, flops: Of the model afterwards; FLOPs of a forward pass on the example.
        foreseen: Whether sizes are known; they aren't where they follow from values that training makes.
    """

    step: int
    what: str
    params: int
    flops: float
    foreseen: bool = True


@dataclass(frozen=True)
class Preview:
    """A plan's timeline.

    Attributes:
        steps: Of the training.
        params, flops: Of the model before it.
        events: What happens, in order.
    """

    steps: int
    params: int
    flops: float
    events: tuple[Event, ...]

    @property
    def cost(self) -> float:
        """FLOPs of the whole training on batches like the example: three forward passes a step."""
        return PASSES * sum(flops * (end - start) for start, end, flops in self._stretches())

    @property
    def relative_cost(self) -> float:
        """The cost as a fraction of that at the final size all the time."""
        final = self.events[-1].flops if self.events else self.flops
        return self.cost / (PASSES * final * self.steps) if final else 1.0

    def _stretches(self) -> list[tuple[int, int, float]]:
        """From which step to which the model has how many FLOPs; an edit comes after its step."""
        starts = [(0, self.flops), *((event.step, event.flops) for event in self.events)]
        ends = [start for start, _ in starts[1:]] + [self.steps]
        return [(start, end, flops) for (start, flops), end in zip(starts, ends, strict=True)]

    def __str__(self) -> str:
        lines = [f"{'step':>8}  {'params':>12}  {'FLOPs':>9}  what", _line(0, self.params, self.flops, "")]
        lines += [_line(event.step, event.params, event.flops, event.what) for event in self.events]
        part = f"{self.relative_cost:.0%} of those at the final size"
        lines.append(f"{self.steps:,} steps: {self.cost:.3g} FLOPs of training, {part}")
        return "\n".join(line.rstrip() for line in lines)

    def draw(self, path: str | Path, width: int = 720, height: int = 260) -> None:
        """Write the timeline as a picture (SVG): FLOPs of a forward pass over steps, with a mark for each edit."""
        Path(path).write_text(_picture(self, width, height))


def _line(step: int, params: int, flops: float, what: str) -> str:
    return f"{step:>8,}  {params:>12,}  {flops:>9.3g}  {what}"


@dataclass(frozen=True)
class _Even:
    """Stands in for methods that prune: as many of each axis, relative to its size."""

    name: ClassVar[str] = "any"

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        return torch.arange(axis.size) / axis.size

    def score_weights(self, weights: Weights, seen: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        return (torch.arange(weights.size) / weights.size).reshape(weights.tensor.shape)

    score_absent = score_weights

    def score_layers(self, layers: list[Layer], seen: Mapping[str, Any]) -> list[float]:
        return [float(-number) for number in range(len(layers))]


def preview(plan: Plan, model: nn.Module, x: Any, steps: int) -> Preview:
    """Run a plan on a copy of a model, without training; see :meth:`regrow.Plan.preview`."""
    from .shaper import Shaper  # which knows plans, whose method this is

    copied = copy.deepcopy(model)
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.0)
    shaper = Shaper(copied, optimizer, plan, example=x)
    before = parameters(copied), shaper.structure.flops()
    events: list[Event] = []

    def loss() -> Tensor:
        found = [t.float().square().mean() for t in tensors_in(shaper.structure.run_example()) if t.requires_grad]
        return torch.stack(found).sum()

    def note(what: str, foreseen: bool = True) -> None:
        events.append(Event(shaper.steps, what, parameters(copied), shaper.structure.flops(), foreseen))

    waiting = [f"waits for {part.condition}" for part in plan.waiting()]
    for step in range(1, steps + 1):
        due = list(plan.due(step))
        shaper.steps = step
        for action in due:
            why = _unforeseen(action)
            if why:
                note(f"{_named(action)}: {why}", foreseen=False)
                continue
            found = _tried(shaper, action, loss)
            if found is not None:
                note(found if isinstance(found, str) else f"{_named(action)}: {found}", not isinstance(found, str))
    events += [Event(steps, what, parameters(copied), shaper.structure.flops(), False) for what in waiting]
    return Preview(steps, *before, tuple(events))


def _tried(shaper: Any, action: Action, loss: Any) -> Edit | str | None:
    try:
        return shaper._performer.perform(_standing_in(action), loss, shaper.steps)
    except NotPermissible as error:
        return f"{_named(action)}: can't be done: {error}"


def _named(action: Action) -> str:
    return f"{type(action).__name__}({getattr(action.method, 'name', action.method)})"


def _unforeseen(action: Action) -> str:
    """Why the sizes after an action follow from values, or nothing."""
    if isinstance(action.amount, (Threshold, Valley)):
        return f"{action.amount} depends on values"
    if any(callable(getattr(action.method, part, None)) for part in ("choose", "exchange")):
        return "depends on the loss"
    return ""


def _standing_in(action: Action) -> Action:
    """The action by a method that takes no training to be done."""
    if isinstance(action, Grow) and action.kind in ("layer", "cell"):
        return action if isinstance(action.method, Deepen) else dataclasses.replace(action, method=Deepen())
    if isinstance(action, Grow) and action.kind != "weight":
        return dataclasses.replace(action, method=Random())
    return dataclasses.replace(action, method=_Even())


def _picture(timeline: Preview, width: int, height: int) -> str:
    left, bottom, top, right = 60, 30, 20, 20
    highest = max([timeline.flops, *(event.flops for event in timeline.events)]) or 1.0

    def across(step: float) -> float:
        return left + step / timeline.steps * (width - left - right)

    def up(flops: float) -> float:
        return height - bottom - flops / highest * (height - bottom - top)

    points = [(across(step), up(flops)) for start, end, flops in timeline._stretches() for step in (start, end)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = "".join(
        f'<circle cx="{across(event.step):.1f}" cy="{up(event.flops):.1f}" r="4" '
        f'fill="{"#2a7de1" if event.foreseen else "none"}" stroke="#2a7de1">'
        f"<title>step {event.step:,}: {html.escape(event.what)}</title></circle>"
        for event in timeline.events
    )
    grid = "".join(
        f'<line x1="{left}" x2="{width - right}" y1="{up(part * highest):.1f}" y2="{up(part * highest):.1f}" '
        f'stroke="#8884"/><text x="{left - 6}" y="{up(part * highest) + 4:.1f}" text-anchor="end">'
        f"{part * highest:.2g}</text>"
        for part in (0.0, 0.5, 1.0)
    )
    ticks = "".join(
        f'<text x="{across(part * timeline.steps):.1f}" y="{height - 8}" text-anchor="middle">'
        f"{round(part * timeline.steps):,}</text>"
        for part in (0.0, 0.5, 1.0)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="#888">{grid}{ticks}'
        f'<text x="{left}" y="14">FLOPs of a forward pass over steps</text>'
        f'<polyline points="{line}" fill="none" stroke="#2a7de1" stroke-width="2"/>{marks}</svg>\n'
    )

"""Homeostasis: within one budget, units come where the loss falls most per FLOP, and go where it rises least."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..cutoffs import is_multiple, sizes_with
from ..errors import NotPermissible
from ..evidence import Needs
from ..growing.forms import filled_up
from ..growing.gradmax import listening
from ..limits import Limits
from ..method import Fresh, Suggestion, register
from ..structure import Axis, Structure
from .exchange import Budgeted, Exchange, balanced
from .market import Market


@register
@dataclass(frozen=True)
class Homeostasis:
    """Growing and pruning at once, under one budget, without a schedule::

        shaper = rg.Shaper(model, optimizer, rg.Homeostasis(flops=2.0), example=x)

    The loss's derivative by the gate of a unit tells to first order what the loss loses with one that is there, and
    what it falls by with one that could come (:class:`regrow.joint.market.Market`); over the FLOPs that the unit costs
    these are one currency for all places and both directions. Each time that it is due, the best new units come as
    long as they fit into the budget; then they are paid for by the old units that matter least, as long as the last
    one to come is worth more than the last one to go. So a model below its budget grows, one above it shrinks, and one
    at it moves its units to where they do most, and less and less of that as the gradients of what is missing vanish.

    New units are those of :class:`regrow.GradMax` with swapped roles: they send nothing yet, with and without batch
    norm, in both modes. What the units that go did send on average is taken by the biases and running statistics
    behind them.

    Args:
        flops, params: What the model may have: a number (int; FLOPs of a forward pass on the analysed example), or a
            multiple of what it has when this is due first (float up to 1000). By default the FLOPs that it has then.
        period: Every how many steps it is due where it is a plan by itself.
        rate: How many units may come, and how many may go, at one time, as a part of all.
        margin: How much more a unit that comes has to be worth than one that goes for it.
        batches: How many batches are looked at where it is a plan by itself. The first half tells what new units listen
            to; by the others, and by the last of the first, they are judged.
        grace: For how many steps new units don't go.

    Raises:
        ValueError: An option is none of what is said above.
    """

    name: ClassVar[str] = "homeostasis"
    leaves_out: ClassVar[bool] = True
    absorb: ClassVar[bool] = True
    flops: int | float | None = None
    params: int | float | None = None
    period: int = 100
    rate: float = 0.05
    margin: float = 1.0
    batches: int = 2
    grace: int = 200

    def __post_init__(self) -> None:
        for name, value in (("flops", self.flops), ("params", self.params)):
            if value is not None and (isinstance(value, bool) or not math.isfinite(value) or value <= 0):
                raise ValueError(f"{name} is a positive number, or a multiple of the present one, not {value!r}.")
        for name in ("period", "batches"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a positive whole number, not {value!r}.")
        if isinstance(self.grace, bool) or not isinstance(self.grace, int) or self.grace < 0:
            raise ValueError(f"grace is a whole number of steps, not {self.grace!r}.")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is a part of all units, above 0 and at most 1, not {self.rate!r}.")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"margin is a number that isn't negative, not {self.margin!r}.")

    def schedule(self) -> Suggestion:
        """Every :attr:`period` steps, looking at :attr:`batches` batches."""
        return Suggestion(self.period, None, "adapt", {"batches": self.batches})

    @property
    def needs(self) -> Needs:
        """What each axis's units are worth."""
        return {"market": lambda axis, _: Market(axis, max(1, self.batches // 2), math.ceil(self.rate * axis.size))}

    def exchange(self, seen: Mapping[Axis, Any], limits: Limits, memory: dict[str, Any]) -> Exchange:
        """Which units go, and how many come in each axis.

        Args:
            seen: What was gathered about each axis.
            limits: What stays as it is.
            memory: The budget in numbers, noted at the first call.
        """
        markets: dict[Axis, Market] = {axis: found["market"] for axis, found in seen.items()}
        budget = self._budgeted(next(iter(markets)).structure, memory)
        number = max(1, round(self.rate * sum(axis.size for axis in markets)))
        prices = {axis: market.prices for axis, market in markets.items()}
        gains = {axis: market.gains for axis, market in markets.items()}
        return balanced(prices, gains, budget, number, self.margin, limits)

    def _budgeted(self, structure: Structure, memory: dict[str, Any]) -> Budgeted:
        given = {name: value for name, value in (("flops", self.flops), ("params", self.params)) if value is not None}
        now = sizes_with(structure, {})
        for name, value in (given or {"flops": 1.0}).items():
            memory.setdefault(name, value * now[name] if is_multiple(value) else float(value))
        return Budgeted(structure, dict(memory))

    def fresh(self, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Fresh:
        """The values of ``num`` new units, those that promise most first.

        Raises:
            NotPermissible: It isn't known what new units should listen to.
        """
        market: Market = seen["market"]
        if market.growth is None:
            raise NotPermissible(market.refusal)
        units = market.best(num)
        units = listening(market.growth, num, "random", 1.0) if units is None else units
        return filled_up(axis, units, num, generator)

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        """What the loss loses with each unit, shape ``(axis.size,)``."""
        return seen["market"].prices

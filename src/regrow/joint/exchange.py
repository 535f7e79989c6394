"""Which units go and which come, so that the loss per FLOP falls most within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..amounts import first, removable
from ..cutoffs import sizes_with
from ..limits import Limits
from ..structure import Axis, Structure
from ..structure.maps import FRESH


@dataclass(frozen=True)
class Exchange:
    """Units that go and come at once.

    Attributes:
        removed: Which go, by axis.
        gained: How many come, by axis.
    """

    removed: Mapping[Axis, Sequence[int]] = field(default_factory=dict)
    gained: Mapping[Axis, int] = field(default_factory=dict)

    def maps(self) -> dict[Axis, np.ndarray]:
        """The index maps of both."""
        return {
            axis: np.append(
                np.setdiff1d(np.arange(axis.size), self.removed.get(axis, ())),
                np.full(self.gained.get(axis, 0), FRESH),
            )
            for axis in {**self.removed, **self.gained}
        }


@dataclass(frozen=True)
class Budgeted:
    """What a model may have: "params" and "flops", as absolute numbers; what isn't named is free."""

    structure: Structure
    most: Mapping[str, float]

    def costs(self, axes: Sequence[Axis]) -> dict[Axis, float]:
        """What one more unit of each axis costs, as a part of the budget."""
        now = sizes_with(self.structure, {})
        costs = {}
        for axis in axes:
            wider = sizes_with(self.structure, {axis: np.append(np.arange(axis.size), FRESH)})
            costs[axis] = sum((wider[name] - now[name]) / limit for name, limit in self.most.items())
        return costs

    def holds(self, exchange: Exchange) -> bool:
        """Whether the model is within the budget after an exchange."""
        left = sizes_with(self.structure, exchange.maps())
        return all(left[name] <= limit for name, limit in self.most.items())


@dataclass(frozen=True)
class Offer:
    """A unit that may go, or one that may come.

    Attributes:
        rate: What it is worth to the loss, over what it costs.
        axis: Whose it is.
        unit: Its number, if it is there.
    """

    rate: float
    axis: Axis
    unit: int = -1


def balanced(
    prices: Mapping[Axis, Tensor],
    gains: Mapping[Axis, Tensor],
    budget: Budgeted,
    number: int,
    margin: float,
    limits: Limits,
) -> Exchange:
    """The exchange by which the loss falls most, to first order.

    Units come in the order of gain over cost as long as they fit. Those that don't are paid for by units that go, in
    the order of price over cost; the last one to come is worth more than ``margin`` times the last one to go. A model
    that is beyond its budget loses units whatever they are worth.

    Args:
        prices: What the loss loses with each unit.
        gains: What it falls by with each new unit, the best first.
        budget: What the model may have afterwards.
        number: How many units may come, and go.
        margin: How much more what comes has to be worth.
        limits: What stays.
    """
    costs = budget.costs(list(prices))
    coming = _coming(gains, costs, limits)[:number]
    going = _going(prices, costs, limits)[:number]

    def made_of(arrivals: int, departures: int) -> Exchange:
        removed: dict[Axis, list[int]] = {}
        gained: dict[Axis, int] = {}
        for offer in going[:departures]:
            removed.setdefault(offer.axis, []).append(offer.unit)
        for offer in coming[:arrivals]:
            gained[offer.axis] = gained.get(offer.axis, 0) + 1
        return Exchange({axis: sorted(units) for axis, units in removed.items()}, gained)

    def paying(arrivals: int) -> int:
        """How many have to go for so many to come; more than there are if that isn't enough."""
        return first(len(going) + 1, lambda count: budget.holds(made_of(arrivals, count)))

    anyway = paying(0)
    if anyway > len(going):
        return made_of(0, len(going))

    def too_many(arrivals: int) -> bool:
        departures = paying(arrivals + 1)
        if departures > len(going):
            return True
        return departures > anyway and coming[arrivals].rate <= margin * going[departures - 1].rate

    arrivals = first(len(coming), too_many)
    return made_of(arrivals, paying(arrivals))


def _coming(gains: Mapping[Axis, Tensor], costs: Mapping[Axis, float], limits: Limits) -> list[Offer]:
    offers = [
        Offer(gain / costs[axis], axis)
        for axis, values in gains.items()
        if axis.growable and not limits.spares(axis)
        for gain in values.tolist()[: limits.most(axis)]
        if gain > 0
    ]
    return sorted(offers, key=lambda offer: -offer.rate)


def _going(prices: Mapping[Axis, Tensor], costs: Mapping[Axis, float], limits: Limits) -> list[Offer]:
    offers = [
        Offer(float(values[unit]) / costs[axis], axis, unit)
        for axis, values in prices.items()
        if axis.prunable and not limits.spares(axis)
        for unit in removable(axis, limits, values)
    ]
    return sorted(offers, key=lambda offer: offer.rate)

"""How many units fit into a budget, and how fast a model is without some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .applying import apply
from .cutoffs import Budget, sizes_with
from .errors import NotPermissible
from .limits import Limits
from .measure import latency
from .structure import Axis, Structure
from .structure.maps import FRESH


def gains_within(axes: Sequence[Axis], budget: Budget, limits: Limits) -> dict[Axis, int]:
    """As many units as fit into a budget, a like fraction of each axis, by bisection.

    Raises:
        TypeError: The budget is of latency.
        NotPermissible: The model is beyond the budget as it is.
    """
    if budget.latency is not None:
        raise TypeError("latency is a budget to prune; grow to params or flops, and prune to a latency then.")
    structure = axes[0].structure
    most = budget.absolute(structure, growing=True)

    def gains(number: int) -> dict[Axis, int]:
        total = sum(axis.size for axis in axes)
        ends = [round(number * sum(a.size for a in axes[:place]) / total) for place in range(len(axes) + 1)]
        wanted = {axis: end - start for axis, start, end in zip(axes, ends, ends[1:], strict=False)}
        return {
            axis: min(gain, limits.most(axis)) // limits.round_to * limits.round_to for axis, gain in wanted.items()
        }

    def fits(number: int) -> bool:
        maps = {a: np.append(np.arange(a.size), np.full(gain, FRESH)) for a, gain in gains(number).items() if gain}
        left = sizes_with(structure, maps)
        return all(left[name] <= limit for name, limit in most.items())

    if not fits(0):
        asked = ", ".join(f"{limit:,.0f} {name}" for name, limit in most.items())
        raise NotPermissible(f"asked to grow to {asked}; the model has more than that already.")
    low, high = 0, sum(axis.size for axis in axes)
    while fits(high) and gains(high) != gains(2 * high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return {axis: gain for axis, gain in gains(high if fits(high) else low).items() if gain}


def latency_without(structure: Structure, removed: Mapping[Axis, Sequence[int]]) -> float:
    """Seconds of a forward pass without these units, by taking them away for a moment."""
    args, kwargs = structure._example
    if not any(removed.values()):
        return latency(structure.model, *args, **kwargs)
    maps = {axis: np.setdiff1d(np.arange(axis.size), units) for axis, units in removed.items() if units}
    edit = apply(structure, maps, {}, None, "prune")
    try:
        return latency(structure.model, *args, **kwargs)
    finally:
        edit.undo_()

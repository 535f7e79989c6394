"""How many units an edit takes from, or adds to, which axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .agreement import agreed
from .budgets import gains_within, latency_without
from .cutoffs import Budget, Cutoff, Threshold, Valley, sizes_after
from .errors import NotPermissible
from .limits import Limits
from .patterns import means
from .structure import Axis, Structure
from .structure.axis import BOUNDARY

#: int: units; float: a fraction; a mapping: axis name -> either; to prune also what follows from the scores.
Amount = int | float | Mapping[str, int | float] | Cutoff | Budget

Target = Axis | Structure | Sequence[Axis]


def axes_of(target: Any, limits: Limits, kinds: tuple[str, ...], verdict: str) -> list[Axis]:
    """The axes that a call is about; of a whole structure those of the given kinds that have the verdict.

    Raises:
        TypeError: The target is no axis, structure or sequence of axes.
        ValueError: Axes belong to different structures, or there are none.
    """
    if isinstance(target, Axis):
        found = [target]
    elif isinstance(target, Structure):
        found = [
            axis for axis in target.axes if axis.kind in kinds and getattr(axis, verdict) and not axis.tags & BOUNDARY
        ]
    elif isinstance(target, Sequence) and not isinstance(target, str) and all(isinstance(a, Axis) for a in target):
        found = list(dict.fromkeys(target))
    else:
        raise TypeError(f"expected an axis, a structure or a sequence of axes, not {target!r}.")
    if len({id(axis.structure) for axis in found}) > 1:
        raise ValueError("these axes belong to different structures; edit one structure at a time.")
    if not found:
        raise NotPermissible("there is no axis to edit here; print(structure) says what is frozen and why.")
    names = [axis.name for axis in found[0].structure.axes]
    for pattern in limits.protect:
        if isinstance(pattern, str) and not any(means(pattern, name) for name in names):
            raise ValueError(f"protect={pattern!r} matches no axis; there are {', '.join(names)}.")
    if isinstance(limits.protect, Mapping):
        return found
    if isinstance(target, Axis) or not any(isinstance(p, int) for p in limits.protect):
        return [axis for axis in found if not limits.spares(axis)]
    raise ValueError("protected units belong to a single axis; for several axes protect them by name.")


def plain(amount: Any) -> Any:
    """An amount as Python's own numbers, where it is one of numpy's, or an array of units."""
    if isinstance(amount, np.ndarray):
        return amount.tolist()
    if isinstance(amount, Mapping):
        return {name: plain(each) for name, each in amount.items()}
    if isinstance(amount, np.integer):
        return int(amount)
    return float(amount) if isinstance(amount, np.floating) else amount


def units_of(amount: Any, size: int) -> int:
    """``amount`` as a number of units: itself if an integer, that share of ``size`` if a float.

    Raises:
        TypeError: It is neither.
        ValueError: It isn't positive and finite.
    """
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise TypeError(f"an amount is an int (units) or a float (fraction), not {amount!r}.")
    if not (math.isfinite(amount) and amount > 0):
        raise ValueError(f"an amount is positive, not {amount!r}.")
    return amount if isinstance(amount, int) else max(1, round(amount * size))


def check_fraction(amount: object) -> None:
    """A fraction to prune is below 1.

    Raises:
        ValueError: It isn't.
    """
    if isinstance(amount, float) and amount >= 1:
        raise ValueError(f"a fraction to prune is below 1, not {amount}; something has to stay.")


def named(amount: Mapping[str, int | float], axes: Iterable[Axis]) -> dict[Axis, int | float]:
    """A mapping of names as a mapping of axes.

    Raises:
        ValueError: A name is none of the axes'.
    """
    by_name = {axis.name: axis for axis in axes}
    for name in amount:
        if name not in by_name:
            raise ValueError(f"no axis here is called {name!r}; there are {', '.join(by_name)}.")
    return {by_name[name]: value for name, value in amount.items()}


def to_grow(axes: Sequence[Axis], amount: Any, limits: Limits) -> dict[Axis, int]:
    """How many units each axis gains; axes that gain none are left out.

    Raises:
        NotPermissible: An axis can't grow.
        TypeError, ValueError: As :func:`units_of` and :func:`named`.
    """
    if isinstance(amount, Budget):
        return gains_within(axes, amount, limits)
    each = named(amount, axes) if isinstance(amount, Mapping) else dict.fromkeys(axes, amount)
    gains = {}
    for axis, wanted in each.items():
        size = limits.rounded_up(max(axis.size + units_of(wanted, axis.size), limits.min_size or 1))
        if limits.max_size is not None:
            size = min(size, limits.max_size // limits.round_to * limits.round_to)
        if not axis.growable:
            raise NotPermissible(f"{axis.name} can't grow: {axis.growable.reason}.")
        if size > axis.size:
            gains[axis] = size - axis.size
    return gains


def to_prune(axes: Sequence[Axis], amount: Any, limits: Limits, scores: Mapping[Axis, Tensor]) -> dict[Axis, list[int]]:
    """Which units of each axis go: the lowest scores, over all axes alike or, for a mapping, of each axis.

    Raises:
        NotPermissible: An axis can't be pruned, or fewer units than asked may go.
        TypeError, ValueError: As :func:`units_of` and :func:`named`; a fraction of 1 or more.
    """
    if not axes:
        return {}
    for axis in axes:
        if not axis.prunable:
            raise NotPermissible(f"{axis.name} can't be pruned: {axis.prunable.reason}.")
    chosen = _chosen(axes, amount, limits, scores)
    edited = [axis for axis in axes if axis in chosen or limits.max_size is not None]
    fitted = {axis: _fitted(axis, len(chosen.get(axis, ())), limits, scores[axis]) for axis in edited}
    return {axis: units for axis, units in fitted.items() if units}


def _chosen(
    axes: Sequence[Axis], amount: Amount, limits: Limits, scores: Mapping[Axis, Tensor]
) -> dict[Axis, list[int]]:
    """The units that an amount is, before sizes are rounded."""
    if isinstance(amount, (Threshold, Valley)):
        return {axis: _below(axis, amount.of(scores[axis]), limits, scores[axis]) for axis in axes}
    if isinstance(amount, Budget):
        return _within(axes, amount, limits, scores)
    if isinstance(amount, Mapping):
        chosen = {}
        for axis, value in named(amount, axes).items():
            chosen.update(_lowest([axis], value, limits, scores))
        return chosen
    return _lowest(axes, amount, limits, scores)


def _below(axis: Axis, cutoff: float, limits: Limits, scores: Tensor) -> list[int]:
    return [unit for unit in removable(axis, limits, scores) if float(scores[unit]) <= cutoff]


def _within(
    axes: Sequence[Axis], budget: Budget, limits: Limits, scores: Mapping[Axis, Tensor]
) -> dict[Axis, list[int]]:
    """The fewest units, lowest scores first, without which the model is within the budget, by bisection.

    Raises:
        NotPermissible: It isn't without any number of units.
    """
    structure = axes[0].structure
    most = budget.absolute(structure)

    def chosen(number: int) -> dict[Axis, list[int]]:
        return _lowest(axes, number, limits, scores) if number else {}

    def fits(number: int) -> bool:
        fitted = {axis: _fitted(axis, len(units), limits, scores[axis]) for axis, units in chosen(number).items()}
        left = sizes_after(structure, {axis: units for axis, units in fitted.items() if units})
        return all(left[name] <= limit for name, limit in most.items())

    def fast(number: int) -> bool:
        return budget.latency is None or agreed(latency_without(structure, chosen(number))) <= budget.latency

    high = sum(len(removable(axis, limits, scores[axis])) for axis in axes)
    if not fits(high) or not fast(high):
        given = [*most.items(), *([("seconds", budget.latency)] if budget.latency is not None else [])]
        asked = ", ".join(f"{limit:,.4g} {name}" for name, limit in given)
        raise NotPermissible(
            f"asked to prune to {asked}; that isn't reached without all of the {high} units that may go."
        )
    return chosen(first(high, lambda number: fits(number) and fast(number)))


def first(most: int, holds: Callable[[int], bool]) -> int:
    """The first number from 0 on for which something holds that then holds for all behind it; ``most`` if none below.

    >>> first(10, lambda number: number**2 > 20)
    5
    """
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _lowest(
    axes: Sequence[Axis], amount: int | float, limits: Limits, scores: Mapping[Axis, Tensor]
) -> dict[Axis, list[int]]:
    total = sum(axis.size for axis in axes)
    wanted = units_of(amount, total)
    check_fraction(amount)
    owner, unit, score = [], [], []
    for number, axis in enumerate(axes):
        free = removable(axis, limits, scores[axis])
        owner += [number] * len(free)
        unit += free
        score.append(scores[axis][free])
    if wanted > len(unit):
        if isinstance(amount, int):
            names = axes[0].name if len(axes) == 1 else f"these {len(axes)} axes"
            raise NotPermissible(
                f"asked to prune {wanted} of the {total} units of {names}; at most {len(unit)} can go."
            )
        wanted = len(unit)
    order = torch.cat(score).argsort(stable=True)[:wanted].tolist()
    chosen: dict[Axis, list[int]] = {}
    for i in order:
        chosen.setdefault(axes[owner[i]], []).append(unit[i])
    return chosen


def removable(axis: Axis, limits: Limits, scores: Tensor) -> list[int]:
    """Units in ascending order of score, without the protected and the best that must stay."""
    protected = set(limits.protected_units(axis))
    free = [u for u in scores.argsort(stable=True).tolist() if u not in protected]
    stay = max(1, limits.min_size or 1) - len(protected)
    return free[: max(0, len(free) - stay)] if stay > 0 else free


def _fitted(axis: Axis, num: int, limits: Limits, scores: Tensor) -> list[int]:
    """The ``num`` lowest units that may go; fewer so that the rest is a multiple, more to get below a maximum."""
    size = limits.rounded_up(min(axis.size - num, limits.max_size or axis.size))
    return sorted(removable(axis, limits, scores)[: max(0, axis.size - size)])

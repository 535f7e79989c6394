"""The settings: which axes change at which steps, and by how many units.

- `static` changes nothing: the baseline, at the start or the end size of another setting.
- `grow` starts at a fraction of the full widths and ends at exactly the full ones.
- `shrink` starts at the full widths and ends at exactly a fraction of them.
- `constant` prunes a share of each axis at each event and grows as many units again at once.

Under global ranking, pruning takes its units wherever they matter least, so that only the total is given. The
constant setting then grows the same total back in the proportions of the starting widths: the number of units is
the same after each event, while the shape moves, slowly, to where units matter.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import regrow as rg

from ..plan import Action, Plan
from .errors import InputError
from .options import Settled, make_method

VERBS = {"grow": "grow", "shrink": "shrink", "constant": "grow and shrink"}


def event_steps(options: Settled, total: int) -> list[int]:
    """The steps at which structure changes, of `total` steps.

    Raises:
        InputError: there are not as many different steps.
    """
    steps = [max(1, round(total * part)) for part in event_parts(options)]
    if len(set(steps)) < len(steps):
        raise InputError(
            f"--events {options.events} do not fit between --first {options.first} and --last {options.last} "
            f"of {total} steps; ask for fewer, or train longer"
        )
    return steps


def event_parts(options: Settled) -> list[float]:
    """When structure changes, as parts of the training, from `--first` to `--last`.

    They are evenly spaced where `--pace` is 1. Below it the first lie farther apart than the last, so that a network
    that grows is small for longer and one that shrinks is large for longer; above it the other way round.
    """
    last = max(1, options.events - 1)
    length = options.last - options.first
    return [options.first + length * (event / last) ** options.pace for event in range(options.events)]


def staircase(start: int, end: int, events: int) -> list[int]:
    """Units to add (or, negative, to remove) at each event, so that they lead from `start` to `end` exactly.

    >>> staircase(4, 16, 5)
    [2, 3, 2, 3, 2]
    """
    sizes = [start + round((end - start) * event / events) for event in range(events + 1)]
    return [after - before for before, after in pairwise(sizes)]


@dataclass(frozen=True)
class Reached:
    """Holds once: at the first step at which a reported number has got so far."""

    of: str
    value: float

    def holds(self, seen: Mapping[str, float], memory: dict[str, Any]) -> bool:
        """Whether it is that step."""
        before, memory["reached"] = memory.get("reached", False), seen[self.of] >= self.value
        return memory["reached"] and not before


@dataclass(frozen=True)
class Clock:
    """What tells when something is due: steps, or, where FLOPs may be spent, the part of them that has been.

    Attributes:
        total: optimizer steps of the run; None where FLOPs are the clock.
    """

    total: int | None

    def at(self, part: float, action: Action) -> Plan:
        """An action when such a part of the training is done."""
        if self.total is not None:
            return rg.at(max(1, round(self.total * part)), action)
        return rg.when(Reached("progress", part), action)


def make_plan(options: Settled, structure: rg.Structure, ends: Mapping[str, int], total: int, end_flops: float) -> Plan:
    """The plan of a setting.

    Args:
        structure: of the network as it starts.
        ends: the size of each axis at the full extent of the setting, by name.
        total: optimizer steps of the run, where steps are its clock.
        end_flops: of a forward pass at the full extent of the setting, on the example of the structure.

    Raises:
        InputError: `--where` matches no axis, more units are asked than there are, or too few steps.
    """
    if options.setting == "static":
        return rg.chain()
    axes = _selected(options, structure, ends)
    if options.schedule == "own":
        return own_plan(options, end_flops)
    if options.budget is None:
        event_steps(options, total)  # there have to be as many
    clock = Clock(total if options.budget is None else None)
    if options.setting == "constant":
        return _exchanges(options, clock, axes)
    # The analysis sees no axis where there is a single unit, so what shrinks to one is missing from the ends.
    stairs = {axis.name: staircase(axis.size, ends.get(axis.name, 1), options.events) for axis in axes}
    parts = []
    for event, part in enumerate(event_parts(options)):
        change = {name: stair[event] for name, stair in stairs.items() if stair[event]}
        if not change:
            continue
        if options.setting == "grow":
            parts.append(clock.at(part, rg.Grow(make_method(options.grow, "grow"), change)))
        else:
            parts.append(clock.at(part, _prune(options, {name: -units for name, units in change.items()})))
    return rg.chain(*parts)


def own_plan(options: Settled, end_flops: float) -> Plan:
    """The schedule that a method has by itself, until `--last`; its budget is the size at the end of the setting.

    Raises:
        InputError: the method has none.
    """
    method = make_method(options.prune if options.setting == "shrink" else options.grow, "any")
    if not callable(getattr(method, "schedule", None)):
        raise InputError(f"{method.name} has no schedule of its own; leave out --schedule own")
    if {field.name for field in fields(method)} >= {"flops", "params"} and method.flops is None:
        method = replace(method, flops=round(end_flops))
    plan: Plan = rg.until(rg.Above("progress", options.last), method)
    return rg.until(rg.Above("flops", 0.995 * end_flops), plan) if options.setting == "grow" else plan


def _exchanges(options: Settled, clock: Clock, axes: Sequence[rg.Axis]) -> Plan:
    """At each event, a share of each axis goes and as many units come."""
    swaps = {axis.name: max(1, round(axis.size * options.exchange)) for axis in axes}
    for axis in axes:
        if swaps[axis.name] >= axis.size:
            raise InputError(
                f"setting constant asks to prune {swaps[axis.name]} of the {axis.size} units of {axis.name}, "
                "but at least one must stay; leave it out with --where or make the network wider"
            )
    grow, prune = rg.Grow(make_method(options.grow, "grow"), swaps), _prune(options, swaps)
    parts: list[Plan] = []
    whens = event_parts(options)
    # In turn, the second is done half-way to the next event; behind the last, as far as it was before it; and where
    # there is one event, at --last.
    later = [(after - part) / 2 for part, after in pairwise(whens)] or [options.last - options.first]
    for part, wait in zip(whens, [*later, later[-1]][: len(whens)], strict=True):
        both = (grow, prune) if options.order == "grow-prune" else (prune, grow)
        parts += [clock.at(part, both[0]), clock.at(part + wait * (options.order == "alternate"), both[1])]
    return rg.chain(*parts)


def _prune(options: Settled, units: dict[str, int]) -> rg.Prune:
    """Pruning of so many units per axis, or of so many in total where units are ranked over all axes."""
    method = make_method(options.prune, "prune")
    if options.ranking == "global":
        return rg.Prune(method, sum(units.values()), where=options.where)
    return rg.Prune(method, units)


def _selected(options: Settled, structure: rg.Structure, ends: Mapping[str, int]) -> tuple[rg.Axis, ...]:
    """The axes that the setting changes: those that match, and can go the way it needs.

    Raises:
        InputError: there is none, or one starts with a single unit (the analysis sees no axis there).
    """
    needs = {"grow": ("growable",), "shrink": ("prunable",), "constant": ("growable", "prunable")}
    matching = structure.select(options.where)
    able = tuple(axis for axis in matching if all(getattr(axis, need) for need in needs[options.setting]))
    names = [axis.name for axis in structure.axes]
    single = [name for name in fnmatch.filter(ends, options.where) if name not in names]
    if single:
        raise InputError(
            f"{single[0]} has a single unit at --start-fraction {options.start_fraction} "
            "and cannot change from there; start wider"
        )
    if not able:
        raise InputError(
            f"--where {options.where} matches no axis that can {VERBS[options.setting]}; "
            f"the axes are: {', '.join(names)}"
        )
    return able

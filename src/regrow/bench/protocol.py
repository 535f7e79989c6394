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
from itertools import pairwise

import regrow as rg

from ..plan import Plan
from .errors import InputError
from .options import Settled, make_method

VERBS = {"grow": "grow", "shrink": "shrink", "constant": "grow and shrink"}


def event_steps(options: Settled, total: int) -> list[int]:
    """The steps at which structure changes, evenly spaced from `--first` to `--last` of `total` steps.

    Raises:
        InputError: there are not as many different steps.
    """
    gaps = max(1, options.events - 1)
    share = (options.last - options.first) / gaps
    steps = [max(1, round(total * (options.first + share * event))) for event in range(options.events)]
    if len(set(steps)) < len(steps):
        raise InputError(
            f"--events {options.events} do not fit between --first {options.first} and --last {options.last} "
            f"of {total} steps; ask for fewer, or train longer"
        )
    return steps


def staircase(start: int, end: int, events: int) -> list[int]:
    """Units to add (or, negative, to remove) at each event, so that they lead from `start` to `end` exactly.

    >>> staircase(4, 16, 5)
    [2, 3, 2, 3, 2]
    """
    sizes = [start + round((end - start) * event / events) for event in range(events + 1)]
    return [after - before for before, after in pairwise(sizes)]


def make_plan(options: Settled, structure: rg.Structure, ends: Mapping[str, int], total: int) -> Plan:
    """The plan of a setting.

    Args:
        structure: of the network as it starts.
        ends: the size of each axis at the full extent of the setting, by name.
        total: optimizer steps of the run.

    Raises:
        InputError: `--where` matches no axis, more units are asked than there are, or too few steps.
    """
    if options.setting == "static":
        return rg.chain()
    axes = _selected(options, structure, ends)
    steps = event_steps(options, total)
    if options.setting == "constant":
        swaps = {axis.name: max(1, round(axis.size * options.exchange)) for axis in axes}
        return rg.chain(*(part for step in steps for part in _exchange(options, step, swaps, axes)))
    # The analysis sees no axis where there is a single unit, so what shrinks to one is missing from the ends.
    stairs = {axis.name: staircase(axis.size, ends.get(axis.name, 1), len(steps)) for axis in axes}
    parts = []
    for event, step in enumerate(steps):
        change = {name: stair[event] for name, stair in stairs.items() if stair[event]}
        if not change:
            continue
        if options.setting == "grow":
            parts.append(rg.at(step, rg.Grow(make_method(options.grow, "grow"), change)))
        else:
            parts.append(rg.at(step, _prune(options, {name: -units for name, units in change.items()})))
    return rg.chain(*parts)


def _exchange(options: Settled, step: int, swaps: dict[str, int], axes: Sequence[rg.Axis]) -> tuple[Plan, Plan]:
    """Prune, then grow as many."""
    for axis in axes:
        if swaps[axis.name] >= axis.size:
            raise InputError(
                f"setting constant asks to prune {swaps[axis.name]} of the {axis.size} units of {axis.name}, "
                "but at least one must stay; leave it out with --where or make the network wider"
            )
    grow = rg.Grow(make_method(options.grow, "grow"), swaps)
    return rg.at(step, _prune(options, swaps)), rg.at(step, grow)


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

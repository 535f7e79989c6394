"""From the solved classes to axes: units with the same footprint, where they lie, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .axis import YES, Axis, Count, Entry, Verdict
from .maps import regular_run
from .relations import Source
from .solve import Solution
from .trace import Trace


@dataclass(frozen=True)
class Frozen:
    """Indices of one dimension of one tensor that can't change, and why."""

    name: str
    dim: int
    size: int
    reason: str


def assemble(model: nn.Module, trace: Trace, solution: Solution) -> tuple[tuple[Axis, ...], tuple[Frozen, ...]]:
    """All axes in execution order, and what is frozen."""
    used = [s for s in trace.sources if s.tensor in trace.order]
    used.sort(key=lambda s: (trace.order[s.tensor], s.dim))
    roles = _roles(trace)
    axes = []
    for classes, units in solution.families:
        for member_of, size in _split_by_footprint(solution, used, classes, units):
            axis = _axis(model, trace, solution, used, roles, member_of, size)
            if axis is not None:
                axes.append(axis)
    axes.sort(key=lambda axis: trace.order[_first(axis).name])
    _name(axes)
    return tuple(axes), _frozen(trace, solution)


def _roles(trace: Trace) -> dict[int, str]:
    """Role by the first label of a source; "tied" where one weight both produces and consumes the units."""
    order = ["tied", "in", "out", "scale", "shift", "mean", "var"]
    found: dict[int, str] = {}
    for labels, role in trace.relations.roles:
        source = trace.source_of(labels)
        if source is not None:
            known = found.get(source.start, role)
            both = {known, role} == {"in", "out"}
            found[source.start] = "tied" if both else min(known, role, key=order.index)
    return found


def _split_by_footprint(
    solution: Solution, sources: list[Source], classes: np.ndarray, units: np.ndarray
) -> Iterable[tuple[np.ndarray, int]]:
    """Units that have the same number of indices in the same dimensions of the same tensors belong together.

    Yields for each axis the unit of every class (or -1), units numbered as they first appear, and their number.
    """
    unit_of = np.full(int(solution.classes.max()) + 1, -1)
    unit_of[classes] = units
    count = int(units.max()) + 1 if len(units) else 0
    # A footprint is a multiset of sources: a random number for each source, added up, tells them apart.
    weights = np.random.default_rng(0).integers(1, 2**62, size=len(sources), dtype=np.uint64)
    prints = np.zeros(count, np.uint64)
    first_seen = np.full(count, -1)
    for number, source in enumerate(sources):
        here = unit_of[solution.classes[source.start : source.start + source.size]]
        here = here[here >= 0]
        prints += np.bincount(here, minlength=count).astype(np.uint64) * weights[number]
        new, at = np.unique(here, return_index=True)
        unseen = first_seen[new] < 0
        first_seen[new[unseen]] = number * 10**9 + at[unseen]
    for footprint in np.unique(prints[first_seen >= 0]):
        members = np.flatnonzero((prints == footprint) & (first_seen >= 0))
        members = members[np.argsort(first_seen[members])]
        numbers = np.full(count + 1, -1)
        numbers[members] = np.arange(len(members))
        yield numbers[unit_of], len(members)


def _axis(
    model: nn.Module,
    trace: Trace,
    solution: Solution,
    sources: list[Source],
    roles: dict[int, str],
    member_of: np.ndarray,
    size: int,
) -> Axis | None:
    entries = []
    for source in _touched(sources, solution, member_of):
        unit_of = member_of[solution.classes[source.start : source.start + source.size]]
        run = regular_run(unit_of, size)
        if run is None:
            return None
        path, _, attribute = source.tensor.rpartition(".")
        owner = model.get_submodule(path)
        entry = Entry(torch.from_numpy(unit_of), run, source.tensor, owner, attribute, source.dim)
        if entry.tensor.is_floating_point():
            entry.role = roles.get(source.start, "free")
        entries.append(entry)
    inside = np.flatnonzero(member_of >= 0)
    groups = [name for labels, name in trace.relations.groups if (member_of[solution.classes[labels]] >= 0).any()]
    inexact = next((solution.inexact[c] for c in inside.tolist() if c in solution.inexact), None)
    exact = YES if inexact is None else Verdict(False, inexact)
    counts = _counts(model, trace, solution, member_of)
    return Axis(groups[0] if groups else "", "head" if groups else "neuron", size, tuple(entries), counts, exact=exact)


def _touched(sources: list[Source], solution: Solution, member_of: np.ndarray) -> list[Source]:
    """The sources that have a unit of the axis, in their order."""
    labels = np.flatnonzero(member_of[solution.classes] >= 0)
    starts = np.array([source.start for source in sources])
    by_start = np.argsort(starts)
    last = np.searchsorted(starts[by_start], labels, side="right") - 1
    found = [sources[i] for i in np.unique(by_start[np.unique(last[last >= 0])])]
    return [s for s in found if (member_of[solution.classes[s.start : s.start + s.size]] >= 0).any()]


def _counts(model: nn.Module, trace: Trace, solution: Solution, member_of: np.ndarray) -> tuple[Count, ...]:
    names = {module: name for name, module in model.named_modules()}
    found: dict[tuple[str, int], Count] = {}
    for size in trace.relations.sizes:
        unit_of = member_of[solution.classes[size.labels]]
        run = regular_run(unit_of, int(unit_of.max()) + 1) if (unit_of >= 0).any() else None
        for module in (size.running, model.get_submodule(size.owner)):
            if run and module is not None and vars(module).get(size.argument) == len(unit_of):
                count = Count(torch.from_numpy(unit_of), run, names[module], module, size.argument)
                found.setdefault(count.key, count)
    return tuple(found.values())


def _first(axis: Axis) -> Entry:
    """The entry that an axis is named by: its first producer."""
    return (axis.with_role("out", "tied") or axis.entries)[0]


def _name(axes: list[Axis]) -> None:
    """Name axes without a name by the module of their first producer; where that isn't unique by the tensor, …"""
    waiting = [axis for axis in axes if not axis.name]
    for form in (_by_module, _by_tensor, _by_dimension):
        names = [form(axis) for axis in waiting]
        for axis, name in zip(waiting, names, strict=True):
            axis.name = name
        waiting = [a for a, n in zip(waiting, names, strict=True) if not n or names.count(n) > 1]
    for number, axis in enumerate(waiting):
        axis.name += f"#{number}"


def _by_module(axis: Axis) -> str:
    return _first(axis).name.rpartition(".")[0]


def _by_tensor(axis: Axis) -> str:
    return _first(axis).name


def _by_dimension(axis: Axis) -> str:
    first = _first(axis)
    return f"{first.name}[{first.dim}]"


def _frozen(trace: Trace, solution: Solution) -> tuple[Frozen, ...]:
    found = []
    for source in trace.sources:
        if source.tensor not in trace.order:
            found.append(Frozen(source.tensor, source.dim, source.size, "no traced call reads it"))
            continue
        classes = solution.classes[source.start : source.start + source.size]
        reasons = [solution.frozen[c] for c in classes.tolist() if c in solution.frozen]
        for reason in dict.fromkeys(reasons):
            found.append(Frozen(source.tensor, source.dim, reasons.count(reason), reason))
    return tuple(found)


def without_immovable(
    axes: tuple[Axis, ...], frozen: tuple[Frozen, ...]
) -> tuple[tuple[Axis, ...], tuple[Frozen, ...]]:
    """Axes that turned out neither to shrink nor to grow are frozen."""
    kept = tuple(axis for axis in axes if axis.prunable or axis.growable)
    stuck = [axis for axis in axes if not axis.prunable and not axis.growable]
    found = [
        Frozen(e.name, e.dim, int((e.unit_of >= 0).sum()), axis.prunable.reason) for axis in stuck for e in axis.entries
    ]
    return kept, (*frozen, *found)

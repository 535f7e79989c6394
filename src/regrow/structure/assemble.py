"""From the solved classes to axes: units with the same footprint, where they lie, and what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .arrays import Inverted, distinct
from .axis import BOUNDARY, TAGS, Axis, Count, Entry, Verdict, holder, read_as
from .boundary import Given, name_of_input
from .declared import declared_sizes, declares_sizes
from .integers import Integer, integers
from .labels import PythonSize, Source
from .maps import regular_run
from .roles import roles
from .silence import Silent
from .solve import Solution
from .trace import Trace


@dataclass(frozen=True)
class Frozen:
    """Indices of one dimension of one tensor that can't change, and why."""

    name: str
    dim: int
    size: int
    reason: str


class Reasons:
    """For each index of each dimension of each tensor why it can't change."""

    def __init__(self) -> None:
        self.numbers = {"goes only together with what can't change": 0}  # texts, numbered
        self.of: dict[tuple[str, int], np.ndarray] = {}  # a number for each index; 0 where no reason was given

    def number(self, text: str) -> int:
        """The number of a text."""
        return self.numbers.setdefault(text, len(self.numbers))

    def give(self, place: Entry, text: str) -> None:
        """Say why what follows an axis there can't change after all."""
        self.of[place.key][place.unit_of.numpy() >= 0] = self.number(text)

    def frozen(self, axes: Sequence[Axis]) -> Iterator[Frozen]:
        """What is in none of these axes."""
        texts = list(self.numbers)
        free = {key: np.zeros(len(numbers), bool) for key, numbers in self.of.items()}
        for entry in (entry for axis in axes for entry in axis.entries):
            free[entry.key] |= entry.unit_of.numpy() >= 0
        for (name, dim), numbers in self.of.items():
            found, firsts, counts = np.unique(numbers[~free[name, dim]], return_index=True, return_counts=True)
            for i in np.argsort(firsts):
                yield Frozen(name, dim, int(counts[i]), texts[found[i]])


def assemble(model: nn.Module, trace: Trace, solution: Solution) -> tuple[tuple[Axis, ...], Reasons]:
    """All axes in execution order, and why other indices can't change."""
    assembly = _Assembly(model, trace, solution)
    return tuple(sorted(assembly.axes(), key=assembly.when)), assembly.reasons()


class _Assembly:
    """Reads the solution back onto the model's tensors."""

    def __init__(self, model: nn.Module, trace: Trace, solution: Solution) -> None:
        self.model, self.trace, self.solution = model, trace, solution
        self._places: dict[tuple[int, bytes], tuple[torch.Tensor, int]] = {}
        self.given = {name_of_input(number): number for number in trace.boundary.met}
        used = (source for source in trace.sources if source.tensor in trace.order)
        self.sources = sorted(used, key=lambda source: (trace.order[source.tensor], source.dim))
        self.parameters = dict(model.named_parameters())
        self.roles = roles(trace, self.parameters)
        self.names = {module: name for name, module in model.named_modules()}
        self.source_of = {(source.tensor, source.dim): source for source in trace.sources}
        self.by_source = self._inverted([self._classes(source) for source in self.sources])
        self.by_kind = self._inverted([solution.classes[labels] for labels, _, _ in trace.relations.kinds])
        self.by_size = self._inverted([solution.classes[size.labels].ravel() for size in trace.relations.sizes])

    def axes(self) -> Iterator[Axis]:
        """All axes, without names and in no order; what no parameter follows, as unread positions, is none."""
        for classes, units in self.solution.families:
            for member_of, size, own, touched in self._split_by_footprint(classes, units):
                if any(source.tensor in self.parameters for source in touched):
                    yield self._axis(member_of, size, own, touched)

    def when(self, axis: Axis) -> tuple[int, ...]:
        """Axes are ordered by the call that reads their first tensor, then as they lie in it, the outer ones first."""
        first = _first(axis)
        begin = self.source_of[first.key].start + int((first.unit_of >= 0).int().argmax())
        return self.trace.order[first.name], begin, -first.run

    def reasons(self) -> Reasons:
        """The first reason given for each index that can't change."""
        found, notes = Reasons(), self.solution.frozen
        numbers = np.array([*map(found.number, notes.texts), 0])
        for source in self.trace.sources:
            if source.tensor in self.given:
                continue
            if source.tensor in self.trace.order:
                here = numbers[notes.of[self._classes(source)]]
            else:
                here = np.full(source.size, found.number("no traced call reads it"))
            found.of[source.tensor, source.dim] = here
        return found

    def _inverted(self, arrays: Sequence[np.ndarray]) -> Inverted:
        return Inverted(arrays, len(self.solution.frozen.of))

    def _classes(self, source: Source) -> np.ndarray:
        return self.solution.classes[source.start : source.start + source.size]

    def _split_by_footprint(
        self, classes: np.ndarray, units: np.ndarray
    ) -> Iterator[tuple[np.ndarray, int, np.ndarray, list[Source]]]:
        """Units that have as many indices in the same dimensions of the same tensors belong together.

        Yields for each axis the unit of every class (or -1), units numbered as they first appear, their number, the
        classes that are in any, and the sources that hold these.
        """
        unit_of = np.full(int(self.solution.classes.max()) + 1, -1)
        unit_of[classes] = units
        count = int(units.max()) + 1 if len(units) else 0
        # A footprint is a multiset of sources: a random number for each source, added up, tells them apart.
        weights = np.random.default_rng(0).integers(1, 2**62, size=len(self.sources), dtype=np.uint64)
        prints = np.zeros(count, np.uint64)
        first_seen = np.full(count, -1)
        held: list[tuple[Source, np.ndarray]] = []
        for number in self.by_source.holding(classes):
            source = self.sources[number]
            here = unit_of[self._classes(source)]
            here = here[here >= 0]
            new, at, times = _counted(here)
            prints[new] += times.astype(np.uint64) * weights[number]
            unseen = first_seen[new] < 0
            first_seen[new[unseen]] = number * 10**9 + at[unseen]
            held.append((source, new))
        footprints, group_of = np.unique(prints, return_inverse=True)
        touched: list[list[Source]] = [[] for _ in footprints]
        for source, new in held:
            for group in distinct(group_of[new]):
                touched[group].append(source)
        for group, sources in enumerate(touched):
            members = np.flatnonzero((group_of == group) & (first_seen >= 0))
            members = members[np.argsort(first_seen[members])]
            numbers = np.full(count + 1, -1)
            numbers[members] = np.arange(len(members))
            if len(members):
                yield numbers[unit_of], len(members), classes[numbers[units] >= 0], sources

    def _axis(self, member_of: np.ndarray, size: int, own: np.ndarray, touched: list[Source]) -> Axis:
        silent = self.solution.silence.of(member_of)
        entries = [self._entry(source, member_of, size, silent) for source in touched]
        noted = [self.trace.relations.kinds[number][1:] for number in self.by_kind.holding(own)]
        kinds = {kind for kind, _ in noted}
        kind = "head" if kinds & {"head", "group"} else "feature" if "feature" in kinds else "neuron"
        called = {"head": ("head", "group"), "feature": ("feature",)}.get(kind, ("input",))
        name = next((name for noted_kind, name in noted if name and noted_kind in called), "")
        axis = Axis(name, kind, size, tuple(entries))
        axis.tags = frozenset(kinds & TAGS)
        axis.counts = tuple(self._counts(member_of, own))
        axis.inputs = tuple(self._inputs(member_of, size))
        if axis.inputs:
            axis.tags |= {"input"}
            axis.name = name or ".".join(filter(None, (entries[0].name.rpartition(".")[0], "inputs")))
        if axis.tags & BOUNDARY:
            axis.prunable = Verdict(False, "is at the model's boundary, where positions have a meaning")
        reason = self.solution.inexact.first(own)
        reason = reason or silent.why or self._lengths(entries, silent)
        axis.exact = Verdict(not reason, reason)
        return axis

    def _inputs(self, member_of: np.ndarray, size: int) -> Iterator[Given]:
        for source in (s for s in self.trace.sources if s.tensor in self.given):
            unit_of = member_of[self._classes(source)]
            if (unit_of >= 0).any():
                yield Given(*self._place(unit_of, size), self.given[source.tensor], source.dim)

    def _units(self, labels: np.ndarray, member_of: np.ndarray) -> np.ndarray:
        return member_of[self.solution.classes[labels]]

    def _place(self, unit_of: np.ndarray, size: int) -> tuple[torch.Tensor, int]:
        """How units lie, as one and the same tensor in all places where they lie so; and their run."""
        key = (size, unit_of.tobytes())
        if key not in self._places:
            self._places[key] = torch.from_numpy(unit_of), regular_run(unit_of, size)
        return self._places[key]

    def _entry(self, source: Source, member_of: np.ndarray, size: int, silent: Silent) -> Entry:
        unit_of = member_of[self._classes(source)]
        path, _, attribute = source.tensor.rpartition(".")
        owner = self.model.get_submodule(path)
        entry = Entry(*self._place(unit_of, size), source.tensor, owner, attribute, source.dim)
        role = self.roles.get(source.start, "free")
        if role == "in" and self._whole(source, member_of):
            role = "out"
        if entry.tensor.is_floating_point() or (role in ("in", "out", "tied") and entry.tensor.dtype != torch.bool):
            entry.role = role
            summed = _within(silent.zero, source) & (unit_of >= 0)
            if role != "var" and summed.any():
                entry.summed = torch.from_numpy(summed)
            entry.nonzero = bool((_within(silent.nonzero, source) & (unit_of >= 0)).any())
        return entry

    def _whole(self, source: Source, member_of: np.ndarray) -> bool:
        """Whether units here are whole groups, so that what reads them belongs to them too."""
        inside = range(source.start, source.start + source.size)
        rows = [r for r in self.trace.relations.contracted if int(r.flat[0]) in inside]
        return bool(rows) and not any(len(self.solution.silence.among_others(r, member_of)) for r in rows)

    def _lengths(self, entries: Sequence[Entry], silent: Silent) -> str:
        """Why the lengths of weights don't allow that units come or go unseen, or ""."""
        for entry in (e for e in entries if isinstance(e.tensor, nn.Parameter)):  # buffers are computed from these
            along = entry.role in ("out", "tied") and _within(silent.lengths, self.source_of[entry.key])
            if np.any(along & (entry.unit_of.numpy() >= 0)):
                return "the length of a weight runs over it"
            read = [e for e in entries if e.role == "in" and e.owner is entry.owner]
            if entry.role == "in" and all(e.nonzero for e in read):
                return "a column of the weight can't be zero"
        return ""

    def _counts(self, member_of: np.ndarray, own: np.ndarray) -> Iterator[Count]:
        """Integers handed to calls, where the module that ran or owns the weight has them."""
        seen = set()
        for size in (self.trace.relations.sizes[number] for number in self.by_size.holding(own)):
            unit_of = self._units(size.labels, member_of)
            place = self._place(unit_of, int(unit_of.max()) + 1)
            for module, integer in self._integers_of(size):
                count = Count(*place, self.names[module], integer)
                if count.key not in seen:
                    seen.add(count.key)
                    yield count

    def _integers_of(self, size: PythonSize) -> list[tuple[nn.Module, Integer]]:
        if size.integer is not None and size.running is not None:
            by_itself = size.integer.attribute in declared_sizes(size.running)
            return [] if by_itself else [(size.running, size.integer)]
        owner = self.model.get_submodule(size.owner) if size.argument else None
        holders = [m for m in dict.fromkeys([size.running, owner]) if m is not None]
        return _integers_called(holders, size.argument, len(size.labels))


def _integers_called(modules: list[nn.Module], argument: str, value: int) -> list[tuple[nn.Module, Integer]]:
    """The integers of modules with this value: those of the argument's name, or else all; a trial tells which do."""
    found = [(m, integer) for m in modules for integer in integers(m) if integer.value == value]
    named = [(m, integer) for m, integer in found if integer.name == argument]
    return named or [(m, integer) for m, integer in found if not declares_sizes(m)]


def _first(axis: Axis) -> Entry:
    """The entry that an axis is named by: its first producer."""
    return (axis.with_role("out", "tied") or axis.entries)[0]


def _name(axes: Sequence[Axis]) -> None:
    """Name axes as the rules call them, or by their first producer's module; where that isn't unique by its tensor …"""
    waiting, taken = list(axes), set()
    for form in (_as_called, _by_module, _by_tensor, _by_dimension):
        names = [form(axis) for axis in waiting]
        unique = {name for name, times in Counter(names).items() if name and times == 1} - taken
        for axis, name in zip(waiting, names, strict=True):
            axis.name = name
        waiting = [axis for axis in waiting if axis.name not in unique]
        taken |= unique
    numbers: Counter[str] = Counter()
    for axis in waiting:
        number, numbers[axis.name] = numbers[axis.name], numbers[axis.name] + 1
        axis.name += f"#{number}"


def _as_called(axis: Axis) -> str:
    return axis.name


def _by_module(axis: Axis) -> str:
    return holder(_by_tensor(axis))


def _by_tensor(axis: Axis) -> str:
    return read_as(_first(axis).name)


def _by_dimension(axis: Axis) -> str:
    first = _first(axis)
    return f"{first.name}[{first.dim}]"


def without_immovable(axes: tuple[Axis, ...], reasons: Reasons) -> tuple[tuple[Axis, ...], tuple[Frozen, ...]]:
    """The axes that turned out to shrink or to grow, with their names; what is in none of them is frozen."""
    kept = tuple(axis for axis in axes if axis.prunable or axis.growable)
    stuck = [axis for axis in axes if not axis.prunable and not axis.growable]
    for axis in sorted(reversed(stuck), key=lambda axis: axis.size > 1):  # the first counts; being alone says least
        for entry in axis.entries:
            reasons.give(entry, axis.prunable.reason)
    _name(kept)
    return kept, tuple(reasons.frozen(kept))


def _counted(units: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct units, where each is first, and how often it is there."""
    if (units[1:] > units[:-1]).all():
        return units, np.arange(len(units)), np.ones(len(units), np.int64)
    return np.unique(units, return_index=True, return_counts=True)


def _within(ordered: np.ndarray, source: Source) -> np.ndarray:
    """Which labels of a source are among these."""
    found = np.zeros(source.size, bool)
    start, stop = np.searchsorted(ordered, [source.start, source.start + source.size])
    found[ordered[start:stop] - source.start] = True
    return found

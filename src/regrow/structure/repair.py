"""What may have to follow an axis: integers in Python, or another dimension of the same size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, islice

import torch
from torch import nn

from .axis import Axis, Count
from .declared import declares_sizes
from .integers import integers
from .labels import Source
from .suspects import signature
from .trial import Maps, Outcome, Trials

#: Sets of integers tried at one place.
TRIES = 12

Edit = Callable[[Sequence[Axis]], Maps]
Pairs = Iterable[tuple[Source, Source]]
Joined = Callable[[Pairs], Sequence[Axis]]


class Repairs:
    """Tries repairs where an edited model failed; those that get it to its end are made everywhere alike."""

    def __init__(self, trials: Trials, joined: Joined) -> None:
        self.trials, self.joined = trials, joined
        self.names = {module: name for name, module in trials.model.named_modules()}
        self.by_name = {name: module for module, name in self.names.items()}

    def mend(self, axes: Sequence[Axis], axis: Axis, edit: Edit, training: bool, outcome: Outcome) -> list[Axis] | None:
        """Repair until the model runs with one axis edited: the axes that there are then, or None."""
        said = len(self.trials.trace.relations.apart)
        counts = [(a, a.counts) for a in axes]
        now = list(axes)
        while outcome.failure:
            step = (
                self._with_fewer_integers(now, axis, edit, training, outcome)
                or self._with_integers(now, axis, edit, training, outcome, together=1)
                or self._with_shared(now, axis, edit, training, outcome)
                or self._with_joined(now, axis, edit, training, outcome)
                or self._with_integers(now, axis, edit, training, outcome, together=2)
            )
            if step is None:
                del self.trials.trace.relations.apart[said:]
                for a, before in counts:
                    a.counts = before
                return None
            now, axis, outcome = step
        return now

    def _with_fewer_integers(
        self, axes: list[Axis], axis: Axis, edit: Edit, training: bool, outcome: Outcome
    ) -> tuple[list[Axis], Axis, Outcome] | None:
        """An integer that was guessed because it equals a size doesn't follow after all."""
        before, maps = axis.counts, edit([axis])
        running = {self.names.get(module) for module in outcome.modules}
        for count in (c for c in before if c.name in running):
            axis.counts = tuple(c for c in before if c is not count)
            now = self.trials.run(axes, maps, training)
            if now.further_than(outcome):
                self._forget_alike(axes, axis, count)
                return axes, axis, now
        axis.counts = before
        return None

    def _forget_alike(self, axes: Sequence[Axis], axis: Axis, count: Count) -> None:
        """The same integer of the same module in blocks that are alike doesn't follow either."""
        path = _relative(axis.entries[0].name, count.name)
        for other in axes:
            if other is not axis and signature(other) == signature(axis):
                name = _resolved(other.entries[0].name, path)
                kept = (c for c in other.counts if (c.name, c.integer.name) != (name, count.integer.name))
                other.counts = tuple(kept)

    def _with_integers(
        self, axes: list[Axis], axis: Axis, edit: Edit, training: bool, outcome: Outcome, together: int
    ) -> tuple[list[Axis], Axis, Outcome] | None:
        """So many integers at once follow the axis."""
        before, maps = axis.counts, edit([axis])
        for chosen in islice(combinations(self._candidates(axis, outcome), together), TRIES):
            axis.counts = (*before, *chosen)
            now = self.trials.run(axes, maps, training)
            if now.further_than(outcome):
                tried = axis.counts
                for count in chosen:
                    self._follow_alike(axes, axis, count)
                if now.failure and axis.counts != tried:
                    now = self.trials.run(axes, maps, training)
                return axes, axis, now
        axis.counts = before
        return None

    def _candidates(self, axis: Axis, outcome: Outcome) -> Iterator[Count]:
        """Integers that equal a size of the axis, on the modules that were running and those right inside."""
        running = outcome.modules[::-1]
        for module in dict.fromkeys([*running, *(running[0].children() if running else ())]):
            if declares_sizes(module):
                continue  # these follow by themselves
            for integer in integers(module):
                count = _count(axis, self.names.get(module, ""), module, integer.name)
                if count is not None:
                    yield count

    def _follow_alike(self, axes: Sequence[Axis], axis: Axis, count: Count) -> None:
        """The same integer of the same module in blocks that are alike, and in all that the axis runs through."""
        kind = type(self.by_name[count.name])
        path = _relative(axis.entries[0].name, count.name)
        for other in axes:
            if other is not axis and signature(other) == signature(axis):
                self._follow(other, _resolved(other.entries[0].name, path), kind, count.integer.name)
        holders = dict.fromkeys(name for e in axis.entries for name in _above(e.name))
        for name in holders:
            self._follow(axis, name, kind, count.integer.name)

    def _follow(self, axis: Axis, name: str, kind: type, integer: str) -> None:
        module = self.by_name.get(name)
        found = _count(axis, name, module, integer) if module is not None and type(module) is kind else None
        if found is not None:
            axis.counts = (*axis.counts, found)

    def _with_shared(
        self, axes: list[Axis], axis: Axis, edit: Edit, training: bool, outcome: Outcome
    ) -> tuple[list[Axis], Axis, Outcome] | None:
        """Axes that an integer is shared by, as on a configuration object, become one."""
        tried: list[Pairs] = []
        for count in axis.counts:
            others = [a for a in axes if a is not axis and any(c.key == count.key for c in a.counts)]
            pairs = [pair for other in others for pair in self._like_places(axis, other, len(count.unit_of))]
            if pairs and pairs not in tried:
                tried.append(pairs)
                found = self._try_joined(axes, axis, pairs, edit, training, outcome)
                if found is not None:
                    return found
        return None

    def _like_places(self, one: Axis, other: Axis, size: int) -> Pairs:
        for e, f in zip(one.entries, other.entries, strict=False):
            if e.key != f.key and len(e.unit_of) == len(f.unit_of) and (len(e.unit_of) == size or size == one.size):
                return [(self.trials.starts[e.key], self.trials.starts[f.key])]
        return []

    def _with_joined(
        self, axes: list[Axis], axis: Axis, edit: Edit, training: bool, outcome: Outcome
    ) -> tuple[list[Axis], Axis, Outcome] | None:
        """Two dimensions of equal size in the failing module become one, there and in modules that are alike."""
        for module in outcome.modules[::-1][:1]:
            for one, other in self._pairs(axes, axis, module):
                found = self._try_joined(axes, axis, self._alike(module, one, other), edit, training, outcome)
                if found is not None:
                    return found
        return None

    def _try_joined(
        self, axes: list[Axis], axis: Axis, pairs: Pairs, edit: Edit, training: bool, outcome: Outcome
    ) -> tuple[list[Axis], Axis, Outcome] | None:
        """Join, unless an axis that can go by itself would be lost."""
        relations = self.trials.trace.relations
        said = len(relations.apart)
        now = list(self.joined(pairs))
        keep_verdicts(axes, now)
        keys, before = {e.key for e in axis.entries}, {_identity(a) for a in axes}
        for successor in (a for a in now if any(e.key in keys for e in a.entries) and _identity(a) not in before):
            if not edit([successor]):
                continue
            found = self.trials.run(now, edit([successor]), training)
            if found.further_than(outcome) and not self._losing(axes, now, axis, edit, training):
                return now, successor, found
        del relations.apart[said:]
        return None

    def _losing(self, before: list[Axis], now: Sequence[Axis], failing: Axis, edit: Edit, training: bool) -> bool:
        kept = {_identity(axis) for axis in now}
        lost = (a for a in before if a is not failing and _identity(a) not in kept and a.prunable)
        kinds = {signature(axis): axis for axis in lost if signature(axis) != signature(failing)}
        return any(not self.trials.run(before, edit([axis]), training).failure for axis in kinds.values())

    def _pairs(self, axes: Sequence[Axis], axis: Axis, module: nn.Module) -> list[tuple[Source, Source]]:
        """The dimensions of its tensors of which one may be as long as the other, or as several of it."""
        prefix = self.names[module]
        own = [s for s in self.trials.trace.sources if prefix in (_holder(s.tensor), _holder(_holder(s.tensor)))]
        held = {s: frozenset(a for a in axes if any(e.key == (s.tensor, s.dim) for e in a.entries)) for s in own}
        found = {}
        for one, other in combinations(sorted(own, key=lambda source: source.size), 2):
            whole = other.size % one.size == 0 and held[one] and held[other]
            if whole and held[one] != held[other] and axis in held[one] | held[other]:
                found.setdefault((held[one], held[other], one.size, other.size), (one, other))
        return sorted(found.values(), key=lambda pair: pair[1].size // pair[0].size)

    def _alike(self, module: nn.Module, one: Source, other: Source) -> list[tuple[Source, Source]]:
        prefix = self.names[module]
        found = []
        for name, candidate in self.by_name.items():
            if type(candidate) is type(module):
                rest = [s.tensor[len(prefix) :].lstrip(".") for s in (one, other)]
                named = [f"{name}.{r}" if name else r for r in rest]
                a, b = self.trials.starts.get((named[0], one.dim)), self.trials.starts.get((named[1], other.dim))
                if a is not None and b is not None and b.size % a.size == 0:
                    found.append((a, b))
        return found


def keep_verdicts(before: Sequence[Axis], now: Sequence[Axis]) -> None:
    """Axes that are as they were keep their verdicts and counts; those that have merged keep the counts."""
    known = {_identity(axis): axis for axis in before}
    for axis in now:
        old = known.get(_identity(axis))
        if old is not None:
            axis.prunable, axis.growable, axis.exact, axis.counts = old.prunable, old.growable, old.exact, old.counts
            continue
        places = {e.key: e for e in axis.entries}
        for merged in (a for a in before if any(e.key in places for e in a.entries)):
            for count in merged.counts:
                like = next((e for e in merged.entries if torch.equal(e.unit_of, count.unit_of)), None)
                if count.key in {c.key for c in axis.counts} or (like is not None and like.key not in places):
                    continue
                if like is not None:
                    place = places[like.key]
                    axis.counts = (*axis.counts, Count(place.unit_of, place.run, count.name, count.integer))
                elif axis.size == merged.size == len(count.unit_of):
                    axis.counts = (*axis.counts, count)


def _identity(axis: Axis) -> object:
    return frozenset((*e.key, e.unit_of.numpy().tobytes()) for e in axis.entries)


def _count(axis: Axis, name: str, module: nn.Module, integer_name: str) -> Count | None:
    """The integer as a count of an axis, if it equals one of its sizes and isn't one already."""
    integer = next((i for i in integers(module) if i.name == integer_name), None)
    if integer is None:
        return None
    of_length = {len(place.unit_of): (place.unit_of, place.run) for place in reversed(axis.places)}
    of_length[axis.size] = (torch.arange(axis.size), 1)
    if integer.value not in of_length:
        return None
    count = Count(*of_length[integer.value], name, integer)
    return None if count.key in {c.key for c in axis.counts} else count


def _above(tensor: str) -> list[str]:
    """The modules that hold a tensor, by name."""
    parts = tensor.split(".")[:-1]
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]


def _holder(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _relative(start: str, target: str) -> tuple[int, tuple[str, ...]]:
    """How to get from one dotted name to another: steps up, then down."""
    one, other = start.split("."), target.split(".") if target else []
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return len(one) - common, tuple(other[common:])


def _resolved(start: str, path: tuple[int, tuple[str, ...]]) -> str:
    parts = start.split(".")
    return ".".join([*parts[: len(parts) - path[0]], *path[1]])

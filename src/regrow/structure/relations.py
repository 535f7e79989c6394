"""All that the rules have said about labels, as arrays; solved once, at the end."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .arrays import distinct
from .labels import Combination, Derived, Field, NotZero, PythonSize, Sum, rows_along


class Relations:
    """All that the rules have said about labels, as arrays; solved once, at the end."""

    def __init__(self) -> None:
        self.count = 1  # label 0 is FIXED
        self.equal: list[tuple[np.ndarray, np.ndarray]] = []
        self.apart: list[tuple[np.ndarray, np.ndarray]] = []  # equal too; of each pair one may be silent alone
        self.summed: list[Sum] = []
        self.nonzero: list[NotZero] = []
        self.frozen: list[tuple[np.ndarray, str]] = []
        self.inexact: list[tuple[np.ndarray, str]] = []
        self.derived: list[Derived] = []
        self.rectangles: list[np.ndarray] = []
        self.kinds: list[tuple[np.ndarray, str, str]] = []  # labels, what they are ("head", …), and their axis's name
        self.roles: list[tuple[np.ndarray, str]] = []
        self.contracted: list[np.ndarray] = []  # labels of weights, as rows of what is contracted in a group, or a head
        self.computed: list[tuple[np.ndarray, np.ndarray, bool]] = []  # one weight from two; whether by multiplying
        self.sizes: list[PythonSize] = []
        self.moved: dict[object, Any] = {}  # what data movement has made of which arrays, so that it is done once
        self._restricted: dict[tuple[int, tuple[int, ...]], tuple[np.ndarray, np.ndarray]] = {}
        self._known: dict[object, np.ndarray] = {}
        self._starts = np.zeros(0, np.int64)
        self._combinations: dict[int, Combination] = {}
        self._said: dict[object, object] = {}  # arrays are told apart by their ids, and so are kept alive
        self._parts: dict[object, tuple[np.ndarray, int, set[tuple[int, int]]]] = {}

    def constraints(self) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
        """Slab labels, each with the row of labels that it stands for; and rectangles.

        Combinations that nothing else was said of go with their parts, and constrain nothing.
        """
        starts = self._starts_of_derived()
        homes = [self._home(starts, rectangle) for rectangle in self.rectangles]
        read = np.zeros(self.count, bool)
        for labels in (a for group in (*self.equal, *self.apart) for a in group):
            read[labels] = True
        for labels, _ in self.frozen:
            read[labels] = True
        for labels, home in zip(self.rectangles, homes, strict=True):
            if home < 0:
                read[labels.ravel()] = True
        slabs, unread = [], set()
        for number, derived in reversed(list(enumerate(self.derived))):
            if derived.kind == "slab" or read[derived.labels].any():
                slabs += derived.slabs()
                for part in derived.parts:
                    read[part.ravel()] = True
            else:
                unread.add(number)
        return slabs[::-1], [r for r, home in zip(self.rectangles, homes, strict=True) if home not in unread]

    def _home(self, starts: np.ndarray, labels: np.ndarray) -> int:
        """The combination that all these labels are of, or -1."""
        low, high = int(labels.min()), int(labels.max())
        number = int(np.searchsorted(starts, low, side="right")) - 1
        if number < 0 or self.derived[number].kind == "slab":
            return -1
        return number if low > 0 and high < starts[number] + self.derived[number].labels.size else -1

    def bases(self, labels: np.ndarray) -> np.ndarray:
        """The labels of tensors that these are, stand for, or combine, in order."""
        starts = self._starts_of_derived()
        rising = labels.ndim == 1 and bool((labels[1:] > labels[:-1]).all())
        if rising and (not len(starts) or not len(labels) or labels[-1] < starts[0]):
            return labels
        key = ("bases", len(self.derived), labels.__array_interface__["data"], labels.shape, labels.strides)
        if key not in self.moved:
            self.moved[key] = (labels, self._find_bases(labels))
        return self.moved[key][1]

    def _find_bases(self, labels: np.ndarray) -> np.ndarray:
        found, waiting = [], np.unique(labels)
        while len(waiting):
            own, parts = np.ones(len(waiting), bool), []
            for derived, here, places in self.made(waiting):
                own[here] = False
                parts += [part.ravel() for part in derived.parts_of(places)]
            found.append(waiting[own])
            waiting = np.unique(np.concatenate(parts)) if parts else waiting[:0]
        return np.unique(np.concatenate(found)) if found else waiting

    def made(self, labels: np.ndarray) -> Iterator[tuple[Derived, np.ndarray, np.ndarray]]:
        """What those of these labels come from that were made of others: where they are here, and where there."""
        starts = self._starts_of_derived()
        makers = np.searchsorted(starts, labels, side="right") - 1
        for number in distinct(makers[makers >= 0]):
            derived = self.derived[number]
            here = np.flatnonzero((makers == number) & (labels < starts[number] + derived.labels.size))
            if len(here):
                yield derived, here, labels[here] - starts[number]

    def _starts_of_derived(self) -> np.ndarray:
        if len(self._starts) != len(self.derived):
            self._starts = np.array([int(d.labels.flat[0]) for d in self.derived])
        return self._starts

    def new_labels(self, count: int) -> np.ndarray:
        """``count`` labels that nothing else has."""
        start = self.count
        self.count += count
        return np.arange(start, self.count)

    def equate(self, one: np.ndarray, other: np.ndarray, apart: bool = False) -> None:
        """Labels at the same place are one thing.

        Args:
            apart: One may be silent without the other, as where data with them are multiplied, or where no more is
                known than that their sizes are the same.
        """
        if one is other:
            return
        key = (id(one), id(other))
        if key not in self._said:
            self._said[key] = (one, other)
            one, other = np.broadcast_arrays(one, other)
            (self.apart if apart else self.equal).append((one.ravel(), other.ravel()))

    def freeze(self, fields: Iterable[Field], reason: str) -> None:
        """Nothing that carries these labels may change."""
        self.frozen.extend((f.labels.ravel(), reason) for f in fields)

    def mark_inexact(self, fields: Iterable[Field], reason: str) -> None:
        """What has these labels can't come or go without moving the output."""
        self.inexact.extend((f.labels.ravel(), reason) for f in fields)

    def add_up(
        self, fld: Field, dim: int, reason: str = "", weight: bool = False, others: Iterable[Field] = ()
    ) -> None:
        """Note that what has these labels is added up along one of the field's dimensions; see :class:`Sum`."""
        self.summed.append(Sum(rows_along(fld, [dim]), reason, weight, tuple(rows_along(f, [dim]) for f in others)))

    def note_kind(self, labels: np.ndarray, kind: str, name: str = "") -> None:
        """Say what kind of thing these labels are, and what an axis of them may be called."""
        key = (id(labels), kind)
        if key not in self._said:
            self._said[key] = labels
            self.kinds.append((labels.ravel(), kind, name))

    def rectangle(self, labels: np.ndarray) -> None:
        """What is kept of these labels must be a product of subsets, one for each dimension."""
        if labels.ndim > 1:
            key = (labels.shape, labels.tobytes())
            if key not in self._said:
                self._said[key] = labels
                self.rectangles.append(labels)

    def part(self, labels: np.ndarray, axis: int, start: int, stop: int) -> None:
        """A slice was cut out along one dimension of ``labels``; see :meth:`join_parts`."""
        key = (axis, labels.shape, labels.tobytes())
        self._parts.setdefault(key, (labels, axis, set()))[2].add((start, stop))

    def join_parts(self) -> None:
        """Slices that divide a dimension into equal parts stay equal: they are rows of a rectangle.

        The last may be smaller; what is left over by it in the others stays.
        """
        for labels, axis, cuts in self._parts.values():
            ordered, whole = sorted(cuts), labels.shape[axis]
            size = ordered[0][1] - ordered[0][0]
            if not size or len(ordered) < 2 or ordered != [(i, min(whole, i + size)) for i in range(0, whole, size)]:
                continue
            last = whole - ordered[-1][0]
            parts = np.stack([labels.take(range(i, i + last), axis) for i, _ in ordered], axis)
            self.rectangle(parts)
            for start, stop in ordered[:-1] if last < size else ():
                surplus = labels.take(range(start + last, stop), axis)
                self.frozen.append((surplus.ravel(), "is left over by parts of which the last is smaller"))
        self._parts.clear()

    def join_integers(self) -> None:
        """What one and the same integer counts stays equally long: it is one thing."""
        counted: dict[object, np.ndarray] = {}
        for size in self.sizes:
            if size.integer is not None:
                key = (id(size.integer.holder), size.integer.attribute, size.integer.item)
                self.equate(counted.setdefault(key, size.labels), size.labels, apart=True)

    def restrict(self, fld: Field, dims: Collection[int]) -> Field | None:
        """The field as seen from ``dims`` alone: each place there stands for a whole row (a *slab*)."""
        keep = tuple(d for d in fld.dims if d in dims)
        if keep == fld.dims or not keep:
            return fld if keep else None
        for part in self.parts_of(fld):
            if set(keep) <= set(part.dims):
                return self.restrict(part, keep)
        first = tuple(fld.dims.index(d) for d in keep)
        key = (id(fld.labels), first)
        if key not in self._restricted:
            rows = fld.labels.transpose(first + tuple(i for i in range(len(fld.dims)) if i not in first))
            shape = rows.shape[: len(keep)]
            seen = self._slab(rows.reshape(math.prod(shape), -1)).reshape(shape)
            self._restricted[key] = (fld.labels, seen)
        return Field(keep, self._restricted[key][1])

    def collapse(self, fld: Field, fixed: Iterable[int], reason: str) -> Field | None:
        """Some of the field's dimensions can't change: all along them goes together; without others, it is frozen."""
        fixed = set(fixed)
        keep = tuple(d for d in fld.dims if d not in fixed)
        if keep == fld.dims:
            return fld
        if not keep:
            self.freeze([fld], reason)
            return None
        parts = [self.collapse(part, fixed, reason) for part in self.parts_of(fld)]
        if parts:
            return self.combined([part for part in parts if part is not None])
        first = fld.labels[tuple(slice(None) if d in keep else 0 for d in fld.dims)]
        shape = [n if d in keep else 1 for d, n in zip(fld.dims, fld.labels.shape, strict=True)]
        self.equate(np.broadcast_to(first.reshape(shape), fld.labels.shape), fld.labels)
        return Field(keep, first)

    def combined(self, fields: Sequence[Field]) -> Field:
        """One field over all dimensions of several: each place there goes when any of its parts does."""
        if len(fields) == 1:
            return fields[0]
        dims = tuple(sorted({d for f in fields for d in f.dims}))
        parts = tuple(_spread(f, dims) for f in fields)
        key = ("combined", *((p.shape, p.tobytes()) for p in parts))
        if key not in self._known:
            labels = self._known[key] = self._combine(parts)
            own = tuple((tuple(dims.index(d) for d in f.dims), f.labels) for f in fields)
            self._combinations[id(labels)] = Combination(labels, own)
        return Field(dims, self._known[key])

    def parts_of(self, fld: Field) -> list[Field]:
        """The fields that a field combines; none if it isn't one of :meth:`combined`."""
        known = self._combinations.get(id(fld.labels))
        return [] if known is None else [Field(tuple(fld.dims[a] for a in axes), part) for axes, part in known.parts]

    def transposed(self, labels: np.ndarray, order: Sequence[int]) -> np.ndarray:
        """Labels with their dimensions in another order."""
        key = ("order", id(labels), tuple(order))
        if key not in self.moved:
            found = np.ascontiguousarray(labels.transpose(order))
            known = self._combinations.get(id(labels))
            if known is not None:
                self._combinations[id(found)] = known.moved(found, order)
            self.rectangle(found)
            self.moved[key] = (labels, found)
        return self.moved[key][1]

    def _combine(self, parts: tuple[np.ndarray, ...]) -> np.ndarray:
        shape = np.broadcast_shapes(*(p.shape for p in parts))
        labels = self.new_labels(math.prod(shape)).reshape(shape)
        self.derived.append(Derived(labels, "all of", parts))
        self.rectangle(labels)
        return labels

    def _slab(self, rows: np.ndarray) -> np.ndarray:
        key = (rows.shape, rows.tobytes())
        if key not in self._known:
            first, which = _distinct_rows(rows)
            labels = self.new_labels(len(first))
            self.derived.append(Derived(labels, "slab", (rows[first],)))
            self._known[key] = labels[which]
        return self._known[key]


def _distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct row is first, and which of these every row is."""
    if len(np.unique(rows[:, 0])) == len(rows):
        return np.arange(len(rows)), np.arange(len(rows))
    weights = np.random.default_rng(0).integers(-(2**62), 2**62, rows.shape[1])
    _, first, which = np.unique(rows @ weights, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[which]


def _spread(fld: Field, dims: Sequence[int]) -> np.ndarray:
    """A field's labels with a dimension for each of ``dims``."""
    order = sorted(range(len(fld.dims)), key=fld.dims.__getitem__)
    labels = fld.labels.transpose(order)
    sizes = dict(zip(sorted(fld.dims), labels.shape, strict=True))
    return np.ascontiguousarray(labels).reshape([sizes.get(d, 1) for d in dims])

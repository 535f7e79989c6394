"""Labels, and what the rules have said about them, as arrays; solved once, at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import nn

#: The label of everything that can never change; it is frozen from the start.
FIXED = 0


class Field(NamedTuple):
    """Labels of one tensor over just those of its dimensions on which they vary.

    ``labels`` has one dimension for each entry of ``dims``. A dimension belongs to at most one field.
    """

    dims: tuple[int, ...]
    labels: np.ndarray


class Labelled(NamedTuple):
    """What the trace knows of a tensor.

    ``origin`` is "data" (depends on the model's input, or is unknown), "weight" (computed from
    parameters and buffers alone) or "uniform" (made by a factory, the same value everywhere).
    """

    fields: tuple[Field, ...]
    origin: str


UNKNOWN, UNIFORM = Labelled((), "data"), Labelled((), "uniform")


@dataclass(frozen=True)
class Source:
    """One dimension of one parameter, buffer or input: its labels are ``start .. start + size - 1``."""

    tensor: str
    dim: int
    size: int
    start: int


@dataclass
class PythonSize:
    """An integer handed to a call that must follow an axis, as a convolution's ``groups`` or a size in a view.

    It may be an attribute of the innermost module that was running, or of the one that owns the call's weight;
    ``argument`` is its name there, or "" where only its value is known.
    """

    running: nn.Module | None
    owner: str
    argument: str
    labels: np.ndarray


class Derived(NamedTuple):
    """Labels made from others: each stands for a whole row (``kind`` "slab") or for a combination ("all of").

    The parts of combinations are broadcast to their shape.
    """

    labels: np.ndarray
    kind: str
    parts: tuple[np.ndarray, ...]


class Relations:
    """All that the rules have said about labels, as arrays; solved once, at the end."""

    def __init__(self) -> None:
        self.count = 1  # label 0 is FIXED
        self.equal: list[tuple[np.ndarray, np.ndarray]] = []
        self.multiplied: list[tuple[np.ndarray, np.ndarray]] = []  # equal too; of each pair one may be silent alone
        self.summed: list[np.ndarray] = []  # labels of data that are added up with no weight between
        self.frozen: list[tuple[np.ndarray, str]] = []
        self.inexact: list[tuple[np.ndarray, str]] = []
        self.derived: list[Derived] = []
        self.rectangles: list[np.ndarray] = []
        self.kinds: list[tuple[np.ndarray, str, str]] = []  # labels, what they are ("head", …), and their axis's name
        self.roles: list[tuple[np.ndarray, str]] = []
        self.sizes: list[PythonSize] = []
        self.moved: dict[object, Any] = {}  # what data movement has made of which arrays, so that it is done once
        self._restricted: dict[tuple[int, tuple[int, ...]], tuple[np.ndarray, np.ndarray]] = {}
        self._known: dict[object, np.ndarray] = {}
        self._said: dict[object, object] = {}  # arrays are told apart by their ids, and so are kept alive
        self._parts: dict[object, tuple[np.ndarray, int, set[tuple[int, int]]]] = {}

    @property
    def slabs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Slab labels, each with the row of labels that it stands for."""
        found = []
        for labels, kind, parts in self.derived:
            if kind == "slab":
                found.append((labels, parts[0]))
                continue
            for part in parts:
                inside = [axis for axis, n in enumerate(part.shape) if n > 1]
                outside = [axis for axis in range(part.ndim) if axis not in inside]
                found.append((part.ravel(), labels.transpose(inside + outside).reshape(part.size, -1)))
        return found

    def new_labels(self, count: int) -> np.ndarray:
        """``count`` labels that nothing else has."""
        start = self.count
        self.count += count
        return np.arange(start, self.count)

    def equate(self, one: np.ndarray, other: np.ndarray, multiplied: bool = False) -> None:
        """Labels at the same place are one thing.

        Args:
            multiplied: They are so because data with them are multiplied: what is silent in one is so in the product.
        """
        if one is other:
            return
        key = (id(one), id(other))
        if key not in self._said:
            self._said[key] = (one, other)
            one, other = np.broadcast_arrays(one, other)
            (self.multiplied if multiplied else self.equal).append((one.ravel(), other.ravel()))

    def freeze(self, fields: Iterable[Field], reason: str) -> None:
        """Nothing that carries these labels may change."""
        self.frozen.extend((f.labels.ravel(), reason) for f in fields)

    def mark_inexact(self, fields: Iterable[Field], reason: str) -> None:
        """What has these labels can't come or go without moving the output."""
        self.inexact.extend((f.labels.ravel(), reason) for f in fields)

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
        """Slices that divide a dimension into equal parts stay equal: they are rows of a rectangle."""
        for labels, axis, cuts in self._parts.values():
            ordered = sorted(cuts)
            size = ordered[0][1] - ordered[0][0]
            if size and ordered == [(i, i + size) for i in range(0, labels.shape[axis], size)] and len(ordered) > 1:
                shape = (*labels.shape[:axis], len(ordered), size, *labels.shape[axis + 1 :])
                self.rectangle(labels.reshape(shape))
        self._parts.clear()

    def restrict(self, fld: Field, dims: Sequence[int]) -> Field | None:
        """The field as seen from ``dims`` alone: each place there stands for a whole row (a *slab*)."""
        keep = tuple(d for d in fld.dims if d in dims)
        if keep == fld.dims or not keep:
            return fld if keep else None
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
            self._known[key] = self._combine(parts)
        return Field(dims, self._known[key])

    def _combine(self, parts: tuple[np.ndarray, ...]) -> np.ndarray:
        shape = np.broadcast_shapes(*(p.shape for p in parts))
        labels = self.new_labels(math.prod(shape)).reshape(shape)
        self.derived.append(Derived(labels, "all of", parts))
        self.rectangle(labels)
        return labels

    def _slab(self, rows: np.ndarray) -> np.ndarray:
        key = (rows.shape, rows.tobytes())
        if key not in self._known:
            self._known[key] = self.new_labels(len(rows))
            self.derived.append(Derived(self._known[key], "slab", (rows,)))
        return self._known[key]


def _spread(fld: Field, dims: Sequence[int]) -> np.ndarray:
    """A field's labels with a dimension for each of ``dims``."""
    order = sorted(range(len(fld.dims)), key=fld.dims.__getitem__)
    labels = fld.labels.transpose(order)
    sizes = dict(zip(sorted(fld.dims), labels.shape, strict=True))
    return np.ascontiguousarray(labels).reshape([sizes.get(d, 1) for d in dims])

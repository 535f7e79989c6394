"""Labels, and what rules say of them, as data."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import nn

from .integers import Integer

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
    ``argument`` is its name there, or "" where only its value is known; ``integer`` is given where it is known by
    itself.
    """

    running: nn.Module | None
    owner: str
    argument: str
    labels: np.ndarray
    integer: Integer | None = None


class Combination(NamedTuple):
    """What an array of combined labels is made of: for each part the dimensions that it has there, and its labels."""

    labels: np.ndarray
    parts: tuple[tuple[tuple[int, ...], np.ndarray], ...]

    def moved(self, labels: np.ndarray, order: Sequence[int]) -> Combination:
        """The same after a transposition."""
        return Combination(labels, tuple((tuple(order.index(d) for d in dims), part) for dims, part in self.parts))


class Derived(NamedTuple):
    """Labels made from others: each stands for a whole row (``kind`` "slab") or for a combination ("all of").

    The parts of combinations are broadcast to their shape.
    """

    labels: np.ndarray
    kind: str
    parts: tuple[np.ndarray, ...]

    def slabs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Which labels stand for which rows: a part of combinations for all combinations with it."""
        if self.kind == "slab":
            return [(self.labels, self.parts[0])]
        found = []
        for part in self.parts:
            inside = [axis for axis, n in enumerate(part.shape) if n > 1]
            outside = [axis for axis in range(part.ndim) if axis not in inside]
            found.append((part.ravel(), self.labels.transpose(inside + outside).reshape(part.size, -1)))
        return found

    def parts_of(self, places: np.ndarray) -> list[np.ndarray]:
        """The labels that those at these places are made of, by part; of a slab whole rows."""
        if self.kind == "slab":
            return [self.parts[0][places]]
        return [np.broadcast_to(part, self.labels.shape).reshape(-1)[places] for part in self.parts]


class Sum(NamedTuple):
    """Data that are added up with no weight between, or a weight; each row of ``labels`` is one sum.

    ``reason`` says why nothing can be done about it where what is silent isn't zero there, or is "". Of what is
    multiplied before, ``others`` may be zero instead.
    """

    labels: np.ndarray
    reason: str
    weight: bool = False
    others: tuple[np.ndarray, ...] = ()


class NotZero(NamedTuple):
    """Labels along which a tensor can't be zero, since it is divided by; ``data`` tells whether it is computed."""

    labels: np.ndarray
    data: bool


def rows_along(fld: Field, dims: Collection[int]) -> np.ndarray:
    """A field's labels as rows along some of its dimensions."""
    order = sorted(range(len(fld.dims)), key=lambda axis: fld.dims[axis] in dims)
    moved = fld.labels.transpose(order)
    length = math.prod(n for d, n in zip(fld.dims, fld.labels.shape, strict=True) if d in dims)
    return np.ascontiguousarray(moved.reshape(-1, length))

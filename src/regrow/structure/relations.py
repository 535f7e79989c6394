"""Labels, and what the rules have said about them, as arrays; solved once, at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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
    """One dimension of one parameter or buffer: its labels are ``start .. start + size - 1``."""

    tensor: str
    dim: int
    size: int
    start: int


@dataclass
class PythonSize:
    """An integer handed to a call that must follow an axis, as a convolution's ``groups``.

    It may be an attribute of the innermost module that was running, or of the one that owns the call's weight.
    """

    running: nn.Module | None
    owner: str
    argument: str
    labels: np.ndarray


@dataclass
class Relations:
    """All that the rules have said about labels, as arrays; solved once, at the end."""

    count: int = 1  # label 0 is FIXED
    equal: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    inexact: list[tuple[np.ndarray, str]] = field(default_factory=list)
    slabs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    rectangles: list[np.ndarray] = field(default_factory=list)
    groups: list[tuple[np.ndarray, str]] = field(default_factory=list)  # labels of groups, and their name
    roles: list[tuple[np.ndarray, str]] = field(default_factory=list)
    sizes: list[PythonSize] = field(default_factory=list)
    _slab_of: dict[tuple[int, tuple[int, ...], bytes], np.ndarray] = field(default_factory=dict)
    _rectangles_seen: set[tuple[tuple[int, ...], bytes]] = field(default_factory=set)

    def new_labels(self, count: int) -> np.ndarray:
        """``count`` labels that nothing else has."""
        start = self.count
        self.count += count
        return np.arange(start, self.count)

    def equate(self, one: np.ndarray, other: np.ndarray) -> None:
        """Labels at the same place are one thing."""
        if one is not other:
            one, other = np.broadcast_arrays(one, other)
            self.equal.append((one.ravel(), other.ravel()))

    def freeze(self, fields: Iterable[Field], reason: str) -> None:
        """Nothing that carries these labels may change."""
        self.frozen.extend((f.labels.ravel(), reason) for f in fields)

    def rectangle(self, labels: np.ndarray) -> None:
        """What is kept of these labels must be a product of subsets, one for each dimension."""
        key = (labels.shape, labels.tobytes())
        if labels.ndim > 1 and key not in self._rectangles_seen:
            self._rectangles_seen.add(key)
            self.rectangles.append(labels)

    def restrict(self, fld: Field, dims: Sequence[int]) -> Field | None:
        """The field as seen from ``dims`` alone: each place there stands for a whole row (a *slab*)."""
        keep = tuple(d for d in fld.dims if d in dims)
        if keep == fld.dims or not keep:
            return fld if keep else None
        first = tuple(fld.dims.index(d) for d in keep)
        rows = fld.labels.transpose(first + tuple(i for i in range(len(fld.dims)) if i not in first))
        key = (len(keep), rows.shape, rows.tobytes())
        if key not in self._slab_of:
            shape = rows.shape[: len(keep)]
            slab = self.new_labels(math.prod(shape))
            self.slabs.append((slab, rows.reshape(len(slab), -1)))
            self._slab_of[key] = slab.reshape(shape)
        return Field(keep, self._slab_of[key])

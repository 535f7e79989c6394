"""What is left of a network when some indices are absent: the meaning of a removal, by plain arithmetic.

All values keep their full shapes, and an absent entry is NaN. Sums, means, norms and softmax run over what is present;
what moves entries moves the NaNs along; two tensors that meet place by place must be absent at the same places. So
nothing here knows of labels, classes, rows or rectangles. Many removals are computed side by side, along the first
dimension; those that make no sense are dropped on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from oracle_graphs import Held, Kept, Part, Program, Size, SizeOf, Step, path

Place = tuple[str, int]  # a parameter and one of its dimensions
Array = np.ndarray
Operation = Callable[..., Any]  # of a reference, a step and its inputs: the step's output, or a list of them


class Reference:
    """Runs a program on arrays, with absent entries.

    Args:
        tensors: The parameters and buffers.
        held: The integers of the blocks, by block number and name.
        present: For labelled dimensions, a row for each removal: which indices are present.
        labelled: The dimensions that ``present`` decides; others than these follow what they first meet.

    Attributes:
        removals: The numbers of the removals that still make sense.
        present: For each dimension of each parameter met so far which indices are present.
        after: What the integers must be.
        values: All values.
    """

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Array],
        held: Mapping[tuple[int, str], int],
        present: Mapping[Place, Array],
    ) -> None:
        self.program, self.tensors, self.held = program, tensors, held
        self.present = dict(present)
        self.after: dict[tuple[int, str], Array] = {}
        count = len(next(iter(present.values())))
        self.removals = np.arange(count)
        self.ok = np.ones(count, bool)
        self.values: list[Array] = []
        self.block = 0
        self._full_rows()

    def _full_rows(self) -> None:
        for present in self.present.values():
            self.require(np.any(present, axis=1))

    def run(self, x: Array, operations: Mapping[str, Operation]) -> Reference:
        """All steps on one input."""
        self.values = [np.repeat(x[None], len(self.removals), 0)]
        self._drop()
        for number, step in self.program.steps():
            self.block = number
            out = operations[step.op](self, step, *(self.values[i] for i in step.inputs))
            for value in out if isinstance(out, list) else [out]:
                self.require(is_product(value))
                self.values.append(value)
            self._drop()
            if not len(self.removals):
                return self
        absent = np.isnan(self.values[-1]).reshape(len(self.removals), -1)
        self.require(np.all(~absent, axis=1))
        self._drop()
        return self

    def require(self, ok: Array) -> None:
        """Removals for which this doesn't hold make no sense."""
        self.ok &= ok

    def _drop(self) -> None:
        if not self.ok.all():
            kept = self.ok
            self.removals = self.removals[kept]
            self.values = [v[kept] for v in self.values]
            self.present = {k: v[kept] for k, v in self.present.items()}
            self.after = {k: v[kept] for k, v in self.after.items()}
            self.ok = np.ones(len(self.removals), bool)

    def weight(self, step: Step, number: int) -> Array:
        """A parameter's values; they are the same for all removals."""
        return self.tensors[self.name(step, number)]

    def name(self, step: Step, number: int) -> str:
        return f"{path(self.block)}.{step.params[number]}"

    def follow(self, step: Step, number: int, dim: int, present: Array) -> None:
        """One dimension of a parameter is present just where what it meets is."""
        place = self.name(step, number), dim
        self.require((self.present.setdefault(place, present) == present).all(1))

    def known(self, step: Step, number: int, dim: int) -> Array:
        """What of a parameter's dimension is present; all, if nothing says otherwise."""
        size = self.weight(step, number).shape[dim]
        return self.present.setdefault((self.name(step, number), dim), np.ones((len(self.removals), size), bool))

    def size(self, size: Size, value: Array) -> int:
        """A size of the full network."""
        match size:
            case Kept(dim):
                return value.shape[dim + 1]
            case Held(name):
                return self.held[self.block, name]
            case Part(dim, by):
                return value.shape[dim + 1] // self.size(by, value)
            case SizeOf(parameter, dim):
                return self.tensors[f"{path(self.block)}.{parameter}"].shape[dim]
        return size

    def count(self, size: Size | None, left: Array) -> None:
        """If a size is an integer that a block holds, it must become what is left."""
        if isinstance(size, Held):
            self.require(self.after.setdefault((self.block, size.name), left) == left)


def along(value: Array, dim: int) -> Array:
    """Which indices of a dimension (of the tensor, without the removals) are present."""
    axis = dim + 1 if dim >= 0 else value.ndim + dim
    others = tuple(d for d in range(1, value.ndim) if d != axis)
    return np.any(~np.isnan(value), axis=others)


def is_product(value: Array) -> Array:
    """Whether what is present are all places of some rows, columns, …, and not nothing."""
    marks = ~np.isnan(value)
    product = np.ones_like(marks)
    for dim in range(value.ndim - 1):
        product &= spread(along(value, dim), value.ndim, dim + 1)
    return (marks == product).reshape(len(value), -1).all(1) & marks.reshape(len(value), -1).any(1)


def spread(rows: Array, ndim: int, axis: int) -> Array:
    """A row for each removal, along one axis of arrays with so many."""
    return rows.reshape([len(rows), *(rows.shape[1] if d == axis else 1 for d in range(1, ndim))])


def filled(value: Array) -> Array:
    """Zero where it is absent."""
    return np.nan_to_num(value, nan=0.0)


def marked(value: Array, *rows: tuple[int, Array]) -> Array:
    """The value, absent where any of these rows (by dimension) are."""
    for dim, present in rows:
        axis = dim + 1 if dim >= 0 else value.ndim + dim
        value = np.where(spread(present, value.ndim, axis), value, np.nan)
    return value


def axis_of(dim: int) -> int:
    """An array's axis for a dimension of the tensor."""
    return dim + 1 if dim >= 0 else dim

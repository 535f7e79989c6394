"""What each call of a trace put out, written down once, and compared call by call when an edited model runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .decisions import Decided
from .inherited import Disagreement, Fingerprints, old_only
from .labels import Field, Labelled
from .shifts import Dims
from .views import varying

Shape = tuple[int, ...]


class Record(NamedTuple):
    """One call of the first trace."""

    op: Any
    numbers: tuple[Any, ...]  # those that enter the arithmetic
    inputs: tuple[Labelled, ...]
    outputs: tuple[Labelled, ...]
    shapes: tuple[Shape, ...]
    picked: tuple[np.ndarray, ...]  # labels that left the trace here
    module: nn.Module | None
    shifts: tuple[Dims, ...]  # where what is silent isn't zero, for each output
    decided: Decided | None


def numbers_of(call: Any, given: Sequence[Any], uniform: bool) -> tuple[Any, ...]:
    """The Python numbers in a call's arithmetic.

    Args:
        call: The call.
        given: Its arguments as the model gave them: on meta, a size that was made into a tensor is still real there.
        uniform: Whether it works on a tensor made by a factory, whose number of elements then is a number.
    """
    name = call.operator
    if torch.Tag.pointwise in call.op.tags or name in _WITH_NUMBERS:
        on_meta = any(t.is_meta for t in call.outputs)
        return tuple(_number(v) for v in given if isinstance(v, (int, float)) or (on_meta and _is_real_scalar(v)))
    return (call.tensors[0].numel(),) if uniform and name in _REDUCTIONS else ()


_WITH_NUMBERS = {
    "aten::addmm", "aten::baddbmm", "aten::full", "aten::scalar_tensor", "aten::new_full", "aten::lift_fresh",
}  # fmt: skip
_REDUCTIONS = {"aten::sum", "aten::prod", "aten::linalg_vector_norm"}


def _is_real_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0 and not value.is_meta


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def extent(tensor: Tensor) -> Shape:
    """A tensor's shape, with 1 where it is only expanded."""
    strides = tensor.stride() if tensor.layout == torch.strided else ()
    return (
        tuple(1 if s == 0 else n for n, s in zip(tensor.shape, strides, strict=True))
        if 0 in strides
        else tuple(tensor.shape)
    )


class Journal:
    """The records of one trace, in order."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def note(self, record: Record) -> Record:
        """Write one call down; the record of it."""
        self.records.append(record)
        return record


class Misfit(Disagreement):
    """A disagreement that no other choice of calls for dimensions of size 1 explains."""


class Reached(Exception):
    """As much has been compared as was asked for."""


class Comparison:
    """Reads a journal along with an edited model's calls.

    Args:
        until: The position after which nothing has to be compared any more.

    Attributes:
        position: How many calls have agreed.
        numbers: Calls whose numbers differ from before, by position, with those that they have now.
    """

    def __init__(self, journal: Journal, prints: Fingerprints, until: int | None = None) -> None:
        self.journal, self.prints, self.until = journal, prints, until
        self.position = 0
        self.numbers: dict[int, tuple[Any, ...]] = {}
        self._expected: dict[int, tuple[tuple[int, ...], np.ndarray]] = {}
        self._found: dict[int, tuple[np.ndarray, tuple[Shape, np.ndarray]]] = {}
        self._agreeing: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def note(self, record: Record) -> Record:
        """Compare one call with the same of the first trace; the record of that.

        Raises:
            Disagreement: Another call was made, or its output isn't what is left of the output before.
        """
        self._pass_uncut(record)
        if self.position >= len(self.journal.records):
            raise Disagreement("the model makes more calls then")
        before = self.journal.records[self.position]
        if _called(before.op) != _called(record.op) or len(before.outputs) != len(record.outputs):
            raise Disagreement("the model makes other calls then")
        for i, (old, new) in enumerate(zip(before.outputs, record.outputs, strict=True)):
            if old.fields or new.fields:
                self._compare(old.fields, new.fields, before.shapes[i], record.shapes[i])
        for one, other in zip(before.picked, record.picked, strict=False):
            self._check(one, other)
        if before.numbers != record.numbers:
            self.numbers[self.position] = record.numbers
        if self.position == self.until:
            raise Reached
        self.position += 1
        return before

    def finish(self) -> None:
        """All calls have been made.

        Raises:
            Disagreement: There are fewer than before.
        """
        if self.position < len(self.journal.records):
            raise Disagreement("the model makes fewer calls then")

    def expected(self, op: Any) -> Record | None:
        """What the call that is about to be compared did in the first trace, if it was one of this operator."""
        records, position = self.journal.records, self.position
        while position < len(records) and records[position].op is _SLICE is not op:
            position += 1
        return records[position] if position < len(records) and records[position].op is op else None

    def _pass_uncut(self, record: Record) -> None:
        """Torch makes no call for a slice of all that there is: none was cut off then of what is left either."""
        while self.position < len(self.journal.records):
            before = self.journal.records[self.position]
            if before.op is not _SLICE or record.op is before.op:
                return
            if self._left_of(before.inputs[0]) != self._left_of(before.outputs[0]):
                raise Misfit("less would be cut out of it")
            self.position += 1

    def _left_of(self, known: Labelled) -> list[bytes]:
        return sorted(self._expect(f.labels)[1].tobytes() for f in known.fields)

    def _compare(self, old: Sequence[Field], new: Sequence[Field], before: Shape, now: Shape) -> None:
        labelled = {d for f in old for d in f.dims}
        if len(before) != len(now) or any(before[d] != now[d] for d in range(len(now)) if d not in labelled):
            raise Misfit("a size that carries no labels follows it")
        found = {self._left(f.dims, self._reduce(f.labels)[0]): f.labels for f in new}
        for fld in old:
            dims = self._left(fld.dims, self._expect(fld.labels)[0])
            if dims:
                labels = found.pop(dims, None)
                if labels is None:
                    raise Disagreement("a dimension of it has lost its labels")
                self._check(fld.labels, labels)
        if any(found):
            raise Disagreement("other dimensions carry labels then")

    @staticmethod
    def _left(dims: Shape, kept: Shape) -> Shape:
        """A dimension with one index left carries no labels."""
        return dims if len(dims) == len(kept) else tuple(dims[axis] for axis in kept)

    def _check(self, old: np.ndarray, new: np.ndarray) -> None:
        key = (id(old), id(new))
        if key not in self._agreeing:
            if not np.array_equal(self._expect(old)[1], self._reduce(new)[1]):
                raise Disagreement("what is left of it isn't where it was")
            self._agreeing[key] = (old, new)

    def _reduce(self, labels: np.ndarray) -> tuple[Shape, np.ndarray]:
        """What is old of an edited model's labels."""
        if id(labels) not in self._found:
            self._found[id(labels)] = labels, _reduced(old_only(labels))
        return self._found[id(labels)][1]

    def _expect(self, labels: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
        """What is left of an array of labels: the dimensions on which it still varies, and its fingerprints."""
        if id(labels) not in self._expected:
            self._expected[id(labels)] = _reduced(self.prints.left(labels))
        return self._expected[id(labels)]


def _called(op: Any) -> Any:
    """Calls that view and calls that copy to view are one: which it is may depend on sizes."""
    return "view" if op.overloadpacket in _VIEWS else op


_SLICE = torch.ops.aten.slice.Tensor
_aten = torch.ops.aten
_VIEWS = {_aten.view, _aten._unsafe_view, _aten.reshape, _aten._reshape_alias}


def _reduced(values: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    found = varying(values)
    return ((), values.ravel()[:1]) if found is None else found

"""Where what is silent isn't zero: after a sigmoid, or a constant that was added.

It is followed from call to call, dimension by dimension: units along one are silent where all that carries their labels
is zero, whatever the rest is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import at_zero
from .labels import NotZero

if TYPE_CHECKING:
    from .call import Call
    from .trace import Trace

_NORMS = {"native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"}
#: What reads or scales by weights: where these are zero, so is what comes out.
_SILENCING = {*_NORMS, "mm", "addmm", "convolution", "native_layer_norm", "native_group_norm"}
#: What is zero where one of its sides is.
_PRODUCTS = {"bmm", "baddbmm"}

Dims = frozenset[int]


class Shifts:
    """The labelled dimensions of tensors along which silent units may be another number than zero."""

    def __init__(self) -> None:
        self._of: dict[int, Dims] = {}

    def of(self, tensor: Tensor) -> Dims:
        """The shifted dimensions of a tensor."""
        return self._of.get(id(tensor), Dims())

    def add(self, tensor: Tensor, dims: Collection[int] | None = None) -> None:
        """Note that a tensor is shifted along these of its dimensions, or along all."""
        found = Dims(range(tensor.ndim) if dims is None else dims)
        if found:
            self._of[id(tensor)] = found

    def set(self, tensor: Tensor, dims: Dims) -> None:
        """Note that a tensor is shifted along these of its dimensions alone."""
        self._of.pop(id(tensor), None)
        self.add(tensor, dims)

    def note(self, trace: Trace, call: Call) -> None:
        """Note what a call makes of it."""
        tensors, outputs = call.tensors, call.outputs
        if torch.Tag.pointwise in call.op.tags:
            for out in outputs:
                found = self._pointwise(trace, call, tensors, out)
                self._of.pop(id(out), None)  # what is worked on in place
                self.add(out, found)
        elif self._moved(trace, call, tensors):
            for out in outputs:
                self.add(out, self._still(trace, tensors, out))

    def divided_by(self, trace: Trace, tensor: Tensor, dims: Collection[int]) -> None:
        """Note that a tensor can't be zero along these dimensions, or the result isn't finite."""
        known = trace.of(tensor)
        for fld in known.fields:
            seen = trace.relations.restrict(fld, dims)
            if seen is not None:
                trace.relations.nonzero.append(NotZero(seen.labels.ravel(), known.origin == "data"))

    def _moved(self, trace: Trace, call: Call, tensors: Sequence[Tensor]) -> bool:
        """Whether what other calls put out is shifted."""
        if call.name in _SILENCING:
            return call.name in _NORMS and call.get("weight") is None
        if call.name in _PRODUCTS:
            return any(map(self.of, tensors)) and not self._one_side(trace, tensors, call.out, range(call.out.ndim))
        return "softmax" in call.name or any(map(self.of, tensors))

    def _pointwise(self, trace: Trace, call: Call, tensors: Sequence[Tensor], out: Tensor) -> list[int]:
        """Dimensions along which zeros don't stay zero."""
        labelled = [{d + out.ndim - t.ndim for f in trace.of(t).fields for d in f.dims} for t in tensors]
        shifted = [{d + out.ndim - t.ndim for d in self.of(t)} for t in tensors]
        found = []
        for dim in sorted(set().union(*labelled)):
            zero = [dim in dims and dim not in off for dims, off in zip(labelled, shifted, strict=True)]
            met = any(dim in dims and dim in off for dims, off in zip(labelled, shifted, strict=True))
            if not at_zero.finite(call, zero):
                for tensor, is_zero in zip(tensors, zero, strict=True):
                    self.divided_by(trace, tensor, [dim - out.ndim + tensor.ndim] if is_zero else [])
            if not at_zero.stays(call, zero) or (met and not self._one_side(trace, tensors, out, [dim])):
                found.append(dim)
        return found

    def _still(self, trace: Trace, tensors: Sequence[Tensor], out: Tensor) -> list[int]:
        """All dimensions, but those whose labels have come through whole from where they weren't shifted."""
        fine = [f.labels for t in tensors for f in trace.of(t).fields if self.of(t).isdisjoint(f.dims)]
        shifted = {d for t in tensors for d in self.of(t)}
        through = [f for f in trace.of(out).fields if shifted and any(f.labels is labels for labels in fine)]
        return sorted(set(range(out.ndim)).difference(*(f.dims for f in through)))

    def _one_side(self, trace: Trace, tensors: Sequence[Tensor], out: Tensor, dims: Collection[int]) -> bool:
        """Whether the labels of a product, along these dimensions, are those of a side that is silent."""
        silent = [f.labels for t in tensors if not self.of(t) for f in trace.of(t).fields]
        for fld in (f for f in trace.of(out).fields if not set(dims).isdisjoint(f.dims)):
            parts = trace.relations.parts_of(fld) or [fld]
            for dim in set(dims).intersection(fld.dims):
                if not any(part.labels is side for part in parts if dim in part.dims for side in silent):
                    return False
        return True

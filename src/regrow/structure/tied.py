"""Sizes that are handed to calls tie what they come from to the dimension that they are given for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .labels import Field, PythonSize
from .sizes import Kept, Origin, Shape, Size, SizeMode

if TYPE_CHECKING:
    from .call import Call
    from .trace import Trace


def note_sizes(trace: Trace, call: Call, sizes: Sequence[int], shape: Sequence[int], fields: Sequence[Field]) -> None:
    """What the sizes of an output are made of has to follow its labels.

    Args:
        sizes: What the call was given for the output's dimensions; others than these are free to be what they are.
        shape: What the output has.
    """
    if not trace.gathering:
        return
    for fld in fields:
        for dim in fld.dims:
            if dim >= len(sizes) or sizes[dim] != shape[dim]:
                continue
            if trace.sizes is None:
                _note_value(trace, call, fld, dim)
                continue
            for size in trace.sizes.of(sizes, dim):
                tie(trace, fld, dim, size)


def note_parts(trace: Trace, known: SizeMode, sizes: Sequence[int], parts: Sequence[Sequence[Field]], dim: int) -> None:
    """As :func:`note_sizes`, for the parts that one dimension is cut into."""
    for number, fields in enumerate(parts):
        for size in known.of(sizes, number):
            for fld in (f for f in fields if dim in f.dims):
                tie(trace, fld, dim, size)


def _note_value(trace: Trace, call: Call, fld: Field, dim: int) -> None:
    """All that is known is the size itself: an integer of the running module that is the same may have to follow."""
    _, labels = lying_along(trace, fld, dim)
    if len(labels) in trace.integers_of(call.module):
        trace.relations.sizes.append(PythonSize(call.module, "", "", labels))


def cut_freely(trace: Trace, call: Call, fld: Field, dim: int) -> bool:
    """Whether a dimension is cut at places that are known from elsewhere, so that no part has to be like another."""
    if trace.sizes is None or call.name not in ("slice", "split_with_sizes"):
        return False
    own, _ = lying_along(trace, fld, dim)
    origins = [origin for size in trace.sizes.given if isinstance(size, Size) for origin in size.origins]
    return bool(origins) and all(isinstance(o.of, Kept) or not _holds(trace, o.of, own) for o in origins)


def _holds(trace: Trace, shape: Shape, labels: np.ndarray) -> bool:
    own = trace.relations.bases(lying_along(trace, shape.fld, shape.dim)[1])
    return bool(np.isin(own, trace.relations.bases(labels)).any())


def tie(trace: Trace, fld: Field, dim: int, size: Size) -> None:
    """What a size is made of has to follow the labels along the dimension that it was given for."""
    for origin in size.origins:
        _tie(trace, fld, dim, size, origin)


def _tie(trace: Trace, fld: Field, dim: int, size: int, origin: Origin) -> None:
    whole, distinct = lying_along(trace, fld, dim)
    if origin.value == len(whole):
        labels = whole
    elif origin.value == len(distinct):
        labels = distinct
    elif size == len(whole) < origin.value and fld.labels.size % origin.value == 0:
        labels = fld.labels.ravel()  # a quotient: what was divided is laid out over several dimensions
    else:
        return
    if isinstance(origin.of, Kept):
        integer, counted = origin.of.integer, labels[: origin.value]
        trace.relations.sizes.append(PythonSize(origin.of.module, "", integer.name, counted, integer))
    else:
        _equate(trace, labels, origin.of)


def _equate(trace: Trace, labels: np.ndarray, shape: Shape) -> None:
    """A dimension of another tensor that is as long has to stay so, place by place."""
    whole, distinct = lying_along(trace, shape.fld, shape.dim)
    own, others = trace.relations.bases(distinct), trace.relations.bases(labels)
    if np.isin(own, others).any():
        return  # it is the same dimension, and follows by itself
    if len(whole) == len(labels):
        beside = whole
    elif len(labels) % len(distinct) == 0 and len(np.unique(labels)) == len(labels):
        beside = np.tile(distinct, len(labels) // len(distinct))
    else:
        return
    assert trace.sizes is not None
    if not trace.sizes.tied_before(own, others):  # a second order beside the first would leave no choice
        trace.relations.equate(beside, labels, apart=True)


def lying_along(trace: Trace, fld: Field, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels along a dimension, and each once: heads stand there once for each example where both are one."""
    seen = trace.relations.restrict(fld, (dim,))
    assert seen is not None
    found, firsts = np.unique(seen.labels, return_index=True)
    return seen.labels, seen.labels if len(found) == len(seen.labels) else seen.labels[np.sort(firsts)]

"""Index maps on tensors: forward, back, and what fresh indices are filled with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .structure import Axis, Entry
from .structure.maps import PlaceMap, fresh_origins, origins_in

#: The maps of one tensor, by dimension.
DimMaps = Mapping[int, PlaceMap]


#: Up to this many blocks are copied one by one, which passes over the data once; more are gathered.
_MAX_BLOCKS = 64


def mapped(tensor: Tensor, maps: DimMaps, fill: float | None) -> Tensor:
    """The tensor after its maps, in the same memory layout.

    Fresh indices hold ``fill``, or for None copies of their templates. A dimension on which a state tensor has
    size 1 instead of its parameter's stays as it is.
    """
    followed = {dim: place for dim, place in maps.items() if tensor.shape[dim] == place.before}
    stretches = [place.stretches for place in followed.values()]
    shape = list(tensor.shape)
    for dim, place in followed.items():
        shape[dim] = len(place.take)
    result = _empty_like(tensor, shape)
    if math.prod(map(len, stretches)) > _MAX_BLOCKS:
        return _gathered(tensor, followed, result, fill)
    for block in itertools.product(*stretches):
        source, target, is_fresh = tensor, result, False
        for (dim, place), stretch in zip(followed.items(), block, strict=True):
            target = target.narrow(dim, stretch.start, stretch.stop - stretch.start)
            is_fresh |= bool(place.fresh[stretch.start])
            if fill is None or not is_fresh:
                source = _select(source, dim, place.take[stretch])
        if fill is not None and is_fresh:
            target.fill_(fill)
        else:
            target.copy_(source)
    return result


def _gathered(tensor: Tensor, followed: DimMaps, result: Tensor, fill: float | None) -> Tensor:
    for dim, place in followed.items():
        tensor = _select(tensor, dim, place.take)
    result.copy_(tensor)
    for dim, place in followed.items():
        if fill is not None and place.fresh.any():
            result.index_fill_(dim, _index(np.flatnonzero(place.fresh), result), fill)
    return result


def unmapped(tensor: Tensor, maps: DimMaps, left: Tensor | None) -> Tensor:
    """The inverse of :func:`mapped`: what was kept has its present values, the rest those in ``left``, or zero."""
    followed = {dim: place for dim, place in maps.items() if tensor.shape[dim] == len(place.take)}
    old_indices, shape, kept = [], list(tensor.shape), tensor
    for dim, place in followed.items():
        old, now = place.kept
        kept = _select(kept, dim, now)
        old_indices.append(old)
        shape[dim] = place.before
    if left is None:
        left = tensor.new_zeros(()).expand(shape)
    whole = _empty_like(tensor, shape)
    if list(kept.shape) == shape:
        return whole.copy_(kept)
    whole.copy_(left)
    front = range(len(followed))
    grid = tuple(_index(i, tensor) for i in np.ix_(*old_indices))
    whole.movedim(tuple(followed), tuple(front))[grid] = kept.movedim(tuple(followed), tuple(front))
    return whole


def fill_fresh(
    new: Tensor, axis: Axis, entry: Entry, maps: DimMaps, index_map: np.ndarray, value: Tensor | None
) -> None:
    """Write a method's values for the fresh units of one axis into an edited tensor, in place.

    Without a value they become zero; in a tensor of role "free" they stay copies of the last unit, since nobody
    knows what zero would mean there, and so does what can't be zero. Between new units of two axes, the one reading
    the other, is zero: the methods chose each axis's units as if it alone grew.

    Raises:
        ValueError: The value has another shape than the new units.
    """
    indices, origins = origins_in(maps[entry.dim], entry, index_map)
    where = _index(indices, new)
    if value is None:
        if entry.role != "free" and not entry.nonzero:
            new.index_fill_(entry.dim, where, 0.0)
        return
    given = fresh_origins(entry, index_map, axis.size)
    expected = list(entry.tensor.shape)
    expected[entry.dim] = len(given)
    if list(value.shape) != expected:
        raise ValueError(f"new values for {entry.name} have shape {tuple(value.shape)}; they need {tuple(expected)}.")
    for dim, other in maps.items():
        if dim != entry.dim:
            value = _select(value, dim, other.take)
            fresh = np.setdiff1d(np.arange(len(other.take)), other.kept[1])
            if entry.role == "in" and not entry.nonzero and len(fresh):
                value = value.index_fill(dim, _index(fresh, value), 0.0)
    order = np.argsort(given)
    value = _select(value, entry.dim, order[np.searchsorted(given, origins, sorter=order)])
    new.index_copy_(entry.dim, where, value.to(new))


def _index(indices: np.ndarray, beside: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(indices)).to(beside.device)


def _select(tensor: Tensor, dim: int, indices: np.ndarray) -> Tensor:
    """Indices along a dimension; neighbours as a view."""
    if len(indices) and indices[-1] - indices[0] == len(indices) - 1 and (np.diff(indices) == 1).all():
        return tensor.narrow(dim, int(indices[0]), len(indices))
    return tensor.index_select(dim, _index(indices, tensor))


def _empty_like(template: Tensor, shape: list[int]) -> Tensor:
    """An empty tensor with its dimensions in the template's order of strides (channels last, say)."""
    order = sorted(range(template.ndim), key=lambda d: -template.stride(d))
    if template.is_contiguous():
        order = list(range(template.ndim))
    empty = template.new_empty([shape[d] for d in order])
    return empty.permute([order.index(d) for d in range(template.ndim)])

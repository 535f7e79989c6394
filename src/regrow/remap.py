"""Index maps on tensors, forward and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .structure.maps import PlaceMap

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
                source = select(source, dim, place.take[stretch])
        if fill is not None and is_fresh:
            target.fill_(fill)
        else:
            target.copy_(source)
    return result


def _gathered(tensor: Tensor, followed: DimMaps, result: Tensor, fill: float | None) -> Tensor:
    for dim, place in followed.items():
        tensor = select(tensor, dim, place.take)
    result.copy_(tensor)
    for dim, place in followed.items():
        if fill is not None and place.fresh.any():
            result.index_fill_(dim, index_tensor(np.flatnonzero(place.fresh), result), fill)
    return result


def unmapped(tensor: Tensor, maps: DimMaps, left: Tensor | None) -> Tensor:
    """The inverse of :func:`mapped`: what was kept has its present values, the rest those in ``left``, or zero."""
    followed = {dim: place for dim, place in maps.items() if tensor.shape[dim] == len(place.take)}
    old_indices, shape, kept = [], list(tensor.shape), tensor
    for dim, place in followed.items():
        old, now = place.kept
        kept = select(kept, dim, now)
        old_indices.append(old)
        shape[dim] = place.before
    if left is None:
        left = tensor.new_zeros(()).expand(shape)
    whole = _empty_like(tensor, shape)
    if list(kept.shape) == shape:
        return whole.copy_(kept)
    whole.copy_(left)
    front = range(len(followed))
    grid = tuple(index_tensor(i, tensor) for i in np.ix_(*old_indices))
    whole.movedim(tuple(followed), tuple(front))[grid] = kept.movedim(tuple(followed), tuple(front))
    return whole


def fill_with_means(tensor: Tensor, maps: DimMaps) -> None:
    """Give the fresh indices of a mapped tensor the mean of what their axis's other units have, in place."""
    for dim, place in maps.items():
        if tensor.shape[dim] != len(place.take):
            continue
        for units in place.units_after.values():
            fresh, old = np.flatnonzero(place.fresh & (units >= 0)), np.flatnonzero(~place.fresh & (units >= 0))
            if len(fresh) and len(old):
                mean = select(tensor, dim, old).mean(dim, keepdim=True)
                shape = [len(fresh) if d == dim else n for d, n in enumerate(tensor.shape)]
                tensor.index_copy_(dim, index_tensor(fresh, tensor), mean.expand(shape))


def index_tensor(indices: np.ndarray, beside: Tensor) -> Tensor:
    """Indices as torch takes them, where another tensor is."""
    return torch.from_numpy(np.ascontiguousarray(indices)).to(beside.device)


def select(tensor: Tensor, dim: int, indices: np.ndarray) -> Tensor:
    """Indices along a dimension; neighbours as a view."""
    if len(indices) and indices[-1] - indices[0] == len(indices) - 1 and (np.diff(indices) == 1).all():
        return tensor.narrow(dim, int(indices[0]), len(indices))
    return tensor.index_select(dim, index_tensor(indices, tensor))


def _empty_like(template: Tensor, shape: list[int]) -> Tensor:
    """An empty tensor with its dimensions in the template's order of strides (channels last, say)."""
    order = sorted(range(template.ndim), key=lambda d: -template.stride(d))
    if template.is_contiguous():
        order = list(range(template.ndim))
    empty = template.new_empty([shape[d] for d in order])
    return empty.permute([order.index(d) for d in range(template.ndim)])

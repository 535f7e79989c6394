"""The places of an axis in a tensor as rows, one for each unit: read, put back, and laid out for new units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .structure import Axis, Entry
from .structure.maps import FRESH, fresh_origins

#: Values of new units: for each entry of the axis its slice at their indices, in their order.
Fresh = dict[Entry, Tensor]

#: Values of units: for each entry of the axis a tensor of shape (units, indices of a unit, other dimensions).
Rows = Mapping[Entry, Tensor]


def per_unit(entry: Entry, size: int) -> int:
    """How many indices along the entry's dimension belong to each of the axis's ``size`` units."""
    return int((entry.unit_of >= 0).sum()) // size


def row_shape(entry: Entry, size: int) -> tuple[int, ...]:
    """The shape of one unit's row: its indices, then the tensor's other dimensions in order."""
    others = [n for d, n in enumerate(entry.tensor.shape) if d != entry.dim]
    return per_unit(entry, size), *others


def own_in_turn(entry: Entry) -> Tensor:
    """The indices along the entry's dimension that belong to the axis, unit after unit."""
    own = (entry.unit_of >= 0).nonzero().squeeze(1)
    return own[entry.unit_of[own].argsort(stable=True)].to(entry.tensor.device)


def rows_of(entry: Entry, tensor: Tensor, size: int) -> Tensor:
    """One row for each unit: shape ``(size, indices of a unit, other dimensions)``.

    Args:
        entry: Where the units are.
        tensor: Has the entry's tensor's shape: the tensor itself, or its gradient.
        size: The axis's.
    """
    own = tensor.index_select(entry.dim, own_in_turn(entry)).movedim(entry.dim, 0)
    return own.reshape(size, per_unit(entry, size), *own.shape[1:])


def with_rows(entry: Entry, tensor: Tensor, rows: Tensor) -> Tensor:
    """The tensor with other rows in the place of the axis's; gradients reach the rows."""
    own = rows.flatten(0, 1).movedim(0, entry.dim).to(tensor.dtype)
    return tensor.index_copy(entry.dim, own_in_turn(entry), own)


def expanded(rows: Rows, num: int) -> dict[Entry, Tensor]:
    """One unit's rows for ``num`` units."""
    return {entry: one.expand(num, *one.shape[1:]) for entry, one in rows.items()}


def number_of(units: Rows) -> int:
    """How many units there are rows for."""
    return len(next(iter(units.values())))


def take(rows: Rows, units: Sequence[int]) -> dict[Entry, Tensor]:
    """The rows of some of the units, in that order."""
    return {entry: values[torch.as_tensor(units, device=values.device)] for entry, values in rows.items()}


def joined(first: Rows, second: Rows) -> dict[Entry, Tensor]:
    """The rows of some units and then those of others; what one of them leaves out is zero."""
    parts: dict[Entry, list[Tensor]] = {}
    for entry in dict.fromkeys([*first, *second]):
        known = first.get(entry, second.get(entry))
        assert known is not None
        for rows in (first, second):
            nothing = known.new_zeros(1).expand(number_of(rows), *known.shape[1:])
            parts.setdefault(entry, []).append(rows.get(entry, nothing))
    return {entry: torch.cat(tensors) for entry, tensors in parts.items()}


def laid_out(axis: Axis, rows: Rows) -> Fresh:
    """Rows of new units as an edit takes them: in the order in which their indices will lie in each tensor."""
    fresh = {}
    for entry, values in rows.items():
        index_map = np.append(np.arange(axis.size), np.full(len(values), FRESH))
        origins = fresh_origins(entry, index_map, axis.size)
        length = len(entry.unit_of)
        template = np.flatnonzero(entry.unit_of.numpy() == axis.size - 1)
        slot = np.searchsorted(template, origins % length)
        index = (origins // length - axis.size) * len(template) + slot
        order = torch.from_numpy(index).to(values.device)
        fresh[entry] = values.flatten(0, 1).index_select(0, order).movedim(0, entry.dim)
    return fresh

"""What edited tensors hold: what stays, and a method's values for new units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .remap import DimMaps, index_tensor, mapped, select
from .structure import Axis, Entry
from .structure.maps import FRESH, fresh_origins, fresh_summed, origins_in

#: Fresh values are written in this order: what consumes a new unit has the last word.
_ORDER = ("out", "scale", "shift", "mean", "var", "free", "tied", "in")


def filled(
    tensors: Mapping[str, Tensor],
    by_tensor: Mapping[str, DimMaps],
    maps: Mapping[Axis, np.ndarray],
    values: Mapping[Axis, Mapping[Entry, Tensor]],
    copies: Mapping[Axis, Sequence[int]],
) -> dict[str, Tensor]:
    """The tensors as they will be, fresh units filled in; of some axes the first fresh ones are copies of old ones."""
    templates = {e.name for axis in maps for e in axis.entries if e.role == "free" or (e.role == "in" and e.nonzero)}
    edited = {
        name: mapped(tensor.detach(), by_tensor[name], fill=None if name in templates else 0.0)
        for name, tensor in tensors.items()
    }
    filled: set[str] = set()
    for role in _ORDER:
        for axis, index_map in maps.items():
            for entry in axis.with_role(role) if (index_map == FRESH).any() else ():
                value = values.get(axis, {}).get(entry)
                if value is not None or entry.name in filled | templates:
                    value = value if value is None else _reading_halves(entry, value, copies)
                    _fill(edited[entry.name], axis, entry, by_tensor[entry.name], index_map, value)
                    filled.add(entry.name)
    for role in ("out", "in"):
        for axis, units in copies.items():
            for entry in axis.with_role(role):
                _copy_across(edited[entry.name], axis, entry, by_tensor[entry.name], units)
    for axis, index_map in maps.items():
        for entry in axis.entries:
            silent = fresh_summed(by_tensor[entry.name][entry.dim], entry, index_map)
            if len(silent):
                edited[entry.name].index_fill_(entry.dim, torch.from_numpy(silent).to(entry.tensor.device), 0.0)
    return edited


def _fill(new: Tensor, axis: Axis, entry: Entry, maps: DimMaps, index_map: np.ndarray, value: Tensor | None) -> None:
    """Write a method's values for the fresh units of one axis into an edited tensor, in place.

    Without a value they become zero; in a tensor of role "free" they stay copies of the last unit, since nobody
    knows what zero would mean there, and so does what can't be zero. Between new units of two axes, the one reading
    the other, is zero: the methods chose each axis's units as if it alone grew.

    Raises:
        ValueError: The value has another shape than the new units.
    """
    indices, origins = origins_in(maps[entry.dim], entry, index_map)
    where = index_tensor(indices, new)
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
            value = select(value, dim, other.take)
            fresh = np.flatnonzero(other.fresh)
            if entry.role == "in" and not entry.nonzero and len(fresh):
                value = value.index_fill(dim, index_tensor(fresh, value), 0.0)
    order = np.argsort(given)
    value = select(value, entry.dim, order[np.searchsorted(given, origins, sorter=order)])
    new.index_copy_(entry.dim, where, value.to(new))


def halved(entry: Entry, tensor: Tensor, units: Sequence[int]) -> Tensor:
    """The tensor with half of what it has for some units."""
    indices = entry.indices(units)
    return tensor.index_copy(entry.dim, indices, tensor.index_select(entry.dim, indices) / 2)


def _reading_halves(entry: Entry, value: Tensor, copies: Mapping[Axis, Sequence[int]]) -> Tensor:
    """A method's values for fresh units, in which what they read of copied units of another axis is halved."""
    for axis, units in copies.items():
        for other in axis.with_role("in"):
            if other.name == entry.name and other.dim != entry.dim:
                value = halved(other, value, units)
    return value


def _copy_across(new: Tensor, axis: Axis, entry: Entry, maps: DimMaps, units: Sequence[int]) -> None:
    """Give the copies of an axis what the copied units have at fresh units of other axes, in place."""
    after = maps[entry.dim].units_after[entry]
    for dim, other in maps.items():
        fresh = np.flatnonzero(other.fresh)
        if dim == entry.dim or not len(fresh):
            continue
        across = index_tensor(fresh, new)
        for number, unit in enumerate(units, axis.size):
            source, target = (index_tensor(np.flatnonzero(after == n), new) for n in (unit, number))
            block = new.index_select(entry.dim, source).index_select(dim, across)
            rows = new.index_select(entry.dim, target).index_copy(dim, across, block)
            new.index_copy_(entry.dim, target, rows)

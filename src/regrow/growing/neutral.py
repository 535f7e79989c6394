"""What all growers share: how the tensors beside the weights take in new units."""

from __future__ import annotations

from torch import Tensor

from ..method import Fresh
from ..structure import Axis, Entry


def fresh_shape(entry: Entry, num: int, size: int) -> list[int]:
    """The shape of ``num`` new units at an entry of an axis with ``size`` units."""
    per_unit = int((entry.unit_of >= 0).sum()) // size
    shape = list(entry.tensor.shape)
    shape[entry.dim] = num * per_unit
    return shape


def neutral(axis: Axis, num: int) -> Fresh:
    """New units that a normalisation treats as it treats the old ones on average.

    Scales are the mean absolute scale of the old units: a new unit then neither stands out under a penalty on the
    scales nor is the first to go. Running statistics are the means of the old ones, which are a better guess for a
    row drawn at the old rows' scale than (0, 1), and the same before training. Shifts are left out: zero.
    """
    return {entry: _mean_of_old(entry, num, axis.size) for entry in axis.with_role("scale", "mean", "var")}


def _mean_of_old(entry: Entry, num: int, size: int) -> Tensor:
    old = entry.tensor.detach().index_select(entry.dim, entry.own_indices())
    old = old.abs() if entry.role == "scale" else old
    return old.mean(entry.dim, keepdim=True).expand(fresh_shape(entry, num, size))

"""What new units are where a method says nothing: rows that treat them as the old units are treated on average."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import row_shape, rows_of
from .structure import Axis, Entry

#: What a new norm has, by role.
AS_MADE = {"scale": 1.0, "mean": 0.0, "var": 1.0}


def neutral(axis: Axis, num: int) -> dict[Entry, Tensor]:
    """Rows for scales and running statistics.

    Scales are the mean absolute scale of the old units: a new unit then neither stands out under a penalty on the
    scales nor is the first to go. Running statistics are the means of the old ones, which are a better guess for a
    row drawn at the old rows' scale than (0, 1), and the same before training. Shifts are left out: zero.
    """
    return {entry: _mean_of_old(entry, num, axis.size) for entry in axis.with_role("scale", "mean", "var")}


def as_made(axis: Axis, num: int) -> dict[Entry, Tensor]:
    """Rows for scales and running statistics as a new norm has them."""
    return {e: torch.full((num, *row_shape(e, axis.size)), AS_MADE[e.role]) for e in axis.with_role(*AS_MADE)}


def _mean_of_old(entry: Entry, num: int, size: int) -> Tensor:
    old = rows_of(entry, entry.tensor.detach(), size)
    old = old.abs() if entry.role == "scale" else old
    return old.to(torch.promote_types(old.dtype, torch.float32)).mean(0, keepdim=True).expand(num, *old.shape[1:])


def typical(entry: Entry, num: int, size: int) -> Tensor:
    """Rows like that of the old unit whose norm is the median."""
    old = rows_of(entry, entry.tensor.detach(), size)
    norms = old.flatten(1).to(torch.promote_types(old.dtype, torch.float32)).norm(dim=1)
    return old[norms.argsort(stable=True)[(size - 1) // 2]].expand(num, *row_shape(entry, size))


def last(entry: Entry, num: int, size: int) -> Tensor:
    """Rows like the last unit's, which an edit takes where nobody knows better."""
    return rows_of(entry, entry.tensor.detach(), size)[-1].expand(num, *row_shape(entry, size))

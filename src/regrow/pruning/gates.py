"""The gates of units: what a penalty pulls at, and a score reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..rows import rows_of
from ..structure import Axis, Entry


def each(axes: Axis | Sequence[Axis]) -> Sequence[Axis]:
    """One axis as a sequence."""
    return [axes] if isinstance(axes, Axis) else axes


def scales(axis: Axis) -> tuple[Entry, ...]:
    """The parameters that scale the axis's units: batch norm's γ, layer scales, gates."""
    return tuple(e for e in axis.with_role("scale") if isinstance(e.tensor, nn.Parameter))


def gates(axis: Axis) -> tuple[Entry, ...]:
    """The parameters that gate the axis's units: scales, else what consumes them, else what produces them."""
    return scales(axis) or axis.with_role("in", "tied") or axis.with_role("out")


def values(entry: Entry) -> Tensor:
    """The part of an entry's tensor that belongs to the axis, flat, differentiable."""
    if entry.whole:
        return entry.tensor.flatten()
    return entry.tensor.index_select(entry.dim, entry.own_indices()).flatten()


def magnitudes(axis: Axis) -> Tensor:
    """The mean |gate| of each unit over all its gates, shape ``(axis.size,)``, on the CPU.

    Where the gates are weights instead of scales they are relative to the axis's mean, so that they can be ranked
    beside scales, whose usual value is 1.
    """
    found = [rows_of(e, e.tensor.detach().abs(), axis.size).float().flatten(1).mean(1).cpu() for e in gates(axis)]
    magnitude = torch.stack(found).mean(0)
    if gates(axis)[0].role == "scale":
        return magnitude
    return magnitude / magnitude.mean().clamp(min=torch.finfo(magnitude.dtype).tiny)

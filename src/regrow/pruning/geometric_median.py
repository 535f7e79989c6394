"""Filter pruning via geometric median: units go whose work others can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..method import register
from ..rows import rows_of
from ..structure import Axis


@register
@dataclass(frozen=True)
class GeometricMedian:
    """How far a unit is from all others of its axis, by the weights that make it: ``Σ_v ‖w_u − w_v‖``.

    The point with the least sum of distances is the geometric median. A unit near it is like the others, and these can
    do what it did: closing its gate, a = 0, loses little that isn't sent by others, however long its weights are. A
    score is relative to the mean of its axis, so that layers of different widths and scales can be ranked together.

    A unit that has a copy scores less than the same unit without: one of the distances is zero. It isn't always the
    lowest, as both may be far from the rest. Weights are looked at and no signs, norms or scales behind them: units
    whose weights are each other's multiple are apart. Moving or turning the weights of all units changes nothing, and
    neither does one factor on all.

    He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration" (CVPR 2019).
    """

    name: ClassVar[str] = "geometric-median"

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        """The sum of a unit's distances to the others, relative to the mean, shape ``(axis.size,)``."""
        found = axis.with_role("out", "tied") or axis.with_role("in")
        rows = [rows_of(entry, entry.tensor.detach(), axis.size).float().flatten(1) for entry in found]
        vectors = torch.cat([row.to(rows[0].device) for row in rows], 1)
        # Products of matrices would lose what tells units apart that are nearly alike.
        distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").sum(1).cpu()
        return distances / distances.mean().clamp(min=torch.finfo(distances.dtype).tiny)

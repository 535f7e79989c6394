"""L1 pruning: a penalty drives the gates of units to zero, the smallest go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..method import register
from ..structure import Axis, Entry


@register
@dataclass(frozen=True)
class L1:
    """Network slimming: an L1 penalty on the scales of the units, and on outgoing weights where there are none.

    A batch-norm scale γ *is* a gate on its unit. The penalty on an axis is ``strength · Σ |γ|`` over its scales,
    with the subgradient ``strength · sign γ``; without scales it is ``strength · Σ |w|`` over the outgoing weights.
    A unit's score is the mean |γ| over its scales; without scales it is the mean |w| over its outgoing weights,
    relative to the axis's average, so that it can be ranked beside scales, whose usual value is 1.

    Args:
        strength: λ, not negative; network slimming uses 1e-4 with batch norm.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (ICCV 2017). The released
    code ranks the signed γ, so that every negative scale is pruned; here it is |γ|, as in the paper.
    """

    name: ClassVar[str] = "l1"
    strength: float = 1e-4

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ValueError(f"strength is a number that isn't negative, not {self.strength!r}.")

    def penalty(self, axis: Axis) -> Tensor:
        """``strength`` times the L1 norm of the axis's gates, a scalar."""
        terms = [_gate(entry).abs().sum() for entry in _gates(axis)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return self.strength * total

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        """The mean magnitude of each unit's gates, shape ``(axis.size,)``."""
        scores = [entry.by_unit(_magnitude(entry), axis.size).float().cpu() for entry in _gates(axis)]
        score = torch.stack(scores).mean(0)
        if _gates(axis)[0].role == "scale":
            return score
        return score / score.mean().clamp(min=torch.finfo(score.dtype).tiny)


def _gates(axis: Axis) -> tuple[Entry, ...]:
    """The parameters that gate the axis's units: scales, else what consumes them, else what produces them."""
    scales = tuple(e for e in axis.with_role("scale") if isinstance(e.tensor, nn.Parameter))
    return scales or axis.with_role("in", "tied") or axis.with_role("out")


def _gate(entry: Entry) -> Tensor:
    """The part of an entry's tensor that belongs to the axis."""
    if bool((entry.unit_of >= 0).all()):
        return entry.tensor
    return entry.tensor.index_select(entry.dim, entry.own_indices())


def _magnitude(entry: Entry) -> Tensor:
    """Mean absolute value at each index along the entry's dimension."""
    others = [d for d in range(entry.tensor.ndim) if d != entry.dim]
    magnitude = entry.tensor.detach().abs()
    return magnitude.mean(others) if others else magnitude

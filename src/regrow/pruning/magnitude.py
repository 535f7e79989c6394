"""Magnitude pruning: the smallest weights go, or the units whose weights are smallest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..method import register
from ..rows import rows_of
from ..structure import Axis, Weights


@register
@dataclass(frozen=True)
class Magnitude:
    """What is smallest goes: single weights by ``|w|``, units by the mean ``|w|`` of the weights that make them.

    A unit's score is relative to the mean of its axis in each tensor, so that layers of different scales can be ranked
    together.

    Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (NeurIPS 2015), for weights; Li et
    al., "Pruning Filters for Efficient ConvNets" (ICLR 2017), for units.
    """

    name: ClassVar[str] = "magnitude"

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        """The mean magnitude of what makes each unit, shape ``(axis.size,)``."""
        found = axis.with_role("out", "tied") or axis.with_role("in")
        means = [rows_of(e, e.tensor.detach().abs(), axis.size).float().flatten(1).mean(1).cpu() for e in found]
        tiny = torch.finfo(torch.float32).tiny
        return torch.stack([mean / mean.mean().clamp(min=tiny) for mean in means]).mean(0)

    def score_weights(self, weights: Weights, seen: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """``|w|``, in the tensor's shape."""
        return weights.tensor.detach().abs()

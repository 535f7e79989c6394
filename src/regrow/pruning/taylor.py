"""Taylor pruning: what the loss would change least without, to first order, goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..method import register
from ..rows import rows_of
from ..structure import Axis, Layer, Weights


@register
@dataclass(frozen=True)
class Taylor:
    """The first-order change of the loss by what goes: ``|a·∂L/∂a|`` at a = 1, for the gate ``a`` of a weight or unit.

    A weight's gate is a factor on it: its score is ``|w·∂L/∂w|``. A unit's gate is a factor on all that reads it: its
    score is ``|Σ w·∂L/∂w|`` over the weights that do, or over those that make it where none reads it. A layer's gate is
    one between what it makes and what it is given.

    Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019).
    """

    name: ClassVar[str] = "taylor"
    sees_gradients: ClassVar[tuple[str, ...]] = ("score", "score_weights")
    skips: ClassVar[str] = "first order"

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        """``|∂L/∂a|`` of each unit's gate, shape ``(axis.size,)``."""
        gradients, total = seen["gradients"], torch.zeros(axis.size)
        for entry in axis.with_role("in", "tied") or axis.with_role("out"):
            moved = entry.tensor.detach() * gradients[entry.tensor]
            total += rows_of(entry, moved, axis.size).float().flatten(1).sum(1).cpu()
        return total.abs()

    def score_layers(self, layers: Sequence[Layer], seen: Mapping[str, Any]) -> list[float]:
        """``|∂L/∂a|`` of the gate ``x + a·(f(x) − x)`` of each layer."""
        return [abs(seen["skips"][layer]) for layer in layers]

    def score_weights(self, weights: Weights, seen: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """``|w·∂L/∂w|``, in the tensor's shape."""
        return (weights.tensor.detach() * seen["gradients"][weights.tensor]).abs()

"""RigL: sparse from beginning to end, with the smallest weights making place for those with the largest gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..method import register
from ..structure import Weights


@register
@dataclass(frozen=True)
class RigL:
    """Weights go by ``|w|`` and come by ``|∂L/∂w|``, which at a gate ``a`` of an absent weight is its gain per length.

    A weight that comes starts from zero. With :class:`regrow.Rewire` as many come as go in each tensor.

    Evci et al., "Rigging the Lottery: Making All Tickets Winners" (ICML 2020), who start from random weights on,
    distributed by Erdős–Rényi-kernel (``Prune(Random(), Sparsity(0.9, "erk"), kind="weight")``), and lower the
    fraction that moves from 0.3 to 0 along a cosine over the first three quarters of training.
    """

    name: ClassVar[str] = "rigl"
    sees_gradients: ClassVar[tuple[str, ...]] = ("score_absent",)

    def score_weights(self, weights: Weights, seen: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """``|w|``, in the tensor's shape."""
        return weights.tensor.detach().abs()

    def score_absent(self, weights: Weights, seen: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """``|∂L/∂w|``, in the tensor's shape."""
        return seen["gradients"][weights.tensor].abs()

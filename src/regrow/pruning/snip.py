"""SNIP: before training, the connections that the loss is least sensitive to go."""

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
class SNIP:
    """Connection sensitivity, meant for weights as they were initialised: the derivative by a factor on each weight.

    That is ``|w·∂L/∂w|``, as :class:`regrow.Taylor` has it for weights; the paper divides all by their sum, which
    ranks them alike.

    Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity" (ICLR 2019).
    """

    name: ClassVar[str] = "snip"
    sees_gradients: ClassVar[tuple[str, ...]] = ("score_weights",)

    def score_weights(self, weights: Weights, seen: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """``|w·∂L/∂w|``, in the tensor's shape."""
        return (weights.tensor.detach() * seen["gradients"][weights.tensor]).abs()

"""SET: sparse evolutionary training, with the smallest weights making place for random ones."""

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
class SET:
    """Weights go by ``|w|`` and come at random; those that come start from zero.

    Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science" (Nature Communications 2018), who remove the smallest positive and the largest negative weights
    and let 30 % of them move after each epoch.
    """

    name: ClassVar[str] = "set"

    def score_weights(self, weights: Weights, seen: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """``|w|``, in the tensor's shape."""
        return weights.tensor.detach().abs()

    def score_absent(self, weights: Weights, seen: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """A random number for each weight."""
        return torch.rand(weights.tensor.shape, generator=generator)

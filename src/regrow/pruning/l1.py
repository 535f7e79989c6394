"""L1 pruning: a penalty drives the gates of units to zero, the smallest go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..method import register
from ..structure import Axis, Weights
from .gates import each, gates, magnitudes, values


@register
@dataclass(frozen=True)
class L1:
    """Network slimming: an L1 penalty on the scales of the units, and on outgoing weights where there are none.

    A batch-norm scale γ *is* a gate on its unit. The penalty is ``strength · Σ |γ|`` over the scales, with the
    subgradient ``strength · sign γ``; without scales it is ``strength · Σ |w|`` over the outgoing weights. A unit's
    score is the mean ``|γ|`` over its scales; without scales it is the mean ``|w|`` over its outgoing weights, relative
    to the axis's average, so that it can be ranked beside scales, whose usual value is 1.

    What a pruned unit still sends where its gate is zero, the activation of its shift β, is the same for all inputs,
    and goes into the next layer's bias, or the running mean of the norm behind it. Where the loss can be computed, the
    mean of what units send goes there whatever their gates are, and running statistics follow, means and variances.

    Args:
        strength: λ, not negative; network slimming uses 1e-4 with batch norm.
        grace: For how many steps after they have come new units aren't pruned, when a plan grows them.
        absorb: Whether what pruned units still send goes into the next layer.

    Raises:
        ValueError: An option is none of what is said above.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (ICCV 2017). The released
    code ranks the signed γ, so that every negative scale is pruned; here it is ``|γ|``, as in the paper.
    """

    name: ClassVar[str] = "l1"
    jointly: ClassVar[bool] = True
    strength: float = 1e-4
    grace: int = 100
    absorb: bool = True

    def __post_init__(self) -> None:
        check_strength(self.strength)
        check_grace(self.grace)

    def penalty(self, axes: Axis | Sequence[Axis]) -> Tensor:
        """``strength`` times the L1 norm of the gates of an axis, or of several: a scalar."""
        found = torch.cat([values(entry) for axis in each(axes) for entry in gates(axis)])
        return self.strength * torch.linalg.vector_norm(found, 1)

    def penalty_weights(self, weights: Sequence[Weights]) -> Tensor:
        """``strength`` times the L1 norm of single weights: a scalar. What is off adds nothing."""
        norms = [torch.linalg.vector_norm(each.tensor, 1) for each in weights]
        return self.strength * torch.stack(norms).sum()

    def score_weights(self, weights: Weights, seen: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """``|w|``, in the tensor's shape."""
        return weights.tensor.detach().abs()

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        """The mean magnitude of each unit's gates, shape ``(axis.size,)``."""
        return magnitudes(axis)


def check_strength(strength: float) -> None:
    """λ is a number that isn't negative.

    Raises:
        ValueError: It isn't.
    """
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength is a number that isn't negative, not {strength!r}.")


def check_grace(grace: int) -> None:
    """A number of steps.

    Raises:
        ValueError: It is none.
    """
    if isinstance(grace, bool) or not isinstance(grace, int) or grace < 0:
        raise ValueError(f"grace is a number of steps, not {grace!r}.")

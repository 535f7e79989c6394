"""DepGraph's group norm: units go whose coupled weights, all together, are smallest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..method import register
from ..rows import rows_of
from ..structure import Axis


@register
@dataclass(frozen=True)
class GroupNorm:
    """The p-norm of all parameters that go with a unit: what makes it, reads it, scales it and shifts it.

    Its gate ``a`` may be written as a factor on any of them, and what has become small in one may have in all: with
    ``|w|^p`` summed over a unit's places in each tensor, and divided by the tensor's mean over the units, its score is
    the p-th root of the sum over tensors, relative to the axis's mean. Tensors of any size and scale weigh alike, and
    layers can be ranked together. Running statistics don't count, nor do tensors that are all zero.

    A factor on a whole tensor changes nothing. A factor on what makes one unit and its inverse on what reads it keeps
    the function, behind a ReLU, but not the score.

    Args:
        p: 1, or 2 as in the paper.

    Raises:
        ValueError: p is another number.

    Fang et al., "DepGraph: Towards Any Structural Pruning" (CVPR 2023); the sum over coupled tensors is its group
    sparsity, where tensors weigh by their sizes.
    """

    name: ClassVar[str] = "group-norm"
    p: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if isinstance(self.p, bool) or self.p not in (1, 2):
            raise ValueError(f"p is 1 or 2, not {self.p!r}.")

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        """The norm of each unit's parameters, relative to the mean, shape ``(axis.size,)``."""
        total = torch.zeros(axis.size)
        for entry in axis.entries:
            if isinstance(entry.tensor, nn.Parameter):
                powers = rows_of(entry, entry.tensor.detach(), axis.size).float().abs().pow(self.p)
                total += _relative(powers.flatten(1).sum(1).cpu())
        return _relative(total.pow(1 / self.p))


def _relative(values: Tensor) -> Tensor:
    """Divided by their mean; zeros stay zero."""
    return values / values.mean().clamp(min=torch.finfo(values.dtype).tiny)

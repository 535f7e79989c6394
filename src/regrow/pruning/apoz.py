"""Network trimming: units that are zero most of the time go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..evidence import Needs, Passage
from ..evidence.sides import Side
from ..evidence.sight import Sight
from ..method import register
from ..structure import Axis
from .fisher import check_read


@register
@dataclass(frozen=True)
class APoZ:
    """How often a unit sends anything: one minus the average percentage of zeros of what its readers get.

    Where a unit sends zero its gate does nothing: over examples and positions the loss depends on ``a`` only in the
    share of them that is scored, whatever weights read it. It is told from numbers as they are given to the readers,
    behind activations and pooling; of many, from a sample of them that stays the same. Activations that are never zero,
    as GELU's, score 1.

    Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures" (2016).
    """

    name: ClassVar[str] = "apoz"
    leaves_out: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        """How often units are zero."""
        return {"zeros": lambda axis, _: Zeros(axis)}

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        """The share of examples and positions at which each unit isn't zero, shape ``(axis.size,)``."""
        return 1 - seen["zeros"].share


class Zeros:
    """Gathers how often what an axis's units send is zero.

    Attributes:
        share: The mean over batches, shape ``(axis.size,)``.

    Raises:
        NotPermissible: No weight reads the units, or one that makes them.
    """

    def __init__(self, axis: Axis) -> None:
        check_read(axis)
        self.share = torch.zeros(axis.size)
        self._batches = 0

    def add(self, passage: Passage) -> None:
        """See one batch.

        Raises:
            NotPermissible: It can't be told which numbers are whose.
        """
        sight = Sight.of(passage, Side.of(passage.readers, passage.axis.size))
        self._batches += 1
        self.share += ((sight.old == 0).float().mean(1).cpu() - self.share) / self._batches

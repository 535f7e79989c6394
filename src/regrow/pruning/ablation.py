"""Ablation: the layers go without which the loss is lowest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..method import register
from ..structure import Layer


@register
@dataclass(frozen=True)
class Ablation:
    """A layer's or a cell's score is the loss without it, less the loss with it, exactly: a pass for each.

    Veit, Wilber and Belongie, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks" (NeurIPS 2016),
    leave out blocks of trained networks one by one.
    """

    name: ClassVar[str] = "ablation"
    skips: ClassVar[str] = "exact"

    def score_layers(self, layers: Sequence[Layer], seen: Mapping[str, Any]) -> list[float]:
        """The change of the loss by leaving each out; the lowest go first."""
        return [seen["skips"][layer] for layer in layers]

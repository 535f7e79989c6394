"""What there is of a structure in all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..bench import human
from ..structure import Structure
from .subject import Subject


@dataclass(frozen=True)
class Totals:
    """Of one structure.

    Attributes:
        parameters: in the model.
        moving: those of them that come or go with a unit of some axis.
        flops: of one sample, or of the whole example where ``samples`` is None.
        samples: in the example.
        axes: how many there are.
        frozen: tensor dimensions of which some index can't change.
    """

    parameters: int
    moving: int
    flops: float
    samples: int | None
    axes: int
    frozen: int

    @classmethod
    def of(cls, subject: Subject, structure: Structure) -> Totals:
        """Add up."""
        parameters = dict(structure.model.named_parameters())
        covered = covered_indices(structure)
        return cls(
            parameters=sum(p.numel() for p in parameters.values()),
            moving=sum(_moving(name, p, covered) for name, p in parameters.items()),
            flops=structure.flops() / (subject.samples or 1),
            samples=subject.samples,
            axes=len(structure.axes),
            frozen=len({(f.name, f.dim) for f in structure.frozen}),
        )

    @property
    def per(self) -> str:
        """What the FLOPs are counted for."""
        return "sample" if self.samples else "forward pass"

    def __str__(self) -> str:
        share = self.moving / max(1, self.parameters)
        return (
            f"{self.parameters:,} parameters, {human.count(self.flops)}FLOPs a {self.per}; "
            f"{self.axes:,} {'axis' if self.axes == 1 else 'axes'}, with which {share:.1%} of the parameters move; "
            f"{human.plural(self.frozen, 'frozen dimension')}"
        )


def covered_indices(structure: Structure) -> dict[tuple[str, int], Tensor]:
    """For each tensor dimension in which an axis lies: which of its indices belong to any unit."""
    covered: dict[tuple[str, int], Tensor] = {}
    for axis in structure.axes:
        for entry in axis.entries:
            here = entry.unit_of >= 0
            key = (entry.name, entry.dim)
            covered[key] = covered[key] | here if key in covered else here
    return covered


def _moving(name: str, parameter: nn.Parameter, covered: dict[tuple[str, int], Tensor]) -> int:
    """The elements that lie in a unit along any dimension."""
    still = [
        size - int(torch.count_nonzero(covered[name, dim])) if (name, dim) in covered else size
        for dim, size in enumerate(parameter.shape)
    ]
    return parameter.numel() - math.prod(still)

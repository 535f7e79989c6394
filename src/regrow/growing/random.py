"""Random growth: new units read the input at random and send nothing yet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..method import Fresh, register
from ..structure import Axis, Entry
from .neutral import fresh_shape, neutral


@register
@dataclass(frozen=True)
class Random:
    """New units with random incoming and zero outgoing weights.

    Nothing downstream changes, whatever lies between the two layers; the outgoing weights receive the gradient
    ∂L/∂W_out, and once they have moved, so do the incoming ones. Incoming weights are normal with the
    root-mean-square of the layer's old weights, which is the layer's own initialisation scale, whatever that was,
    and stays in step with training; a layer that is all zero gets torch's default, 1/√(3·fan_in).

    Args:
        scale: A factor on the incoming weights.

    The reference in Evci et al., "GradMax: Growing Neural Networks using Gradient Information" (ICLR 2022), draws
    uniform positive weights and leaves a new batch-norm channel at (γ, β, μ, σ²) = (1, 0, 0, 1).
    """

    name: ClassVar[str] = "random"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale is a positive number, not {self.scale!r}.")

    def fresh(self, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Fresh:
        """The values of ``num`` new units; entries that consume them, and shifts, become zero."""
        values = neutral(axis, num)
        for entry in axis.with_role("out"):
            values[entry] = self._incoming(entry, num, axis.size, generator)
        if axis.with_role("tied"):
            # One weight is both sides and has to be zero; what the shift lets through gives it a gradient.
            for entry in axis.with_role("shift"):
                values[entry] = self._incoming(entry, num, axis.size, generator).abs()
        return values

    def _incoming(self, entry: Entry, num: int, size: int, generator: torch.Generator) -> Tensor:
        old = entry.tensor.detach()
        # Drawn where the generator lives, so that a seed means the same on every device.
        drawn = torch.randn(fresh_shape(entry, num, size), generator=generator, device=generator.device)
        rms = float(torch.linalg.vector_norm(old.float())) / math.sqrt(max(1, old.numel()))
        if rms == 0.0 or not math.isfinite(rms):
            rms = 1 / math.sqrt(3 * max(1, old.numel() // old.shape[entry.dim]))
        return drawn.mul_(self.scale * rms).to(old)

"""Random growth: new units read the input at random and send nothing yet, or the other way round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import NotPermissible
from ..evidence.passage import TINY
from ..evidence.sides import Side
from ..method import Fresh, register
from ..neutral import as_made, neutral
from ..rows import laid_out, row_shape
from ..structure import Axis, Entry, Weights
from .scaling import mean_norm, scaled

#: "mean_norm": relative to the mean length of the old units' weights; "fixed": as it is.
ScaleMethod = Literal["mean_norm", "fixed"]


@register
@dataclass(frozen=True)
class Random:
    """New units with random weights on one side and zero on the other.

    With zero outgoing weights nothing downstream changes, whatever lies between the two layers; these weights receive
    the gradient ∂L/∂W_out, and once they have moved, so do the incoming ones. The random side of each unit has the
    mean length of the old units' weights there, in each tensor by itself, and so stays in step with training; a
    tensor that is all zero gets the length that torch's default has.

    Args:
        scale: A factor on the length of the random side.
        zero: The side that is zero: "outgoing", or "incoming", where activations with a derivative at zero let the
            gradient ∂L/∂W_in through, or a positive bias that is nothing beside any other number.
        epsilon: How long the zero side is instead, relative to the old units; the function is kept only for 0.
        scale_method: "mean_norm", or "fixed": the lengths are ``scale`` and ``epsilon`` themselves.
        distribution: "normal", less the mean of each row, so that inputs of one sign, as those after a ReLU are, leave
            few units dead or linear; or "uniform" on [0, 1): all positive.

    Raises:
        ValueError: An option is none of what is said above.

    The reference of Evci et al., "GradMax: Growing Neural Networks using Gradient Information" (ICLR 2022), is
    ``Random(0.5, zero="incoming", distribution="uniform")``, where a new batch-norm channel has (γ, β, μ, σ²) =
    (1, 0, 0, 1), as here with zero incoming weights; else scale and statistics are the means of the old ones.
    """

    name: ClassVar[str] = "random"
    scale: float = 1.0
    zero: Literal["outgoing", "incoming"] = "outgoing"
    epsilon: float = 0.0
    scale_method: ScaleMethod = "mean_norm"
    distribution: Literal["normal", "uniform"] = "normal"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale is a positive number, not {self.scale!r}.")
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"epsilon is a number that isn't negative, not {self.epsilon!r}.")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {' or '.join(map(repr, allowed))}, not {getattr(self, name)!r}.")

    def fresh(self, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Fresh:
        """The values of ``num`` new units; what is left out becomes zero."""
        return laid_out(axis, self.rows(axis, num, generator))

    def score_weights(self, weights: Weights, seen: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """A random number for each weight: which go says nothing about them, as sparse training begins."""
        return torch.rand(weights.tensor.shape, generator=generator)

    score_absent = score_weights

    def rows(self, axis: Axis, num: int, generator: torch.Generator) -> dict[Entry, Tensor]:
        """The same as rows."""
        self._check_can_be_zero(axis)
        rows = neutral(axis, num)
        random, silent = ("out", "in") if self.zero == "outgoing" else ("in", "out")
        for entry in axis.with_role(random):
            rows[entry] = self._drawn(entry, num, axis.size, self.scale, generator)
        if self.epsilon:
            for entry in axis.with_role(silent):
                rows[entry] = self._drawn(entry, num, axis.size, self.epsilon, generator)
        elif self.zero == "incoming":
            for entry in axis.with_role("shift"):
                rows[entry] = torch.full((num, *row_shape(entry, axis.size)), TINY)
        if self.zero == "incoming":  # what a norm finds of such units is nothing like what it finds of the old ones
            rows |= as_made(axis, num)
        if axis.with_role("tied"):
            # One weight is both sides and has to be zero; what the shift lets through gives it a gradient.
            for entry in axis.with_role("shift"):
                rows[entry] = self._drawn(entry, num, axis.size, self.scale, generator).abs()
        return rows

    def _check_can_be_zero(self, axis: Axis) -> None:
        divided = (
            [e for e in axis.with_role("out") if e.nonzero] if self.zero == "incoming" and not self.epsilon else []
        )
        if divided:
            raise NotPermissible(
                f"{divided[0].name} is divided by its own length, so new units of {axis.name} can't have zero incoming "
                "weights; zero='outgoing' can."
            )

    def _drawn(self, entry: Entry, num: int, size: int, scale: float, generator: torch.Generator) -> Tensor:
        side = Side.of([entry], size)
        # Drawn where the generator lives, so that a seed means the same on every device.
        draw = torch.randn if self.distribution == "normal" else torch.rand
        drawn = draw((num, side.width), generator=generator, device=generator.device)
        if self.distribution == "normal" and side.width > 2:  # of two, one direction would be left
            drawn -= drawn.mean(1, keepdim=True)
        length = 1.0 if self.scale_method == "fixed" else mean_norm(side.old())
        return side.rows(scaled(drawn, scale * length).to(entry.tensor.device))[entry]


_CHOICES = {
    "zero": ("outgoing", "incoming"),
    "scale_method": ("mean_norm", "fixed"),
    "distribution": ("normal", "uniform"),
}

"""Splitting steepest descent: units are split in two where, and along which direction, that lowers the loss most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ..errors import NotPermissible
from ..evidence import Needs
from ..method import Grown, register
from ..structure import Axis
from .forms import check_choice, filled_up
from .splits import Splits


@register
@dataclass(frozen=True)
class Splitting:
    """Units are split along the direction of most negative curvature, where a gradient can do nothing any more.

    A unit with weights w becomes two, w + εv and w − εv, with half of its outgoing weights each. To first order nothing
    changes; to second order the loss changes by ``ε²/2 · vᵀSv``, with the splitting matrix S = E[∂L/∂σ · ∂²σ/∂w²], so
    the best v is the eigenvector of S's smallest eigenvalue λ, and what is won is ``−ε²λ/2`` where λ < 0. S is the
    Hessian of the gain of :class:`regrow.evidence.Passage` in what makes the unit: its incoming weights and its shifts,
    through all that lies between them and what reads it. As no unit's gain depends on another's, one product with the
    Hessian serves all units of an axis, and a few steps of Lanczos' method find each one's λ and v. Those that win most
    are split, over all axes alike: a number of units for each axis becomes one number for all, unless given by name.
    Units with λ ≥ 0 are not split.

    The second derivative of a ReLU is zero but at its kink, where splits do help. As in the paper's code it is that of
    a softplus instead, here one as wide as what reaches the ReLU is large; and so with leaky ones.

    Args:
        epsilon: ε, relative to the mean length of the weights and shifts of an axis's units. What a split wins grows
            with its square, as long as that is small: beyond, the loss may as well rise.
        smoothing: How wide the softplus is in which a ReLU bends, relative to the root mean square of what reaches it;
            a third is the code's behind a norm. 0: no such thing, so that units behind ReLUs alone aren't split.
        steps: How many products with the Hessian are formed; with as many as a unit has weights and shifts λ is exact.
        beyond: What happens where more units are asked for than splits would help: "error", where they are by name, and
            fewer come elsewhere; or "random": new units for the rest, which read at random and send nothing yet.

    Raises:
        ValueError: An option is none of what is said above.

    Wu, Wang and Liu, "Splitting Steepest Descent for Growing Neural Architectures" (NeurIPS 2019).
    """

    name: ClassVar[str] = "splitting"
    recalibrates: ClassVar[bool] = True
    leaves_out: ClassVar[bool] = True
    breaks: ClassVar[Mapping[str, str]] = {
        "keeps_the_function": "a split lowers the loss at once",
        "grows_and_prunes_to_the_identity": "a split changes the old unit too",
    }
    epsilon: float = 0.05
    smoothing: float = 1 / 3
    steps: int = 16
    beyond: Literal["error", "random"] = "error"

    def __post_init__(self) -> None:
        check_choice("beyond", self.beyond, Literal["error", "random"])
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"epsilon is a positive number, not {self.epsilon!r}.")
        if not (math.isfinite(self.smoothing) and self.smoothing >= 0):
            raise ValueError(f"smoothing is a number that isn't negative, not {self.smoothing!r}.")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps is a positive integer, not {self.steps!r}.")

    @property
    def needs(self) -> Needs:
        """Each unit's smallest eigenvalue and its eigenvector."""
        return {"splits": lambda axis, generator: Splits(axis, self, generator)}

    def settle(
        self,
        gains: Mapping[Axis, int],
        most: Mapping[Axis, int],
        free: bool,
        seen: Mapping[Axis, Any],
        memory: dict[str, Any],
    ) -> dict[Axis, int]:
        """How many units each axis gains: as many as were asked for together, or as many as help.

        Args:
            gains: How many were asked for.
            most: How many each may gain.
            free: Whether it is their sum that was asked for.
            seen: What was gathered about each axis.
            memory: What was noted at earlier calls; nothing is here.
        """
        if not free:
            return dict(gains)
        ranked = {axis: seen[axis]["splits"].falls().sort(descending=True).values.tolist() for axis in gains}
        falls = [(fall, i, axis) for i, axis in enumerate(gains) for fall in ranked[axis][: most[axis]] if fall > 0]
        kept = sorted(falls, key=lambda each: (-each[0], each[1]))[: sum(gains.values())]
        found = {axis: sum(each[2] is axis for each in kept) for axis in gains}
        for axis in gains if self.beyond == "random" else ():
            found[axis] += min(most[axis] - found[axis], sum(gains.values()) - sum(found.values()))
        return found

    def fresh(self, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Grown:
        """The ``num`` best splits: one half of each, and what the old units become.

        Raises:
            NotPermissible: Fewer would help.
        """
        splits: Splits = seen["splits"]
        falls = splits.falls()
        able = int((falls > 0).sum())
        if num > able and self.beyond == "error":
            raise NotPermissible(
                f"asked for {num} new units in {axis.name}; splits of {able} of its units would lower the loss, so ask "
                f"for at most {able}, take more batches, or let the others be random with beyond='random'."
            )
        chosen = falls.argsort(descending=True, stable=True)[: min(num, able)].tolist()
        units, old = splits.halves(chosen) if chosen else ({}, {})
        return Grown(filled_up(axis, units, num, generator), old, copies=chosen)

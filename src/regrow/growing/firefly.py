"""Firefly: of many candidates, splits of old units and new ones in all layers, the best are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ..agreement import averaged_number
from ..errors import NotPermissible
from ..evidence import Needs
from ..method import Grown, register
from ..structure import Axis
from .candidates import Candidates
from .forms import check_choice


@register
@dataclass(frozen=True)
class Firefly:
    """Candidates in all layers at once: their directions are optimised on the loss, and the most helpful are kept.

    A *split* replaces a unit by two, W + v and W − v, with half of the outgoing weights each; a *new* unit has
    incoming and outgoing weights of its own. All that is changed by them is small, so what a candidate does to the
    loss is told by the gradients at what reads the units: ``½g(W + v) + ½g(W − v) − g(W)`` for a split, ``g(v, u)`` for
    a new unit, with g the gain of :class:`regrow.evidence.Passage`. Steps along the gradient make these small, batch by
    batch, over directions of a given length; each batch also scores the candidates that were found on the batches
    before. Those that lower the loss most are kept, over all axes alike: a number of units for each axis becomes one
    number for all of them, unless it was given by name.

    Args:
        form: "safe": new units have incoming weights as long as the old ones and small outgoing ones, so that batch
            norm can't make them loud; the search runs with the statistics of the batch, and the statistics of what is
            kept are set to those. It lowers the loss alike in both modes. "official": the incoming weights are small,
            and the search takes norms as in a new network in eval mode, (γ, β, μ, σ²) = (1, 0, 0, 1).
        epsilon: The length of what is small, relative to the old units' weights there.
        split: How long v is, relative to W; 0 for no splits.
        new: How many new units there are among an axis's candidates, relative to its size.
        steps: How many steps each batch takes.
        rate: Their length, relative to the weights'.
        trust: In the safe form, all that is kept becomes weaker by one factor where it promises together to take more
            than this part of the loss: to first order each of them helps, but not all of them at once.

    Raises:
        ValueError: An option is none of what is said above.

    Wu et al., "Firefly Neural Architecture Descent: a General Approach for Growing Neural Networks" (NeurIPS 2020).
    The released code searches with RMSprop, whose steps by coordinate turn directions of a given length into corners,
    and takes one unit too many. Candidates for new units are kept orthogonal here, behind norms in what they send: else
    they end as copies of the best.
    """

    name: ClassVar[str] = "firefly"
    weighs_loss: ClassVar[bool] = True
    breaks: ClassVar[Mapping[str, str]] = {
        "keeps_the_function": "what it adds lowers the loss at once",
        "grows_and_prunes_to_the_identity": "a split changes the old unit too",
    }
    form: Literal["safe", "official"] = "safe"
    epsilon: float = 0.1
    split: float = 0.1
    new: float = 0.5
    steps: int = 10
    rate: float = 0.3
    trust: float = 0.02

    def __post_init__(self) -> None:
        check_choice("form", self.form, Literal["safe", "official"])
        for name, least in (("epsilon", 0), ("split", None), ("new", None), ("rate", 0), ("trust", 0)):
            value = getattr(self, name)
            if not math.isfinite(value) or (value <= least if least is not None else value < 0):
                raise ValueError(f"{name} is a {'positive' if least == 0 else 'nonnegative'} number, not {value!r}.")
        if not self.split and not self.new:
            raise ValueError("without splits and without new units there are no candidates; let one be more than zero.")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps is a positive integer, not {self.steps!r}.")

    @property
    def recalibrates(self) -> bool:
        """Whether running statistics follow what it changes."""
        return self.form == "safe"

    @property
    def needs(self) -> Needs:
        """The candidates of each axis, with their scores."""
        return {"candidates": lambda axis, generator: Candidates(axis, self, generator)}

    def settle(
        self,
        gains: Mapping[Axis, int],
        most: Mapping[Axis, int],
        free: bool,
        seen: Mapping[Axis, Any],
        memory: dict[str, Any],
    ) -> dict[Axis, int]:
        """How many units each axis gains, by the scores of its candidates, and how strong these are.

        Args:
            gains: How many were asked for.
            most: How many each may gain.
            free: Whether it is their sum that was asked for.
            seen: What was gathered about each axis.
            memory: What was noted at earlier calls; nothing is here.

        Raises:
            NotPermissible: There are fewer candidates.
        """
        candidates: dict[Axis, Candidates] = {axis: seen[axis]["candidates"] for axis in gains}
        ranked = {axis: sorted(each.scores.tolist(), reverse=True) for axis, each in candidates.items()}
        if free:
            gains = self._shared(ranked, most, sum(gains.values()))
        promised = sum(max(0.0, score) for axis, gain in gains.items() for score in ranked[axis][:gain])
        allowed = self.trust * averaged_number(max(abs(each.passage.loss) for each in candidates.values()))
        for each in candidates.values():
            each.strength = min(1.0, allowed / promised) if promised > 0 and self.form == "safe" else 1.0
        return {axis: gain for axis, gain in gains.items() if gain}

    def _shared(self, ranked: Mapping[Axis, list[float]], most: Mapping[Axis, int], total: int) -> dict[Axis, int]:
        """The best of all axes' candidates."""
        scored = [
            (score, number, axis)
            for number, axis in enumerate(ranked)
            for score in ranked[axis][: most[axis]]
            if math.isfinite(score)
        ]
        if len(scored) < total:
            raise NotPermissible(f"asked for {total} new units; Firefly(new={self.new}) has {len(scored)} candidates.")
        kept = sorted(scored, key=lambda each: (-each[0], each[1]))[:total]
        return {axis: sum(each[2] is axis for each in kept) for axis in ranked}

    def fresh(self, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Grown:
        """The ``num`` best candidates, and what the old units that are split become.

        Raises:
            NotPermissible: There are fewer candidates.
        """
        candidates: Candidates = seen["candidates"]
        able = int(candidates.scores.isfinite().sum())
        if num > able:
            raise NotPermissible(
                f"asked for {num} new units in {axis.name}; Firefly(new={self.new}) has {able} candidates there that "
                "would get a gradient."
            )
        best = candidates.scores.argsort(descending=True, stable=True)[:num]
        return candidates.grown(best)

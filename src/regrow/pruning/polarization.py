"""Polarization pruning: a penalty drives the gates of units to zero or away from it, those at zero go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..method import register
from ..rows import rows_of
from ..structure import Axis
from .gates import each, magnitudes, scales, values
from .l1 import check_grace, check_strength


@register
@dataclass(frozen=True)
class Polarization:
    """A penalty under which scales gather at two poles, zero and a common value, instead of shrinking alike.

    ``R(γ) = strength · Σᵢ (t·|γᵢ| − |γᵢ − γ̄|)`` with γ̄ the mean over all scales of all axes that are pruned together;
    γ̄ is differentiated as well: ``∂R/∂γⱼ = strength·(t·sgn γⱼ − sgn(γⱼ − γ̄) + (1/n)·Σᵢ sgn(γᵢ − γ̄))``. After each step
    scales are clamped to [0, 1]. At the minimum a fraction ½ − t/4 of them stays at the upper pole.

    A unit's score is its mean scale; :class:`regrow.Valley` finds the gap between the poles. New units that a plan
    grows come with γ̄, which leaves γ̄ where it is and is neutral for all others.

    Args:
        strength: λ, not negative.
        t: Weight of the L1 term, from −2 to 2: larger is sparser.
        grace: For how many steps after they have come new units aren't pruned, when a plan grows them.
        absorb: Whether what pruned units still send goes into the next layer; see :class:`regrow.L1`.

    Raises:
        ValueError: An option is none of what is said above.

    Zhuang et al., "Neuron-level Structured Pruning using Polarization Regularizer" (NeurIPS 2020), who start scales at
    0.5: see :meth:`start_`. Where there is no batch norm, :func:`regrow.add_gates_` makes scales.
    """

    name: ClassVar[str] = "polarization"
    jointly: ClassVar[bool] = True
    strength: float = 1e-4
    t: float = 1.2
    grace: int = 100
    absorb: bool = True

    def __post_init__(self) -> None:
        check_strength(self.strength)
        check_grace(self.grace)
        if not (math.isfinite(self.t) and -2 <= self.t <= 2):
            raise ValueError(f"t is a number from -2 to 2, not {self.t!r}.")

    def penalty(self, axes: Axis | Sequence[Axis]) -> Tensor:
        """R of all scales of an axis, or of several together: a scalar.

        Raises:
            ValueError: An axis has no scales.
        """
        gamma = torch.cat([values(entry) for axis in each(axes) for entry in _scales(axis)])
        norm = torch.linalg.vector_norm
        return self.strength * (self.t * norm(gamma, 1) - norm(gamma - gamma.mean(), 1))

    @torch.no_grad()
    def project(self, axes: Axis | Sequence[Axis]) -> None:
        """Clamp the scales of an axis, or of several, to [0, 1], in place."""
        for entry in (entry for axis in each(axes) for entry in _scales(axis)):
            if entry.whole:
                entry.tensor.clamp_(0, 1)
            else:
                own = entry.own_indices()
                entry.tensor.index_copy_(entry.dim, own, entry.tensor.index_select(entry.dim, own).clamp(0, 1))

    @torch.no_grad()
    def welcome(self, axis: Axis, new: Sequence[int], axes: Sequence[Axis] = ()) -> None:
        """Give new units the mean scale of all others.

        Args:
            axis: That they belong to.
            new: Their indices.
            axes: All axes that are pruned together; by default this one alone.
        """
        rows = []
        for other in axes or [axis]:
            stay = torch.ones(other.size, dtype=torch.bool)
            stay[list(new) if other is axis else []] = False
            rows += [rows_of(e, e.tensor, other.size)[stay.to(e.tensor.device)].flatten() for e in _scales(other)]
        mean = torch.cat(rows).mean()
        for entry in _scales(axis):
            entry.tensor.index_fill_(entry.dim, entry.indices(new), float(mean))

    @torch.no_grad()
    def start_(self, axes: Axis | Sequence[Axis], value: float = 0.5) -> None:
        """Set all scales to one value, as the paper does before training."""
        for axis in each(axes):
            for entry in _scales(axis):
                entry.tensor.index_fill_(entry.dim, entry.own_indices(), value)

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        """The mean scale of each unit, as :meth:`regrow.L1.score` has it, shape ``(axis.size,)``."""
        return magnitudes(axis)


def _scales(axis: Axis) -> Any:
    found = scales(axis)
    if not found:
        raise ValueError(
            f"the units of {axis.name} have no scales to polarize; add_gates_(structure, optimizer) makes some, or "
            "leave that axis out (where= or protect=)."
        )
    return found

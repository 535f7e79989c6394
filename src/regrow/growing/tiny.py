"""TINY: new units for what the present ones can't do, whatever their outgoing weights become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..agreement import averaged
from ..evidence import Growth, Needs, Passage
from ..evidence.moments import Moments, inverse_factor
from ..evidence.readings import Reading, by_position, readings_of, tapped
from ..method import Fresh, register
from ..rows import expanded
from ..structure import Axis, Entry
from .forms import BeyondRank, check_choice, filled_up, swapped, with_better_sign
from .gradmax import leading
from .silent import without_outgoing

#: At most so many numbers are looked at in one piece.
_PIECE = 2**24


@register
@dataclass(frozen=True)
class TINY:
    """New units along the expressivity bottleneck: the part of the wanted change that old units can't bring about.

    What reads units puts out z, and would best change it by V = −∂L/∂z. With h what it reads of the present units, and
    1 for its bias, it can do the part of that which is a linear map D·h, by least squares. New units are for the rest,
    V − D·h: with x what they see, S = E[x·xᵀ] and N = E[x·(V − D·h)ᵀ], the best that n units with a linear map between
    can do are the first n terms of the singular value decomposition ``S^(−½)·N = Σ λ·u·vᵀ``, with incoming weights
    along S^(−½)·u and outgoing weights along v. λ² is what each wins. N is, but for its sign, the growth matrix of what
    is left of the gradients (:class:`regrow.evidence.Growth`); where batch norm follows it is that of the centred
    inputs, and S their covariance. :class:`regrow.GradMax` takes all of ∂L/∂z, and no account of S but there.

    Incoming weights are as long as the old units', norms know the new units already, and biases are zero. All that
    reads the units has to be a plain convolution or a product with a matrix. Take enough examples: with as many
    features as positions the present units can do everything.

    Args:
        form: "keep": outgoing weights are zero, so the function stays as it is, and the first gradient moves them.
            "paper": they are along v, in the proportions √λ, and so long that the loss falls by ``amplitude`` of itself
            to first order for each axis, in place of the paper's line search.
        amplitude: See there.
        damping: Of S and of E[h·hᵀ], relative to their mean diagonal entries.
        beyond_rank: What happens where more units are asked for than N has rank: "error", or "random": the rest read at
            random and send nothing yet.

    Raises:
        ValueError: An option is none of what is said above.

    Verbockhaven, Rudkiewicz, Charpiat and Chevrier, "Growing Tiny Networks: Spotting Expressivity Bottlenecks and
    Fixing Them Optimally" (TMLR 2024).
    """

    name: ClassVar[str] = "tiny"
    leaves_out: ClassVar[bool] = True
    form: Literal["keep", "paper"] = "keep"
    amplitude: float = 0.01
    damping: float = 1e-4
    beyond_rank: BeyondRank = "error"

    def __post_init__(self) -> None:
        check_choice("form", self.form, Literal["keep", "paper"])
        check_choice("beyond_rank", self.beyond_rank, BeyondRank)
        for name in ("amplitude", "damping"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is a positive number, not {value!r}.")

    @property
    def breaks(self) -> Mapping[str, str]:
        """Laws that it breaks by design."""
        return {"keeps_the_function": "what it adds lowers the loss at once"} if self.form == "paper" else {}

    @property
    def weighs_loss(self) -> bool:
        """Whether what it adds is measured by the loss's value."""
        return self.form == "paper"

    @property
    def needs(self) -> Needs:
        """The bottleneck of each axis."""
        return {"bottleneck": lambda axis, _: Bottleneck(axis, self.damping)}

    def fresh(self, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Fresh:
        """The values of ``num`` new units.

        Raises:
            NotPermissible: N has a lower rank than ``num``, and that is an error; or it is zero.
        """
        found: Bottleneck = seen["bottleneck"]
        left, values, right = leading(found.whitener @ found.growth.matrix, num, axis, self.beyond_rank)
        units = swapped(found.growth, with_better_sign(found.growth, left @ found.whitener), 1.0)
        if self.form == "paper":
            sent = values.sqrt()[:, None] * right
            gradients = averaged(without_outgoing(found.passages[-1], found.growth.outgoing, units))
            falls = -(gradients * sent).sum(1)
            sent = torch.where(falls < 0, -1.0, 1.0)[:, None] * sent  # activations aren't linear
            promised = float(falls.abs().sum())
            wanted = self.amplitude * abs(found.loss)
            units |= found.growth.outgoing.rows(sent * (wanted / promised if promised > 0 else 0.0))
        return filled_up(axis, units, num, generator)


class Bottleneck:
    """Gathers what the present units of an axis leave of the gradients, and of which inputs that can be made.

    Batches are kept as they were recorded until all were seen.

    Args:
        axis: Whose units.
        damping: Of least squares and of S.

    Attributes:
        growth: The growth matrix of what is left of the gradients.
        whitener: W with W·S·Wᵀ = 1.
        passages: Of all batches.
        loss: Its mean over them.
    """

    growth: Growth
    whitener: Tensor

    def __init__(self, axis: Axis, damping: float) -> None:
        self.axis, self.damping = axis, damping
        self.growth = Growth(axis)
        self.passages: list[Passage] = []
        #: Of each reading the sums of h·hᵀ and g·hᵀ.
        self._sums: dict[tuple[Entry, int], tuple[Tensor, Tensor]] = {}

    def add(self, passage: Passage) -> None:
        """See one batch."""
        readings = readings_of(passage)
        if not self.passages:  # whether there is a growth matrix
            Growth(self.axis).add(passage)
        given = tapped(passage, readings).outputs({})
        for reading in readings:
            gradients = passage.ends[reading.end]
            width = reading.taps * len(reading.own) + reading.biased
            piece = max(1, _PIECE // (by_position(gradients[:1]).shape[1] * width))
            for some, g in zip(given[reading.end].split(piece), gradients.split(piece), strict=True):
                self._see(reading, some, by_position(g)[..., reading.outputs])
        self.passages.append(passage)

    @torch.no_grad()
    def _see(self, reading: Reading, given: Tensor, gradients: Tensor) -> None:
        features = reading.features(given).flatten(0, 1).double()
        bias = [torch.ones_like(features[:, :1])] * reading.biased
        h, g = torch.cat([features, *bias], 1), gradients.flatten(0, 1).double()
        key = reading.entry, reading.outputs.start
        products, crossed = self._sums.get(key, (0.0, 0.0))
        self._sums[key] = products + h.T @ h, crossed + g.T @ h

    def agree(self) -> None:
        """Solve for what is left, and average over processes."""
        best = {key: self._solved(*map(averaged, sums)) for key, sums in self._sums.items()}
        for passage in self.passages:
            self.growth.add(replace(passage, ends=self._residuals(passage, best)))
        self.growth.agree()
        moments = Moments(self.growth.incoming)
        for passage in self.passages:
            moments.add(passage, expanded(self.growth.base, self.axis.size))
        moments.agree()
        seen = moments.covariance if self.growth.normalised else moments.products / moments.counts[:, None]
        self.whitener = inverse_factor(seen, self.damping).to(self.growth.matrix)
        losses = torch.tensor([passage.loss for passage in self.passages], dtype=torch.float64)
        self.loss = float(averaged(losses.to(self.whitener)).mean())

    def _damped(self, products: Tensor) -> Tensor:
        mean = products.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        return products + self.damping * mean * torch.eye(len(products)).to(products)

    def _solved(self, products: Tensor, crossed: Tensor) -> Tensor:
        return torch.linalg.solve(self._damped(products), crossed.T).T

    @torch.no_grad()
    def _residuals(self, passage: Passage, best: Mapping[tuple[Entry, int], Tensor]) -> dict[int, Tensor]:
        """What the present units leave of the gradients."""
        readings = readings_of(passage)
        given = tapped(passage, readings).outputs({})
        left = {end: gradients.clone() for end, gradients in passage.ends.items()}
        for reading in readings:
            here = left[reading.end]
            explained = best[reading.entry, reading.outputs.start].to(here)
            here[:, reading.outputs] -= reading.put_out(given[reading.end].to(here), explained)
        return left

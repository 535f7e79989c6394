"""The natural expansion score: how fast a natural gradient would lower the loss, with new units and without.

What reads units puts out ``z = W·h`` at each position, where h are their features: for a convolution what they send to
each tap of its kernel, and 1 if it has a bias. With g = ∂L/∂z, ``S = E[g·gᵀ]``, ``A = E[h·hᵀ]`` and ``G = E[g·hᵀ]`` the
Kronecker-factored score of that layer is

    η = tr(S⁻¹·G·A⁻¹·Gᵀ),

the sum of the squared canonical correlations of g and h, and so no more than there are outputs. With D = G·A⁻¹, the
best linear prediction of g from h, it is also how much of g that explains, as S⁻¹ measures it::

    η = 2·tr(S⁻¹·G·Dᵀ) − tr(S⁻¹·D·A·Dᵀ)

In this form D may be of other examples than G and A. That is a fair number where the first isn't: as many features as
positions explain anything. New features n add what they explain of what is left: by the inverse of a matrix in blocks,
Δη is the same number with ``g − D·h`` and ``n − E[n·hᵀ]·A⁻¹·h`` in the place of g and h.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from ..rows import Rows, expanded, number_of
from ..structure import Axis, Entry
from .correlations import Correlations, Unexplained
from .growth import Growth
from .moments import Moments
from .passage import Passage, parts_of
from .readings import Reading, by_position, readings_of, tapped

#: So many positions for each feature are enough, or so many numbers where there are few features.
_ENOUGH, _FEWEST = 20, 2**22
#: At most so many numbers are looked at in one piece.
_PIECE = 2**24
#: How often the gradients of other examples are drawn: their best is exceeded by chance one time in nine.
_DRAWN = 8


@dataclass(frozen=True)
class Seen:
    """What was seen at one that reads the units.

    Attributes:
        correlations: Of the old units' features, of the bias, and of others' features.
        old: How many of these the old units and the bias have.
        width: How many a unit has.
    """

    correlations: Correlations
    old: int
    width: int

    def begun(self, damping: float) -> tuple[Unexplained, slice, float]:
        """With nothing explained yet, where the old features are, and by how much more they are to be damped."""
        whole, block = Unexplained.of(self.correlations, damping), slice(0, self.old)
        return whole, block, whole.factor(block)


class Natural:
    """Gathers what the natural expansion score of an axis is made of, with new units and without.

    Batches are kept as they were recorded, for candidates are judged on all of them. For each it costs two more runs of
    what lies between the weights that make the units and those that read them, and one for each part of the candidates
    that is as large as the axis; a growth matrix; and products of the features of as many positions as are enough.
    Systems are solved with as many equations as there are features.

    Args:
        axis: Whose it is.
        damping: Of the factors of the Fisher matrix, relative to their own sizes. What the present units explain is
            damped by more where the half of the examples that judges is better predicted so.
        held_out: Whether every second example judges what is learned from the others; else all examples do both.

    Attributes:
        growth: The growth matrix of what the present units leave of the gradients, of those that are learned from.
        moments: Of what the incoming weights see.
        passages: Of all batches.
    """

    moments: Moments

    def __init__(self, axis: Axis, damping: float, held_out: bool = True) -> None:
        self.axis, self.damping, self.held_out = axis, damping, held_out
        self.growth = Growth(axis)
        self.passages: list[Passage] = []
        self._seen: dict[tuple[Entry, int], Seen] = {}

    def add(self, passage: Passage) -> None:
        """See one batch."""
        with torch.no_grad():
            self._seen = self._with(self._seen, passage, None)
            residuals = self._residuals(passage)
        self.growth.add(replace(passage, ends=residuals))
        if not self.passages:
            self.moments = Moments(self.growth.incoming)
        self.moments.add(passage, expanded(self.growth.base, self.axis.size), self.growth.pairs)
        self.passages.append(passage)

    def agree(self) -> None:
        """Average over processes."""
        self.growth.agree()
        self.moments.agree()
        self._seen = _agreed(self._seen)

    def outputs(self, entry: Entry) -> Tensor:
        """S of one of the weights that read the units, but for a factor; of its groups in blocks."""
        return torch.block_diag(*(s.correlations.outputs[0] for (of, _), s in self._seen.items() if of is entry))

    @torch.no_grad()
    def beside(self, units: Rows) -> list[Seen]:
        """What those that read the present units see beside them of others, given as rows of all other entries."""
        seen: dict[tuple[Entry, int], Seen] = {}
        for passage in self.passages:
            seen = self._with(seen, passage, units)
        return list(_agreed(seen).values())

    def _with(
        self, seen: Mapping[tuple[Entry, int], Seen], passage: Passage, units: Rows | None
    ) -> dict[tuple[Entry, int], Seen]:
        """What was seen, with one more batch."""
        readings = readings_of(passage)
        taps, number = tapped(passage, readings), 0 if units is None else number_of(units)
        runs = [taps.outputs(part) for part in ({}, *([] if units is None else parts_of(passage, units)))]
        found = dict(seen)
        for reading in readings:
            gradients = by_position(passage.ends[reading.end])[..., reading.outputs]
            here = self._at(reading, [run[reading.end] for run in runs], gradients, number)
            key = reading.entry, reading.outputs.start
            before = [found[key].correlations] if key in found else []
            found[key] = replace(here, correlations=sum(before, here.correlations))
        return found

    def _at(self, reading: Reading, given: Sequence[Tensor], gradients: Tensor, number: int) -> Seen:
        """What is seen in one batch at one that reads the units and so many candidates."""
        width = reading.taps * len(reading.own) // self.axis.size
        old = width * self.axis.size + reading.biased
        features = old + number * width
        exact = torch.promote_types(torch.float32, gradients.dtype)

        def seen(some: Tensor) -> Correlations:
            own, *new = (reading.features(each[some[0]]).to(exact) for each in given)
            bias = [torch.ones_like(own[..., :1])] * reading.biased
            return Correlations.of(torch.cat([own, *bias, *new], 2)[..., :features], gradients[some].to(exact))

        orders = _orders(gradients, features, _DRAWN if number and self.held_out else 0)
        piece = max(1, _PIECE // (2 * gradients.shape[1] * features))
        together = reduce(operator.add, map(seen, orders.split(2 * piece, 1)))
        return Seen(together if self.held_out else together.alike(), old, width)

    def _residuals(self, passage: Passage) -> dict[int, Tensor]:
        """What the present units leave of the gradients, of the examples that are learned from."""
        readings = readings_of(passage)
        given = tapped(passage, readings).outputs({})
        left = {end: gradients.clone() for end, gradients in passage.ends.items()}
        for reading in readings:
            whole, old, factor = self._seen[reading.entry, reading.outputs.start].begun(self.damping)
            here = left[reading.end]
            explained = reading.put_out(given[reading.end].to(here), whole.prediction(old, factor)[0].to(here))
            here[:, reading.outputs] -= explained
        for each in left.values() if self.held_out else ():
            each[1::2] = 0.0
        return left


def _agreed(seen: Mapping[tuple[Entry, int], Seen]) -> dict[tuple[Entry, int], Seen]:
    return {key: replace(each, correlations=each.correlations.agree()) for key, each in seen.items()}


def _orders(gradients: Tensor, features: int, drawn: int) -> Tensor:
    """Some of the examples, in pairs from all over the batch, enough for so many features; and others in their places.

    Shape ``(1 + drawn, examples)``. Of each pair one is learned from and one judges, and so it is with the others.
    """
    pairs, positions = len(gradients) // 2, gradients.shape[1]
    wanted = min(pairs, math.ceil(max(_ENOUGH * features, _FEWEST / features) / (2 * positions)))
    first = 2 * torch.linspace(0, pairs - 1, wanted).long()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.stack([first, first + 1], 1)]
    for _ in range(drawn):
        mixed = [torch.randperm(wanted, generator=generator) for _ in range(2)]
        rows.append(torch.stack([first[mixed[0]], first[mixed[1]] + 1], 1))
    return torch.stack([row.flatten() for row in rows]).to(gradients.device)

"""How many directions the units of an axis use, of what they send or of their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..agreement import averaged, averaged_number
from ..errors import NotPermissible
from ..evidence import Passage
from ..evidence.growth import base_of, check_passage, check_sides
from ..evidence.pairs import Pairs
from ..evidence.passage import parts_of
from ..evidence.sides import Side
from ..evidence.sight import Sight, exact
from ..rows import Rows, expanded, number_of
from ..structure import Axis, Entry
from .scaling import mean_norm, scaled

if TYPE_CHECKING:
    from .north import North


class Directions:
    """Gathers what the units of an axis send on a few batches, and how many directions they use.

    Args:
        axis: Whose units.
        config: The method.

    Attributes:
        incoming, outgoing: All weights that make the units, and all that read them.
        base: Rows of one unit for all other entries.
        passage: The last batch's.
        sight: What its readers got, where activations matter.
    """

    incoming: Side
    outgoing: Side
    base: dict[Entry, Tensor]
    passage: Passage
    sight: Sight

    def __init__(self, axis: Axis, config: North) -> None:
        check_sides(axis)
        self.axis, self.config = axis, config
        self.products: list[Tensor] = []  # H·Hᵀ of each batch
        self.samples = 0.0

    def add(self, passage: Passage) -> None:
        """See one batch."""
        check_passage(passage)
        if self.config.select == "pre":
            _check_solvable(passage)
        self.passage, self.base = passage, base_of(passage, passage.sources)
        self.incoming, self.outgoing = (Side.of(e, self.axis.size) for e in (passage.sources, passage.readers))
        if "activations" in (self.config.trigger, self.config.select):
            if not self.products and Pairs.of(passage) is None:
                passage.check_units_apart()
            self.sight = Sight.of(passage, self.outgoing)
            self.products.append(self.sight.old @ self.sight.old.T)
            self.samples += self.sight.old.shape[1]

    def agree(self) -> None:
        """Average what units send over processes."""
        self.products = [averaged(each) for each in self.products]
        self.samples = averaged_number(self.samples)

    @property
    def number(self) -> int:
        """The effective dimension."""
        if self.config.trigger == "weights":
            weights = exact(self.incoming.old())
            values = torch.linalg.svdvals(weights) / weights.shape[1] ** 0.5
        else:
            values = (torch.linalg.eigvalsh(torch.stack(self.products).sum(0)) / self.samples).clamp(min=0).sqrt()
        return int((values > self.config.threshold).sum())

    def drawn(self, num: int, generator: torch.Generator) -> Tensor:
        """Random incoming weights, in each tensor as long as the old units'; shape ``(num, width)``."""
        parts = []
        for side in (Side.of([entry], self.axis.size) for entry in self.incoming.entries):
            drawn = torch.randn((num, side.width), generator=generator, device=generator.device)
            parts.append(scaled(drawn, mean_norm(side.old())))
        return exact(torch.cat(parts, 1).to(self.outgoing.entries[0].tensor.device))

    def units(self, vectors: Tensor) -> dict[Entry, Tensor]:
        """Units with incoming weights along these vectors, as long as the old ones'."""
        old = self.incoming.old()
        vectors = scaled(vectors, mean_norm(old)).to(torch.promote_types(torch.float32, old.dtype))
        return expanded(self.base, len(vectors)) | self.incoming.rows(vectors)

    def shared(self, units: Rows) -> Tensor:
        """Σ p·x: what units' products p = w·x have in common with each of the inputs x, shape ``(units, width)``."""
        found = []
        for part in parts_of(self.passage, units):
            weights = self.incoming.vectors(part).detach().requires_grad_()
            with torch.enable_grad():
                rows = {**part, **self.incoming.rows(weights)}
                made = [exact(t) for entry in self.incoming.entries for t in self.passage.made_of(entry, rows)]
                # p is linear in w, so this is the gradient of ½Σp², whatever the linear call is.
                (gradient,) = torch.autograd.grad(torch.stack([t.square().sum() / 2 for t in made]).sum(), weights)
            found.append(gradient)
        return exact(torch.cat(found)[: number_of(units)])


def _check_solvable(passage: Passage) -> None:
    """What units make of their inputs goes with their weights.

    Raises:
        NotPermissible: It doesn't.
    """
    for entry in passage.sources:
        if entry.nonzero:
            raise NotPermissible(
                f"what new units of {passage.axis.name} make of their input can't be solved for: {entry.name} is "
                "divided by its own length; leave that axis out (protect=), or use select='activations'."
            )

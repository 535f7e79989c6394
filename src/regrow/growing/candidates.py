"""The candidates that Firefly chooses from: splits of the units of an axis, and new ones beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..agreement import averaged
from ..evidence import Passage
from ..evidence.growth import base_of, check_passage, check_sides
from ..evidence.moments import Moments
from ..evidence.pairs import Pairs
from ..evidence.sides import Side
from ..method import Grown
from ..neutral import AS_MADE
from ..rows import expanded, joined, laid_out, rows_of, take
from ..structure import Axis, Entry
from .gradmax_optim import polar
from .scaling import mean_norm, scaled
from .silent import calibrated, followed, outgoing_gradients

if TYPE_CHECKING:
    from .firefly import Firefly


class Candidates:
    """Gathers candidates for an axis's growth: their directions, and how much each lowers the loss.

    Args:
        axis: Whose they are.
        config: The method.
        generator: Where the first directions come from.

    Attributes:
        scores: How much less the loss is to first order with each candidate: first the splits, one for each unit, then
            the new units. Shape ``(candidates,)``.
        strength: A factor on what candidates do to the loss.
    """

    scores: Tensor
    strength: float = 1.0

    def __init__(self, axis: Axis, config: Firefly, generator: torch.Generator) -> None:
        check_sides(axis)
        self.axis, self.config, self.generator = axis, config, generator
        self.batches = 0

    def add(self, passage: Passage) -> None:
        """See one batch: score what was found before, and search on."""
        if not self.batches:
            self._begin(passage)
        else:
            self.scores = self._scores(passage)
        self._search(passage)
        if not self.batches:
            self.scores = self._scores(passage)
        self.passage, self.batches = passage, self.batches + 1

    def _begin(self, passage: Passage) -> None:
        check_passage(passage)
        passage.check_units_apart()
        size = self.axis.size
        self.incoming, self.outgoing = Side.of(passage.sources, size), Side.of(passage.readers, size)
        self.old = {e: rows_of(e, e.tensor.detach(), size) for e in passage.read}
        exact = torch.promote_types(torch.float32, passage.readers[0].tensor.dtype)
        self.weights, self.sent = (side.vectors(self.old).to(exact) for side in (self.incoming, self.outgoing))
        official = self.config.form == "official"
        lengths = mean_norm(self.weights), mean_norm(self.sent)
        self.length_in = lengths[0] * (self.config.epsilon if official else 1.0)
        self.length_out = lengths[1] * (1.0 if official else self.config.epsilon)
        self.base = base_of(passage, passage.sources)
        if official:
            self.base |= {
                e: torch.full_like(rows, AS_MADE[e.role]) for e, rows in self.base.items() if e.role in AS_MADE
            }
        number = max(1, round(self.config.new * size)) if self.config.new else 0
        # Where a norm follows, units whose incoming weights are orthogonal could still send much the same: what varies
        # most in what they see. Apart is what they are there where nothing does.
        self.whitener = None
        if passage.normalised and not official:
            moments = Moments(self.incoming)
            moments.add(passage, expanded(self.base, size), Pairs.of(passage))
            moments.agree()
            self.whitener = moments.whitener()
        # What moves: directions of splits, of new units' incoming weights, and their outgoing weights.
        self.moving = [
            self._drawn(size if self.config.split else 0, self.incoming.width),
            self._drawn(number, self.incoming.width),
            self._drawn(number, self.outgoing.width),
        ]
        self._bound()

    def _drawn(self, number: int, width: int) -> Tensor:
        drawn = torch.randn((number, width), generator=self.generator, device=self.generator.device)
        return drawn.to(self.weights)

    def _bound(self) -> None:
        """Give all that moves its length again, and keep new units apart."""
        splits, received, sent = self.moving
        splits = scaled(splits, self.config.split) * self.weights.norm(dim=1, keepdim=True) if len(splits) else splits
        if self.config.form == "safe" and 0 < len(received) <= self.incoming.width:
            received = polar(received)
        self.moving = [splits, scaled(received, 1.0), scaled(sent, self.length_out)]

    def _received(self, directions: Tensor) -> Tensor:
        """The incoming weights of new units."""
        return scaled(directions if self.whitener is None else directions @ self.whitener, self.length_in)

    def _search(self, passage: Passage) -> None:
        for _ in range(self.config.steps):
            moving = [tensor.detach().requires_grad_() for tensor in self.moving]
            with torch.enable_grad():
                changes, _ = self._changes(passage, *moving)
                gradients = torch.autograd.grad(changes.sum(), moving, allow_unused=True)
            for i, (tensor, gradient) in enumerate(zip(self.moving, gradients, strict=True)):
                if gradient is not None and len(tensor):
                    gradient = averaged(gradient)  # all processes search together
                    lengths = tensor.norm(dim=1, keepdim=True)
                    self.moving[i] = tensor - scaled(gradient, self.config.rate) * lengths
            self._bound()

    def _scores(self, passage: Passage) -> Tensor:
        """How much less the loss is; for a candidate with a unit that nothing wakes less than any number."""
        changes, alive = self._changes(passage, *(tensor.detach() for tensor in self.moving))
        return torch.where(averaged(alive.float()) > 0, -averaged(changes.detach()), -torch.inf)

    def _changes(self, passage: Passage, splits: Tensor, received: Tensor, sent: Tensor) -> tuple[Tensor, Tensor]:
        """What each split and each new unit does to the loss, and whether its units get a gradient."""
        changes, alive = [splits.new_zeros(0)], [torch.zeros(0, dtype=torch.bool, device=splits.device)]
        if len(splits):
            plus, minus = (self._gradients(passage, self._split(splits, sign)) for sign in (1.0, -1.0))
            before = self._gradients(passage, self.old).detach()
            changes.append((((plus + minus) / 2 - before) * self.sent).sum(1))
            alive.append(plus.any(1) & minus.any(1))
        if len(received):
            units = expanded(self.base, len(received)) | self.incoming.rows(self._received(received))
            gradients = self._gradients(passage, units)
            changes.append((gradients * sent).sum(1))
            alive.append(gradients.any(1))
        return torch.cat(changes), torch.cat(alive)

    def _split(self, splits: Tensor, sign: float) -> dict[Entry, Tensor]:
        return self.old | self.incoming.rows(self.weights + sign * splits)

    def _gradients(self, passage: Passage, units: dict[Entry, Tensor]) -> Tensor:
        """∂L/∂W_out of units that send nothing, differentiable: times what they send it is what they do to the loss."""
        gain = passage.gain_as_made if self.config.form == "official" else passage.gain
        return outgoing_gradients(passage, self.outgoing, units, gain)

    def grown(self, chosen: Tensor) -> Grown:
        """The chosen candidates as new units, and what becomes of the old ones."""
        splits, received, sent = self.moving
        # What a split does to the loss goes with the square of its length.
        splits, sent = splits * self.strength**0.5, sent * self.strength
        number = len(splits)
        split = [int(i) for i in chosen if i < number]
        new = [int(i) - number for i in chosen if i >= number]
        fresh: list[dict[Entry, Tensor]] = []
        old: dict[Entry, Tensor] = {}
        if split:
            plus, minus = (self._followed(self._split(splits, sign)) for sign in (1.0, -1.0))
            half = self.outgoing.rows(self.sent / 2)
            fresh.append(take(plus | half, split))
            for entry, rows in minus.items():
                if entry.role == "in":
                    continue
                old[entry] = self.old[entry].clone()
                old[entry][split] = rows[split].to(old[entry])
        if new:
            units = expanded(self.base, len(received)) | self.incoming.rows(self._received(received))
            fresh.append(take(self._calibrated(units) | self.outgoing.rows(sent), new))
        units = fresh[0] if len(fresh) == 1 else joined(*fresh)
        return Grown(laid_out(self.axis, units), old, copies=split)

    def _followed(self, units: dict[Entry, Tensor]) -> dict[Entry, Tensor]:
        """Running statistics follow from the old units to these."""
        return units if self.config.form == "official" else followed(self.passage, units, self.old)

    def _calibrated(self, units: dict[Entry, Tensor]) -> dict[Entry, Tensor]:
        if self.config.form == "official":
            return units
        return calibrated(self.passage, units)

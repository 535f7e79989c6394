"""The candidates that Firefly chooses from: splits of the units of an axis, and new ones beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..evidence import Passage
from ..evidence.growth import base_of, check_sides
from ..evidence.sides import Side
from ..method import Grown
from ..neutral import AS_MADE
from ..rows import expanded, joined, laid_out, rows_of, take
from ..structure import Axis, Entry
from .gradmax_optim import polar
from .scaling import mean_norm, scaled
from .silent import calibrated, parts_of

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
    """

    scores: Tensor

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
        passage.check_units_apart()
        size = self.axis.size
        self.incoming, self.outgoing = Side.of(passage.sources, size), Side.of(passage.readers, size)
        self.old = {e: rows_of(e, e.tensor.detach(), size) for e in passage.read}
        self.weights, self.sent = self.incoming.vectors(self.old), self.outgoing.vectors(self.old)
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
        # What moves: directions of splits, incoming and outgoing weights of new units.
        self.moving = [
            self._drawn(size if self.config.split else 0, self.incoming.width),
            self._drawn(number, self.incoming.width),
            self._drawn(number, self.outgoing.width),
        ]
        self.squares = [torch.zeros_like(tensor) for tensor in self.moving]
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
        self.moving = [splits, scaled(received, self.length_in), scaled(sent, self.length_out)]

    def _search(self, passage: Passage) -> None:
        for step in range(self.config.steps):
            moving = [tensor.detach().requires_grad_() for tensor in self.moving]
            with torch.enable_grad():
                changes = torch.cat(self._changes(passage, *moving))
                gradients = torch.autograd.grad(changes.sum(), moving, allow_unused=True)
            for i, (tensor, gradient) in enumerate(zip(self.moving, gradients, strict=True)):
                if gradient is None or not len(tensor):
                    continue
                first = not self.batches and not step
                self.squares[i] = gradient.square() if first else 0.9 * self.squares[i] + 0.1 * gradient.square()
                direction = gradient / (self.squares[i].sqrt() + torch.finfo(gradient.dtype).tiny)
                lengths = tensor.norm(dim=1, keepdim=True) / tensor.shape[1] ** 0.5
                self.moving[i] = tensor - self.config.rate * lengths * direction
            self._bound()

    def _scores(self, passage: Passage) -> Tensor:
        return -torch.cat([part.detach() for part in self._changes(passage, *self.moving)])

    def _changes(self, passage: Passage, splits: Tensor, received: Tensor, sent: Tensor) -> tuple[Tensor, Tensor]:
        """What each split and each new unit does to the loss."""
        split, new = splits.new_zeros(0), received.new_zeros(0)
        if len(splits):
            halves = [self._gains(passage, self._split(splits, sign), self.sent) / 2 for sign in (1.0, -1.0)]
            split = halves[0] + halves[1] - self._gains(passage, self.old, self.sent).detach()
        if len(received):
            units = expanded(self.base, len(received)) | self.incoming.rows(received)
            new = self._gains(passage, units, sent)
        return split, new

    def _split(self, splits: Tensor, sign: float) -> dict[Entry, Tensor]:
        return self.old | self.incoming.rows(self.weights + sign * splits)

    def _gains(self, passage: Passage, units: dict[Entry, Tensor], sent: Tensor) -> Tensor:
        """The gain of each unit by itself: its outgoing weights times their gradient at zero."""
        gain: Callable[..., Tensor] = passage.gain_as_made if self.config.form == "official" else passage.gain
        found = []
        for part in parts_of(passage, units | self.outgoing.rows(sent.detach())):
            zero = torch.zeros(passage.axis.size, self.outgoing.width).to(sent).requires_grad_()
            with torch.enable_grad():
                value = gain({**part, **self.outgoing.rows(zero)})
                (gradient,) = torch.autograd.grad(value, zero, create_graph=True, allow_unused=True)
            found.append(zero * 0 if gradient is None else gradient)
        return (torch.cat(found)[: len(sent)] * sent).sum(1)

    def grown(self, chosen: Tensor) -> Grown:
        """The chosen candidates as new units, and what becomes of the old ones."""
        splits, received, sent = self.moving
        number = len(splits)
        split = [int(i) for i in chosen if i < number]
        new = [int(i) - number for i in chosen if i >= number]
        fresh: list[dict[Entry, Tensor]] = []
        old: dict[Entry, Tensor] = {}
        if split:
            plus, minus = (self._calibrated(self._split(splits, sign)) for sign in (1.0, -1.0))
            half = self.outgoing.rows(self.sent / 2)
            fresh.append(take(plus | half, split))
            for entry, rows in (minus | half).items():
                old[entry] = self.old[entry].clone()
                old[entry][split] = rows[split].to(old[entry])
        if new:
            units = expanded(self.base, len(received)) | self.incoming.rows(received)
            fresh.append(take(self._calibrated(units) | self.outgoing.rows(sent), new))
        units = fresh[0] if len(fresh) == 1 else joined(*fresh)
        return Grown(laid_out(self.axis, units), old)

    def _calibrated(self, units: dict[Entry, Tensor]) -> dict[Entry, Tensor]:
        if self.config.form == "official":
            return units
        return calibrated(self.passage, units)

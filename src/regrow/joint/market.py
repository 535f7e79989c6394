"""What an axis's units are worth to the loss, old ones and ones that could come, in one currency."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ..agreement import agreed, averaged, told_by_any
from ..errors import NotPermissible
from ..evidence import Growth, Passage
from ..evidence.sides import Side
from ..growing.gradmax import listening
from ..growing.scaling import mean_norm
from ..growing.silent import without_outgoing
from ..rows import Rows, number_of, take
from ..structure import Axis, Entry


class Market:
    """Gathers the derivatives of the loss by the gates of an axis's units, from both sides.

    A unit's gate ``a`` is a factor on all that reads it. For an old unit, at a = 1, the derivative is
    ``⟨W_out, ∂L/∂W_out⟩``: to first order what the loss loses with it; its *price* is the mean of the derivative's size
    over batches. For a new unit the derivative at a = 0 is ``−c·‖∂L/∂W_out‖`` if its outgoing weights have the length c
    of the old ones and the direction in which the loss falls fastest. Its *gain* is c times the norm of the mean
    gradient, by an estimate from pairs of different batches, which noise alone doesn't move from zero.

    Args:
        axis: Whose they are.
        finding: How many batches tell what new units should listen to; the last of them and those behind them tell
            what these would be worth.
        most: For how many new units that is told.

    Attributes:
        growth: What new units are made of; None where the axis can't grow.
        refusal: Why it can't.

    Raises:
        NotPermissible: No weight reads the units, but those that make them.
    """

    growth: Growth | None
    refusal: str = ""

    def __init__(self, axis: Axis, finding: int, most: int) -> None:
        if not axis.with_role("in"):
            raise NotPermissible(f"no weight only reads the units of {axis.name}, so what they are worth isn't known.")
        self.axis, self.finding, self.most = axis, finding, most
        self.batches = 0
        self._derivatives: list[Tensor] = []
        self._units: Rows | None = None
        self._gradients: list[Tensor] = []
        self.growth, self.refusal = None, "" if axis.growable else str(axis.growable.reason)
        if axis.growable:
            with self._refused():
                self.growth = Growth(axis, whiten=True)

    def add(self, passage: Passage) -> None:
        """See one batch.

        Raises:
            NotPermissible: Nothing that was called reads the units.
        """
        if not passage.readers:
            raise NotPermissible(f"no weight that was used reads the units of {self.axis.name}; leave that axis out.")
        old = Side.of(passage.readers, self.axis.size).old()
        self._derivatives.append((old * passage.received({})).sum(1))
        self.batches += 1
        if self.growth is not None and self.batches <= self.finding:
            with self._refused():
                self.growth.add(passage)
        if self.batches == self.finding:
            self._find()
        if self.growth is not None and self._units is not None and number_of(self._units):
            with self._refused():
                self._gradients.append(without_outgoing(passage, self.growth.outgoing, self._units))

    def _find(self) -> None:
        """The new units that are judged: the same on all of several processes, or none where one of them can't."""
        told = told_by_any({} if self.growth is not None else {"refusal": self.refusal})
        if told or self.growth is None:
            self.growth, self.refusal = None, told["refusal"]
            return
        with self._refused():
            self.growth.agree()
            units = listening(self.growth, self.most, "random", 1.0)
            self._units = dict(zip(units, agreed(list(units.values())), strict=True))

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        """Growth may be refused; what old units are worth is known all the same."""
        try:
            yield
        except NotPermissible as error:
            self.growth, self.refusal = None, str(error)

    def agree(self) -> None:
        """Average over processes: the loss of a joint batch is the mean of theirs."""
        self._derivatives = [averaged(derivative) for derivative in self._derivatives]
        self._gradients = [averaged(gradient) for gradient in self._gradients]

    def best(self, num: int) -> dict[Entry, Tensor] | None:
        """Rows of the ``num`` new units that are worth most; None if fewer have been looked at."""
        if self._units is None or number_of(self._units) < num:
            return None
        return take(self._units, self._worth().argsort(descending=True, stable=True)[:num].tolist())

    @property
    def prices(self) -> Tensor:
        """How much the loss changes, to first order, with each unit that goes; shape ``(axis.size,)``."""
        return torch.stack(self._derivatives).abs().mean(0).cpu().float()

    @property
    def gains(self) -> Tensor:
        """How much the loss falls, to first order, with each new unit, the best first; shape ``(up to most,)``."""
        if self.growth is None or not self._gradients:
            return torch.zeros(0)
        return self._worth().sort(descending=True).values

    def _worth(self) -> Tensor:
        """The gain of each unit that was looked at, in their order."""
        assert self.growth is not None
        length = mean_norm(self.growth.outgoing.old())
        return (length * _norm_of_mean(torch.stack(self._gradients))).cpu().float()


def _norm_of_mean(gradients: Tensor) -> Tensor:
    """‖E g‖ of each unit from gradients of several batches, shape ``(batches, units, width)``.

    The mean of ⟨g, g′⟩ over pairs of different batches is ‖E g‖² without a bias; of one batch it is that batch's.
    """
    number = len(gradients)
    total, own = gradients.sum(0).square().sum(1), gradients.square().sum((0, 2))
    squares = own if number == 1 else (total - own) / (number * (number - 1))
    return squares.clamp(min=0).sqrt()

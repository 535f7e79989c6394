"""The growth matrix: the loss's gradient for a zero linear map from what units see to what they feed.

Evci et al., "GradMax: Growing Neural Networks using Gradient Information" (ICLR 2022).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..agreement import averaged
from ..errors import NotPermissible
from ..neutral import last, neutral, typical
from ..rows import expanded
from ..structure import Axis, Entry
from .moments import Moments
from .pairs import Pairs
from .passage import Passage
from .sides import Side


class Growth:
    """Gathers, batch by batch, what closed forms of growth need to know about an axis.

    Args:
        axis: Whose growth it is.
        centre: Whether norms on the way subtract the mean of the batch; else they pass what they get.
        whiten: Whether the covariance of what the incoming weights see is wanted where units are normalised.

    Attributes:
        incoming: The weights that make a unit and whose gradient at zero depends on the outgoing ones.
        outgoing: The weights that read a unit.
        base: Rows of one unit for all other entries: norms' scales, depthwise kernels, the gates of gated units.
        matrix: M with ∂L/∂W_in = W_out·Mᵀ at W_in = 0, summed over batches; shape (incoming, outgoing width).
        from_right: Whether derivatives at zero are those from the right, which a tiny shift gives the units.
        moments: Mean and covariance of what the incoming weights see, if asked for and if units are normalised.
        passage: The last batch's.
        pairs: What the last batch's is made of, if it is no more than linear calls and pointwise maps.
    """

    incoming: Side
    outgoing: Side
    base: dict[Entry, Tensor]
    matrix: Tensor
    from_right: bool
    moments: Moments
    passage: Passage
    pairs: Pairs | None

    def __init__(self, axis: Axis, centre: bool = True, whiten: bool = False) -> None:
        check_sides(axis)
        self.axis, self.centre, self.whiten = axis, centre, whiten
        self.batches = 0

    def add(self, passage: Passage) -> None:
        """See one batch."""
        pairs = self.pairs.of_next(passage) if self.batches and self.pairs is not None else None
        if not self.batches:
            self._begin(passage)
        pairs = self.pairs = Pairs.of(passage, self.from_right) if pairs is None else pairs
        if pairs is not None:
            matrix = pairs.matrix(passage.ends, self.outgoing.entries, self.centre)
        else:
            matrix = self._by_running(passage)
        self.matrix = matrix if not self.batches else self.matrix.add_(matrix)
        if self.whiten and passage.normalised:
            self.moments.add(passage, expanded(self.base, self.axis.size), pairs)
        self.passage, self.batches = passage, self.batches + 1

    def agree(self) -> None:
        """Average the matrix over processes: the loss of a joint batch is the mean of theirs."""
        self.matrix = averaged(self.matrix)
        self.moments.agree()

    def _by_running(self, passage: Passage) -> Tensor:
        """M on one batch, whatever lies between.

        The passage runs again with units that each send along one entry of the outgoing weights, and autograd tells
        what of that reaches the incoming ones. Where there are many more outgoing ones, as behind a flattened image, it
        runs the other way round.
        """
        if 4 * self.incoming.width < self.outgoing.width and not passage.custom:
            with contextlib.suppress(RuntimeError):  # not all calls can be differentiated twice
                return self._by_rows(passage)
        columns = []
        for start in range(0, self.outgoing.width, self.axis.size):
            count = min(self.axis.size, self.outgoing.width - start)
            sent = self.matrix_like(self.axis.size, self.outgoing.width)
            sent[torch.arange(count), torch.arange(start, start + count)] = 1.0
            columns.append(self.sensitivity(passage, sent)[:count])
        return torch.cat(columns).T

    def _by_rows(self, passage: Passage) -> Tensor:
        """M on one batch, from what units that each read one entry of the incoming weights would send."""
        rows = self.matrix_like(self.incoming.width, self.outgoing.width)
        for start in range(0, self.incoming.width, self.axis.size):
            count = min(self.axis.size, self.incoming.width - start)
            seen = self.matrix_like(self.axis.size, self.incoming.width)
            seen[torch.arange(count), torch.arange(start, start + count)] = 1.0
            zero = torch.zeros_like(seen).requires_grad_()
            sent = self.matrix_like(self.axis.size, self.outgoing.width).requires_grad_()
            units = {**expanded(self.base, len(sent)), **self.incoming.rows(zero), **self.outgoing.rows(sent)}
            with torch.enable_grad():
                gain = passage.gain_at_zero(units, self.centre, self.from_right)
                (reached,) = torch.autograd.grad(gain, zero, create_graph=True)
                (found,) = torch.autograd.grad((reached * seen).sum(), sent)
            rows[start : start + count] = found[:count]
        return rows

    def sensitivity(self, passage: Passage, sent: Tensor) -> Tensor:
        """∂L/∂W_in at zero of units with outgoing weights ``sent``: shape ``(units, incoming width)``."""
        zero = self.matrix_like(len(sent), self.incoming.width).requires_grad_()
        units = {**expanded(self.base, len(sent)), **self.incoming.rows(zero), **self.outgoing.rows(sent)}
        with torch.enable_grad():
            gain = passage.gain_at_zero(units, self.centre, self.from_right)
            (gradient,) = torch.autograd.grad(gain, zero, allow_unused=True)
        return torch.zeros_like(zero) if gradient is None else gradient

    def matrix_like(self, rows: int, columns: int) -> Tensor:
        """Zeros where and as precise as the evidence is."""
        weight = self.outgoing.entries[0].tensor
        exact = torch.promote_types(torch.float32, weight.dtype)
        return torch.zeros(rows, columns, dtype=exact, device=weight.device)

    @property
    def sample(self) -> Passage:
        """The last batch's passage, on some of its examples where they are many: enough to compare units."""
        return self.passage if self.pairs is None else self.passage.first_examples(self.pairs.enough_examples())

    @property
    def normalised(self) -> bool:
        """Whether a norm that uses the batch's statistics lies on the way."""
        return self.passage.normalised

    def _begin(self, passage: Passage) -> None:
        check_passage(passage)
        if any(entry.nonzero for entry in passage.sources):
            raise NotPermissible(
                f"the units of {self.axis.name} have no growth matrix: their weights are divided by their own length, "
                "as weight norm does, and can't be zero; leave that axis out (protect=), or grow it by Random."
            )
        self.outgoing = Side.of(passage.readers, self.axis.size)
        # Where no shift can wake a unit, its derivative at zero itself is what counts, unless that is zero.
        shifts = any(entry.role == "shift" for entry in passage.read)
        for self.from_right in (True,) if shifts else (False, True):
            pairs = Pairs.of(passage, self.from_right)
            if pairs is not None and any(reader.slope for reader in pairs.readers):
                self._take(passage, passage.sources)
                self.moments = Moments(self.incoming)
                return
            if pairs is None:
                passage.check_units_apart()
            if self._choose_incoming(passage):
                self.moments = Moments(self.incoming)
                return
        raise NotPermissible(
            f"the units of {self.axis.name} have no growth matrix: no weight alone decides what they send, or nothing "
            "that they send reaches the loss; leave them out (protect=), or grow them by Random."
        )

    def _choose_incoming(self, passage: Passage) -> bool:
        """Weights whose gradient is zero while all others are, as those of a gate, keep a typical unit's values."""
        sources = passage.sources
        for zero in (sources, *([source] for source in reversed(sources))):
            self._take(passage, zero)
            reached = self.incoming.rows(self.sensitivity(passage, self.outgoing.old().to(self.matrix_like(0, 0))))
            alive = [entry for entry in zero if bool(reached[entry].any())]
            if alive:
                self._take(passage, alive)
                return True
        return False

    def _take(self, passage: Passage, incoming: list[Entry]) -> None:
        self.incoming = Side.of(incoming, self.axis.size)
        self.base = base_of(passage, incoming)


def check_sides(axis: Axis) -> None:
    """Weights that make units don't read them, and both can learn.

    Raises:
        NotPermissible: That isn't so.
    """
    made = {entry.name for entry in axis.with_role("out", "tied")}
    for entry in axis.with_role("in", "out", "tied"):
        if entry.role != "out" and entry.name in made:
            raise NotPermissible(
                f"the units of {axis.name} have no growth matrix: {entry.name} both makes and reads them; "
                "leave them out (protect=), or grow them by Random."
            )
        if not entry.tensor.requires_grad:
            learns = isinstance(entry.tensor, nn.Parameter)
            raise NotPermissible(
                f"{entry.name} is {'frozen' if learns else 'a buffer'}, so new units of {axis.name} couldn't learn "
                f"there; {'set its requires_grad, or ' * learns}leave that axis out (protect=)."
            )


def check_passage(passage: Passage) -> None:
    """There are weights that make the units of data, and some that read them.

    Raises:
        NotPermissible: That isn't so.
    """
    if not passage.sources or not passage.readers:
        side = "makes them of data that aren't theirs" if passage.readers else "reads them"
        raise NotPermissible(
            f"what new units of {passage.axis.name} would do can't be told: no weight {side}; leave that axis out "
            "(protect=), or grow it by Random."
        )


def base_of(passage: Passage, zero: Sequence[Entry]) -> dict[Entry, Tensor]:
    """Rows of one unit for all entries but the readers' and those that are to be zero: what new units have there."""
    axis = passage.axis
    base = neutral(axis, 1)
    for entry in passage.read:
        if entry.role == "out" and entry not in zero:
            base[entry] = typical(entry, 1, axis.size)
        elif entry.role in ("shift", "mean"):
            base[entry] = torch.zeros_like(last(entry, 1, axis.size))
        elif entry.role == "free":
            base[entry] = last(entry, 1, axis.size)
    return {entry: rows for entry, rows in base.items() if entry in passage.read}

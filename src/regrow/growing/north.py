"""NORTH*: units come where a layer uses all of its directions, and are chosen to add one that it doesn't have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..evidence import Needs
from ..evidence.sight import exact
from ..method import Fresh, Suggestion, register
from ..rows import expanded, laid_out, rows_of
from ..structure import Axis
from .directions import Directions
from .forms import check_choice
from .scaling import mean_norm, scaled
from .silent import calibrated, without_outgoing

#: Whose dimensions tell that a layer uses all that it has.
Trigger = Literal["activations", "weights"]

#: What of new units is unlike that of the old ones.
Select = Literal["activations", "pre", "weights", "random"]

#: What independence is compared with: that of the first look, or the highest so far.
Against = Literal["first", "highest"]


@register
@dataclass(frozen=True)
class North:
    """Layers grow by themselves, for as long as their units stay independent of each other.

    The effective dimension (ED) of what the M units of a layer send, or of their incoming weights, is the number of
    singular values of H/√n above a threshold. H has a row for each unit and n columns: examples, and positions of
    images alike; or the weights of a unit. At the first look φ₀ = ED/M is noted, and a layer gains ED − ⌊ratio·φ₀·M⌋
    units as long as that is positive: as long as its units are no less independent than they were. That is also what
    the first look adds: one unit where a layer isn't wide. No layer gains more than the amount of the action; an amount
    for each layer by its name, or one rounded to multiples, is taken as it is. On fewer examples than there are units
    these can't be seen to be independent; take more ``batches`` then.

    New units send nothing yet, so the function is kept, and have incoming weights as long as the old ones':

    - ``select="activations"`` (NORTH-Select): of many random candidates those that send what is farthest from the span
      of what the others send, one after the other.
    - ``"pre"`` (NORTH-Pre): what they make of their input, before norms and activations, is orthogonal to what the
      others make of it. That is solved for.
    - ``"weights"`` (NORTH-Weight): their weights are orthogonal to the others'.
    - ``"random"`` (NORTH-Random): nothing.

    Where there is no room for more that is orthogonal, the rest is random. What is chosen is chosen on the last batch.

    Args:
        trigger: Whose dimensions are counted: "activations" or "weights".
        select: As above.
        ratio: How independent units must stay, relative to φ₀. The released code has 0.97, for deep convolutional
            networks 0.9, and 0.99 for weights.
        against: "first": φ₀ stays; "highest": it rises to the highest ED/M so far, as the released code has it for
            convolutional networks, whose layers use few directions at first.
        threshold: Singular values above it count.
        candidates: How many are drawn for each new unit where activations are selected.

    Raises:
        ValueError: An option is none of what is said above.

    Maile, Rachelson, Luga & Wilson, "When, Where, and How to Add New Neurons to ANNs" (AutoML 2022). It is rounded as
    in the released code: by ⌊ED − ratio·φ₀·M⌋ a layer of few units would never grow. That code ranks candidates
    independently of each other, so that those it keeps may be alike.
    """

    name: ClassVar[str] = "north"
    leaves_out: ClassVar[bool] = True
    trigger: Trigger = "activations"
    select: Select = "activations"
    ratio: float = 0.97
    against: Against = "first"
    threshold: float = 0.01
    candidates: int = 100

    def __post_init__(self) -> None:
        for name, choices in (("trigger", Trigger), ("select", Select), ("against", Against)):
            check_choice(name, getattr(self, name), choices)
        for name in ("ratio", "threshold"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is a positive number, not {value!r}.")
        if isinstance(self.candidates, bool) or not isinstance(self.candidates, int) or self.candidates < 1:
            raise ValueError(f"candidates is a positive integer, not {self.candidates!r}.")

    @property
    def needs(self) -> Needs:
        """What units send, and how many directions they use."""
        return {"directions": lambda axis, _: Directions(axis, self)}

    def schedule(self) -> Suggestion:
        """A look every 50 steps, at which no layer grows by more than a quarter."""
        return Suggestion(50, 0.25)

    def settle(
        self,
        gains: Mapping[Axis, int],
        most: Mapping[Axis, int],
        free: bool,
        seen: Mapping[Axis, Any],
        memory: dict[str, Any],
    ) -> dict[Axis, int]:
        """How many units each axis gains, by how many directions its units use.

        Args:
            gains: How many were asked for.
            most: How many each may gain.
            free: Whether fewer than that may come.
            seen: What was gathered about each axis.
            memory: Has φ₀ of each axis by its name; of those that are seen for the first time it is noted.
        """
        found = {}
        for axis, asked in gains.items():
            used = seen[axis]["directions"].number
            phi = used / axis.size
            expected = math.floor(self.ratio * memory.setdefault(axis.name, phi) * axis.size + _ROUNDING)
            found[axis] = max(0, min(asked, most[axis], used - expected)) if free else asked
            if self.against == "highest":
                memory[axis.name] = max(phi, memory[axis.name])
        return found

    def fresh(self, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Fresh:
        """The values of ``num`` new units; what is left out, as their outgoing weights, becomes zero."""
        directions: Directions = seen["directions"]
        vectors = _SELECTING[self.select](directions, num, generator)
        if len(vectors) < num:
            vectors = torch.cat([vectors, directions.drawn(num - len(vectors), generator)])
        if self.select != "activations":  # turned round, those would send something else than was chosen
            vectors = _better_signed(directions, vectors)
        return laid_out(axis, calibrated(directions.passage, directions.units(vectors)))


#: So that ratio·(ED/M)·M isn't below ratio·ED.
_ROUNDING = 1e-9


def _span(rows: Tensor) -> Tensor:
    """Orthonormal rows that span the same space."""
    basis, triangle = torch.linalg.qr(rows.T)
    left, values, _ = torch.linalg.svd(triangle, full_matrices=False)
    return (basis @ left).T[values > values.max() * max(rows.shape) * torch.finfo(rows.dtype).eps]


def _outside(rows: Tensor, span: Tensor) -> Tensor:
    """What rows have outside of a space that orthonormal ones span."""
    for _ in range(2):  # what rounding left goes at the second time
        rows = rows - rows @ span.T @ span
    return rows


def _apart(drawn: Tensor, others: Tensor) -> Tensor:
    """Orthonormal rows from random ones, outside of the span of others: as many as there is room for."""
    span = _span(others)
    room = others.shape[1] - len(span)
    return torch.linalg.qr(_outside(drawn[:room], span).T).Q.T


def _by_activations(directions: Directions, num: int, generator: torch.Generator) -> Tensor:
    """Random incoming weights of units that send what is farthest from what the others send."""
    drawn = directions.drawn(directions.config.candidates * num, generator)
    sent = directions.sight.sent(directions.units(drawn))
    left, loudness = _outside(sent, _span(directions.sight.old)), _ROUNDING**2 * sent.square().sum(1)
    distances, chosen, taken = left.square().sum(1), [], left[:0]
    for _ in range(num):
        # Where nothing is left outside, as where there are few examples, the loudest.
        best = int((distances + loudness).argmax())
        chosen.append(best)
        loudness[best] = -torch.inf
        taken = torch.cat([taken, scaled(_outside(left[best : best + 1], taken), 1.0)])
        distances = distances - (left @ taken[-1]).square()
    return drawn[chosen]


def _by_products(directions: Directions, num: int, generator: torch.Generator) -> Tensor:
    """Incoming weights whose products with the inputs are orthogonal to the old units' and to each other.

    As Σ p·x is what products p share with each input, weights orthogonal to it make products that share nothing with p.
    Twice as many are drawn, and those taken whose products vary most: inputs may hardly vary along some.
    """
    old, size = directions.incoming.old(), directions.axis.size
    taken = directions.shared({e: rows_of(e, e.tensor.detach(), size) for e in directions.incoming.entries})
    free = _apart(directions.drawn(2 * num, generator), taken)
    if not len(free):
        return free
    made = directions.shared(expanded(directions.base, len(free)) | directions.incoming.rows(free))
    products = made @ free.T
    values, vectors = torch.linalg.eigh((products + products.T) / 2)
    varying = values.flip(0) > _VARIES * taken.norm(dim=1).mean() / mean_norm(old)
    return vectors.flip(1)[:, varying].T[:num] @ free


#: Relative to what inputs vary along the old units' weights.
_VARIES = 1e-6


def _by_weights(directions: Directions, num: int, generator: torch.Generator) -> Tensor:
    """Incoming weights that are orthogonal to the old units' and to each other."""
    return _apart(directions.drawn(num, generator), exact(directions.incoming.old()))


_SELECTING = {
    "activations": _by_activations,
    "pre": _by_products,
    "weights": _by_weights,
    "random": Directions.drawn,
}


def _better_signed(directions: Directions, vectors: Tensor) -> Tensor:
    """Incoming weights, each turned round if its unit's outgoing ones get a larger gradient then."""
    units = directions.units(torch.cat([vectors, -vectors]))
    plus, minus = without_outgoing(directions.passage, directions.outgoing, units).norm(dim=1).chunk(2)
    return torch.where(minus > plus, -1.0, 1.0).to(vectors)[:, None] * vectors

"""Units that send nothing yet: whether they can learn, and what norms will find of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..evidence import Passage
from ..evidence.passage import TINY, parts_of
from ..evidence.sides import Side
from ..rows import Rows, number_of
from ..structure import Entry


def gradient(passage: Passage, units: Rows, side: Side) -> Tensor:
    """∂L/∂w of units along one side, to first order and on the passage's batch: shape ``(units, width)``."""
    return _gradient(passage, units, side, passage.gain, create_graph=False).detach()


def outgoing_gradients(
    passage: Passage, outgoing: Side, units: Rows, gain: Callable[[Rows], Tensor] | None = None
) -> Tensor:
    """∂L/∂W_out of units whose outgoing weights are zero, differentiable in ``units``.

    Args:
        passage: What was recorded.
        outgoing: All that reads the units.
        units: Rows of the units.
        gain: The passage's own by default.
    """
    like = next(iter(units.values()))
    zero = torch.zeros(number_of(units), outgoing.width, dtype=like.dtype, device=like.device)
    gain = passage.gain if gain is None else gain
    return _gradient(passage, {**units, **outgoing.rows(zero)}, outgoing, gain, create_graph=True)


def without_outgoing(passage: Passage, outgoing: Side, units: Rows) -> Tensor:
    """∂L/∂W_out of units whose outgoing weights are zero."""
    return outgoing_gradients(passage, outgoing, units).detach()


def _gradient(passage: Passage, units: Rows, side: Side, gain: Callable[[Rows], Tensor], create_graph: bool) -> Tensor:
    found = []
    for part in parts_of(passage, units):
        here = side.vectors({entry: part[entry] for entry in side.entries}).detach().requires_grad_()
        with torch.enable_grad():
            value = gain({**part, **side.rows(here)})
            (found_here,) = torch.autograd.grad(value, here, create_graph=create_graph, allow_unused=True)
        found.append(torch.zeros_like(here) if found_here is None else found_here)
    return torch.cat(found)[: number_of(units)]


def awake(passage: Passage, incoming: Side, outgoing: Side, units: Rows) -> dict[Entry, Tensor] | None:
    """Units with zero incoming weights that send nothing and get a gradient there; None if that can't be.

    If it makes that gradient larger, as behind a ReLU, their shifts become positive, but so small that they are
    nothing beside any number. Derivatives that a model defines by itself are unknown to a passage, and taken to be
    such that units wake.
    """
    like = next(iter(units.values()))
    zero = torch.zeros(number_of(units), incoming.width, dtype=like.dtype, device=like.device)
    silent = {**units, **incoming.rows(zero)}
    if float(gradient(passage, silent, outgoing).abs().max()) > _NOTHING:
        return None
    if passage.custom:
        return silent
    shifted = silent | {e: torch.full_like(rows, TINY) for e, rows in units.items() if e.role == "shift"}
    plain, woken = (gradient(passage, attempt, incoming).norm(dim=1) for attempt in (silent, shifted))
    best, gradients = (shifted, woken) if bool((woken > 1.01 * plain).any()) else (silent, plain)
    return best if bool((gradients > 0).all()) else None


#: What units send that come from a tiny shift, or from none.
_NOTHING = 1e-12


def followed(passage: Passage, units: Rows, old: Rows) -> dict[Entry, Tensor]:
    """What old units become, with running statistics that move as much as those of the batch do between the two."""
    after, before = calibrated(passage, units), calibrated(passage, old)
    for entry, rows in old.items():
        if entry.role == "mean":
            after[entry] = rows + (after[entry] - before[entry])
        elif entry.role == "var":
            after[entry] = rows * after[entry] / before[entry].clamp(min=torch.finfo(rows.dtype).tiny)
    return after


def calibrated(passage: Passage, units: Rows) -> dict[Entry, Tensor]:
    """Units whose running statistics are those that norms find on the passage's batch."""
    number = number_of(units)
    found: list[dict[Entry, Tensor]] = [passage.calibrated(part) for part in parts_of(passage, units)]
    together = {entry: torch.cat([part[entry] for part in found])[:number] for entry in found[0]}
    return {**units, **together}

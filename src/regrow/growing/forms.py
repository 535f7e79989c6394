"""The two forms of units that keep the function: incoming weights zero, or outgoing weights zero."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..agreement import averaged
from ..evidence import Growth
from ..method import Fresh
from ..neutral import as_made
from ..rows import expanded, joined, laid_out, number_of
from ..structure import Axis, Entry
from .random import Random
from .scaling import mean_norm, scaled
from .silent import awake, calibrated, without_outgoing

#: What becomes of units that batch norm follows.
Form = Literal["swap", "epsilon", "naive"]

#: What happens where more units are asked for than a growth matrix has rank.
BeyondRank = Literal["error", "random"]


def check_choice(name: str, value: object, choices: object) -> None:
    """One of the values of a Literal.

    Raises:
        ValueError: It isn't.
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} is {' or '.join(map(repr, allowed))}, not {value!r}.")


def silent(growth: Growth, directions: Tensor, scale: float, new_norms: bool) -> dict[Entry, Tensor] | None:
    """Units with zero incoming weights and outgoing weights of one length; None if they send something or can't learn.

    Args:
        growth: What was gathered.
        directions: Of the outgoing weights, a row for each unit.
        scale: Relative to the mean length of the old units' outgoing weights.
        new_norms: Whether norms' scales and statistics are as in a new norm, as the papers' codes leave them.
    """
    sent = scaled(directions, scale * mean_norm(growth.outgoing.old()))
    units = expanded(growth.base, len(sent)) | growth.outgoing.rows(sent)
    if growth.normalised:  # what comes of nothing has no variance
        units |= {e: torch.zeros_like(rows) for e, rows in units.items() if e.role == "var"}
    if new_norms:
        units |= as_made(growth.axis, len(sent))
    return awake(growth.sample, growth.incoming, growth.outgoing, units)


def swapped(growth: Growth, directions: Tensor, scale: float) -> dict[Entry, Tensor]:
    """Units with zero outgoing weights, whose incoming ones have one length, and which norms have met already.

    Args:
        growth: What was gathered.
        directions: Of the incoming weights, a row for each unit.
        scale: Relative to the mean length of the old units' incoming weights.
    """
    vectors = scaled(directions, scale * mean_norm(growth.incoming.old()))
    units = expanded(growth.base, len(vectors)) | growth.incoming.rows(vectors)
    if growth.whiten and growth.normalised and growth.pairs is not None and growth.pairs.normed_first:
        # What the norm finds is known already: the mean and the variance of w·x, as torch keeps them.
        number = float(growth.moments.counts[0]) / growth.batches
        variances = ((vectors @ growth.moments.covariance) * vectors).sum(1) * number / max(1.0, number - 1)
        found = {"mean": vectors @ growth.moments.mean, "var": variances}
        for entry in (e for e in growth.base if e.role in found):
            units[entry] = found[entry.role][:, None].to(units[entry])
        return units
    return calibrated(growth.passage, units)


def with_better_sign(growth: Growth, directions: Tensor) -> Tensor:
    """Incoming directions, each turned round if the gradient of zero outgoing weights is larger then."""
    vectors = scaled(directions, mean_norm(growth.incoming.old()))
    both = expanded(growth.base, 2 * len(vectors)) | growth.incoming.rows(torch.cat([vectors, -vectors]))
    found = averaged(without_outgoing(growth.sample, growth.outgoing, both))
    plus, minus = found.norm(dim=1).split(len(vectors))
    return torch.where(minus > plus, -1.0, 1.0).to(directions)[:, None] * directions


def epsilon_factors(growth: Growth) -> dict[Entry, float]:
    """Factors on gradients under which new channels learn as if their norm's ε were 1."""
    return dict.fromkeys(growth.incoming.entries, growth.passage.epsilon) if growth.normalised else {}


def filled_up(axis: Axis, units: dict[Entry, Tensor], num: int, generator: torch.Generator) -> Fresh:
    """Units laid out, with random ones that send nothing behind them where there are fewer than ``num``."""
    found = number_of(units) if units else 0
    if found < num:
        rest = Random().rows(axis, num - found, generator)
        units = joined(units, rest) if units else rest
    return laid_out(axis, units)

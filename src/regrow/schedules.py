"""Amounts that change while a plan runs: from one value to another between the first due step and the last."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

#: How the way from one value to another is gone, as a function of time from 0 to 1.
Curve = Literal["constant", "linear", "cubic", "cosine"]

_CURVES = {
    "constant": lambda time: 0.0,
    "linear": lambda time: time,
    "cubic": lambda time: 1 - (1 - time) ** 3,
    "cosine": lambda time: (1 - math.cos(math.pi * time)) / 2,
}


@dataclass(frozen=True)
class Schedule:
    """A value over time; made by :func:`constant`, :func:`linear`, :func:`cubic` and :func:`cosine`.

    What it is the value of depends on the action. Of single weights it is the sparsity to have then. Of neurons, heads,
    layers and cells it is the fraction, of those that there were when the action was due first, to be rid of by then,
    or to have gained. For :class:`regrow.Rewire` it is the fraction that moves.
    """

    curve: Curve
    start: float
    end: float

    def __post_init__(self) -> None:
        if self.curve not in _CURVES:
            raise ValueError(f"curve is {' or '.join(map(repr, _CURVES))}, not {self.curve!r}.")
        for value in (self.start, self.end):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"a schedule goes from a finite number to another, not to {value!r}.")

    def at(self, time: float) -> float:
        """The value at a time from 0 to 1."""
        return self.start + (self.end - self.start) * _CURVES[self.curve](min(max(time, 0.0), 1.0))


def constant(value: float) -> Schedule:
    """The same value at every due step: what else happens in between is made up for.

    >>> constant(0.5).at(0.1)
    0.5
    """
    return Schedule("constant", value, value)


def linear(start: float, end: float) -> Schedule:
    """At a constant rate."""
    return Schedule("linear", start, end)


def cubic(start: float, end: float) -> Schedule:
    """Fast at first and slowly at the end: ``end + (start − end)·(1 − time)³``.

    Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression" (ICLR 2018
    workshop).

    >>> round(cubic(0.0, 0.9).at(0.5), 4)
    0.7875
    """
    return Schedule("cubic", start, end)


def cosine(start: float, end: float) -> Schedule:
    """Along half a cosine, slowly at both ends: ``start + (end − start)·(1 − cos(π·time))/2``."""
    return Schedule("cosine", start, end)

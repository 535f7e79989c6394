"""Labels of an edited model, inherited from the model as it was: the second trace runs on them.

Each label has a *fingerprint*, a random number; a slab's is the sum over what is left of its row, so nothing has to be
looked up when rows get shorter. The lowest bits tell fresh units: zero for what is old, else a code of the new unit,
which is a few of these bits; what is fresh by several units has the bits of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import numpy as np

from .labels import Field
from .maps import FRESH, PlaceMap
from .relations import Relations

_SHIFT = 24
CODE = np.int64(2**_SHIFT - 1)
_MIX = np.int64(0x9E3779B97F4A7C15 - 2**64)


class Disagreement(Exception):
    """A call of the edited model doesn't do what it did before with what is left."""


class Fingerprints:
    """The fingerprint of every label of a first trace, and which labels an edit removes."""

    def __init__(self, relations: Relations, gone: np.ndarray) -> None:
        random = np.random.default_rng(relations.count)
        self.of = random.integers(-(2**62), 2**62, relations.count) & ~CODE
        self.of[0] = 0
        self.gone = gone
        for labels, kind, parts in relations.derived:
            if kind == "slab":
                left = np.where(self.gone[parts[0]], 0, self.of[parts[0]])
                self.of[labels] = left.sum(1)
                self.gone[labels] = self.gone[parts[0]].all(1)
            else:
                self.of[labels] = mixed([self.of[p] for p in parts])
                self.gone[labels] = reduce(np.logical_or, [self.gone[p] for p in parts])

    def left(self, labels: np.ndarray) -> np.ndarray:
        """The fingerprints of an array of labels without those that are gone."""
        gone = self.gone[labels]
        return _without(self.of[labels], gone) if gone.any() else self.of[labels]


def _without(values: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Leave out whole rows, columns, …; what is gone must be made of such."""
    keep = [~gone.all(axis=tuple(a for a in range(gone.ndim) if a != axis)) for axis in range(gone.ndim)]
    where = np.ix_(*keep)
    if gone[where].any():
        raise Disagreement("what would be left of two of its dimensions is no product of subsets")
    return values[where]


def old_only(values: np.ndarray) -> np.ndarray:
    """Fingerprints without those of fresh units."""
    fresh = (values & CODE) != 0
    return _without(values, fresh) if fresh.any() else values


def inherited(before: np.ndarray, place: PlaceMap, fresh: Mapping[int, np.ndarray]) -> np.ndarray:
    """The fingerprints along an edited dimension.

    Args:
        before: What the dimension had before.
        place: How it was edited.
        fresh: For the places of axes that grow (by id) their :func:`codes`.
    """
    values = before[place.take]
    new = np.flatnonzero(place.fresh)
    if len(new):
        found = np.zeros(len(new), np.int64)
        for position, units in place.units_after.items():
            if id(position) in fresh:
                found |= fresh[id(position)][units[new]]
        values[new] |= found
    return values


def codes(index_map: np.ndarray, number: int) -> np.ndarray:
    """Up to four bits for each new unit of an axis with a number, none for old ones, and at last none for no unit."""
    scattered = ((np.arange(1, len(index_map) + 1)) * 131 + number * 7919) * _MIX
    found = np.bitwise_or.reduce([np.int64(1) << (scattered >> at) % _SHIFT for at in (8, 20, 32, 44)])
    return np.append(np.where(index_map == FRESH, found, 0), 0)


def mixed(parts: Sequence[np.ndarray]) -> np.ndarray:
    """A fingerprint for each combination, with the codes of all its parts."""
    result, code = np.ones(1, np.int64), np.zeros(1, np.int64)
    for part in parts:
        result = (result ^ (part >> _SHIFT)) * _MIX
        code = code | (part & CODE)
    return np.bitwise_or(result << _SHIFT, code)


class Inherited(Relations):
    """Stands in for the relations in a second trace: nothing is gathered, fresh units are checked as they meet."""

    def equate(self, one: np.ndarray, other: np.ndarray, apart: bool = False) -> None:
        key = (id(one), id(other))
        if one is other or key in self._said:
            return
        self._said[key] = (one, other)
        if ((one ^ other) & CODE).any():
            raise Disagreement("a new unit would meet an old one")

    def freeze(self, fields: Iterable[Field], reason: str) -> None:
        """Nothing to gather."""

    mark_inexact = freeze

    def note_kind(self, labels: np.ndarray, kind: str, name: str = "") -> None:
        """Nothing to gather."""

    def rectangle(self, labels: np.ndarray) -> None:
        """Nothing to gather."""

    def add_up(
        self, fld: Field, dim: int, reason: str = "", weight: bool = False, others: Iterable[Field] = ()
    ) -> None:
        """Nothing to gather."""

    def part(self, labels: np.ndarray, axis: int, start: int, stop: int) -> None:
        """Nothing to gather."""

    def _combine(self, parts: tuple[np.ndarray, ...]) -> np.ndarray:
        return mixed(parts)

    def _slab(self, rows: np.ndarray) -> np.ndarray:
        fresh = (rows & CODE) != 0
        if not fresh.any():
            return rows.sum(1)
        clones = ((rows & ~CODE).sum(1) & ~CODE) | (rows[:, 0] & CODE)
        return np.where(fresh.all(1), clones, np.where(fresh, 0, rows).sum(1))

"""What must be zero for new units to send nothing where data are added up with no weight between.

A column that reads new units is zero, so that they may be made as one likes. Where data are added up as they are, as
queries times keys over their features, what is added must be zero by itself. A unit is added where it stands in one row
of what is summed together with others; units that are whole rows, as heads there, aren't.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .arrays import components, distinct, gathered
from .relations import Relations


class Silent(NamedTuple):
    """What is said of an axis: ordered labels that must be ``zero`` for new units to send nothing; labels of weights
    that are added up (``lengths``); labels that can't be zero; and why nothing helps, or "".
    """

    zero: np.ndarray
    lengths: np.ndarray
    nonzero: np.ndarray
    why: str


def _joined(labels: list[np.ndarray]) -> np.ndarray:
    return distinct(np.concatenate(labels)) if labels else np.zeros(0, np.int64)


def _content(labels: np.ndarray) -> tuple[object, ...]:
    return labels.shape, labels.tobytes()


class Silence:
    """Finds what has to be zero, axis by axis.

    Args:
        relations: With all that is added up.
        classes: The class of each label.
    """

    def __init__(self, relations: Relations, classes: np.ndarray) -> None:
        self.relations, self.classes = relations, classes
        sums = {(s.reason, s.weight, *map(_content, (s.labels, *s.others))): s for s in relations.summed}.values()
        self.sums = [(s, distinct(classes[relations.bases(s.labels)])) for s in sums]
        if self.sums or relations.nonzero:
            sides = components(relations.count, relations.equal)  # of a product one side is enough
            self.side, self.by_side = sides, np.argsort(sides, kind="stable")
            self.first = np.searchsorted(sides[self.by_side], np.arange(int(sides.max()) + 2))

    def of(self, unit_of: np.ndarray) -> Silent:
        """For an axis, given as each class's unit, or -1."""
        touched = [s for s, bases in self.sums if (unit_of[bases] >= 0).any()]
        sums = [(s, added) for s in touched if len(added := self.among_others(s.labels, unit_of))]
        why = next((s.reason for s, _ in sums if s.reason), "")
        lengths = self.relations.bases(_joined([added for s, added in sums if s.weight]))
        data = [(s, added) for s, added in sums if not s.reason and not s.weight]
        zero = self._made_of(_joined([added for s, added in data if not s.others]), unit_of)
        for choice, added in data:
            sides = [added, *(self.among_others(rows, unit_of) for rows in choice.others)]
            if not any(len(labels) and np.isin(labels, zero).all() for labels in sides):
                zero = np.union1d(zero, self._made_of(distinct(added), unit_of))
        return Silent(zero, lengths, self._divisors(unit_of), why)

    def _divisors(self, unit_of: np.ndarray) -> np.ndarray:
        found = [n for n in self.relations.nonzero if (self._units(n.labels, unit_of) >= 0).any()]
        made_of = (self._made_of(n.labels, unit_of) if n.data else self.relations.bases(n.labels) for n in found)
        return _joined(list(made_of))

    def among_others(self, rows: np.ndarray, unit_of: np.ndarray) -> np.ndarray:
        """Labels of units that stand in a row with others."""
        units = self._units(rows, unit_of)
        return rows[(units != units[:, :1]).any(1, keepdims=True) & (units >= 0)]

    def _units(self, labels: np.ndarray, unit_of: np.ndarray) -> np.ndarray:
        """The units of labels; combinations that constrain nothing have those of their parts."""
        flat = labels.ravel()
        units = unit_of[self.classes[flat]]
        for derived, here, places in self.relations.made(flat) if (units < 0).any() else ():
            for part in derived.parts_of(places) if derived.kind != "slab" else ():
                units[here] = np.where(units[here] < 0, self._units(part, unit_of), units[here])
        return units.reshape(labels.shape)

    def _made_of(self, labels: np.ndarray, unit_of: np.ndarray) -> np.ndarray:
        """All labels that must be zero for these to be."""
        found = waiting = self._equal_to(labels) if len(labels) else labels
        while len(waiting):
            parts = list(self._parts(waiting, unit_of))
            new = self._equal_to(distinct(np.concatenate(parts))) if parts else found[:0]
            waiting = np.setdiff1d(new, found)
            found = np.union1d(found, new)
        return found

    def _parts(self, labels: np.ndarray, unit_of: np.ndarray) -> Iterator[np.ndarray]:
        """Rows that belong to the axis; of a combination one part that does."""
        for derived, _, places in self.relations.made(labels):
            waiting = np.ones(len(places), bool)
            for part in derived.parts_of(places):
                own = self._units(part, unit_of) >= 0
                if derived.kind == "slab":
                    yield part[own]
                else:
                    yield part[own & waiting]
                    waiting &= ~own

    def _equal_to(self, labels: np.ndarray) -> np.ndarray:
        sides = distinct(self.side[labels])
        return np.sort(self.by_side[gathered(self.first[sides], self.first[sides + 1])])

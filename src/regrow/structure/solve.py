"""From relations to permissible elements.

A permissible element (a *unit*) is an inclusion-minimal non-empty set of labels that is closed under the
relations and contains nothing frozen. Equal labels are one *class* (connected components). Where rectangles
and slabs occur, units are closures: whole families are closed at once, one array operation for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .relations import FIXED, Relations

#: How many ways of completing the rectangles are followed from one family of slices.
MAX_BRANCHES = 16


@dataclass
class Solution:
    """``classes[label]`` is the label's class; a family is ``(classes, units)``: which unit each class is in."""

    classes: np.ndarray
    frozen: dict[int, str]  # class -> why it can't change
    inexact: dict[int, str]  # class -> why it can't come or go silently
    families: list[tuple[np.ndarray, np.ndarray]]


def solve(relations: Relations) -> Solution:
    """Connected components, then the closed sets that hold nothing frozen."""
    classes = _components(relations)
    fixed = (np.array([FIXED]), "joined with something that can't change")
    reasons = _by_class(classes, [fixed, *relations.frozen])
    frozen = np.zeros(int(classes.max()) + 1, bool)
    frozen[list(reasons)] = True
    slabs = [(classes[slab], classes[rows]) for slab, rows in relations.slabs]
    rectangles = [classes[labels] for labels in relations.rectangles]
    alone = np.ones(len(frozen), bool)
    families = []
    for block in _blocks(len(frozen), slabs, rectangles):
        alone[block.members] = False
        found = [_without_units(f, frozen[block.members]) for f in block.families()]
        families += [(block.members[f >= 0], f[f >= 0]) for f in _minimal(found)]
    free = np.flatnonzero(alone & ~frozen)
    return Solution(classes, reasons, _by_class(classes, relations.inexact), [(free, free), *families])


def _components(relations: Relations) -> np.ndarray:
    if not relations.equal:
        return np.arange(relations.count)
    one = np.concatenate([a for a, _ in relations.equal])
    other = np.concatenate([b for _, b in relations.equal])
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(relations.count, relations.count))
    return connected_components(graph, directed=False)[1]


def _by_class(classes: np.ndarray, notes: list[tuple[np.ndarray, str]]) -> dict[int, str]:
    """The first note made on each class."""
    found: dict[int, str] = {}
    for labels, reason in notes:
        for c in np.unique(classes[labels]).tolist():
            found.setdefault(c, reason)
    return found


def _without_units(family: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    """Units that contain something frozen are no units."""
    spoilt = np.unique(family[frozen & (family >= 0)])
    return np.where(np.isin(family, spoilt), -1, family)


def _minimal(families: list[np.ndarray]) -> list[np.ndarray]:
    """Drop families given twice, and units that contain a whole unit of another family."""
    kept: list[np.ndarray] = []
    for family in families:
        others = [f for f in families if f is not family]
        spoilt = [unit for other in others for unit in _containing(family, other)]
        family = np.where(np.isin(family, spoilt), -1, family)
        if (family >= 0).any() and not any(_same(family, k) for k in kept):
            kept.append(family)
    return kept


def _containing(family: np.ndarray, other: np.ndarray) -> list[int]:
    """Units of ``family`` that strictly contain a unit of ``other``."""
    inside = other >= 0
    if not inside.any() or not (family[inside] >= 0).any():
        return []
    low = np.full(other.max() + 1, np.iinfo(np.int64).max)
    high = np.full(other.max() + 1, -1)
    np.minimum.at(low, other[inside], family[inside])
    np.maximum.at(high, other[inside], family[inside])
    whole = (low == high) & (low >= 0)
    size = np.bincount(family[family >= 0], minlength=int(family.max()) + 1)
    own = np.bincount(other[inside], minlength=len(low))
    return [int(low[u]) for u in np.flatnonzero(whole) if size[low[u]] > own[u]]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """The same sets of classes, whatever their numbers."""
    if not np.array_equal(one >= 0, other >= 0):
        return False
    pairs = np.unique(np.stack([one, other])[:, one >= 0], axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


def _blocks(count: int, slabs: list[tuple[np.ndarray, np.ndarray]], rectangles: list[np.ndarray]) -> list[_Block]:
    """Split slabs and rectangles into blocks that share no class; each is solved by itself."""
    hubs = [np.concatenate([slab, rows.ravel()]) for slab, rows in slabs] + [r.ravel() for r in rectangles]
    if not hubs:
        return []
    one, other = np.concatenate([np.full(len(h), h[0]) for h in hubs]), np.concatenate(hubs)
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    block_of = connected_components(graph, directed=False)[1]
    blocks = {}
    for number in np.unique(block_of[other]).tolist():
        blocks[number] = _Block(np.flatnonzero(block_of == number))
    local = np.zeros(count, np.int64)
    for block in blocks.values():
        local[block.members] = np.arange(len(block.members))
    for slab, rows in slabs:
        blocks[block_of[slab[0]]].slabs.append((local[slab], local[rows]))
    for rectangle in rectangles:
        blocks[block_of[rectangle.flat[0]]].rectangles.append(local[rectangle])
    return list(blocks.values())


class _Block:
    """Slabs and rectangles over the classes ``members``, which are numbered by their places there."""

    def __init__(self, members: np.ndarray) -> None:
        self.members = members
        self.slabs: list[tuple[np.ndarray, np.ndarray]] = []
        self.rectangles: list[np.ndarray] = []

    def families(self) -> list[np.ndarray]:
        """One family from each dimension of each rectangle, and one from each row of slab labels."""
        found = []
        nothing = np.full(len(self.members), -1)
        for rectangle in self.rectangles:
            for dim in range(rectangle.ndim):
                slices = np.arange(rectangle.shape[dim])
                found += self._close(_assign(nothing, rectangle, _spread(slices, dim, rectangle.shape)))
        for slab, _ in self.slabs:
            found += self._close(_assign(nothing, slab, np.arange(len(slab))))
        return found

    def _close(self, family: np.ndarray) -> list[np.ndarray]:
        pending, closed = [family], []
        while pending and len(closed) + len(pending) <= MAX_BRANCHES:
            family = self._close_slabs(pending.pop())
            ways = self._complete(family)
            if ways:
                pending += ways
            else:
                closed.append(family)
        return closed

    def _close_slabs(self, family: np.ndarray) -> np.ndarray:
        """A slab label is in a unit exactly when all of its row is."""
        while True:
            before = family
            for slab, rows in self.slabs:
                units = family[rows]
                full = (units[:, 0] >= 0) & (units == units[:, :1]).all(1)
                family = _assign(family, slab[full], units[full, 0])
                inside = family[slab] >= 0
                units = np.broadcast_to(family[slab[inside], None], rows[inside].shape)
                family = _assign(family, rows[inside], units)
            if np.array_equal(before, family):
                return family

    def _complete(self, family: np.ndarray) -> list[np.ndarray]:
        """The ways to make the first incomplete rectangle a union of slices; none when all are complete."""
        for rectangle in self.rectangles:
            if (family[rectangle] < 0).all():
                continue
            ways = []
            for dim in range(rectangle.ndim):
                rows = np.moveaxis(family[rectangle], dim, 0).reshape(rectangle.shape[dim], -1).max(1)
                ways.append(_assign(family, rectangle, _spread(rows, dim, rectangle.shape)))
            if not any(np.array_equal(family, way) for way in ways):
                return ways
        return []


def _spread(values: np.ndarray, dim: int, shape: tuple[int, ...]) -> np.ndarray:
    """``values`` along one dimension of ``shape``, repeated along the others."""
    return np.broadcast_to(values.reshape([-1 if d == dim else 1 for d in range(len(shape))]), shape)


def _assign(family: np.ndarray, where: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Put classes into units (-1: leave them); units that meet in one class become one unit."""
    where, units = where.ravel(), units.ravel()
    where, units = where[units >= 0], units[units >= 0]
    order = np.argsort(where, kind="stable")
    at, new = where[order], units[order]
    beside = np.stack([new[:-1], new[1:]])[:, at[1:] == at[:-1]]
    before = np.stack([family[at], new])[:, family[at] >= 0]
    meeting = np.concatenate([beside, before], axis=1)
    meeting = meeting[:, meeting[0] != meeting[1]]
    family = family.copy()
    family[where] = units
    if not meeting.shape[1]:
        return family
    size = int(max(family.max(), meeting.max())) + 1
    graph = coo_array((np.ones(meeting.shape[1], bool), (meeting[0], meeting[1])), shape=(size, size))
    root = connected_components(graph, directed=False)[1]
    return np.where(family >= 0, root[family], -1)

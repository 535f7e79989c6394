"""From relations to permissible elements.

A permissible element (a *unit*) is an inclusion-minimal non-empty set of labels that is closed under the
relations and contains nothing frozen. Equal labels are one *class* (connected components). Where rectangles
and slabs occur, units are closures (``closure.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .closure import blocks, distinct, minimal, still_open
from .relations import FIXED, Relations


@dataclass
class Notes:
    """For each class the first note made on it: an index into ``texts``, or -1."""

    of: np.ndarray
    texts: list[str]

    @classmethod
    def on(cls, classes: np.ndarray, notes: Iterable[tuple[np.ndarray, str]]) -> Notes:
        """From notes on labels."""
        found, texts = np.full(int(classes.max()) + 1, -1), []
        for labels, text in notes:
            here = classes[labels]
            here = distinct(here[found[here] < 0])
            if len(here):
                found[here] = len(texts)
                texts.append(text)
        return cls(found, texts)

    def first(self, classes: np.ndarray) -> str:
        """A note on any of these classes, or ""."""
        here = self.of[classes]
        return self.texts[int(here[here >= 0].min())] if (here >= 0).any() else ""


@dataclass
class Solution:
    """``classes[label]`` is the label's class; a family is ``(classes, units)``: which unit each class is in."""

    classes: np.ndarray
    frozen: Notes  # why a class can't change
    inexact: Notes  # why it can't come or go silently
    summed: np.ndarray  # for each label whether it has to be silent by itself
    families: list[tuple[np.ndarray, np.ndarray]]


def solve(relations: Relations) -> Solution:
    """Connected components, then the closed sets that hold nothing frozen."""
    classes = _components(relations, [*relations.equal, *relations.multiplied])
    fixed = (np.array([FIXED]), "joined with something that can't change")
    reasons = Notes.on(classes, [fixed, *relations.frozen])
    slabs, rectangles = relations.constraints()
    slabs = still_open(reasons.of, [(classes[slab], classes[rows]) for slab, rows in slabs])
    frozen = reasons.of >= 0
    rectangles = [classes[labels] for labels in rectangles]
    alone = np.ones(len(frozen), bool)
    families = []
    for block in blocks(frozen, slabs, rectangles):
        alone[block.members] = False
        families += [(block.members[f >= 0], f[f >= 0]) for f in minimal(block.families())]
    free = np.flatnonzero(alone & ~frozen)
    inexact = Notes.on(classes, relations.inexact)
    return Solution(classes, reasons, inexact, _summed(relations), [(free, free), *families])


def _summed(relations: Relations) -> np.ndarray:
    """All that has to be silent where data are added up with no weight between; of a product one side is enough."""
    found = np.zeros(relations.count, bool)
    if not relations.summed:
        return found
    sides = _components(relations, relations.equal)
    found[np.concatenate(relations.summed)] = True
    while True:
        before = found
        found = np.isin(sides, sides[found])
        for labels, _, parts in reversed(relations.derived):
            stands = found[labels]
            for part in parts if stands.any() else ():
                stands = stands.reshape(stands.shape + (1,) * (part.ndim - stands.ndim))
                over = np.broadcast_shapes(stands.shape, part.shape)
                found[np.broadcast_to(part, over)[np.broadcast_to(stands, over)]] = True
        if np.array_equal(found, before):
            return found


def _components(relations: Relations, equal: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    if not equal:
        return np.arange(relations.count)
    one = np.concatenate([a for a, _ in equal])
    other = np.concatenate([b for _, b in equal])
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(relations.count, relations.count))
    return connected_components(graph, directed=False)[1]

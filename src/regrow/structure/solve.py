"""From relations to permissible elements.

A permissible element (a *unit*) is an inclusion-minimal non-empty set of labels that is closed under the
relations and contains nothing frozen. Equal labels are one *class* (connected components). Where rectangles
and slabs occur, units are closures (``closure.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .arrays import components, distinct
from .closure import blocks, minimal, still_open
from .labels import FIXED
from .relations import Relations
from .silence import Silence


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
    silence: Silence
    families: list[tuple[np.ndarray, np.ndarray]]


def solve(relations: Relations) -> Solution:
    """Connected components, then the closed sets that hold nothing frozen."""
    classes = components(relations.count, [*relations.equal, *relations.apart])
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
    return Solution(classes, reasons, inexact, Silence(relations, classes), [(free, free), *families])

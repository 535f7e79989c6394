"""What several parts need of arrays of small natural numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def components(count: int, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The connected component of each of ``count`` numbers, where these pairs of arrays are one place by place."""
    if not pairs:
        return np.arange(count)
    one, other = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def distinct(numbers: np.ndarray) -> np.ndarray:
    """Sorted distinct small natural numbers; much faster than by sorting or hashing."""
    seen = np.zeros(int(numbers.max(initial=-1)) + 1, bool)
    seen[numbers] = True
    return np.flatnonzero(seen)


class Inverted:
    """Finds which of many arrays hold given numbers.

    Args:
        arrays: Of natural numbers below ``count``.
    """

    def __init__(self, arrays: Sequence[np.ndarray], count: int) -> None:
        held = [distinct(array) for array in arrays]
        numbers = np.concatenate([*held, np.zeros(0, np.int64)])
        order = np.argsort(numbers, kind="stable")
        self._holders = np.repeat(np.arange(len(held)), [len(h) for h in held])[order]
        self._first = np.searchsorted(numbers[order], np.arange(count + 1))

    def holding(self, numbers: np.ndarray) -> list[int]:
        """The arrays, by their places, that hold any of these numbers, in order."""
        return distinct(self._holders[gathered(self._first[numbers], self._first[numbers + 1])]).tolist()


def gathered(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The numbers of several ranges, one after the other.

    >>> gathered(np.array([3, 8]), np.array([5, 9]))
    array([3, 4, 8])
    """
    lengths = ends - starts
    return np.repeat(ends - np.cumsum(lengths), lengths) + np.arange(int(lengths.sum()))

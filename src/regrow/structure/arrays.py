"""What several parts need of arrays of small natural numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def components(count: int, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The connected component of each of ``count`` labels, where these pairs of arrays are equal place by place."""
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

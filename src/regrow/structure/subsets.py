"""The edits that a proof tries: subsets of units that stay, and units that are added."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

from .axis import Axis
from .maps import FRESH
from .trial import Maps


def random_subsets(axes: Sequence[Axis]) -> Maps:
    """A subset of each axis, of a size of its own: sizes that are tied by code alone come apart."""
    return {axis: _at_least_two(kept) for axis, kept in _kept(axes).items()}


def first_halves(axes: Sequence[Axis]) -> Maps:
    """The first half of each axis goes, and all that stayed before, so that each unit goes once; but two stay."""
    maps = {}
    for axis, before in _kept(axes).items():
        units = np.arange(axis.size)
        stayed, early = np.isin(units, before), units < axis.size // 2
        order = np.lexsort((-units, early, stayed))
        left = max(2, int((~stayed & ~early).sum()))
        maps[axis] = _at_least_two(np.sort(order[: min(axis.size - 1, left)]))
    return maps


def last_of_three(axes: Sequence[Axis]) -> Maps:
    """Where two stay of three, one unit was never away."""
    halves = first_halves([axis for axis in axes if axis.size == 3])
    subsets = random_subsets(list(halves))
    return {axis: np.setdiff1d(np.arange(3), np.intersect1d(subsets[axis], halves[axis])) for axis in halves}


def grown(axes: Sequence[Axis]) -> Maps:
    """One to three units more."""
    random = np.random.default_rng(len(axes) + 1)
    return {axis: np.append(np.arange(axis.size), np.full(random.integers(1, 4), FRESH)) for axis in axes}


def _kept(axes: Sequence[Axis]) -> dict[Axis, np.ndarray]:
    """What stays at first: of axes that share a dimension not equally many go, or they could make up for each other."""
    found: dict[Axis, np.ndarray] = {}
    gone: dict[tuple[str, int], set[int]] = {}
    for axis in axes:
        if axis.size > 1:
            taken = set().union(*(gone.get(e.key, ()) for e in axis.entries))
            found[axis] = _kept_at_random(axis, taken)
            for entry in axis.entries:
                gone.setdefault(entry.key, set()).add(axis.size - len(found[axis]))
    return found


def _kept_at_random(axis: Axis, taken: set[int]) -> np.ndarray:
    """The same units whatever others are edited too, never all of the second half; not ``taken`` many go."""
    random = np.random.default_rng(zlib.crc32(repr((axis.entries[0].key, axis.size, axis.kind)).encode()))
    others = np.delete(np.arange(axis.size), random.integers(axis.size // 2, axis.size))
    low, high = max(2, math.ceil(axis.size / 3)), math.ceil(2 * axis.size / 3)
    left = min(len(others), int(random.integers(low, max(low, high) + 1)))
    free = [n for n in range(min(2, len(others)), len(others) + 1) if axis.size - n not in taken]
    left = min(free, key=lambda n: abs(n - left), default=left)
    return np.sort(random.choice(others, left, replace=False))


def _at_least_two(left: np.ndarray) -> np.ndarray:
    """Torch makes other calls for a dimension of size 1, and nothing can be compared along it: a new unit is added.

    So of two units nothing is seen to shrink; they may go only if more may come.
    """
    return left if len(left) > 1 else np.append(left, FRESH)

"""The edits that a proof tries: subsets of units that stay, and units that are added."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from .axis import Axis
from .maps import FRESH
from .trial import Maps

#: Axes that share a dimension are tried apart from each other in so many groups at most.
ROUNDS = 3
#: Of so many units each is away once by its axis alone.
FEW = 5


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


def not_yet_away(axes: Sequence[Axis], away: Mapping[Axis, set[int]]) -> Maps:
    """The units go that haven't been away yet, but one; of axes where these are all of many, some at random."""
    maps = {}
    for axis in axes:
        unseen = [unit for unit in range(axis.size) if unit not in away.get(axis, ())]
        some = _random(axis, "once more").permutation(axis.size)[: max(1, axis.size // 3)]
        gone = unseen[: axis.size - 1] if unseen and (len(unseen) < axis.size or axis.size <= FEW) else some
        maps[axis] = _at_least_two(np.setdiff1d(np.arange(axis.size), gone))
    return maps


def one_of_two(axes: Sequence[Axis]) -> Maps:
    """One unit is left of those that have two."""
    return {axis: np.array([1]) for axis in axes if axis.size == 2}


def rounds(axes: Sequence[Axis]) -> list[list[Axis]]:
    """Axes that share a dimension apart from each other, in a few rounds: together they could hide each other."""
    sharing: dict[tuple[str, int], list[Axis]] = {}
    for axis in axes:
        for key in {entry.key for entry in axis.entries}:
            sharing.setdefault(key, []).append(axis)
    number: dict[Axis, int] = {}
    for together in sharing.values():
        taken = {number[axis] for axis in together if axis in number}
        for axis in together if len(together) > 1 else ():
            if axis not in number:
                number[axis] = next((n for n in range(ROUNDS) if n not in taken), len(taken) % ROUNDS)
                taken.add(number[axis])
    return [found for n in range(ROUNDS) if (found := [axis for axis in axes if number.get(axis) == n])]


def grown(axes: Sequence[Axis]) -> Maps:
    """A few units more."""
    return {axis: np.append(np.arange(axis.size), np.full(_more(axis), FRESH)) for axis in axes}


def exchanged(left: Maps, growing: Sequence[Axis], few: bool = False) -> Maps:
    """Units go and others come, in one edit, so that each axis has another size; of others some only come.

    Args:
        few: As few come as can, so that sizes shrink.
    """
    maps = {}
    for axis in dict.fromkeys((*left, *growing)):
        kept = left.get(axis, np.arange(axis.size))
        kept = kept[kept != FRESH]
        wanted = [n for n in range(1, 9) if math.gcd(len(kept) + n, axis.size) == 1]
        wanted = wanted or [axis.size - len(kept) + 1]
        new = wanted[0] if few else _random(axis, "exchanged").choice(wanted)
        maps[axis] = np.append(kept, np.full(int(new) if axis in growing else 0, FRESH))
    return maps


def _more(axis: Axis) -> int:
    """How many units come: old and new size have no divisor in common, or a literal could divide both."""
    return int(_random(axis, "more").choice([n for n in range(1, 8) if math.gcd(n, axis.size) == 1]))


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
    random = _random(axis)
    others = np.delete(np.arange(axis.size), random.integers(axis.size // 2, axis.size))
    low, high = max(2, math.ceil(axis.size / 3)), math.ceil(2 * axis.size / 3)
    left = min(len(others), int(random.integers(low, max(low, high) + 1)))
    free = [n for n in range(min(2, len(others)), len(others) + 1) if axis.size - n not in taken]
    left = min(free, key=lambda n: abs(n - left), default=left)
    return np.sort(random.choice(others, left, replace=False))


def _random(axis: Axis, what: str = "") -> np.random.Generator:
    """An axis's own random numbers, whatever others there are."""
    return np.random.default_rng(zlib.crc32(repr((axis.entries[0].key, axis.size, axis.kind, what)).encode()))


def _at_least_two(left: np.ndarray) -> np.ndarray:
    """Torch makes other calls for a dimension of size 1, and nothing can be compared along it: a new unit is added.

    So of two units nothing is seen to shrink; they may go only if more may come.
    """
    return left if len(left) > 1 else np.append(left, FRESH)

"""Closed sets of classes where slabs and rectangles occur: whole families are closed at once.

A family gives each class the number of the unit that it is in, or -1. All units of a family are closed together, by
array operations; nothing loops over units.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .arrays import components, distinct

#: How many steps are made from one family of slices, over all ways of completing the rectangles; in blocks of so
#: many classes fewer.
MAX_STEPS, MANY = 32, 100_000

Slab = tuple[np.ndarray, np.ndarray]


def blocks(frozen: np.ndarray, slabs: Sequence[Slab], rectangles: Iterable[np.ndarray]) -> list[Block]:
    """Split slabs and rectangles into blocks that share no class; each is solved by itself."""
    slabs = [_narrowed(slab, rows) for slab, rows in slabs]
    rectangles = (r for r in rectangles if not frozen[r].all())
    rectangles = _distinct(r for r in map(_without_repeats, rectangles) if r.ndim > 1)
    hubs = [np.concatenate([slab, rows.ravel()]) for slab, rows in slabs] + [r.ravel() for r in rectangles]
    if not hubs:
        return []
    one, other = np.concatenate([np.full(len(h), h[0]) for h in hubs]), np.concatenate(hubs)
    block_of = components(len(frozen), [(one, other)])
    inside = distinct(other)
    inside = inside[np.argsort(block_of[inside], kind="stable")]
    numbers, firsts = np.unique(block_of[inside], return_index=True)
    local = np.zeros(len(frozen), np.int64)
    found = {}
    for number, members in zip(numbers.tolist(), np.split(inside, firsts[1:]), strict=True):
        local[members] = np.arange(len(members))
        found[number] = Block(members, frozen[members])
    for slab, rows in slabs:
        found[block_of[slab[0]]].slabs.append((local[slab], local[rows]))
    for rectangle in rectangles:
        found[block_of[rectangle.flat[0]]].rectangles.append(local[rectangle])
    return list(found.values())


def _narrowed(slab: np.ndarray, rows: np.ndarray) -> Slab:
    """Equal rows are one, and so are equal columns."""
    random = np.random.default_rng(0)
    table = np.column_stack([slab, rows])
    _, first = np.unique(table @ random.integers(-(2**62), 2**62, table.shape[1]), return_index=True)
    rows = rows[first]
    _, kept = np.unique(random.integers(-(2**62), 2**62, len(rows)) @ rows, return_index=True)
    return slab[first], np.ascontiguousarray(rows[:, np.sort(kept)])


def still_open(reasons: np.ndarray, slabs: Sequence[Slab]) -> list[Slab]:
    """Rows that hold something frozen never go as a whole: what stands for them is frozen too, and says no more.

    Args:
        reasons: For each class why it is frozen, by number, or -1; changed in place.
    """
    found = list(slabs)
    while True:
        why = [reasons[rows].max(1) for _, rows in found]
        if not any((w >= 0).any() for w in why):
            return found
        for (slab, _), reason in zip(found, why, strict=True):
            open_yet = (reason >= 0) & (reasons[slab] < 0)
            reasons[slab[open_yet]] = reason[open_yet]
        left = ((slab[reason < 0], rows[reason < 0]) for (slab, rows), reason in zip(found, why, strict=True))
        found = [(slab, rows) for slab, rows in left if len(slab)]


def _without_repeats(rectangle: np.ndarray) -> np.ndarray:
    """Equal slices are one."""
    for dim in range(rectangle.ndim):
        slices = np.moveaxis(rectangle, dim, 0).reshape(rectangle.shape[dim], -1)
        if len(np.unique(slices[:, 0])) < len(slices):
            _, first = np.unique(slices, axis=0, return_index=True)
            rectangle = rectangle.take(np.sort(first), dim)
    return rectangle.squeeze()


def _distinct(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    return list({(a.shape, a.tobytes()): a for a in arrays}.values())


class Block:
    """Slabs and rectangles over the classes ``members``, which are numbered by their places there."""

    def __init__(self, members: np.ndarray, frozen: np.ndarray) -> None:
        self.members, self.frozen = members, frozen
        self.slabs: list[Slab] = []
        self.rows: _Rows | None = None
        self.rectangles: list[np.ndarray] = []

    def families(self) -> list[np.ndarray]:
        """Closed families from each dimension of each rectangle, from slab labels, and from what is in rows only.

        Units that hold something frozen, or all of a unit that was found before, are left out.
        """
        self.rows = _Rows(self.slabs) if self.slabs else None
        self.found: list[np.ndarray] = []
        for rectangle in self.rectangles:
            for dim in range(rectangle.ndim):
                if not any(_runs_along(family[rectangle], dim) for family in self.found):
                    slices = np.arange(rectangle.shape[dim])
                    self._close(rectangle, _spread(slices, dim, rectangle.shape))
        for slab, _ in self.slabs:
            if not any(_runs_along(family[slab], 0) for family in self.found):
                self._close(slab, np.arange(len(slab)))
        alone = np.ones(len(self.members), bool)
        for labels in (*self.rectangles, *(slab for slab, _ in self.slabs)):
            alone[labels] = False
        if alone.any():
            self._close(np.flatnonzero(alone), np.arange(int(alone.sum())))
        return self.found

    def _close(self, where: np.ndarray, units: np.ndarray) -> None:
        """All ways to close a family of sets; none where each holds something frozen from the start."""
        if len(distinct(units[self.frozen[where]])) == len(distinct(units)):
            return
        nothing = np.full(len(self.members), -1)
        pending = [assigned(nothing, where, units)]
        for _ in range(max(4, MAX_STEPS * MANY // max(MANY, len(self.members)))):
            if not pending:
                break
            family = self._without_found(self._close_slabs(pending.pop()))
            if (family < 0).all():
                continue
            ways = self._complete(family)
            if ways:
                pending += ways
            else:
                self.found.append(family)

    def _without_found(self, family: np.ndarray) -> np.ndarray:
        """Sets only grow while they are closed: what holds all of a unit that was found will be no smaller."""
        for other in self.found:
            family = _without(family, _containing(family, other, strictly=False))
        return family

    def _close_slabs(self, family: np.ndarray) -> np.ndarray:
        """A slab label is in a unit exactly when all of its row is. Units that come to hold something frozen go."""
        while True:
            before = family = self._without_frozen(family)
            if self.rows is not None:
                family = self.rows.close(family)
            if family is before:
                return family

    def _complete(self, family: np.ndarray) -> list[np.ndarray]:
        """The ways to make the incomplete rectangles unions of slices; none when all are complete.

        Those with a single way that keeps units apart are completed at once; the first of the others branches, and
        the way that merges the fewest units is followed first.
        """
        branch: tuple[np.ndarray, list[np.ndarray]] | None = None
        before = family
        for rectangle in self.rectangles:
            units = family[rectangle]
            present = units >= 0
            if not present.any():
                continue
            ways = [_row_units(units, dim) for dim in range(rectangle.ndim)]
            spread = [_spread(rows, dim, rectangle.shape) for dim, (rows, _) in enumerate(ways)]
            if any(np.array_equal(units, way) for way in spread):
                continue
            apart = [way for way, (_, alone) in zip(spread, ways, strict=True) if alone]
            if len(apart) == 1:
                family = assigned(family, rectangle, apart[0])
            elif branch is None:
                branch = rectangle, apart or spread
        if family is not before:
            return [family]
        if branch is None:
            return []
        found = [assigned(family, branch[0], way) for way in branch[1]]
        return sorted(found, key=lambda way: len(distinct(way[way >= 0])))  # the last is followed first

    def _without_frozen(self, family: np.ndarray) -> np.ndarray:
        held = family[self.frozen]
        if (held < 0).all():
            return family
        return _without(family, held[held >= 0])


class _Rows:
    """All slab labels of a block with their rows, which differ in length."""

    def __init__(self, slabs: Sequence[Slab]) -> None:
        self.slab = np.concatenate([slab for slab, _ in slabs])
        self.cells = np.concatenate([rows.ravel() for _, rows in slabs])
        self.lengths = np.concatenate([np.full(len(slab), rows.shape[1]) for slab, rows in slabs])
        self.starts = np.cumsum(self.lengths) - self.lengths

    def close(self, family: np.ndarray) -> np.ndarray:
        """One step: the labels of whole rows, then the rows of labels."""
        low, high, own = self._units(family)
        full = (low >= 0) & (low == high) & (own != low)
        if full.any():
            family = assigned(family, self.slab[full], low[full])
            low, high, own = self._units(family)
        inside = (own >= 0) & ((low != own) | (high != own))
        if inside.any():
            cells = self.cells[np.repeat(inside, self.lengths)]
            family = assigned(family, cells, np.repeat(own[inside], self.lengths[inside]))
        return family

    def _units(self, family: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The lowest and the highest unit in each row, and the unit of its label."""
        units = family[self.cells]
        low, high = np.minimum.reduceat(units, self.starts), np.maximum.reduceat(units, self.starts)
        return low, high, family[self.slab]


def _row_units(units: np.ndarray, dim: int) -> tuple[np.ndarray, bool]:
    """The unit of each slice along a dimension (-1: none), and whether no slice holds two."""
    rows = np.moveaxis(units, dim, 0).reshape(units.shape[dim], -1)
    highest = rows.max(1)
    return highest, bool(((rows == highest[:, None]) | (rows < 0)).all())


def _runs_along(units: np.ndarray, dim: int) -> bool:
    """Whether a family already has each slice along a dimension in a unit of its own."""
    rows = np.moveaxis(units, dim, 0).reshape(units.shape[dim], -1)
    first = rows[:, 0]
    return bool((first >= 0).all() and (rows == rows[:, :1]).all() and len(distinct(first)) == len(first))


def _spread(values: np.ndarray, dim: int, shape: tuple[int, ...]) -> np.ndarray:
    """``values`` along one dimension of ``shape``, repeated along the others."""
    return np.broadcast_to(values.reshape([-1 if d == dim else 1 for d in range(len(shape))]), shape)


def assigned(family: np.ndarray, where: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The family with classes put into units (-1: leave them); units that meet in one class become one unit."""
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
    root = components(size, [(meeting[0], meeting[1])])
    return np.where(family >= 0, root[family], -1)


def minimal(families: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Drop families given twice, and units that contain a whole unit of another family."""
    distinct: list[np.ndarray] = []
    for family in families:
        if (family >= 0).any() and not any(_same(family, d) for d in distinct):
            distinct.append(family)
    kept: list[np.ndarray] = []
    for family in distinct:
        for other in distinct:
            if other is not family:
                family = _without(family, _containing(family, other, strictly=True))
        if (family >= 0).any() and not any(_same(family, k) for k in kept):
            kept.append(family)
    return kept


def _without(family: np.ndarray, units: np.ndarray) -> np.ndarray:
    if not len(units):
        return family
    spoilt = np.zeros(int(family.max()) + 2, bool)  # the last is for classes in no unit
    spoilt[units] = True
    return np.where(spoilt[family], -1, family)


def _containing(family: np.ndarray, other: np.ndarray, strictly: bool) -> np.ndarray:
    """Units of ``family`` that contain a unit of ``other``, and perhaps more."""
    inside = other >= 0
    if not (family[inside] >= 0).any():
        return np.zeros(0, np.int64)
    theirs, ours = other[inside], family[inside]
    one = np.full(int(theirs.max()) + 1, -1)  # for each unit of the other a unit that some of it is in
    one[theirs] = ours
    whole = one >= 0
    whole[theirs[one[theirs] != ours]] = False
    if not strictly:
        return one[whole]
    size = np.bincount(family[family >= 0], minlength=int(family.max()) + 1)
    own = np.bincount(theirs, minlength=len(one))
    whole[whole] = size[one[whole]] > own[whole]
    return one[whole]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """The same sets of classes, whatever their numbers."""
    if not np.array_equal(one >= 0, other >= 0):
        return False
    pairs = np.unique(np.stack([one, other])[:, one >= 0], axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))

"""Index maps: what happens to every place of an axis when its units are kept, dropped, repeated or added.

A map gives, for each new unit, the old unit that it comes from, or :data:`FRESH`. Pruning leaves units out,
growing adds fresh ones, splitting repeats one, a permutation is none of these. Nothing here touches a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from .axis import Axis, Entry, Place

#: In a map: a unit that comes from no old one.
FRESH = -1

#: For each new index the old one, the unit, and whether it is fresh.
_Move = tuple[np.ndarray, np.ndarray, np.ndarray]


class PlaceMap:
    """What becomes of one place of length ``before``.

    New index ``i`` is copied from old index ``take[i]``; where ``fresh[i]`` holds, only as a template, to be
    overwritten. The maps of several axes are applied one after the other; an index that is repeated for one axis keeps
    its units in the others. The cached properties are for when all have been.
    """

    def __init__(self, places: tuple[Place, ...]) -> None:
        self.places = places
        self.before = len(places[0].unit_of)
        self._left = np.ones(self.before, bool)  # by what only leaves units out, before anything else
        self._thinned: list[tuple[Place, np.ndarray]] = []
        self._now: tuple[np.ndarray, np.ndarray] | None = None
        self._steps: list[tuple[Place, np.ndarray, np.ndarray]] = []

    @property
    def take(self) -> np.ndarray:
        """For each new index the old one that it is copied from."""
        return self._taken[0]

    @property
    def fresh(self) -> np.ndarray:
        """For each new index whether it is only a template."""
        return self._taken[1]

    @property
    def _taken(self) -> tuple[np.ndarray, np.ndarray]:
        if self._now is None:
            take = np.flatnonzero(self._left)
            self._now = take, np.zeros(len(take), bool)
        return self._now

    def thin(self, place: Place, number: np.ndarray) -> None:
        """Follow an index map that only leaves units out: as :meth:`apply`, given each unit's :func:`numbers`."""
        if self._steps:
            unit_of = place.unit_of.numpy()[self.take]
            take = np.flatnonzero(_stays(number)[unit_of])
            self._step(place, take, number[unit_of[take]], np.zeros(len(take), bool))
        else:
            self._left &= _stays(number)[place.unit_of.numpy()]
            self._thinned.append((place, number))
            self._now = None

    def apply(self, place: Place, index_map: np.ndarray, size: int, known: dict[object, _Move]) -> None:
        """Follow one axis's index map, on top of what has been applied.

        Args:
            known: How this index map moves places that nothing was applied to; it is added to.
        """
        if self._thinned or self._steps:
            self._step(place, *self._moved(place, index_map, size))
            return
        key = (id(place.unit_of), place.run)
        if key not in known:
            known[key] = self._moved(place, index_map, size)
        take, units, fresh = known[key]
        self._now = take, fresh
        self._steps.append((place, take, units))

    def _moved(self, place: Place, index_map: np.ndarray, size: int) -> _Move:
        unit_of = place.unit_of.numpy()[self.take]
        take, units = _rearrange(unit_of, self._run(place, unit_of, size), index_map, size)
        return take, units, np.append(index_map == FRESH, False)[units]

    def _step(self, place: Place, take: np.ndarray, units: np.ndarray, fresh: np.ndarray) -> None:
        self._now = self.take[take], self.fresh[take] | fresh
        self._steps.append((place, take, units))

    def _run(self, place: Place, unit_of: np.ndarray, size: int) -> int:
        """The run of a place after what has been applied; zero where it has lost its order."""
        inside = int((unit_of >= 0).sum())
        if size == 1 and place.run:
            cycles = int((place.unit_of >= 0).sum()) // place.run
            return inside // cycles if inside % cycles == 0 else 0
        run = run_of(unit_of, place.run)
        return run if run and inside % (size * run) == 0 else 0

    @cached_property
    def units_after(self) -> dict[Place, np.ndarray]:
        """For the place of each axis here, the unit of each new index, or -1."""
        found = {}
        since = np.arange(len(self.take))
        for place, take, units in reversed(self._steps):
            found[place] = units[since]
            since = take[since]
        thinned = np.flatnonzero(self._left)[since]
        found.update((place, number[place.unit_of.numpy()[thinned]]) for place, number in self._thinned)
        return {place: found[place] if place in found else place.unit_of.numpy()[self.take] for place in self.places}

    @cached_property
    def stretches(self) -> list[slice]:
        """Stretches of new indices that copy neighbouring old ones, and stretches of fresh ones."""
        breaks = (self.fresh[1:] != self.fresh[:-1]) | (~self.fresh[1:] & (np.diff(self.take) != 1))
        edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(self.take)]
        return [slice(a, b) for a, b in pairwise(edges)]

    @cached_property
    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """The inverse: distinct old indices, and where each is now."""
        new = np.flatnonzero(~self.fresh)
        old, first = np.unique(self.take[new], return_index=True)
        return old, new[first]


def plan(axes: Sequence[Axis], maps: Mapping[Axis, np.ndarray]) -> dict[tuple[str, int], PlaceMap]:
    """The maps of all places that an edit of several axes touches, by the place's key.

    Args:
        axes: All axes of the structure; those that share a place with an edited one must follow it.
        maps: For each edited axis its index map; the edits are applied one after the other.
    """
    planned: dict[tuple[str, int], PlaceMap] = {}
    shared: dict[tuple[str, int], list[Place]] = {}
    for axis in axes:
        for place in axis.places:
            shared.setdefault(place.key, []).append(place)
    for axis, index_map in maps.items():
        number = numbers(index_map, axis.size) if _thins(index_map) else None
        moves: dict[object, _Move] = {}
        for place in axis.places:
            if place.key not in planned:
                planned[place.key] = PlaceMap(tuple(shared[place.key]))
            if number is None:
                planned[place.key].apply(place, index_map, axis.size, moves)
            else:
                planned[place.key].thin(place, number)
    return planned


def _thins(index_map: np.ndarray) -> bool:
    """Whether units only go."""
    return bool((np.diff(index_map) > 0).all() and (index_map != FRESH).all())


def numbers(index_map: np.ndarray, size: int) -> np.ndarray:
    """The new unit of each old one, or -1 for those that go; and at last -1 for indices without a unit."""
    found = np.full(size + 1, -1)
    found[index_map] = np.arange(len(index_map))
    return found


def _stays(number: np.ndarray) -> np.ndarray:
    found = number >= 0
    found[-1] = True
    return found


def _rearrange(unit_of: np.ndarray, run: int, index_map: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """New order of a place's indices (fresh units copy the last old one), and the new unit of each."""
    if not run:
        return _beside_templates(unit_of, index_map, size)
    inside = np.flatnonzero(unit_of >= 0)
    if len(inside) == size * run == inside[-1] - inside[0] + 1:
        block = unit_of[inside[0] : inside[-1] + 1].reshape(size, run)
        if (block == np.arange(size)[:, None]).all():
            return _in_turn(len(unit_of), int(inside[0]), run, index_map, size)
    cycles = inside.reshape(-1, size, run)
    order = unit_of[cycles[:, :, 0]]
    cycles = np.take_along_axis(cycles, np.argsort(order, axis=1)[:, :, None], axis=1)
    origin = np.where(index_map == FRESH, size - 1, index_map)
    moved = cycles[:, origin, :]
    whole = cycles.max((1, 2)) - cycles.min((1, 2)) + 1 == size * run
    rising, falling = whole & (order == np.arange(size)).all(1), whole & (order == np.arange(size)[::-1]).all(1)
    # In a whole cycle the new units follow each other in turn; in any other each stays where its origin is.
    anchor = np.where((rising | falling)[:, None, None], cycles.min((1, 2))[:, None, None], moved[:, :, :1])
    number = np.broadcast_to(np.arange(len(index_map))[None, :, None], moved.shape)
    rank = np.where((falling & ~rising)[:, None, None], -number, number)
    outside = np.flatnonzero(unit_of < 0)
    take = np.concatenate([outside, moved.ravel()])
    anchors = np.concatenate([outside, np.broadcast_to(anchor, moved.shape).ravel()])
    units = np.concatenate([np.full(len(outside), -1), number.ravel()])
    ranks = np.concatenate([np.full(len(outside), -1), rank.ravel()])
    by_place = np.lexsort((np.arange(len(take)), ranks, anchors))
    return take[by_place], units[by_place]


def _in_turn(length: int, start: int, run: int, index_map: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The common case: all units stand one after the other, from ``start`` on."""
    origin = np.where(index_map == FRESH, size - 1, index_map)
    moved = (start + origin[:, None] * run + np.arange(run)).ravel()
    behind = np.arange(start + size * run, length)
    take = np.concatenate([np.arange(start), moved, behind])
    units = np.full(len(take), -1)
    units[start : start + len(moved)] = np.repeat(np.arange(len(index_map)), run)
    return take, units


def _beside_templates(unit_of: np.ndarray, index_map: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where units lie in no regular order, each new one comes right after what it is copied from."""
    origin = np.where(index_map == FRESH, size - 1, index_map)
    outside = np.flatnonzero(unit_of < 0)
    take, units = [outside], [np.full(len(outside), -1)]
    for new, old in enumerate(origin):
        here = np.flatnonzero(unit_of == old)
        take.append(here)
        units.append(np.full(len(here), new))
    found, numbers = np.concatenate(take), np.concatenate(units)
    order = np.lexsort((numbers, found))
    return found[order], numbers[order]


def run_of(unit_of: np.ndarray, before: int) -> int:
    """How many neighbours of one unit stand together; with a single unit that can't be seen, and stays.

    Zero, for no regular order, stays zero.
    """
    if not before:
        return 0
    inside = unit_of[unit_of >= 0]
    changes = np.flatnonzero(np.diff(inside))
    return int(changes[0]) + 1 if len(changes) else before


def fresh_origins(place: Place, index_map: np.ndarray, size: int) -> np.ndarray:
    """A number for each fresh index of a place under one axis's map alone, in order.

    It tells the new unit and the old index that is its template, and so finds the index again where the maps of
    other axes have moved or repeated it: see :func:`origins_in`.
    """
    if (index_map != FRESH).all():
        return np.zeros(0, np.int64)
    take, units = _rearrange(place.unit_of.numpy(), place.run, index_map, size)
    fresh = np.isin(units, np.flatnonzero(index_map == FRESH))
    return units[fresh] * len(place.unit_of) + take[fresh]


def origins_in(planned: PlaceMap, place: Place, index_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fresh indices of one axis in a planned place, and the numbers that :func:`fresh_origins` gave them."""
    units = planned.units_after[place]
    where = np.flatnonzero(np.isin(units, np.flatnonzero(index_map == FRESH)))
    return where, units[where] * planned.before + planned.take[where]


def fresh_summed(planned: PlaceMap, entry: Entry, index_map: np.ndarray) -> np.ndarray:
    """The fresh indices of one axis in a planned place that must be zero for the new units to send nothing."""
    if entry.summed is None:
        return np.zeros(0, np.int64)
    where, _ = origins_in(planned, entry, index_map)
    return where[entry.summed.numpy()[planned.take[where]]]


def regular_run(unit_of: np.ndarray, size: int) -> int:
    """The run of a place of an axis just found; 0 if it isn't made of cycles of equal runs."""
    inside = np.flatnonzero(unit_of >= 0)
    run = run_of(unit_of, max(1, len(inside)))
    if len(inside) % (size * run):
        return 0
    cycles = unit_of[inside].reshape(-1, size, run)
    whole = (cycles == cycles[:, :, :1]).all() and (np.sort(cycles[:, :, 0], axis=1) == np.arange(size)).all()
    return run if whole else 0

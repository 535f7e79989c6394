"""Index maps: what happens to every place of an axis when its units are kept, dropped, repeated or added.

A map gives, for each new unit, the old unit that it comes from, or :data:`FRESH`. Pruning leaves units out,
growing adds fresh ones, splitting repeats one, a permutation is none of these. Nothing here touches a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .axis import Axis, Place

#: In a map: a unit that comes from no old one.
FRESH = -1


@dataclass(frozen=True)
class PlaceMap:
    """What becomes of one place of length ``before``: new index ``i`` is copied from old index ``take[i]``.

    Where ``fresh[i]`` holds, the copy is only a template, to be overwritten. ``unit_of`` and ``run`` are what
    the place of each axis there (in the order of ``places``) has afterwards.
    """

    places: tuple[Place, ...]
    before: int
    take: np.ndarray
    fresh: np.ndarray
    unit_of: tuple[np.ndarray, ...]
    runs: tuple[int, ...]

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
        for place in axis.places:
            at = planned.get(place.key) or _unchanged(tuple(shared[place.key]))
            planned[place.key] = _apply(at, at.places.index(place), index_map, axis.size)
    return planned


def _unchanged(places: tuple[Place, ...]) -> PlaceMap:
    length = len(places[0].unit_of)
    unit_of = tuple(p.unit_of.numpy() for p in places)
    return PlaceMap(places, length, np.arange(length), np.zeros(length, bool), unit_of, tuple(p.run for p in places))


def _apply(at: PlaceMap, which: int, index_map: np.ndarray, size: int) -> PlaceMap:
    """Follow one axis's index map at a place, on top of what has been planned there."""
    take, units = _rearrange(at.unit_of[which], at.runs[which], index_map, size)
    fresh = np.isin(units, np.flatnonzero(index_map == FRESH))
    unit_of = tuple(units if i == which else u[take] for i, u in enumerate(at.unit_of))
    runs = tuple(
        run if i == which else _run_of(u, run) for i, (u, run) in enumerate(zip(unit_of, at.runs, strict=True))
    )
    return PlaceMap(at.places, at.before, at.take[take], at.fresh[take] | fresh, unit_of, runs)


def _rearrange(unit_of: np.ndarray, run: int, index_map: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """New order of a place's indices (fresh units copy the last old one), and the new unit of each."""
    inside = np.flatnonzero(unit_of >= 0)
    cycles = inside.reshape(-1, size, run)
    order = unit_of[cycles[:, :, 0]]
    cycles = np.take_along_axis(cycles, np.argsort(order, axis=1)[:, :, None], axis=1)
    origin = np.where(index_map == FRESH, size - 1, index_map)
    moved = cycles[:, origin, :]
    solid = cycles.max((1, 2)) - cycles.min((1, 2)) + 1 == size * run
    solid &= (order == np.arange(size)).all(1)
    # In a solid cycle the new units follow each other in turn; in any other each stays where its origin is.
    anchor = np.where(solid[:, None, None], cycles.min((1, 2))[:, None, None], moved[:, :, :1])
    number = np.broadcast_to(np.arange(len(index_map))[None, :, None], moved.shape)
    outside = np.flatnonzero(unit_of < 0)
    take = np.concatenate([outside, moved.ravel()])
    anchors = np.concatenate([outside, np.broadcast_to(anchor, moved.shape).ravel()])
    units = np.concatenate([np.full(len(outside), -1), number.ravel()])
    by_place = np.lexsort((np.arange(len(take)), units, anchors))
    return take[by_place], units[by_place]


def _run_of(unit_of: np.ndarray, before: int) -> int:
    """How many neighbours of one unit stand together; with a single unit that can't be seen, and stays."""
    inside = unit_of[unit_of >= 0]
    changes = np.flatnonzero(np.diff(inside))
    return int(changes[0]) + 1 if len(changes) else before


def fresh_origins(place: Place, index_map: np.ndarray, size: int) -> np.ndarray:
    """A number for each fresh index of a place under one axis's map alone, in order.

    It tells the new unit and the old index that is its template, and so finds the index again where the maps of
    other axes have moved or repeated it: see :func:`origins_in`.
    """
    take, units = _rearrange(place.unit_of.numpy(), place.run, index_map, size)
    fresh = np.isin(units, np.flatnonzero(index_map == FRESH))
    return units[fresh] * len(place.unit_of) + take[fresh]


def origins_in(planned: PlaceMap, place: Place, index_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fresh indices of one axis in a planned place, and the numbers that :func:`fresh_origins` gave them."""
    units = planned.unit_of[planned.places.index(place)]
    where = np.flatnonzero(np.isin(units, np.flatnonzero(index_map == FRESH)))
    return where, units[where] * planned.before + planned.take[where]


def regular_run(unit_of: np.ndarray, size: int) -> int | None:
    """The run of a place of an axis just found; None if it isn't made of cycles of equal runs."""
    inside = np.flatnonzero(unit_of >= 0)
    run = _run_of(unit_of, len(inside))
    if len(inside) % (size * run):
        return None
    cycles = unit_of[inside].reshape(-1, size, run)
    whole = (cycles == cycles[:, :, :1]).all() and (np.sort(cycles[:, :, 0], axis=1) == np.arange(size)).all()
    return run if whole else None

"""Proof by running: each axis is tried before it is offered.

Code may tie sizes together without tying labels, and may cut or reorder what labels alone can't tell. So the model
runs again, call by call beside the first trace: with a random subset of every axis removed, with the first half
removed, and with units added. Where that fails, an integer in Python may have to follow (``repair.py``), or two
dimensions may have to be one; what nothing mends stays as it is, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .axis import BOUNDARY, Axis, Verdict
from .repair import Joined, Repairs
from .subsets import FEW, exchanged, first_halves, grown, not_yet_away, one_of_two, random_subsets, rounds
from .suspects import Suspects, signature
from .trial import Maps, Outcome, Trials

#: After so many runs of edited models nothing is mended any more: what fails is refused.
RUNS = 120

Edit = Callable[[Sequence[Axis]], Maps]


class Proof:
    """Settles which axes can shrink and grow, which are exact, and what must follow them.

    Args:
        trials: Runs edited models.
        axes: What the relations offer.
        joined: Makes pairs of tensor dimensions one, and gives the axes that there are then.
    """

    def __init__(self, trials: Trials, axes: Sequence[Axis], joined: Joined) -> None:
        self.trials, self.axes = trials, list(axes)
        self.repairs = Repairs(trials, joined)
        self.cleared: set[tuple[Axis, object]] = set()  # axes that numbers at these places don't follow
        self.placed: set[object] = set()
        self.ran: list[
            tuple[bool, set[Axis], set[object]]
        ] = []  # mode, what changed in size, places with other numbers
        self._known_places: dict[bool, set[object]] = {}
        self.away: dict[Axis, set[int]] = {}  # units without which the model has run
        self.alone: dict[Axis, set[int]] = {}  # the same, while no other axis in their dimensions was edited

    def run(self) -> list[Axis]:
        """All trials; the axes as they are then."""
        for axis in self.axes:
            if axis.size == 1:
                axis.prunable = axis.growable = Verdict(False, "is the only one of its kind")
        if not self._all_at_once():
            self._one_by_one()
        self._try_apart()
        self._try_one_of_two()
        for axis in self.axes:
            if axis.size == 2 and axis.prunable and not axis.growable:
                axis.prunable = axis.growable  # at its least, only growth shows whether its size may differ
        return self.axes

    def _all_at_once(self) -> bool:
        """Where nothing is wrong two trials tell: in each some units go and others come, in the second few.

        In that, of axes that share a dimension only some do, which are tried apart then.
        """
        tried = []
        later = {axis for together in rounds(self.axes)[1:] for axis in together}
        for edit, training, axes in (
            (random_subsets, True, self.axes),
            (first_halves, False, [axis for axis in self.axes if axis not in later]),
        ):
            left = edit([axis for axis in axes if axis.prunable])
            maps = exchanged(left, [axis for axis in axes if axis.growable], few=not training)
            outcome = self.trials.run(self.axes, maps, training)
            if outcome.failure:
                return False
            tried.append((maps, outcome, training))
        for maps, outcome, training in tried:
            self._note(maps, outcome, training)
        for maps, outcome, training in tried:
            self._compare_numbers(maps, outcome, training)
        return True

    def _one_by_one(self) -> None:
        """Shrinking first, then growing; what fails is mended, or refused."""
        self._settle("prunable", random_subsets, training=True)
        self._settle("prunable", first_halves, training=False)
        stuck = [axis for axis in self.axes if not axis.prunable and axis.size > 1 and not axis.tags & BOUNDARY]
        for axis in stuck:
            axis.growable = axis.prunable
        self._settle("growable", grown, training=False)
        self._try_to_grow(stuck)

    def _try_apart(self) -> None:
        """Axes that share a dimension by themselves, and the units that were never away."""
        while chosen := self._waiting([axis for axis in self.axes if axis.prunable]):
            maps = exchanged(self._not_yet_away(chosen), [axis for axis in chosen if axis.growable], few=True)
            outcome = self.trials.run(self.axes, maps, False)
            if outcome.failure:
                self._settle("prunable", self._not_yet_away, False, self._waiting)
                self._settle("growable", grown, False, lambda axes, chosen=chosen: [a for a in axes if a in chosen])
            else:
                self._note(maps, outcome, False)
                self._compare_numbers(maps, outcome, False)
            for axis, index_map in maps.items():
                self.alone.setdefault(axis, set()).update(_gone(axis, index_map))
        self._settle("prunable", lambda axes: not_yet_away(axes, self.away), False, self._never_away)

    def _waiting(self, axes: Sequence[Axis]) -> list[Axis]:
        """Some of these that have to be tried apart yet: of few units each is away once, of many some are."""
        for together in rounds(self.axes):
            apart = [axis for axis in together if axis in axes]
            seen = {axis: len(self.alone.get(axis, ())) for axis in apart}
            found = [axis for axis in apart if seen[axis] < (axis.size if axis.size <= FEW else 1)]
            if found:
                return found
        return []

    def _not_yet_away(self, axes: Sequence[Axis]) -> Maps:
        return not_yet_away(
            axes, {axis: (self.alone if axis.size <= FEW else self.away).get(axis, set()) for axis in axes}
        )

    def _never_away(self, axes: Sequence[Axis]) -> list[Axis]:
        return [axis for axis in axes if len(self.away.get(axis, ())) < axis.size]

    def _try_one_of_two(self) -> None:
        """For a dimension of size 1 torch may make other calls; from there on nothing can be said of its axis."""
        unclear: set[Axis] = set()
        while maps := one_of_two([axis for axis in self.axes if axis.prunable and axis not in unclear]):
            outcome = self.trials.run(self.axes, maps, False)
            if not outcome.failure:
                return
            suspects = [a for a in Suspects(self.trials, maps, outcome, False).axes if a in maps] or list(maps)
            for axis in suspects if outcome.clear else ():
                alone = self.trials.run(self.axes, one_of_two([axis]), False)
                if alone.failure and alone.clear:
                    self._refuse([axis], "prunable", alone.failure)
            unclear.update(suspects)

    def _settle(
        self, verdict: str, edit: Edit, training: bool, among: Callable[[Sequence[Axis]], Sequence[Axis]] = list
    ) -> None:
        """Mend or refuse axes until the model runs with all the others (among those that are chosen) edited."""
        while chosen := among([axis for axis in self.axes if getattr(axis, verdict)]):
            maps = edit(chosen)
            outcome = self.trials.run(self.axes, maps, training)
            if not outcome.failure:
                self._note(maps, outcome, training)
                return self._compare_numbers(maps, outcome, training)
            suspects = Suspects(self.trials, maps, outcome, training).axes or list(maps)
            if self._blame_one(suspects, verdict, edit, training, outcome.position):
                continue
            if outcome.raised and self._by_chance(suspects, maps, training):
                return self._note_away(maps)
            self._blame_together(suspects, maps, outcome, verdict, training)

    def _note(self, maps: Maps, outcome: Outcome, training: bool) -> None:
        """The model has run with these edits."""
        self._note_away(maps)
        resized = {axis for axis, index_map in maps.items() if len(index_map) != axis.size}
        self.ran.append((training, resized, {self._place(training, position) for position in outcome.numbers}))

    def _note_away(self, maps: Maps) -> None:
        sharing = {axis for together in rounds(list(maps)) for axis in together}
        for axis, index_map in maps.items():
            for seen in (self.away, self.alone) if axis not in sharing else (self.away,):
                seen.setdefault(axis, set()).update(_gone(axis, index_map))

    def _blame_one(self, suspects: Sequence[Axis], verdict: str, edit: Edit, training: bool, position: int) -> bool:
        """Mend the first suspect that fails by itself by then, or refuse it; whether there is one."""
        for axis in suspects:
            maps = edit([axis])
            outcome = self.trials.run(self.axes, maps, training, position)
            if outcome.failure:
                mendable = self.trials.made < RUNS
                mended = self.repairs.mend(self.axes, axis, edit, training, outcome) if mendable else None
                if mended is None:
                    self._refuse([axis, *self._failing_alike(axis, verdict, edit, training)], verdict, outcome.failure)
                else:
                    self.axes = mended
                return True
        return False

    def _failing_alike(self, axis: Axis, verdict: str, edit: Edit, training: bool) -> list[Axis]:
        """The same of blocks that are alike, if they fail as well."""
        alike = [a for a in self.axes if a is not axis and signature(a) == signature(axis) and getattr(a, verdict)]
        return alike if alike and self.trials.run(self.axes, edit(alike), training).failure else []

    def _by_chance(self, suspects: Sequence[Axis], maps: Maps, training: bool) -> bool:
        """Whether the model's code refused just these sizes together, and not others."""
        return not self.trials.run(self.axes, {**maps, **not_yet_away(suspects, {})}, training).failure

    def _blame_together(
        self, suspects: Sequence[Axis], maps: Maps, outcome: Outcome, verdict: str, training: bool
    ) -> None:
        """Axes that fail only together: refuse the one without which the model gets further, else all suspects."""
        for axis in suspects:
            rest = {a: m for a, m in maps.items() if a is not axis}
            if self.trials.run(self.axes, rest, training, outcome.position).further_than(outcome):
                return self._refuse([axis], verdict, outcome.failure)
        self._refuse(suspects, verdict, outcome.failure)

    def _refuse(self, axes: Sequence[Axis], verdict: str, why: str) -> None:
        for axis in axes:
            setattr(axis, verdict, Verdict(False, why))

    def _try_to_grow(self, stuck: Sequence[Axis]) -> None:
        """What can't be pruned may still grow; it is tried once, as it is."""
        stuck = [axis for axis in stuck if axis in self.axes]
        if stuck and not self.trials.run(self.axes, grown(stuck), False).failure:
            for axis in stuck:
                axis.growable = Verdict(True)

    def _compare_numbers(self, maps: Maps, outcome: Outcome, training: bool) -> None:
        """Where a number in the arithmetic follows an axis, it isn't exact: find which, a round for each candidate."""
        waiting = {p: self._candidates(maps, outcome, training, p) for p in outcome.numbers}
        for position, axes in waiting.items():
            if len(axes) == 1:  # of all others trials have shown already that it doesn't follow them
                self._follows(axes.pop(), training, position)
        open_still: dict[int, list[Axis]] = {}  # those whose trials ended before they got there
        settled = set()
        while any(waiting.values()):
            tried = {axes[0] for axes in waiting.values() if axes}
            edited = {a: m for a, m in maps.items() if a in tried}
            found = self.trials.run(self.axes, edited, training)
            if not found.failure:
                self._note(edited, found, training)
            for position, axes in waiting.items():
                axis = axes.pop(0) if axes else None
                if axis is None:
                    continue
                if position in found.numbers:
                    self._follows(axis, training, position)
                    settled.add(position)
                elif found.failure:
                    open_still.setdefault(position, []).append(axis)
                else:
                    self.cleared.add((axis, self._place(training, position)))
                if found.numbers.get(position) == outcome.numbers[position]:  # no other has a part in it
                    self.cleared.update((other, self._place(training, position)) for other in axes)
                    axes.clear()
        for position, axes in open_still.items():
            if position not in settled:  # it follows something
                self._follows(axes[0], training, position)

    def _follows(self, axis: Axis, training: bool, position: int) -> None:
        axis.exact = Verdict(False, f"a number in {self._name(training, position)} follows it")

    def _candidates(self, maps: Maps, outcome: Outcome, training: bool, position: int) -> list[Axis]:
        """Whom a number may follow: none if some do that are known already. Features often are what it follows."""
        place = self._place(training, position)
        axes = Suspects(self.trials, maps, outcome, training, position).axes or list(maps)
        axes = [axis for axis in axes if not self._is_clear(axis, place) and len(maps[axis]) != axis.size]
        if place in self.placed:
            axes = [axis for axis in axes if axis.exact]
        self.placed.add(place)
        sizes = {axis: len(maps[axis]) for axis in axes}
        found = outcome.numbers[position]
        return sorted(axes, key=lambda axis: (not _tells(sizes[axis], found), axis.kind != "feature"))

    def _is_clear(self, axis: Axis, place: object) -> bool:
        """Whether numbers at a place are known not to follow an axis."""
        return (axis, place) in self.cleared or any(
            axis in resized and place in self._places(training) and place not in changed
            for training, resized, changed in self.ran
        )

    def _places(self, training: bool) -> set[object]:
        """All places that run in a mode."""
        if training not in self._known_places:
            count = len(self.trials.journals[training][0].records)
            self._known_places[training] = {self._place(training, position) for position in range(count)}
        return self._known_places[training]

    def _place(self, training: bool, position: int) -> object:
        """A call in either mode: the module that makes it, and what it is."""
        record = self.trials.record(training, position)
        return None if record is None else (record.module, record.op)

    def _name(self, training: bool, position: int) -> str:
        record = self.trials.record(training, position)
        return record.op.overloadpacket.__name__ if record is not None else "a call"


def _tells(size: int, numbers: Sequence[Any]) -> bool:
    """Whether one of these numbers is what code makes of a size: itself, its root, or one over these."""
    made = (size, math.sqrt(size), 1 / size, 1 / math.sqrt(size))
    return any(math.isclose(number, one) for number in numbers if isinstance(number, (int, float)) for one in made)


def _gone(axis: Axis, index_map: np.ndarray) -> set[int]:
    return set(range(axis.size)).difference(index_map.tolist())

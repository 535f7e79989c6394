"""Proof by running: each axis is tried before it is offered.

Code may tie sizes together without tying labels, and may cut or reorder what labels alone can't tell. So the model
runs again, call by call beside the first trace: with a random subset of every axis removed, with the first half
removed, and with units added. Where that fails, an integer in Python may have to follow (``repair.py``), or two
dimensions may have to be one; what nothing mends stays as it is, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .axis import BOUNDARY, Axis, Verdict
from .repair import Joined, Repairs
from .subsets import first_halves, grown, last_of_three, random_subsets
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

    def run(self) -> list[Axis]:
        """All trials; the axes as they are then."""
        for axis in self.axes:
            if axis.size == 1:
                axis.prunable = axis.growable = Verdict(False, "is the only one of its kind")
        self._settle("prunable", random_subsets, training=True)
        self._settle("prunable", first_halves, training=False)
        if any(axis.size == 3 and axis.prunable for axis in self.axes):
            self._settle("prunable", last_of_three, training=False)
        stuck = [axis for axis in self.axes if not axis.prunable and axis.size > 1 and not axis.tags & BOUNDARY]
        for axis in stuck:
            axis.growable = axis.prunable
        self._settle("growable", grown, training=False)
        self._try_to_grow(stuck)
        for axis in self.axes:
            if axis.size == 2 and axis.prunable and not axis.growable:
                axis.prunable = axis.growable  # at its least, only growth shows whether its size may differ
        return self.axes

    def _settle(self, verdict: str, edit: Edit, training: bool) -> None:
        """Mend or refuse axes until the model runs with all the others edited."""
        while True:
            maps = edit([axis for axis in self.axes if getattr(axis, verdict)])
            outcome = self.trials.run(self.axes, maps, training)
            if not outcome.failure:
                return self._compare_numbers(maps, outcome, training)
            if not maps:
                return None  # the model doesn't even repeat itself
            suspects = Suspects(self.trials, maps, outcome, training).axes or list(maps)
            if not self._blame_one(suspects, verdict, edit, training, outcome.position):
                self._blame_together(suspects, maps, outcome, verdict, training)

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
        while any(waiting.values()):
            tried = {axes[0] for axes in waiting.values() if axes}
            found = self.trials.run(self.axes, {a: m for a, m in maps.items() if a in tried}, training)
            for position, axes in waiting.items():
                axis = axes.pop(0) if axes else None
                if axis is None:
                    continue
                if position in found.numbers:
                    axis.exact = Verdict(False, f"a number in {self._name(training, position)} follows it")
                else:
                    self.cleared.add((axis, self._place(training, position)))
                if found.numbers.get(position) == outcome.numbers[position]:  # no other has a part in it
                    self.cleared.update((other, self._place(training, position)) for other in axes)
                    axes.clear()

    def _candidates(self, maps: Maps, outcome: Outcome, training: bool, position: int) -> list[Axis]:
        """Whom a number may follow: none if some do that are known already. Features often are what it follows."""
        place = self._place(training, position)
        axes = Suspects(self.trials, maps, outcome, training, position).axes or list(maps)
        axes = [axis for axis in axes if (axis, place) not in self.cleared and len(maps[axis]) != axis.size]
        if place in self.placed:
            axes = [axis for axis in axes if axis.exact]
        self.placed.add(place)
        return sorted(axes, key=lambda axis: axis.kind != "feature")

    def _place(self, training: bool, position: int) -> object:
        """A call in either mode: the module that makes it, and what it is."""
        record = self.trials.record(training, position)
        return None if record is None else (record.module, record.op)

    def _name(self, training: bool, position: int) -> str:
        record = self.trials.record(training, position)
        return record.op._schema.name.partition("::")[2] if record is not None else "a call"

"""Which axes may be why an edited model failed."""

from __future__ import annotations

import re

import numpy as np

from .axis import Axis
from .trial import Maps, Outcome, Trials


def signature(axis: Axis) -> tuple[object, ...]:
    """What axes of repeated blocks have in common: their places, whatever the blocks' numbers are."""
    return (axis.kind, *((re.sub(r"\d+", "#", e.name), e.dim, e.role) for e in axis.entries))


class Suspects:
    """The edited axes whose labels a failing call saw, then those whose tensors belong to the failing module.

    Attributes:
        axes: The most likely first.
    """

    def __init__(
        self, trials: Trials, maps: Maps, outcome: Outcome, training: bool, position: int | None = None
    ) -> None:
        self.trials, self.maps, self.outcome, self.training = trials, maps, outcome, training
        position = outcome.position if position is None else position
        record = trials.record(training, position)
        self.modules = outcome.modules or ((record.module,) if record is not None and record.module is not None else ())
        arrays = (
            [] if record is None else [f.labels for known in (*record.inputs, *record.outputs) for f in known.fields]
        )
        if record is not None:
            arrays += record.picked
        places = self._places(arrays)
        holding = [a for a in maps if any(_touches(a, place, at) for place, at in places.items())]
        inside = {m for module in self.modules[-1:] for m in module.modules()}
        owning = [a for a in maps if a not in holding and any(e.owner in inside for e in a.entries)]
        self.axes: list[Axis] = [*holding, *owning]

    def _places(self, arrays: list[np.ndarray]) -> dict[tuple[str, int], np.ndarray]:
        """The tensor dimensions, with indices, whose labels are among these, or are what these stand for."""
        relations = self.trials.trace.relations
        labels = relations.bases(np.concatenate([a.ravel() for a in arrays])) if arrays else np.zeros(0)
        sources = self.trials.trace.sources
        starts = np.array([s.start for s in sources])
        found = {}
        for number in np.unique(np.searchsorted(starts, labels, side="right") - 1):
            if number >= 0:
                source = sources[number]
                at = labels[(labels >= source.start) & (labels < source.start + source.size)] - source.start
                found[source.tensor, source.dim] = at
        return found


def _touches(axis: Axis, place: tuple[str, int], at: np.ndarray) -> bool:
    return any(e.key == place and bool((e.unit_of.numpy()[at] >= 0).any()) for e in axis.entries)

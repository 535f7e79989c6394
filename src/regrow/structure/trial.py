"""One run of a model with some of its axes edited, compared call by call with the run before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from .axis import Axis, Count
from .boundary import name_of_input, with_inputs
from .declared import outdated_sizes
from .example import Example, named_tensors, tensors_in_order
from .inherited import Disagreement, Fingerprints, Inherited, codes, inherited
from .journal import Comparison, Journal, Misfit, Reached, Record
from .maps import FRESH, PlaceMap, plan
from .outputs import outputs_of
from .rules import rule_of
from .running import Insides
from .trace import Trace, run

Maps = Mapping[Axis, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        failure: Why the edited model isn't what is left of the model, or "".
        position: How many calls agreed; of a successful trial all.
        modules: The modules that were running when it failed, outermost first.
        numbers: Calls that were made with other numbers, by position, and these.
        raised: Whether the model's own code failed.
        clear: Whether a failure is one whatever calls are made for dimensions of size 1.
    """

    failure: str
    position: int
    modules: tuple[nn.Module, ...] = ()
    numbers: Mapping[int, tuple[Any, ...]] = field(default_factory=dict)
    clear: bool = True
    raised: bool = False

    def further_than(self, other: Outcome) -> bool:
        """Whether this run got further."""
        return not self.failure or (bool(other.failure) and self.position > other.position)


class Trials:
    """Runs edited models against the journals of a first trace.

    Args:
        trace: The first trace; its sources are numbered by its labels.
        journals: One for eval (False) and one for train mode (True), with the shapes of the outputs.
    """

    def __init__(
        self,
        insides: Insides,
        example: Example,
        trace: Trace,
        journals: Mapping[bool, tuple[Journal, Sequence[tuple[int, ...]]]],
    ) -> None:
        self.insides, self.model = insides, insides.model
        self.example, self.trace, self.journals = example, trace, journals
        self.tensors = named_tensors(self.model)
        self.starts = {(source.tensor, source.dim): source for source in trace.sources}
        self.made = 0

    def record(self, training: bool, position: int) -> Record | None:
        """What the call at a position did in the first trace."""
        records = self.journals[training][0].records
        return records[position] if position < len(records) else None

    def run(self, axes: Sequence[Axis], maps: Maps, training: bool, until: int | None = None) -> Outcome:
        """Run the model with these index maps applied, and compare, up to a position if one is given."""
        self.made += 1
        planned = plan(axes, maps)
        journal, shapes = self.journals[training]
        prints = Fingerprints(self.trace.relations, self._gone(planned))
        comparison = Comparison(journal, prints, until)
        trace = Trace(rule_of, self.example.on_meta, Inherited(), comparison, self.trace.boundary)
        trace.count_flops = False
        tensors, (args, kwargs) = self._edited(trace, planned, maps, prints)
        self.model.train(training)
        with counted(planned):
            try:
                out = run(trace, self.insides, args, kwargs, tensors, outdated_sizes)
                comparison.finish()
            except Reached:
                return Outcome("", comparison.position)
            except Exception as error:
                why = _first_line(error)
                where = tuple(trace.modules)
                if isinstance(error, Disagreement):
                    return Outcome(why, comparison.position, where, clear=isinstance(error, Misfit))
                return Outcome(f"the model's code fails then: {why}", comparison.position, where, raised=True)
        if not _as_before(shapes, [tuple(t.shape) for t in outputs_of(self.model, out)]):
            return Outcome("the shape of the model's output would follow it", comparison.position)
        return Outcome("", comparison.position, (), comparison.numbers)

    def _gone(self, planned: Mapping[tuple[str, int], PlaceMap]) -> np.ndarray:
        gone = np.zeros(self.trace.relations.count, bool)
        for key, place in planned.items():
            source = self.starts.get(key)
            if source is not None:
                left = np.zeros(source.size, bool)
                left[place.take[~place.fresh]] = True
                gone[source.start : source.start + source.size] = ~left
        return gone

    def _edited(
        self, trace: Trace, planned: Mapping[tuple[str, int], PlaceMap], maps: Maps, prints: Fingerprints
    ) -> tuple[dict[Tensor, Tensor], tuple[tuple, dict[str, Any]]]:
        """Stand-ins of the edited shapes, with inherited labels; and the inputs."""
        fresh = {}
        for number, (axis, index_map) in enumerate(maps.items()):
            if (index_map == FRESH).any():
                fresh.update(dict.fromkeys(map(id, axis.places), codes(index_map, number)))
        by_tensor: dict[str, dict[int, PlaceMap]] = {}
        for (name, dim), place in planned.items():
            by_tensor.setdefault(name, {})[dim] = place

        def labels_of(name: str, ndim: int) -> dict[int, np.ndarray]:
            labels = {}
            for dim in range(ndim):
                source = self.starts.get((name, dim))
                if source is not None:
                    own = prints.of[source.start : source.start + source.size]
                    place = by_tensor.get(name, {}).get(dim)
                    labels[dim] = own if place is None else inherited(own, place, fresh)
            return labels

        found = {}
        for name, tensor in self.tensors.items():
            found[tensor] = self.example.edited(tensor, by_tensor.get(name, {}))
            trace.add_source(name, found[tensor], labels_of(name, tensor.ndim))
        given = with_inputs((self.example.args, self.example.kwargs), planned)
        for number, tensor in enumerate(tensors_in_order(given)):
            trace.add_input(number, tensor, labels_of(name_of_input(number), tensor.ndim))
        return found, given


def _as_before(shapes: Sequence[tuple[int, ...]], now: Sequence[tuple[int, ...]]) -> bool:
    """Whether outputs have the shapes that they had; -1 is a size that may grow."""
    return len(shapes) == len(now) and all(
        len(one) == len(other) and all(m in (-1, n) for m, n in zip(one, other, strict=True))
        for one, other in zip(shapes, now, strict=True)
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


@contextlib.contextmanager
def counted(planned: Mapping[tuple[str, int], PlaceMap]) -> Iterator[None]:
    """Inside, the integers in Python count what is left."""
    before = []
    try:
        for place in planned.values():
            for count in place.places:
                if isinstance(count, Count):
                    kept = vars(count.owner)  # a frozen object's attributes can't be set otherwise
                    before.append((kept, count.attribute, kept[count.attribute]))
                    kept[count.attribute] = count.attribute_with(len(place.take))
        yield
    finally:
        for kept, attribute, value in reversed(before):
            kept[attribute] = value

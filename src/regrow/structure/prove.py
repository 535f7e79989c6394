"""Proof by running: each axis is tried before it is offered.

Code may tie sizes together without tying labels: an integer on a module, a literal in a view. The model runs with
the first half of every axis removed and with a unit added to each; where that fails, bisection finds the axis, and
integers that equal one of its sizes are tried as counts that must follow. An axis that no count mends stays as it
is, with the reason. Shrinking is tried in eval mode and growing in train mode, so that the code of both has run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .axis import Axis, Count, Verdict
from .declared import outdated_sizes
from .example import Example, named_tensors
from .maps import FRESH, PlaceMap, plan
from .trace import module_stack, swapped

#: Counts that may have to follow an axis together, in one trial.
MAX_COUNTS = 2


def prove(model: nn.Module, axes: Sequence[Axis], example: Example) -> None:
    """Settle which axes can shrink and grow, and which Python integers follow them; writes it on the axes."""
    halves = {a: np.arange(a.size // 2, a.size) for a in axes if a.size > 1}
    _Trials(model, axes, example, training=False).settle("prunable", halves)
    larger = {a: np.append(np.arange(a.size), FRESH) for a in axes}
    _Trials(model, axes, example, training=True).settle("growable", larger)


@dataclass(frozen=True)
class _Failure:
    reason: str
    modules: tuple[nn.Module, ...]  # whose forward was running


class _Trials:
    """Runs of a model in one mode, with some of its axes edited."""

    def __init__(self, model: nn.Module, axes: Sequence[Axis], example: Example, training: bool) -> None:
        self.model, self.axes, self.example, self.training = model, axes, example, training
        self.tensors = named_tensors(model)
        self.names = {module: name for name, module in model.named_modules()}
        self.shapes, _ = self._run({})

    def settle(self, verdict: str, maps: Mapping[Axis, np.ndarray]) -> None:
        """Give axes whose maps fail the counts that mend them, or the verdict no."""
        while maps and self.failure(maps) is not None:
            for axis in self._culprits(list(maps), maps):
                failure = self.failure({axis: maps[axis]})
                if failure is None or not self._mended(axis, maps, failure):
                    reason = failure.reason if failure else "it can only change together with other axes"
                    setattr(axis, verdict, Verdict(False, reason))
            maps = {axis: m for axis, m in maps.items() if getattr(axis, verdict)}

    def _culprits(self, group: list[Axis], maps: Mapping[Axis, np.ndarray]) -> list[Axis]:
        """The axes of a failing group that fail; all of it where its halves work by themselves."""
        if len(group) == 1:
            return group
        halves = [group[: len(group) // 2], group[len(group) // 2 :]]
        failing = [half for half in halves if self.failure({axis: maps[axis] for axis in half}) is not None]
        return [axis for half in failing for axis in self._culprits(half, maps)] or group

    def _mended(self, axis: Axis, maps: Mapping[Axis, np.ndarray], failure: _Failure) -> bool:
        candidates = list(self._candidates(axis, failure))
        before = axis.counts
        for number in range(1, MAX_COUNTS + 1):
            for chosen in combinations(candidates, number):
                axis.counts = (*before, *chosen)
                if self.failure({axis: maps[axis]}) is None:
                    return True
        axis.counts = before
        return False

    def _candidates(self, axis: Axis, failure: _Failure) -> Iterator[Count]:
        """Integers on the modules that were running, or that own the axis's tensors, which equal one of its sizes."""
        units = {len(place.unit_of): place for place in reversed(axis.places)}
        known = {count.key for count in axis.counts}
        for module in dict.fromkeys([*failure.modules[::-1], *(e.owner for e in axis.entries)]):
            for attribute, value in vars(module).items():
                if type(value) is not int or (value != axis.size and value not in units):
                    continue
                like = units.get(value)
                unit_of = torch.arange(axis.size) if like is None or value == axis.size else like.unit_of
                count = Count(
                    unit_of,
                    like.run if like and value != axis.size else 1,
                    self.names[module],
                    module,
                    attribute,
                )
                if count.key not in known:
                    yield count

    def failure(self, maps: Mapping[Axis, np.ndarray]) -> _Failure | None:
        """Run the model with some axes edited; None if it runs and its outputs have the shapes they had."""
        shapes, failure = self._run(plan(self.axes, maps))
        if failure is None and shapes != self.shapes:
            return _Failure("the shape of the model's output would follow it", ())
        return failure

    def _run(self, planned: Mapping[tuple[str, int], PlaceMap]) -> tuple[list[torch.Size], _Failure | None]:
        by_tensor: dict[str, dict[int, PlaceMap]] = {}
        counts: list[tuple[Any, str, Any]] = []
        for (name, dim), place in planned.items():
            if dim >= 0:
                by_tensor.setdefault(name, {})[dim] = place
            else:
                counts += [(p.owner, p.attribute, len(place.take)) for p in place.places if isinstance(p, Count)]
        stand_ins = {
            t: self.example.stand_in(t, self._shaped(t, by_tensor.get(n, {}))) for n, t in self.tensors.items()
        }
        stack: list[nn.Module] = []
        self.model.train(self.training)
        with torch.no_grad(), swapped(self.model, stand_ins), _temporarily(counts):
            sizes = [(m, *new) for m in self.model.modules() for new in outdated_sizes(m)]
            with _temporarily(sizes), module_stack(stack):
                try:
                    out = self.model(*self.example.args, **self.example.kwargs)
                except Exception as error:
                    return [], _Failure(_first_line(error), tuple(stack))
        return [leaf.shape for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)], None

    def _shaped(self, tensor: Tensor, maps: Mapping[int, PlaceMap]) -> Tensor:
        data = tensor.detach().to("meta") if self.example.on_meta else tensor.detach()
        for dim, place in maps.items():
            data = data.index_select(dim, torch.from_numpy(place.take).to(data.device))
        return data


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"the model's code fails then: {lines[0] if lines else type(error).__name__}"


@contextlib.contextmanager
def _temporarily(values: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes that have other values inside."""
    before = [(target, name, getattr(target, name)) for target, name, _ in values]
    try:
        for target, name, value in values:
            setattr(target, name, value)
        yield
    finally:
        for target, name, value in reversed(before):
            setattr(target, name, value)

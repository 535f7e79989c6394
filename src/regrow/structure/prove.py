"""Proof by running: each axis is tried before it is offered.

Code may tie sizes together without tying labels: an integer on a module, a literal in a view. The model runs with
the first half of every axis removed and with a unit added to each; where that fails, bisection finds the axis, and
integers that equal one of its sizes are tried as counts that must follow. An axis that no count mends stays as it
is, with the reason. Where a number in the arithmetic differs from the first run, the axis is inexact. Shrinking is
tried in eval mode and growing in train mode, so that the code of both has run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import meta
from .axis import Axis, Count, Verdict
from .declared import outdated_sizes
from .example import Example, named_tensors, tensors_in
from .integers import integers
from .maps import FRESH, PlaceMap, plan
from .trace import module_stack, swapped

#: Counts that may have to follow an axis together; sets of them tried for one axis, and in all.
MAX_COUNTS = 2
TRIALS_PER_AXIS = 12
TRIALS = 96

Maps = Mapping[Axis, np.ndarray]


def prove(model: nn.Module, axes: Sequence[Axis], example: Example) -> None:
    """Settle which axes can shrink and grow, which are exact, and which Python integers follow them."""
    halves = {a: np.arange(a.size // 2, a.size) for a in axes if a.size > 1 and a.prunable}
    larger = {a: np.append(np.arange(a.size), FRESH) for a in axes if a.growable}
    for verdict, maps, training in (("prunable", halves, False), ("growable", larger, True)):
        trials = _Trials(model, axes, example, training)
        permitted = trials.settle(verdict, maps, trials.failure, trials.mend)
        trials.settle("exact", permitted, trials.other_number, lambda axis, index_map: False)


@dataclass(frozen=True)
class _Outcome:
    """Of one run: the outputs' shapes, the numbers in the arithmetic, or why and in which modules it failed."""

    shapes: tuple[torch.Size, ...] = ()
    numbers: tuple[tuple[Any, ...], ...] = ()
    failure: str = ""
    modules: tuple[nn.Module, ...] = ()


class _Numbers(TorchDispatchMode):
    """Records the Python numbers that pointwise calls and products are made with."""

    def __init__(self, on_meta: bool) -> None:
        super().__init__()
        self.on_meta = on_meta
        self.found: list[tuple[Any, ...]] = []
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.pointwise in func.tags or func._schema.name in _PRODUCTS:
            numbers = [a for a in (*args, *kwargs.values()) if isinstance(a, (int, float))]
            if numbers:
                self.found.append((func._schema.name, *numbers))
        elif func._schema.name in _REDUCTIONS and meta.storage_key(args[0]) in self._made:
            # A size that was made into a tensor and added up is a number as well.
            self.found.append((func._schema.name, args[0].numel()))
        if self.on_meta:
            args, kwargs = meta.to_meta(args, kwargs, lambda tensor: tensor.to("meta"))
        out = meta.call(func, args, kwargs)
        if isinstance(out, Tensor) and not any(isinstance(a, Tensor) for a in args):
            self._made[meta.storage_key(out)] = out
        return out


_PRODUCTS = {"aten::addmm", "aten::baddbmm"}
_REDUCTIONS = {"aten::sum", "aten::prod", "aten::linalg_vector_norm"}


class _Trials:
    """Runs of a model in one mode, with some of its axes edited."""

    def __init__(self, model: nn.Module, axes: Sequence[Axis], example: Example, training: bool) -> None:
        self.model, self.axes, self.example, self.training = model, axes, example, training
        self.tensors = named_tensors(model)
        self.names = {module: name for name, module in model.named_modules()}
        self.known: dict[tuple[tuple[int, ...], ...], _Outcome] = {}
        self.trials_left = TRIALS
        self.before = self._outcome({})
        if self.before.failure:
            raise ValueError(f"the model doesn't run a second time on the example: {self.before.failure}")

    def settle(
        self, verdict: str, maps: Maps, complaint: Callable[[Maps], str], mend: Callable[[Axis, np.ndarray], bool]
    ) -> Maps:
        """Mend the axes that give cause for complaint, or give them the verdict no; returns the others' maps."""
        while maps and complaint(maps):
            for axis in _culprits(list(maps), maps, complaint):
                alone = complaint({axis: maps[axis]})
                if not alone or not mend(axis, maps[axis]):
                    setattr(axis, verdict, Verdict(False, alone or "it can only change together with other axes"))
            maps = {axis: m for axis, m in maps.items() if getattr(axis, verdict)}
        return maps

    def failure(self, maps: Maps) -> str:
        """Why the model doesn't run with these axes edited, or "" if it does."""
        outcome = self._outcome(maps)
        if not outcome.failure and outcome.shapes != self.before.shapes:
            return "the shape of the model's output would follow it"
        return outcome.failure

    def other_number(self, maps: Maps) -> str:
        """Which number in the model's arithmetic follows these axes, or ""."""
        now = self._outcome(maps).numbers
        for before, after in zip(self.before.numbers, now, strict=False):
            if before != after:
                return f"a number in {after[0]} follows it"
        return "" if len(now) == len(self.before.numbers) else "the model makes other calls at another size"

    def mend(self, axis: Axis, index_map: np.ndarray) -> bool:
        """Find the integers that must follow an axis; the smallest set with which the model runs is kept."""
        before, candidates = axis.counts, list(self._candidates(axis, self._outcome({axis: index_map})))
        sets = chain.from_iterable(combinations(candidates, number) for number in range(1, MAX_COUNTS + 1))
        for chosen in islice(sets, min(TRIALS_PER_AXIS, self.trials_left)):
            self.trials_left -= 1
            axis.counts = (*before, *chosen)
            if not self.failure({axis: index_map}):
                return True
        axis.counts = before
        return False

    def _candidates(self, axis: Axis, outcome: _Outcome) -> Iterator[Count]:
        """Integers that equal one of the axis's sizes, on the modules that were running, that own the axis's tensors,
        or that hold such an owner; the nearest first."""
        of_length = {len(place.unit_of): (place.unit_of, place.run) for place in reversed(axis.places)}
        of_length[axis.size] = (torch.arange(axis.size), 1)
        known = {count.key for count in axis.counts}
        owners = [entry.owner for entry in axis.entries]
        holders = [self.model.get_submodule(self.names[owner].rpartition(".")[0]) for owner in owners]
        for module in dict.fromkeys([*outcome.modules[::-1], *owners, *holders]):
            for attribute, item, value in integers(module):
                if value in of_length:
                    count = Count(*of_length[value], self.names[module], module, attribute, item)
                    if count.key not in known:
                        yield count

    def _outcome(self, maps: Maps) -> _Outcome:
        key = tuple((id(axis), *(id(count) for count in axis.counts)) for axis in maps)
        if key not in self.known:
            self.known[key] = self._run(plan(self.axes, maps))
        return self.known[key]

    def _run(self, planned: Mapping[tuple[str, int], PlaceMap]) -> _Outcome:
        by_tensor: dict[str, dict[int, PlaceMap]] = {}
        counts: list[tuple[Count, int]] = []
        for (name, dim), place in planned.items():
            if dim >= 0:
                by_tensor.setdefault(name, {})[dim] = place
            else:
                counts += [(count, len(place.take)) for count in place.places if isinstance(count, Count)]
        stand_ins = {t: self._stand_in(t, by_tensor.get(name, {})) for name, t in self.tensors.items()}
        stack: list[nn.Module] = []
        self.model.train(self.training)
        with torch.no_grad(), swapped(self.model, stand_ins):
            for count, number in counts:
                setattr(count.owner, count.attribute, count.attribute_with(number))
            for module in self.model.modules():
                for attribute, size in list(outdated_sizes(module)):
                    setattr(module, attribute, size)
            with module_stack(stack), _Numbers(self.example.on_meta) as numbers:
                try:
                    out = self.model(*self.example.args, **self.example.kwargs)
                except Exception as error:
                    lines = str(error).strip().splitlines() or [type(error).__name__]
                    return _Outcome(failure=f"the model's code fails then: {lines[0]}", modules=tuple(stack))
        shapes = tuple(tensor.shape for tensor in tensors_in(out))
        return _Outcome(shapes, tuple(numbers.found))

    def _stand_in(self, tensor: Tensor, maps: Mapping[int, PlaceMap]) -> Tensor:
        data = tensor.detach().to("meta") if self.example.on_meta else tensor.detach().clone()
        for dim, place in maps.items():
            data = data.index_select(dim, torch.from_numpy(place.take).to(data.device))
        return self.example.stand_in(tensor, data)


def _culprits(group: list[Axis], maps: Maps, complaint: Callable[[Maps], str]) -> list[Axis]:
    """The axes of a group that give cause for complaint; all of it where its halves by themselves do not."""
    if len(group) == 1:
        return group
    halves = [group[: len(group) // 2], group[len(group) // 2 :]]
    causing = [half for half in halves if complaint({axis: maps[axis] for axis in half})]
    return [axis for half in causing for axis in _culprits(half, maps, complaint)] or group

"""What those that read an axis's units get of them, whatever lies in between and however they read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import NotPermissible
from ..rows import Rows, number_of
from ..structure import Axis
from .passage import Passage, Step, leaves, parts_of
from .sides import Side


@dataclass(frozen=True)
class Sight:
    """What the readers of an axis's units get of them.

    Args:
        passage: To where they get it.
        places: For the slot of what a reader gets, where each unit's numbers lie in it, shape ``(size, samples)``.
        old: What the old units send there, shape ``(size, all samples)``.
    """

    passage: Passage
    places: Mapping[int, Tensor]
    old: Tensor

    @classmethod
    def of(cls, passage: Passage, readers: Side) -> Sight:
        """Look at a passage; where there are many numbers for each unit, at as many of them as tell enough.

        Raises:
            NotPermissible: It can't be told which numbers are whose.
        """
        weights = weights_reading(passage)
        calls = calls_reading(passage, weights)
        used = {slot for step in passage.steps for slot in step.slots()} | set(calls)
        shown = [s for s in passage.steps if set(s.outputs).isdisjoint(passage.ends) or used.intersection(s.outputs)]
        reading = [s for s in passage.steps if weights.issuperset(s.slots())]
        before = replace(passage, ends=dict.fromkeys(calls, _NOTHING), steps=shown)
        reading = replace(passage, ends=dict.fromkeys(weights, _NOTHING), steps=reading)
        with torch.no_grad():
            given = before.outputs({})
        most = max(_ENOUGH, 8 * readers.size) // len(calls)
        owners = {slot: owners_of(reading, readers, call, slot, given[slot]) for slot, call in calls.items()}
        places = {slot: _places(passage.axis, each, most) for slot, each in owners.items()}
        return cls(before, places, _gathered(given, places))

    @torch.no_grad()
    def sent(self, units: Rows) -> Tensor:
        """What units send, shape ``(units, all samples)``."""
        parts = [_gathered(self.passage.outputs(part), self.places) for part in parts_of(self.passage, units)]
        return torch.cat(parts)[: number_of(units)]


_NOTHING = torch.empty(0)

#: So many numbers tell how independent units are, or eight for each of many units.
_ENOUGH = 2048


def _gathered(given: Mapping[int, Tensor], places: Mapping[int, Tensor]) -> Tensor:
    return exact(torch.cat([given[slot].detach().reshape(-1)[index] for slot, index in places.items()], 1))


def weights_reading(passage: Passage) -> set[int]:
    """The slots of weights that read the units, and of what is computed from nothing else that follows these."""
    found = {slot for slot, entries in passage.entries.items() if all(e.role == "in" for e in entries)}
    for step in passage.steps:
        if found.issuperset(step.slots()):
            found.update(slot for slot in step.outputs if slot is not None)
    return found


def calls_reading(passage: Passage, weights: set[int]) -> dict[int, Step]:
    """The slots of what readers get of the units, each with a call that reads it."""
    found: dict[int, Step] = {}
    for step in passage.steps:
        if passage.ends.keys() & set(step.outputs) and weights.intersection(step.slots()):
            units = set(step.slots()) - weights
            if len(units) != 1:
                raise _unseen(passage.axis, f"{step.op} reads more than one thing of them")
            found[units.pop()] = step
    return found


def _unseen(axis: Axis, why: str) -> NotPermissible:
    return NotPermissible(
        f"what units of {axis.name} send can't be looked at: {why}; leave that axis out (protect=), or take a "
        "method that doesn't look at it, such as Random, which grows, or L1, which prunes."
    )


def owners_of(reading: Passage, readers: Side, call: Step, slot: int, given: Tensor) -> Tensor:
    """The unit that each number of what a reader gets belongs to, -1 where it reads none.

    What a number does to the sum of all that the reader puts out is the sum of the weights that read it. Relative to
    what it does where all weights are one, that is the number that the weights of its unit all have: a digit of the
    unit's own number.
    """

    def reached(levels: Tensor) -> Tensor:
        rows = readers.rows((levels / base)[:, None].expand(-1, readers.width).to(given.device))
        x = given.detach().requires_grad_()
        with torch.enable_grad():
            args, kwargs = call.given({**reading.outputs(rows), slot: x})
            (put_out, *_) = (t for t in leaves((call.op(*args, **kwargs),)) if isinstance(t, Tensor))
            (gradient,) = torch.autograd.grad(put_out.sum(), x)
        return gradient.float()

    base = _BASE if given.element_size() > 2 else _SHORT_BASE
    whole = reached(torch.full([readers.size], base))
    owners, power = torch.where(whole > _READ * whole.max(), 0, -1), 1
    while power < readers.size:
        digit = reached(torch.arange(readers.size) // power % base + 1) / whole * base - 1
        known = (owners >= 0) & ((digit - digit.round()).abs() < 0.25)
        owners = torch.where(known, owners + power * digit.round().nan_to_num().long(), -1)
        power *= base
    return torch.where(owners < readers.size, owners, -1)


#: Of the digits: TF32 has as many bits of a number, and numbers in 16 bits can be told after they were summed.
_BASE, _SHORT_BASE = 256, 16
#: Numbers are read that weigh so much, relative to the one that weighs most.
_READ = 1e-3


def _places(axis: Axis, owners: Tensor, most: int) -> Tensor:
    """Where the numbers of each unit are, in order; shape ``(size, samples)``, with ``most`` samples at most.

    Raises:
        NotPermissible: Not all units have as many.
    """
    varying = [d for d in range(owners.ndim) if bool((owners != owners.narrow(d, 0, 1)).any())]
    turned = [*varying, *(d for d in range(owners.ndim) if d not in varying)]
    number = math.prod(owners.shape[d] for d in varying)
    here = owners.permute(turned).reshape(number, -1)[:, 0]
    counts = torch.bincount(here[here >= 0], minlength=axis.size)
    if not counts.all() or bool((counts != counts[0]).any()):
        raise _unseen(axis, "it isn't the same for each of them")
    order = here.argsort(stable=True)[int((here < 0).sum()) :]
    places = torch.arange(owners.numel(), device=owners.device).view(owners.shape).permute(turned)
    places = places.reshape(number, -1)[order].reshape(axis.size, -1)
    if places.shape[1] <= most:
        return places
    some = torch.randperm(places.shape[1], generator=torch.Generator().manual_seed(0))[:most]
    return places[:, some.to(places.device)]


def exact(tensor: Tensor) -> Tensor:
    """In the precision in which directions are told apart."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)

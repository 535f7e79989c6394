"""Fisher pruning: what the loss would change least without, to second order, goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import NotPermissible
from ..evidence import Needs, Passage
from ..evidence.passage import Step, leaves
from ..evidence.sides import Side
from ..evidence.sight import calls_reading, owners_of, weights_reading
from ..method import register
from ..structure import Axis


@register
@dataclass(frozen=True)
class Fisher:
    """The second-order change of the loss by what goes: ``½·E[(∂L_n/∂a)²]`` at a = 1, for the gate ``a`` of a unit.

    Without a unit, a = 0, the loss is ``−∂L/∂a + ½·∂²L/∂a²`` above what it is, to second order. At a minimum the first
    term is zero, and where the loss is a log-likelihood its mean second derivative is the mean square of the
    derivatives for single examples, the diagonal of the Fisher matrix. A unit's gate is a factor on all that reads it:
    what all its readers tell of it is summed before it is squared. No unit counts with others: they go one by one.

    The loss is the mean over the examples of a batch. An example is an index of the first dimension of what is on the
    way from the weights that make the units to those that read them, of the smallest there: of a model that has
    positions first these are the examples. Under a norm by the batch's statistics an example's share is what its own
    numbers do.

    LeCun, Denker & Solla, "Optimal Brain Damage" (NeurIPS 1989); Theis et al., "Faster gaze prediction with dense
    networks and Fisher pruning" (2018); Liu et al., "Group Fisher Pruning for Practical Network Compression" (ICML
    2021), for units that several layers share.
    """

    name: ClassVar[str] = "fisher"
    leaves_out: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        """The squares of the derivatives by gates."""
        return {"derivatives": lambda axis, _: Derivatives(axis)}

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        """½·E[(∂L_n/∂a)²] of each unit's gate, shape ``(axis.size,)``."""
        return seen["derivatives"].squares / 2


class Derivatives:
    """Gathers the squared derivatives of single examples' losses by the gates of an axis's units.

    Attributes:
        squares: Their means over all examples, shape ``(axis.size,)``.

    Raises:
        NotPermissible: No weight reads the units, or one that makes them.
    """

    def __init__(self, axis: Axis) -> None:
        check_read(axis)
        self.squares = torch.zeros(axis.size)
        self._number = 0

    def add(self, passage: Passage) -> None:
        """See one batch; NotPermissible where it can't be told which numbers are whose."""
        found = derivatives(passage)
        self._number += len(found)
        share = len(found) / self._number
        self.squares = (1 - share) * self.squares + share * found.square().mean(0).cpu().float()


def check_read(axis: Axis) -> None:
    """Weights read the axis's units, and do nothing else to them.

    Raises:
        NotPermissible: They don't.
    """
    readers = axis.with_role("in")
    others = [entry.tensor for entry in axis.entries if entry.role != "in"]
    if not readers or any(entry.tensor is other for entry in readers for other in others):
        why = "one weight both makes and reads" if readers else "no weight only reads"
        raise NotPermissible(
            f"{why} the units of {axis.name}, so what they are worth isn't known; leave that axis out (protect=), or "
            "prune it by Taylor."
        )


def derivatives(passage: Passage) -> Tensor:
    """∂L_n/∂a on a batch, shape ``(examples, axis.size)``: what readers get of a unit, times the gradient there."""
    size, side = passage.axis.size, Side.of(passage.readers, passage.axis.size)
    weights = weights_reading(passage)
    calls, sent = calls_reading(passage, weights), _sent(passage)
    reading = [s for s in passage.steps if passage.ends.keys() & set(s.outputs) and weights.intersection(s.slots())]
    values = replace(passage, ends=dict.fromkeys({*sent, *calls}, _NOTHING)).outputs({})
    made = [step for step in passage.steps if weights.issuperset(step.slots())]
    before = replace(passage, ends=dict.fromkeys(weights, _NOTHING), steps=made)
    given = {slot: values[slot].detach().requires_grad_() for slot in calls}
    with torch.enable_grad():
        gain = _gain(passage, reading, {**before.outputs({}), **given})
        gradients = torch.autograd.grad(gain, list(given.values()))
    examples = _examples([values[slot] for slot in sent], [x.shape[0] for x in given.values()])
    total = gain.new_zeros(examples, size)
    for (slot, x), gradient in zip(given.items(), gradients, strict=True):
        found = [owners_of(before, side, step, slot, x.detach()) for step in reading if slot in step.slots()]
        owners = torch.stack(found).amax(0).reshape(examples, -1)  # one may read what another leaves out
        shares = (x.detach().to(total) * gradient.to(total)).reshape(examples, -1)
        total.scatter_add_(1, owners.clamp(min=0), torch.where(owners >= 0, shares, 0.0))
    return examples * total


_NOTHING = torch.empty(0)


def _sent(passage: Passage) -> set[int]:
    """The slots of what units send, from where data have joined on."""
    found = set[int]().union(*passage.made.values())
    for step in passage.steps:
        if not found.isdisjoint(step.slots()):
            found.update(slot for slot in step.outputs if slot is not None)
    return found


def _gain(passage: Passage, reading: Sequence[Step], values: dict[int, Tensor]) -> Tensor:
    """The passage's gain, by what readers are given."""
    exact = torch.promote_types(torch.float32, next(iter(passage.ends.values())).dtype)
    parts = []
    for step in reading:
        args, kwargs = step.given(values)
        put_out = [t for t in leaves((step.op(*args, **kwargs),)) if isinstance(t, Tensor)]
        ends = [(t, passage.ends[s]) for s, t in zip(step.outputs, put_out, strict=True) if s in passage.ends]
        parts += [(t.to(exact) * gradient.to(exact)).sum() for t, gradient in ends]
    return torch.stack(parts).sum()


def _examples(sent: Sequence[Tensor], rows: Sequence[int]) -> int:
    """How many examples there are: readers get as many rows, or as many for each of their positions."""
    lengths = {t.shape[0] for t in sent if t.ndim > 1 and t.shape[0] > 1}
    return min((n for n in lengths if all(row % n == 0 for row in rows)), default=rows[0] if len({*rows}) == 1 else 1)

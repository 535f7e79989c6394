"""What convolutions and products with matrices read of an axis's units, position by position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import NotPermissible
from ..rows import own_in_turn
from ..structure import Entry
from .pairs import LINEAR, SAME_WEIGHT
from .passage import Passage, Slot, Step

_aten = torch.ops.aten
_CONVOLUTION = _aten.convolution.default


@dataclass(frozen=True)
class Reading:
    """A call that reads units: a product with a matrix, a convolution, or one group of that.

    Attributes:
        entry: The weight.
        given, end: The slots of what it reads and of what it puts out.
        own: Where the units are in what it reads, along dimension 1, unit after unit.
        outputs: Where the group's outputs are.
        kernel: The kernel's size; empty for a matrix.
        geometry: Stride, padding, dilation, whether it is transposed, output padding; empty for a matrix.
        biased: Whether a bias is added.
    """

    entry: Entry
    given: int
    end: int
    own: Tensor
    outputs: slice
    kernel: tuple[int, ...]
    geometry: tuple[Any, ...]
    biased: bool

    @classmethod
    def all_of(cls, step: Step, weights: Mapping[int, Entry], end: int) -> Iterator[Reading]:
        """The groups of a call with one of these weights; none if it is no such call."""
        given, weight, bias = (None if at is None else step.args[at] for at in LINEAR.get(step.op, (None,) * 3))
        if not (isinstance(given, Slot) and isinstance(weight, Slot) and weight.number in weights):
            return
        entry, kernel, geometry, groups = weights[weight.number], (), (), 1
        channels, outputs = (entry.tensor.shape[d] for d in (entry.dim, 1 - entry.dim))
        if step.op is _CONVOLUTION:
            kernel, geometry, groups = tuple(entry.tensor.shape[2:]), tuple(step.args[3:8]), step.args[8]
            if entry.dim != (0 if geometry[3] else 1) or (geometry[3] and groups > 1):
                return
        for group in range(groups):
            of = slice(group * outputs // groups, (group + 1) * outputs // groups)
            own = own_in_turn(entry) + group * channels
            yield cls(entry, given.number, end, own, of, kernel, geometry, bias is not None)

    @property
    def taps(self) -> int:
        """How many numbers of each channel one position reads."""
        return math.prod(self.kernel)

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return bool(self.kernel) and bool(self.geometry[3])

    def features(self, given: Tensor) -> Tensor:
        """What each position reads, unit after unit: shape ``(examples, positions, features)``."""
        own = given.index_select(1, self.own)
        if not self.kernel:
            return own[:, None]
        each = torch.eye(self.taps, dtype=given.dtype, device=given.device).reshape(1, self.taps, *self.kernel)
        weight = each.expand(len(self.own), *each.shape[1:])
        weight = weight if self.transposed else weight.reshape(-1, 1, *self.kernel)
        return by_position(_aten.convolution(own, weight, None, *self.geometry, len(self.own)))

    def put_out(self, given: Tensor, weights: Tensor) -> Tensor:
        """The group's output with these weights on features, shape ``(outputs, features)``, and a bias behind them."""
        own = given.index_select(1, self.own)
        weights, bias = (weights[:, :-1], weights[:, -1]) if self.biased else (weights, None)
        if not self.kernel:
            return torch.nn.functional.linear(own, weights, bias)
        weights = weights.reshape(len(weights), len(self.own), *self.kernel)
        return _aten.convolution(own, weights.transpose(0, 1) if self.transposed else weights, bias, *self.geometry, 1)


def by_position(tensor: Tensor) -> Tensor:
    """What a call puts out, ``(examples, channels, …)``, as ``(examples, positions, channels)``."""
    return tensor.flatten(2).transpose(1, 2) if tensor.ndim > 2 else tensor[:, None]


def readings_of(passage: Passage) -> list[Reading]:
    """All that reads the units, in order.

    Raises:
        NotPermissible: Something else does than a convolution or a product with a matrix, of two examples or more.
    """
    one = ((slot, entries[0]) for slot, entries in passage.entries.items() if len(entries) == 1)
    weights = {slot: entry for slot, entry in one if entry.role == "in"}
    found: dict[int, list[Reading]] = {}
    for step in passage.steps:
        if step.op in SAME_WEIGHT and (slot := step.slots()[0]) in weights:
            weights |= {out: weights[slot] for out in step.outputs if out is not None}
        for end in passage.ends.keys() & set(step.outputs):
            found[end] = found.get(end) or list(Reading.all_of(step, weights, end))
    if any(len(passage.ends[end]) < 2 or not readings for end, readings in found.items()):
        raise NotPermissible(
            f"what new units of {passage.axis.name} would win can't be told: what reads them is no plain convolution, "
            "and no product with a matrix, of two examples or more; leave that axis out (protect=), or grow it by "
            "GradMax."
        )
    return [reading for readings in found.values() for reading in readings]


def tapped(passage: Passage, readings: Sequence[Reading]) -> Passage:
    """The passage with readers that put out what they are given."""
    given = {reading.end: reading.given for reading in readings}

    def tap(step: Step) -> Step:
        end = next((slot for slot in step.outputs if slot in given), None)
        return step if end is None else Step(_aten.clone.default, (Slot(given[end]),), {}, step.outputs)

    return replace(passage, steps=[tap(step) for step in passage.steps])

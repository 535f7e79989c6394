"""FLOPs of a forward pass, by what they follow: the elements of a weight, or, where data meet data, units of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .labels import FIXED

if TYPE_CHECKING:
    from .trace import Trace


class Flops:
    """What is booked.

    Attributes:
        per_element: For tensors by name.
        per_index: For dimensions of tensors, by name and number.
        rest: What follows nothing.
    """

    def __init__(self) -> None:
        self.per_element: dict[str, float] = {}
        self.per_index: dict[tuple[str, int], float] = {}
        self.rest = 0.0

    def book(self, trace: Trace, tensors: Sequence[Tensor], flops: float) -> None:
        """Book a call that multiplies these tensors."""
        name = next((name for t in tensors if trace.of(t).origin == "weight" and (name := trace.name_of(t))), None)
        if name is not None:
            self.per_element[name] = self.per_element.get(name, 0.0) + flops / max(1, trace.numel_of(name))
            return
        widest = max((f for t in tensors for f in trace.of(t).fields), key=lambda f: f.labels.size, default=None)
        if widest is None:
            self.rest += flops
            return
        bases = trace.relations.bases(widest.labels)
        bases = bases[bases > FIXED]
        numbers, counts = np.unique(trace.sources.numbers(bases), return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            source = trace.sources[number]
            key = (source.tensor, source.dim)
            share = flops * count / (len(bases) * source.size)
            self.per_index[key] = self.per_index.get(key, 0.0) + share

    def total(self, shapes: Mapping[str, Sequence[int]]) -> float:
        """All FLOPs for tensors of these shapes."""
        elements = sum(share * float(np.prod(shapes[name])) for name, share in self.per_element.items())
        return self.rest + elements + sum(share * shapes[name][dim] for (name, dim), share in self.per_index.items())

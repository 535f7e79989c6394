"""Where a model meets its user: what it puts out, what it looks up, and the channels of its inputs.

They are frozen, unless growing them was asked for: then classes, vocabulary and input channels are axes too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..patterns import means
from .axis import Place, holder, read_as
from .maps import PlaceMap

Opened = bool | str | Sequence[str]


@dataclass
class Boundary:
    """What of the boundary may grow.

    Args:
        opened: All of it, nothing, or what these names of modules or tensors (or patterns) produce or read.
        met: Inputs by number -> dimensions that meet labels of a weight which is opened; found by a first trace.
    """

    opened: Opened = False
    met: dict[int, set[int]] = field(default_factory=dict)

    def opens(self, tensor: str) -> bool:
        """Whether that tensor's side of the boundary may grow."""
        if isinstance(self.opened, bool):
            return self.opened
        patterns = [self.opened] if isinstance(self.opened, str) else self.opened
        names = [name for t in (tensor, read_as(tensor)) for name in (t, holder(t))]
        return any(means(pattern, name) for pattern in patterns for name in names)


@dataclass(eq=False)
class Given(Place):
    """One dimension of one of the model's inputs, by the input's number."""

    number: int
    dim: int

    @property
    def key(self) -> tuple[str, int]:
        return name_of_input(self.number), self.dim


def name_of_input(number: int) -> str:
    """What an input is called among tensors."""
    return f"(input {number})"


def with_inputs(given: Any, planned: Mapping[tuple[str, int], PlaceMap]) -> Any:
    """A model's inputs after the maps of their dimensions; fresh indices copy their templates."""
    number = -1

    def edited(value: Any) -> Any:
        nonlocal number
        if not isinstance(value, Tensor):
            return value
        number += 1
        for dim in range(value.ndim):
            place = planned.get((name_of_input(number), dim))
            if place is not None:
                value = value.index_select(dim, torch.from_numpy(place.take).to(value.device))
        return value

    return pytree.tree_map(edited, given)

"""The input that a model is analysed on, and what stands in for its parameters meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .maps import PlaceMap


@dataclass(frozen=True)
class Example:
    """Inputs of a model, on the meta device or on their own."""

    args: tuple
    kwargs: dict[str, Any]
    on_meta: bool

    @classmethod
    def of(cls, args: tuple, kwargs: dict[str, Any], on_meta: bool) -> Example:
        """The user's inputs, detached, on meta if asked."""

        def stand_in(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if on_meta:
                return value.detach().to("meta")
            return value.clone() if value.is_inference() else value.detach()

        return cls(pytree.tree_map(stand_in, args), pytree.tree_map(stand_in, kwargs), on_meta)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the inputs."""
        return tensors_in_order((self.args, self.kwargs))

    def stand_ins(self, model: nn.Module) -> dict[Tensor, Tensor]:
        """For each parameter and buffer a tensor that may take its place: what a run does to it is lost."""
        return {t: self.edited(t, {}) for t in named_tensors(model).values()}

    def edited(self, tensor: Tensor, maps: Mapping[int, PlaceMap]) -> Tensor:
        """A stand-in of a tensor after the maps of its dimensions."""
        if self.on_meta and (maps or tensor.is_contiguous()):
            shape = [len(maps[d].take) if d in maps else n for d, n in enumerate(tensor.shape)]
            return torch.empty(shape, dtype=tensor.dtype, device="meta", requires_grad=tensor.requires_grad)
        if self.on_meta:
            data = torch.empty_like(tensor, device="meta")
        else:
            data = tensor.detach().clone()
            for dim, place in maps.items():
                data = data.index_select(dim, torch.from_numpy(place.take).to(data.device))
        return data.detach().requires_grad_(tensor.requires_grad)


def tensors_in_order(given: Any) -> list[Tensor]:
    """All tensors among a model's inputs."""
    return [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in what a model returned: in containers that torch knows, and in attributes of other objects."""
    found: list[Tensor] = []
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        for leaf in pytree.tree_leaves(waiting.pop()):
            if isinstance(leaf, Tensor):
                found.append(leaf)
            elif not isinstance(leaf, (type, nn.Module, str, bytes)) and id(leaf) not in seen:
                seen.add(id(leaf))
                waiting.append(_held_by(leaf))
    return found


def _held_by(value: Any) -> list[Any]:
    """What an object holds: the items of containers that torch doesn't know, and attributes."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, CONTAINERS) else ()
    slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
    return [*items, *getattr(value, "__dict__", {}).values(), *(getattr(value, name) for name in slots)]


CONTAINERS = (list, tuple, set, frozenset, deque)


def _slots(kind: type) -> Sequence[str]:
    names = vars(kind).get("__slots__", ())
    return [names] if isinstance(names, str) else [n for n in names if n not in ("__dict__", "__weakref__")]


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once, under their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}

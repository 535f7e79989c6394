"""What a model puts out: what whoever calls it reads, and what it keeps for its own next call.

Outputs keep their sizes. The keys and values that a language model returns beside its logits are outputs by form only:
they lie in an object of a class of their own, under the name of an argument by which the model takes them back, and
the model that takes them back has changed in the same way. So they may change, and nothing is promised about them,
unless they are put out elsewhere as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from .example import CONTAINERS, tensors_in


def outputs_of(model: nn.Module, returned: Any) -> list[Tensor]:
    """All tensors in what a model returned, but for those that it keeps for its next call."""
    states = list(_states(model, returned))
    if not states:
        return tensors_in(returned)
    kept = {id(tensor) for part in states for tensor in tensors_in(part)}
    read = [part for _, part in _named(returned) if all(part is not state for state in states)]
    kept -= {id(tensor) for part in read for tensor in tensors_in(part)}
    return [tensor for tensor in tensors_in(returned) if id(tensor) not in kept]


def part_of(returned: Any) -> dict[int, str]:
    """By the id of each tensor in what a model returned, which part it is of, where there are several by name."""
    parts = dict(_named(returned))
    if len(parts) < 2:
        return {}
    return {id(tensor): f" {name!r}" for name, value in parts.items() for tensor in tensors_in(value)}


def _states(model: nn.Module, returned: Any) -> Iterator[Any]:
    for name, part in _named(returned):
        opaque = not isinstance(part, (Tensor, Mapping, *CONTAINERS))
        if opaque and tensors_in(part) and any(name in _arguments(module) for module in model.modules()):
            yield part


def _named(returned: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(returned, Mapping):
        yield from returned.items()
    elif isinstance(returned, tuple) and hasattr(returned, "_fields"):
        yield from zip(returned._fields, returned, strict=True)
    elif is_dataclass(returned) and not isinstance(returned, type):
        yield from ((field.name, getattr(returned, field.name, None)) for field in fields(returned))


def _arguments(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # of what isn't written in Python
        return {}

"""The integers that modules keep: as attributes, or inside tuples, lists and dicts that are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def integers(module: nn.Module) -> Iterator[tuple[str, Any, int]]:
    """Attribute, item within it (None where the attribute itself is the integer), value.

    >>> list(integers(nn.Linear(3, 2)))
    [('in_features', None, 3), ('out_features', None, 2)]
    """
    for attribute, held in vars(module).items():
        if attribute.startswith("_"):
            continue
        if type(held) is int:
            yield attribute, None, held
        elif type(held) in (tuple, list, dict):
            items = held.items() if isinstance(held, dict) else enumerate(held)
            yield from ((attribute, item, value) for item, value in items if type(value) is int)


def integer_name(attribute: str, item: Any) -> str:
    """How an integer is written: ``groups``, ``sizes[0]``, ``config['heads']``."""
    return attribute if item is None else f"{attribute}[{item!r}]"


def with_integer(module: nn.Module, attribute: str, item: Any, value: int) -> Any:
    """What the attribute has to be for the integer to be ``value``."""
    held = getattr(module, attribute)
    if item is None:
        return value
    if isinstance(held, dict):
        return {**held, item: value}
    return type(held)(value if i == item else other for i, other in enumerate(held))

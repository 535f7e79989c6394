"""The integers that modules keep: as attributes, in tuples, lists and dicts, and on configuration objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn


class Integer(NamedTuple):
    """One integer and where it is kept."""

    holder: Any  # the module, or a configuration object that it keeps
    within: str  # the attribute by which the module keeps that object, or ""
    attribute: str
    item: Any  # the item within a tuple, list or dict, or None
    value: int

    @property
    def name(self) -> str:
        """How the integer is written: ``groups``, ``sizes[0]``, ``config.heads``."""
        name = self.attribute if self.item is None else f"{self.attribute}[{self.item!r}]"
        return f"{self.within}.{name}" if self.within else name

    def attribute_with(self, value: int) -> Any:
        """What the attribute has to be for the integer to be ``value``."""
        held = getattr(self.holder, self.attribute)
        if self.item is None:
            return value
        if isinstance(held, dict):
            return {**held, self.item: value}
        return type(held)(value if i == self.item else other for i, other in enumerate(held))


def integers(module: nn.Module) -> Iterator[Integer]:
    """All integers of a module.

    >>> [(found.name, found.value) for found in integers(nn.Linear(3, 2))]
    [('in_features', 3), ('out_features', 2)]
    """
    yield from _integers_of(module, "")
    for attribute, held in list(vars(module).items()):
        if not attribute.startswith("_") and not isinstance(held, _NO_HOLDERS) and not callable(held):
            yield from _integers_of(held, attribute)


#: Attributes of these types hold no sizes; looking into them would cost time, or be endless.
_NO_HOLDERS = (str, bytes, bool, int, float, complex, list, tuple, dict, set, Tensor, nn.Module, type, type(None))


def _integers_of(holder: Any, within: str) -> Iterator[Integer]:
    for attribute, held in list(getattr(holder, "__dict__", {}).items()):
        if attribute.startswith("_"):
            continue
        if type(held) is int:
            yield Integer(holder, within, attribute, None, held)
        elif type(held) in (tuple, list, dict):
            items = held.items() if isinstance(held, dict) else enumerate(held)
            for item, value in items:
                if type(value) is int:
                    yield Integer(holder, within, attribute, item, value)

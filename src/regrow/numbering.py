"""What numbers or counts the items of a ``ModuleList``: indices that layers keep, and integers in configurations."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .structure.integers import integers
from .transaction import Transaction


def plan_numbers(
    writes: Transaction, model: nn.Module, path: str, before: Sequence[nn.Module], after: Sequence[nn.Module]
) -> None:
    """Plan to let indices and counts follow a list that has other items now.

    Args:
        path: Of the list.
        before, after: Its items.
    """
    for name, attribute in _indices(before):
        for number, item in enumerate(after):
            holder = item.get_submodule(name)
            if getattr(holder, attribute, number) != number:
                writes.attribute(holder, attribute, number)
    _plan_counts(writes, model, path, before, after)


def _indices(items: Sequence[nn.Module]) -> Iterator[tuple[str, str]]:
    """Attributes that number the items: of the item itself or a module in it, 0 in the first, 1 in the second, …"""
    if len(items) < 2:
        return
    for name, module in items[0].named_modules():
        for attribute, value in list(vars(module).items()):
            if type(value) is int and value == 0 and all(_at(m, name, attribute) == i for i, m in enumerate(items)):
                yield name, attribute


def _at(item: nn.Module, name: str, attribute: str) -> Any:
    try:
        return getattr(item.get_submodule(name), attribute, None)
    except AttributeError:
        return None


def _plan_counts(
    writes: Transaction, model: nn.Module, path: str, before: Sequence[nn.Module], after: Sequence[nn.Module]
) -> None:
    """Integers that count the items: of the module that holds the list, and of a configuration that the model has.

    Of a configuration those count from which a model with as many items is built.
    """
    owner = model.get_submodule(path.rpartition(".")[0])
    for attribute, value in list(vars(owner).items()):
        if type(value) is int and value == len(before) and "head" not in attribute:
            writes.attribute(owner, attribute, len(after))
    for module, inner in _with_configuration(model, path):
        held = vars(module)["config"]
        changes = _counting(module, held, inner, before, after)
        for attribute, value in changes.items():
            writes.item(vars(held), attribute, value)
        if changes:
            return


def _with_configuration(model: nn.Module, path: str) -> Iterator[tuple[nn.Module, str]]:
    """The modules above the list that have a configuration, the outermost first, with the path from there."""
    parts = path.split(".")
    for depth in range(len(parts)):
        module = model.get_submodule(".".join(parts[:depth]))
        if hasattr(vars(module).get("config"), "__dict__"):
            yield module, ".".join(parts[depth:])


def _counting(
    module: nn.Module, configuration: Any, path: str, before: Sequence[nn.Module], after: Sequence[nn.Module]
) -> Mapping[str, Any]:
    """What of a configuration has to change for a model of as many items to be built from it.

    An integer, with lists that have an entry for each layer, as the kinds of attention that they use.
    """
    holder = type("_", (), {})()
    vars(holder).update(vars(configuration))
    numbers = {i.attribute: len(after) for i in integers_on(holder) if i.value == len(before)}
    lists = {
        name: _lengthened(value, before, after)
        for name, value in vars(configuration).items()
        if type(value) in (list, tuple) and len(value) == len(before) and "layer" in name
    }
    for chosen in itertools.chain(({name: value} for name, value in numbers.items()), [{}]):
        for more in (lists, {}) if lists else ({},):
            changed = {**chosen, **more}
            if changed and _builds(module, configuration, path, changed, len(after)):
                return changed
    return {}


def integers_on(holder: Any) -> list[Any]:
    """The integers that an object keeps itself."""
    return [i for i in integers(_Holder(holder)) if i.within == "held" and i.item is None]


class _Holder(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held


def _lengthened(values: Sequence[Any], before: Sequence[nn.Module], after: Sequence[nn.Module]) -> Any:
    """One value for each item: those that stay keep theirs, one that enters has that of the item ahead of it."""
    known = {id(item): value for item, value in zip(before, values, strict=True)}
    found: list[Any] = []
    for item in after:
        found.append(known.get(id(item), found[-1] if found else values[0]))
    return tuple(found) if isinstance(values, tuple) else found


def _builds(module: nn.Module, configuration: Any, path: str, changed: Mapping[str, Any], number: int) -> bool:
    """Whether a model that is built from the changed configuration has a list of so many items there."""
    try:
        changed_one = copy.deepcopy(configuration)
        vars(changed_one).update(changed)
        with torch.random.fork_rng([]), torch.device("meta"):
            return len(type(module)(changed_one).get_submodule(path)) == number  # type: ignore[arg-type]
    except Exception:
        return False

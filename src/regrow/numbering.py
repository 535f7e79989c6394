"""What numbers or counts the items of a ``ModuleList``: indices that layers keep, and integers in configurations."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .transaction import Transaction

#: What indices of layers, and counts of them, are called; other integers may be equal by chance.
_INDEX = re.compile(r"(^|_)(idx|index|id|number)$")
_COUNT = re.compile(r"layer|block|cell|stage|depth|^(n|num|length)$")


def items_of(container: nn.Module) -> list[nn.Module]:
    """The modules in a container, as often as they are."""
    return [module for module in container._modules.values() if module is not None]


def plan_numbers(
    writes: Transaction,
    model: nn.Module,
    path: str,
    before: Sequence[nn.Module],
    after: Sequence[nn.Module],
    units: Collection[tuple[int, str]] = (),
) -> None:
    """Plan to let indices and counts follow a list that has other items now.

    Args:
        path: Of the list.
        before, after: Its items.
        units: Integers that count units of an axis, and so no items: the ids of their holders, with their attributes.
    """
    for name, attribute, first in _indices(before):
        for number, item in enumerate(after, first):
            holder = item.get_submodule(name)
            if getattr(holder, attribute, number) != number:
                writes.attribute(holder, attribute, number)
    _plan_counts(writes, model, path, before, after, units)


def numbered_by(items: Sequence[nn.Module]) -> list[str]:
    """The attributes by which items know their numbers."""
    return sorted({attribute for _, attribute, _ in _indices(items)})


def _indices(items: Sequence[nn.Module]) -> Iterator[tuple[str, str, int]]:
    """Attributes that number the items, with the first number: of the item itself or a module in it.

    Each is one more than that of the item ahead; of a single item it is what is called an index.
    """
    for name, module in items[0].named_modules() if items else ():
        for attribute, value in list(vars(module).items()):
            named = bool(_INDEX.search(attribute))
            if type(value) is not int or not (named or (value in (0, 1) and len(items) > 1)):
                continue
            if all(_at(item, name, attribute) == value + number for number, item in enumerate(items)):
                yield name, attribute, value


def _at(item: nn.Module, name: str, attribute: str) -> Any:
    try:
        return getattr(item.get_submodule(name), attribute, None)
    except AttributeError:
        return None


def _plan_counts(
    writes: Transaction,
    model: nn.Module,
    path: str,
    before: Sequence[nn.Module],
    after: Sequence[nn.Module],
    units: Collection[tuple[int, str]],
) -> None:
    """Integers that count the items: of the module that holds the list, and of a configuration that the model has.

    Of a configuration those count from which a model is built that differs in the list, and nowhere else. An encoder or
    a decoder may have a configuration of its own beside the model's.
    """
    owner = model.get_submodule(path.rpartition(".")[0])
    stem = path.rpartition(".")[2].rstrip("s")
    for attribute in _equal_to(owner, len(before)):
        named = _COUNT.search(attribute) or (len(stem) > 2 and stem in attribute)
        if named and (id(owner), attribute) not in units:
            writes.attribute(owner, attribute, len(after))
    known: set[int] = set()
    for module, inner in _with_configuration(model, path):
        held = vars(module)["config"]
        if id(held) not in known:
            for attribute, value in _counting(module, held, inner, before, after).items():
                writes.item(vars(held), attribute, value)
                known.add(id(held))


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
    outside = _outside(module, configuration, path, {}, len(before))
    lists = {
        name: _lengthened(value, before, after)
        for name, value in vars(configuration).items()
        if type(value) in (list, tuple) and len(value) == len(before)
    }

    def fits(changes: Mapping[str, Any]) -> bool:
        found = _outside(module, configuration, path, changes, len(after))
        return found is not None and found == outside

    for name in _equal_to(configuration, len(before)):
        for changes in ({name: len(after)}, {name: len(after), **lists}):
            if fits(changes):
                return _with_all(changes, lists, fits)
    return _with_all(lists, {}, fits) if lists and fits(lists) else {}


def _with_all(
    changes: Mapping[str, Any], lists: Mapping[str, Any], fits: Callable[[Mapping[str, Any]], bool]
) -> Mapping[str, Any]:
    """Changes with each of the lists that doesn't change the model elsewhere."""
    for name, value in lists.items():
        if fits({**changes, name: value}):
            changes = {**changes, name: value}
    return changes


def _equal_to(holder: Any, number: int) -> list[str]:
    """The attributes of an object that are this integer."""
    held = vars(holder).items()
    return [name for name, value in held if type(value) is int and value == number and not name.startswith("_")]


def _lengthened(values: Sequence[Any], before: Sequence[nn.Module], after: Sequence[nn.Module]) -> Any:
    """One value for each item: those that stay keep theirs, one that enters has that of the item ahead of it."""
    known = {id(item): value for item, value in zip(before, values, strict=True)}
    found: list[Any] = []
    for item in after:
        found.append(known.get(id(item), found[-1] if found else values[0]))
    return tuple(found) if isinstance(values, tuple) else found


def _outside(
    module: nn.Module, configuration: Any, path: str, changes: Mapping[str, Any], number: int
) -> dict[str, torch.Size] | None:
    """What a model has outside the list that is built from the changed configuration: names and shapes of tensors.

    None if it can't be built, or doesn't have so many items there.
    """
    try:
        changed = copy.deepcopy(configuration)
        vars(changed).update(changes)
        with torch.random.fork_rng([]), torch.device("meta"):
            built: nn.Module = type(module)(changed)  # type: ignore[arg-type]
        if len(built.get_submodule(path)) != number:  # type: ignore[arg-type]
            return None
    except Exception:  # of a constructor that nobody here wrote
        return None
    return {name: t.shape for name, t in built.state_dict().items() if not name.startswith(f"{path}.")}

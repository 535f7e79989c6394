"""Changes of a model's tree as plain JSON, and made again on a freshly built model."""

from __future__ import annotations

import dataclasses
import functools
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

from torch import nn

from .branches import Branch
from .numbering import items_of, plan_numbers
from .structure.example import named_tensors
from .surgery import Change, plan_history
from .transaction import Transaction

#: A file may hold no more changes than this, and no more elements of tensors, relative to the model, on the way.
MOST_CHANGES, MOST_TIMES = 10_000, 8
#: The largest integer in a change, and the longest tuple that a module can have returned.
MOST_INTEGER, MOST_LENGTH = 2**31, 1_000
#: In which ways which changes are made.
_WAYS = {
    "remove": ("list", "sequential", "place"),
    "copy": ("list", "sequential", "kept"),
    "behind": ("kept",),
    "beside": ("kept",),
}
_types = functools.cache(get_type_hints)


def as_json(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Changes as JSON has them; what is as by default is left out."""
    return [_plain(change) for change in changes]


def _plain(value: Any) -> dict[str, Any]:
    held = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
    plain = {name: now for name, (now, default) in held.items() if now != default}
    return {name: _plain(now) if dataclasses.is_dataclass(now) else now for name, now in plain.items()}


def from_json(listed: Any) -> list[Change]:
    """The changes that :func:`as_json` wrote.

    Raises:
        ValueError: It wrote no such thing.
    """
    if not isinstance(listed, list) or len(listed) > MOST_CHANGES:
        raise ValueError(f"changes of the module tree are a list of at most {MOST_CHANGES:,}.")
    return [_made(Change, held) for held in listed]


def _made(kind: type, held: Any) -> Any:
    if not isinstance(held, dict):
        raise ValueError(f"a change of the module tree is a table, not {reprlib.repr(held)}.")
    types, given = _types(kind), {}
    for name, value in held.items():
        if name not in types:
            raise ValueError(f"a change of the module tree has no {name!r}.")
        if name in _READ:
            given[name] = _READ[name](value)
            continue
        given[name] = value
        allowed = _literals(types[name])
        if allowed and value not in allowed:
            raise ValueError(f"{name} of a change of the module tree is none of {', '.join(map(repr, allowed))}.")
        fits = type(value) is types[name] and (types[name] is not int or 0 <= value < MOST_INTEGER)
        if not allowed and not fits:
            raise ValueError(
                f"{name} of a change of the module tree is no {types[name].__name__}: {reprlib.repr(value)}."
            )
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"a change of the module tree is damaged: {error}") from error


def _passed(held: Any) -> tuple[tuple[int, int | str], ...]:
    pairs = held if isinstance(held, list) and len(held) <= MOST_CHANGES else [held]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) is not int or type(pair[1]) not in (int, str):
            raise ValueError(f"passed of a change of the module tree is no place and argument: {reprlib.repr(pair)}.")
    return tuple((place, argument) for place, argument in pairs)


#: How what is no plain value is read.
_READ: dict[str, Callable[[Any], Any]] = {"branch": lambda held: _made(Branch, held), "passed": _passed}


def _literals(kind: Any) -> tuple[str, ...]:
    found = [a for arg in get_args(kind) for a in (get_args(arg) or (arg,)) if isinstance(a, str)]
    return tuple(found)


def replay(writes: Transaction, model: nn.Module, changes: Sequence[Change], elements: int) -> None:
    """Plan and make changes on a freshly built model, one after the other.

    Args:
        elements: How many elements of tensors the model has in the end.

    Raises:
        ValueError: A change doesn't fit the model, or the model would grow out of proportion.
    """
    most = MOST_TIMES * max(elements, _elements(model))
    for change in changes:
        holder = change.path.rpartition(".")[0]
        try:
            parent = model.get_submodule(holder)
            before = items_of(parent)
            _check_place(change, parent)
            if change.branch is not None and _largest(change.branch) > most:
                raise ValueError("it is out of all proportion")
            change.plan(writes, model, change.new_module(model))
            writes.run()
            if change.how == "list":
                plan_numbers(writes, model, holder, before, items_of(parent))
                writes.run()
        except Exception as error:
            raise ValueError(f"the change {change.what} at {change.path!r} doesn't fit this model: {error}") from error
        if _elements(model) > most:
            raise ValueError(f"the change {change.what} at {change.path!r} makes the model grow out of proportion.")
    plan_history(writes, model, list(changes))
    writes.run()


def _check_place(change: Change, parent: nn.Module) -> None:
    if not change.path:
        raise ValueError("it names no module")
    wanted = {"list": nn.ModuleList, "sequential": nn.Sequential}.get(change.how, nn.Module)
    if not isinstance(parent, wanted):
        raise ValueError(f"the module above is no {wanted.__name__}")
    if change.path.rpartition(".")[2] not in parent._modules:
        raise ValueError("there is no such module")
    if change.how not in _WAYS[change.what]:
        raise ValueError(f"none is made by {change.how!r}")
    if change.length > MOST_LENGTH:
        raise ValueError(f"no module returns {change.length:,} values")
    named = change.how == "sequential" and change.what == "copy"
    if named and (not change.key or "." in change.key or hasattr(parent, change.key)):
        raise ValueError(f"{reprlib.repr(change.key)} can't be the name of a module")


def _largest(branch: Branch) -> int:
    """How many elements the largest tensor of a branch has at most."""
    window, dense = 3 ** min(branch.spatial, 3), max(1, branch.ins) * max(1, branch.outs)
    return dense * window if branch.kind in ("3x3", "identity", "residual") else dense + branch.ins * window


def _elements(model: nn.Module) -> int:
    """Of all tensors; empty ones count, for there may be many."""
    return sum(max(1, tensor.numel()) for tensor in named_tensors(model).values())

"""Modules that leave a model's tree or enter it, as plain values: made once in an edit, and again when it is loaded.

All names of what stays remain as they are, but in a ``ModuleList``, whose items are numbered. What enters behind a
module or beside it where no container takes it is kept by that module, and runs in a hook on it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .branches import Branch, Built
from .errors import NotPermissible
from .structure.example import tensors_in, tensors_in_order
from .transaction import Transaction, Write

#: What modules that entered are called on the module that keeps them.
BEHIND, BESIDE, GATE = "regrow_behind", "regrow_beside", "regrow_gate"
_HISTORY = "_regrow_surgery"

#: Where a module leaves or enters: a ``ModuleList``, a ``Sequential``, in place of another, or kept by one.
How = Literal["list", "sequential", "place", "kept"]


class Passing(nn.Module):
    """Hands on the first tensor that it is given, as whatever the layer returned whose place it took."""

    def __init__(self, length: int, passed: tuple[tuple[int, int | str], ...] = (), copied: bool = False) -> None:
        super().__init__()
        self.length, self.passed, self.copied = length, dict(passed), copied

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The tensor, or a tuple of it, of the arguments that are handed on, and None for the rest."""
        first = given_to(args, kwargs).clone() if self.copied else given_to(args, kwargs)
        if not self.length:
            return first
        given = {**dict(enumerate(args)), **kwargs}
        return (first, *(given.get(self.passed.get(place, "")) for place in range(1, self.length)))


class Kept(nn.ModuleList):
    """What has entered behind or beside a module, which keeps it; a ``Sequential`` that does runs through it."""

    def forward(self, x: Any) -> Any:
        """``x`` itself: the module's hook runs the items."""
        return x


@dataclass(frozen=True)
class Change:
    """One change of a model's tree.

    Args:
        what: "remove" a module, or "copy" it to run behind itself; or what enters runs "behind" it or "beside" it.
        path: The module.
        how: Where it leaves or enters.
        key: In a ``Sequential``, the name that enters.
        length: Of the tuple that a module returned whose place was taken; 0 for a tensor.
        copied: Whether a copy is handed on where it was, since what follows works in place.
        passed: Of that tuple, which places are arguments as they were given, and which ones, by position or name.
        biased: The layer into which it was folded, where that got a bias by it.
        given_more: Whether that module was given more than one tensor.
        gated: Whether what enters starts behind a gate that is closed.
        branch: What enters, if it isn't a copy.
        of: What is copied, where that isn't the module itself.
        unstrided: Whether convolutions of the copy move by one place, so that images stay as large as they are.
    """

    what: Literal["remove", "copy", "behind", "beside"]
    path: str
    how: How
    key: str = ""
    length: int = 0
    gated: bool = False
    branch: Branch | None = None
    of: str = ""
    unstrided: bool = False
    given_more: bool = False
    passed: tuple[tuple[int, int | str], ...] = ()
    copied: bool = False
    biased: str = ""

    def new_module(self, model: nn.Module) -> nn.Module | None:
        """What enters, with values that are still to be set."""
        module = model.get_submodule(self.of or self.path)
        if self.what == "remove":
            return None
        like = next(module.parameters())
        if self.branch is not None:
            made = self.branch.build().to(like.device, like.dtype).train(module.training)
        else:
            made = _copied(module, self.of or self.path)
            for name in (BEHIND, BESIDE):  # what runs behind the original doesn't behind its copy
                _forget(made, name)
            for inner in made.modules() if self.unstrided else ():
                if isinstance(inner, _ConvNd):
                    inner.stride = (1,) * len(inner.stride)
        if self.gated:
            close_gate(made, beside=self.what == "beside")
        return made

    def plan(self, writes: Transaction, model: nn.Module, new: nn.Module | None) -> None:
        """Plan the change of the tree."""
        holder, _, key = self.path.rpartition(".")
        parent, module = model.get_submodule(holder), model.get_submodule(self.path)
        if self.what == "remove":
            writes.planned.append(_children(parent, self._without(parent, key)))
            self._plan_bias(writes, model)
        elif self.how == "kept":
            self._plan_kept(writes, module, new)
        else:
            writes.planned.append(_children(parent, self._with(parent, key, new)))

    def _plan_bias(self, writes: Transaction, model: nn.Module) -> None:
        folded = model.get_submodule(self.biased) if self.biased else None
        if folded is not None and folded._parameters.get("bias") is None:
            weight: Any = folded.weight
            writes.item(folded._parameters, "bias", nn.Parameter(weight.new_zeros(len(weight))))

    def _without(self, parent: nn.Module, key: str) -> dict[str, nn.Module | None]:
        children = dict(parent._modules)
        if self.how == "list":
            rest = [module for name, module in children.items() if name != key]
            return {str(number): module for number, module in enumerate(rest)}
        if self.how == "sequential":
            return {name: module for name, module in children.items() if name != key}
        plain = not (self.length or self.given_more or self.copied)
        passing = nn.Identity() if plain else Passing(self.length, self.passed, self.copied)
        return children | {key: passing.train(parent.training)}

    def _with(self, parent: nn.Module, key: str, new: nn.Module | None) -> dict[str, nn.Module | None]:
        found: dict[str, nn.Module | None] = {}
        for name, module in parent._modules.items():
            found[str(len(found)) if self.how == "list" else name] = module
            if name == key:
                found[str(len(found)) if self.how == "list" else self.key] = new
        return found

    def _plan_kept(self, writes: Transaction, module: nn.Module, new: nn.Module | None) -> None:
        name, hook = (BESIDE, _beside) if self.what == "beside" else (BEHIND, _behind)
        known = module._modules.get(name)
        entering = Kept([*(known or ()), new]).train(module.training)  # type: ignore[list-item]
        writes.planned.append(_children(module, dict(module._modules) | {name: entering}))
        if known is None:
            writes.planned.append(_hooked(module, hook))


def _copied(module: nn.Module, name: str) -> nn.Module:
    """A copy with the same hooks; what these belong to isn't copied.

    Raises:
        NotPermissible: Something in it can't be copied.
    """
    inside = set(module.modules())
    hooks = [h for m in inside for held, d in vars(m).items() if held.endswith("_hooks") and d for h in d.values()]
    owners = [owner for hook in hooks if (owner := getattr(hook, "__self__", None)) is not None and owner not in inside]
    try:
        return copy.deepcopy(module, {id(owner): owner for owner in owners})
    except (TypeError, RuntimeError) as error:
        raise NotPermissible(f"{name} can't be copied: {error}.") from error


def close_gate(module: nn.Module, beside: bool = False) -> None:
    """Put a module behind a gate that is closed: it is the identity then, or zero where it runs beside another."""
    like = next(module.parameters())
    module.register_parameter(GATE, nn.Parameter(torch.zeros((), device=like.device, dtype=like.dtype)))
    module.register_forward_hook(_scaled if beside else _gated, with_kwargs=True)


def _children(module: nn.Module, children: Mapping[str, nn.Module | None]) -> Write:
    """Sets all submodules of a module, in order."""

    def write(items: Mapping[str, nn.Module | None]) -> None:
        module._modules.clear()
        module._modules.update(items)

    return Write(write, dict(children), dict(module._modules))


def _hooked(module: nn.Module, hook: Any) -> Write:
    """Registers a hook, or takes it away."""
    handles: list[Any] = []

    def write(there: bool) -> None:
        if there:
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        else:
            handles.pop().remove()

    return Write(write, True, False)


def _forget(module: nn.Module, name: str) -> None:
    if name in module._modules:
        del module._modules[name]
        for key, hook in list(module._forward_hooks.items()):
            if hook in (_behind, _beside):
                del module._forward_hooks[key]


def with_first(returned: Any, tensor: Tensor) -> Any:
    """What a module returned with another first tensor."""
    if isinstance(returned, Tensor):
        return tensor
    if isinstance(returned, tuple) and returned and isinstance(returned[0], Tensor):
        rest = returned[1:]
        return type(returned)(tensor, *rest) if hasattr(returned, "_fields") else (tensor, *rest)
    raise TypeError(f"a module that is grown returns a tensor or a tuple that begins with one, not {type(returned)}.")


def first_of(value: Any) -> Tensor:
    """The first tensor in what a module returned."""
    return value if isinstance(value, Tensor) else tensors_in(value)[0]


def given_to(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The first tensor that a module is given: an argument, or within one if none is."""
    direct = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return direct[0] if direct else tensors_in_order((args, kwargs))[0]


def with_given(args: tuple, kwargs: dict[str, Any], tensor: Tensor) -> tuple[tuple, dict[str, Any]]:
    """A call's arguments with another first tensor.

    Raises:
        TypeError: No argument is one, as where a list of tensors is given.
    """
    for number, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:number], tensor, *args[number + 1 :]), kwargs
    for key, value in kwargs.items():
        if isinstance(value, Tensor):
            return args, {**kwargs, key: tensor}
    raise TypeError("none of these arguments is a tensor.")


def _behind(module: nn.Module, args: tuple, kwargs: dict[str, Any], returned: Any) -> Any:
    """Runs what has entered behind a module, on what it returned and all else that it was given."""
    for entered in module._modules[BEHIND]:  # type: ignore[union-attr]
        if isinstance(entered, Built):
            returned = with_first(returned, entered(first_of(returned)))
        else:
            now, rest = with_given(args, kwargs, first_of(returned))
            returned = entered(*now, **rest)
    return returned


def _beside(module: nn.Module, args: tuple, kwargs: dict[str, Any], returned: Any) -> Any:
    """Adds what has entered beside a module, on what it was given."""
    total = first_of(returned)
    for entered in module._modules[BESIDE]:  # type: ignore[union-attr]
        if isinstance(entered, Built):
            total = total + entered(given_to(args, kwargs))
        else:
            total = total + first_of(entered(*args, **kwargs))
    return with_first(returned, total)


def _gated(module: nn.Module, args: tuple, kwargs: dict[str, Any], returned: Any) -> Any:
    """``x + gate · (f(x) − x)``: the identity while the gate is closed."""
    x, gate = given_to(args, kwargs), module._parameters[GATE]
    assert gate is not None
    return with_first(returned, x + gate * (first_of(returned) - x))


def _scaled(module: nn.Module, args: tuple, kwargs: dict[str, Any], returned: Any) -> Any:
    """``gate · f(x)``: zero while the gate is closed."""
    gate = module._parameters[GATE]
    assert gate is not None
    return with_first(returned, gate * first_of(returned))


def history(model: nn.Module) -> list[Change]:
    """The changes of a model's tree, oldest first."""
    return list(vars(model).get(_HISTORY, ()))


def plan_history(writes: Transaction, model: nn.Module, changes: list[Change]) -> None:
    """Plan to note changes of a model's tree."""
    writes.planned.append(
        Write(lambda value: vars(model).__setitem__(_HISTORY, value), [*history(model), *changes], history(model))
    )

"""Pruning and growing of layers and cells: from what the user asks to one edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.optim import Optimizer

from .agreement import averaged_number
from .amounts import check_fraction, units_of
from .depth import add_beside, deepen, remove
from .edit import Edit
from .errors import NothingToDo, NotPermissible
from .evidence import computed, looking, skipping
from .method import list_methods
from .structure import Layer

LayerTarget = Layer | Sequence[Layer]


def is_depth(target: Any) -> TypeGuard[LayerTarget]:
    """Whether what is to be edited is layers or cells."""
    if isinstance(target, Layer):
        return True
    return isinstance(target, Sequence) and bool(target) and all(isinstance(part, Layer) for part in target)


def prune_depth(
    target: LayerTarget,
    amount: Any,
    method: Any,
    optimizer: Optimizer | None,
    loss: Callable[[], Tensor] | None,
    batches: int,
    protect: Sequence[str] = (),
    fold: bool = False,
) -> Edit:
    """Take layers or cells out; see :func:`regrow.prune_`."""
    layers = _chosen(target, protect)
    if isinstance(target, Layer):
        if amount != 1 or isinstance(amount, (bool, float)):
            raise ValueError(f"{target.name} is one {target.kind}: the amount is 1, not {amount!r}.")
        return remove(target.structure, [target], optimizer, fold=fold)
    check_fraction(amount)
    able = [layer for layer in layers if layer.prunable]
    number = units_of(amount, len(layers))
    if number > len(able):
        reasons = "; ".join(f"{layer.name}: {layer.prunable.reason}" for layer in layers if not layer.prunable)
        why = f" ({reasons})" if reasons else ""
        raise NotPermissible(f"asked to remove {number} of these {len(layers)}; {len(able)} can be{why}.")
    if not callable(getattr(method, "score_layers", None)) or isinstance(method, type):
        able_methods = ", ".join(list_methods("score_layers"))
        raise TypeError(f"{method!r} has no score_layers() for layers and cells; methods that do are {able_methods}.")
    if loss is None:
        raise ValueError(f"{method.name} looks at the loss: pass loss=, a callable that returns it.")
    find = skipping.exact if getattr(method, "skips", "") == "exact" else skipping.first_order
    scores = method.score_layers(able, {"skips": find(able, loss, batches)})
    order = sorted(range(len(able)), key=scores.__getitem__)
    lowest = sorted(order[:number])
    return remove(able[0].structure, [able[i] for i in lowest], optimizer, method.name, fold)


def grow_depth(
    target: LayerTarget,
    amount: Any,
    method: Any,
    optimizer: Optimizer | None,
    generator: torch.Generator | None,
    parallel: bool,
    loss: Callable[[], Tensor] | None = None,
    protect: Sequence[str] = (),
    memory: dict[str, Any] | None = None,
) -> Edit:
    """Put layers or cells behind others, or beside them; see :func:`regrow.grow_`.

    Args:
        memory: What a method that chooses has noted at earlier calls.
    """
    layers = _chosen(target, protect)
    if isinstance(amount, bool) or not isinstance(amount, int) or amount < 1:
        raise ValueError(f"an amount of layers or cells for each is a whole number from 1 on, not {amount!r}.")
    if hasattr(method, "choose"):
        layers = _chosen_by(method, layers, loss, {} if memory is None else memory)
    for layer in layers:
        if not layer.growable:
            raise NotPermissible(f"{layer.name} can't be followed by another: {layer.growable.reason}.")
    if not callable(getattr(method, "followers", None)) or isinstance(method, type):
        able = ", ".join(list_methods("followers"))
        raise TypeError(f"{method!r} has no followers() for layers and cells; methods that do are {able}.")
    structure = layers[0].structure
    if generator is None:
        generator = torch.Generator().manual_seed((torch.initial_seed() + len(structure.edits)) % 2**63)
    seed = int(torch.randint(2**31, (), generator=generator))
    if parallel:
        return add_beside(structure, layers, amount, method.branch, optimizer, seed, method.name)
    return deepen(structure, layers, amount, method, optimizer, seed, method.name)


def _chosen_by(
    method: Any, layers: list[Layer], loss: Callable[[], Tensor] | None, memory: dict[str, Any]
) -> list[Layer]:
    if loss is None:
        raise ValueError(f"{method.name} looks at the loss: pass loss=, a callable that returns it.")
    with looking(layers[0].structure.model):
        value = averaged_number(float(computed(loss).detach()))
    layers = method.choose(layers, value, memory)
    if not layers:
        raise NothingToDo(f"{method.name} doesn't choose any of these now.")
    return layers


def _chosen(target: LayerTarget, protect: Sequence[str]) -> list[Layer]:
    given = [target] if isinstance(target, Layer) else list(dict.fromkeys(target))
    if len({id(layer.structure) for layer in given}) > 1:
        raise ValueError("these belong to different structures; edit one structure at a time.")
    structure = given[0].structure
    known = {*structure.layers, *structure.cells}
    for layer in given:
        if layer not in known:
            raise NotPermissible(f"{layer.name} isn't part of its structure any more; take it from there again.")
    found = [layer for layer in given if not any(layer.is_called(pattern) for pattern in protect)]
    if not found:
        raise NothingToDo("nothing to do: all of these are protected.")
    return found

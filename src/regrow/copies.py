"""Copies of modules that run behind others and start as the identity, and branches that run beside them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from .applying import apply
from .branches import ACTIVATIONS, Branch
from .errors import NotPermissible
from .observing import Seen
from .starts import relative_distance, zero_until
from .structure import Cell, Layer, analyze
from .structure.maps import FRESH
from .structure.running import untouched
from .surgery import Change, close_gate, first_of, given_to


def identity_copy(cell: Layer, key: str, seen: Seen) -> tuple[Change, nn.Module, nn.Module] | None:
    """A copy that may run behind a cell: how it enters, the copy, and what it copies; None if there is none.

    It copies the cell itself, or another that keeps the shapes of its output, or is made to keep them.
    """
    fitting = [c for c in cell.structure.cells if c.keeps_shape and c.shape == cell.shape]
    for other in [cell] if cell.prunable else fitting if isinstance(cell, Cell) else []:
        try:
            return _copy_of(other, cell, key, seen)
        except (ValueError, TypeError, RuntimeError, IndexError):  # it is called in another way
            continue
    return _same_shape_copy(cell, key, seen)


def _copy_of(source: Layer, cell: Layer, key: str, seen: Seen) -> tuple[Change, nn.Module, nn.Module]:
    """A copy of one module to run behind another: it is the identity by zeros, or else behind a gate."""
    for gated in (False, True):
        change = Change("copy", cell.name, "kept", key, gated=gated, of=source.name)
        made = change.new_module(cell.structure.model)
        assert made is not None
        if zero_until(_in_order(made, seen), lambda made=made: _distance(made, seen)):
            break
    return change, made, source.module


def _same_shape_copy(cell: Layer, key: str, seen: Seen) -> tuple[Change, nn.Module, nn.Module] | None:
    """Of a cell that changes shapes a copy that keeps those of its output, behind a gate; None if there is none."""
    change = Change("copy", cell.name, "kept", key, unstrided=True)
    made = change.new_module(cell.structure.model)
    assert made is not None
    given, x = given_to(seen.args, seen.kwargs), first_of(seen.returned)
    try:
        if given.shape[cell.channels] < x.shape[cell.channels]:
            _read_more(made, seen, x.shape[cell.channels] - given.shape[cell.channels])
        if _run(made, seen).shape != x.shape:
            return None
    except (ValueError, TypeError, RuntimeError, IndexError):
        return None
    close_gate(made)
    return dataclasses.replace(change, gated=True), made, cell.module


def _read_more(module: nn.Module, seen: Seen, more: int) -> None:
    """Let a module that runs by itself read more channels, whose weights are zero."""
    structure = analyze(module, args=seen.args, kwargs=seen.kwargs, grow_outputs=True)
    [axis] = structure.select(kind="input")
    wider = np.append(np.arange(axis.size), np.full(more, FRESH))
    apply(structure, {axis: wider}, {axis: {}}, None, "grow")


def _run(made: nn.Module, seen: Seen) -> torch.Tensor:
    """What a module makes behind the one that was seen, in eval mode."""
    args, kwargs = seen.behind()
    with untouched(made), torch.no_grad():
        return first_of(made.eval()(*args, **kwargs))


def _distance(made: nn.Module, seen: Seen) -> float:
    """How far a copy that runs behind its original is from the identity."""
    return relative_distance(_run(made, seen), first_of(seen.returned))


def _in_order(made: nn.Module, seen: Seen) -> list[list[nn.Parameter]]:
    """The parameters of each module inside, in the order in which the modules are done."""
    done: dict[nn.Module, None] = {}
    handles = [m.register_forward_hook(lambda module, *_: done.update({module: None})) for m in made.modules()]
    try:
        _run(made, seen)
    finally:
        for handle in handles:
            handle.remove()
    return [own for module in done if (own := list(module.parameters(recurse=False)))]


def follower_of(layer: Layer, kind: Any, norm: bool) -> Branch:
    """A new layer to run behind one.

    Raises:
        NotPermissible: It is to be an identity, and no activation follows.
    """
    channels = layer.shape[layer.channels]
    known = layer.activation in ACTIVATIONS
    if kind == "identity" and not (known and _is_idempotent(ACTIVATIONS[layer.activation]())):
        raise NotPermissible(f"no activation like a ReLU reads {layer.name} first; a residual layer can follow it.")
    spatial = _behind_channels(layer)
    return Branch(kind, channels, channels, spatial, activation=layer.activation if known else "relu", norm=norm)


def _is_idempotent(activation: nn.Module) -> bool:
    """Whether φ(φ(x)) = φ(x)."""
    once = activation(torch.linspace(-8, 8, 1001))
    return torch.equal(activation(once), once)


def branch_beside(layer: Layer, kind: Any, seen: Seen) -> Branch:
    """A new branch to run beside a layer or a cell."""
    given, made = given_to(seen.args, seen.kwargs), first_of(seen.returned)
    spatial = _behind_channels(layer)
    stride = given.shape[-1] // made.shape[-1] if spatial else 1
    return Branch(kind, given.shape[layer.channels], made.shape[layer.channels], spatial, max(1, stride))


def _behind_channels(layer: Layer) -> int:
    """How many dimensions lie behind a layer's channels."""
    return len(layer.shape) - 1 - layer.channels if layer.channels == 1 else 0

"""How fast new units learn, where that isn't as fast as the others.

The factors are kept in the optimizer's state, one tensor for each dimension of a parameter, with that dimension's
size and 1 on all others. There they follow every edit and undo, and are saved with the optimizer. They are kept as
−log(factor), so that zero, which edits give to new entries, means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from .transaction import Transaction, Write

#: What is scaled: gradients before a step (weight decay stays what it is), or what the step does.
Kind = Literal["gradient", "update"]

_PREFIX = "regrow_slower_"
_HOOKED = "_regrow_paced"
#: Under which attribute of an optimizer paces wait of parameters of which it has no state as yet.
WAITING = "_regrow_waiting"


@dataclass(frozen=True)
class Pace:
    """A factor on how new rows of a parameter learn.

    Args:
        kind: What is scaled.
        factor: By how much.
    """

    kind: Kind
    factor: float


def plan_pace(
    writes: Transaction, optimizer: Optimizer, parameter: Tensor, size: int, dim: int, new: Tensor, pace: Pace
) -> None:
    """Plan to give new indices of a parameter a pace.

    Args:
        writes: What is planned already.
        optimizer: That trains the parameter; it gets the hooks that it needs.
        parameter: Which one.
        size: What the dimension's size will be.
        dim: Where the new units are.
        new: Their indices along the dimension.
        pace: Of theirs.
    """
    key = f"{_PREFIX}{pace.kind}_{dim}"
    store = _store(optimizer, parameter)
    shape = [size if d == dim else 1 for d in range(parameter.ndim)]
    known = store.get(key)
    slower = torch.zeros(shape, device=parameter.device) if known is None else known.clone()
    slower.index_fill_(dim, new.to(parameter.device), -math.log(pace.factor) if pace.factor else math.inf)
    writes.planned.append(Write(lambda value: _put(store, key, value), slower, known))
    attach(optimizer)


def attach(optimizer: Optimizer) -> None:
    """Let an optimizer keep the paces that are in its state, as one needs that was loaded again."""
    if not getattr(optimizer, _HOOKED, False):
        setattr(optimizer, _HOOKED, True)
        optimizer.register_step_pre_hook(_before)
        optimizer.register_step_post_hook(_after)


def has_paces(optimizer: Optimizer) -> bool:
    """Whether any parameter of an optimizer has a pace."""
    return any(key.startswith(_PREFIX) for state in optimizer.state.values() for key in state)


def _put(store: dict[str, Any], key: str, value: Tensor | None) -> None:
    if value is None:
        store.pop(key, None)
    else:
        store[key] = value


def _store(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """Where a parameter's paces are: some optimizers take state that isn't empty for state of theirs."""
    state = optimizer.state.get(parameter)
    if state:
        return state
    waiting = vars(optimizer).setdefault(WAITING, {})
    return waiting.setdefault(parameter, {})


def _paces(optimizer: Optimizer, kind: Kind) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter that has paces of that kind, with the factor on each of its entries."""
    found: dict[Tensor, dict[str, Any]] = {**vars(optimizer).get(WAITING, {}), **optimizer.state}
    for parameter, state in found.items():
        slower = [value for key, value in state.items() if key.startswith(f"{_PREFIX}{kind}")]
        if slower and parameter.grad is not None:
            yield parameter, torch.stack(torch.broadcast_tensors(*slower)).amax(0).neg().exp()


@torch.no_grad()
def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for parameter, factor in _paces(optimizer, "gradient"):
        assert parameter.grad is not None
        parameter.grad.mul_(factor)
    held = {parameter: (parameter.detach().clone(), factor) for parameter, factor in _paces(optimizer, "update")}
    vars(optimizer)["_regrow_held"] = held


@torch.no_grad()
def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for parameter, (before, factor) in vars(optimizer).pop("_regrow_held", {}).items():
        parameter.copy_(before + factor * (parameter - before))
    waiting = vars(optimizer).get(WAITING, {})
    for parameter in [p for p in waiting if optimizer.state.get(p)]:
        optimizer.state[parameter].update(waiting.pop(parameter))

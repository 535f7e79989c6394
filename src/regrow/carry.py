"""What follows a parameter through an edit: its gradient, its mask and its optimizer state."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .masks import masked, masks_on

if TYPE_CHECKING:
    from .transaction import Transaction


#: What optimizers call the sizes of past gradients, by which they divide. At zero, new entries would leap: in a long
#: run of Adam's by more than six times the learning rate a step.
DIVISORS = frozenset(
    {"exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum", "step_size"}
    | {"row_var", "col_var", "variance"}  # Adafactor's
)


#: Adafactor's means over the last dimension and over the one before: of size 1 there, whatever size that has.
MEANS = {"row_var": -1, "col_var": -2}

MASK = "mask"

#: Where the mask of each masked parameter is: in which store, under what.
Masks = Mapping[Tensor, tuple[dict[str, Tensor], str]]


@dataclass(frozen=True)
class Follower:
    """A tensor that mirrors a parameter's shape; "grad", "mask", or an entry of the optimizer's state."""

    key: str
    tensor: Tensor
    state: dict[str, Any]
    under: str = ""

    @property
    def divides(self) -> bool:
        """Whether it measures past gradients, so that zero isn't what a new entry begins with."""
        return self.key in DIVISORS

    def moving(self, maps: Mapping[int, Any]) -> dict[int, Any]:
        """Of the maps of the parameter's dimensions those that it follows."""
        over = self.tensor.ndim + MEANS[self.key] if self.key in MEANS else None
        return {dim: place for dim, place in maps.items() if dim != over}

    @property
    def fresh(self) -> float | bool:
        """What it holds for new entries: they have no gradients and no past, and are on."""
        return self.key == MASK

    def plan(self, writes: Transaction, new: Tensor) -> None:
        """Plan to replace it."""
        writes.item(self.state, self.under or self.key, new)


def assign(tensor: Tensor, data: Tensor) -> None:
    """Give a parameter or buffer other data of another shape; it stays the same object.

    Autograd remembers the shape of a leaf in its gradient accumulator, which lives as long as any graph that used
    it: the old loss, say. Only a change of dtype makes torch drop it, so the data passes through one.
    """
    other = torch.float16 if tensor.dtype != torch.float16 else torch.float32
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = data


def kept_masks(model: nn.Module) -> Masks:
    """Where the masks of a model's parameters are."""
    return {parameter: (masks_on(module), attribute) for module, attribute, parameter in masked(model)}


def followers(parameter: Tensor, optimizer: Optimizer | None, masks: Masks) -> list[Follower]:
    """The gradient, the mask, and the optimizer's state tensors of a parameter, as far as they have its shape.

    A state tensor follows if it has, on every dimension, the parameter's size or 1; numbers and tensors without
    dimensions (step counts) stay as they are.
    """
    state = _state_of(parameter, optimizer)
    mirrors = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.ndim}
    found = [Follower(key, value, state) for key, value in mirrors.items() if _mirrors(value, parameter)]
    if parameter in masks:
        store, attribute = masks[parameter]
        found.append(Follower(MASK, store[attribute], store, attribute))
    if parameter.grad is not None:
        found.append(Follower("grad", parameter.grad, {}))
    return found


def resets(optimizer: Optimizer, edited: Collection[Tensor]) -> dict[Tensor, list[str]]:
    """Parameters whose state can't follow when some are edited, with the names of what it holds.

    Beside those whose own state doesn't mirror them, these are the ones that keep a row of all parameters, as LBFGS
    does with the first.
    """
    total = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    found = {}
    for parameter, state in optimizer.state.items():
        if parameter in edited:
            keys = [key for key, value in state.items() if not _keeps(value, parameter)]
        else:
            keys = list(state) if total != parameter.numel() and _holds_row(state, total) else []
        if keys:
            found[parameter] = keys
    return found


def _holds_row(state: dict[str, Any], length: int) -> bool:
    return any(isinstance(v, Tensor) and v.ndim == 1 and v.numel() == length for v in state.values())


def check_holds(optimizer: Optimizer, tensors: Iterable[Tensor]) -> None:
    """An optimizer may hold some of the parameters that change shape, but not none.

    Raises:
        ValueError: It holds none of them.
    """
    held = {p for group in optimizer.param_groups for p in group["params"]}
    parameters = [t for t in tensors if isinstance(t, nn.Parameter)]
    if parameters and held.isdisjoint(parameters):
        raise ValueError(
            f"this {type(optimizer).__name__} holds none of the parameters that change shape; "
            "pass the optimizer that trains them."
        )


#: What optimizers keep for each number of a parameter, beside :data:`DIVISORS`.
_BESIDE = (DIVISORS - MEANS.keys()) | {"exp_avg", "momentum_buffer", "prev", "ax"}


def check_state(optimizer: Optimizer) -> None:
    """Whether the state has the shapes of what it is of; ``load_state_dict`` takes any.

    Raises:
        ValueError: It is of other shapes.
    """
    for parameter, state in optimizer.state.items():
        for key in state.keys() & _BESIDE:
            value = state[key]
            if isinstance(value, Tensor) and value.ndim and not _mirrors(value, parameter):
                raise ValueError(
                    f"the {type(optimizer).__name__} holds state ({key}) of shape {tuple(value.shape)} for a parameter "
                    f"of shape {tuple(parameter.shape)}: it was saved with a model of other sizes; load that model "
                    "first, as regrow.Checkpoint does."
                )


def _state_of(parameter: Tensor, optimizer: Optimizer | None) -> dict[str, Any]:
    return optimizer.state.get(parameter, {}) if optimizer is not None else {}


def _keeps(value: Any, parameter: Tensor) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 or _mirrors(value, parameter)
    return not isinstance(value, (list, tuple, dict)) or not value


def _mirrors(value: Tensor, parameter: Tensor) -> bool:
    return value.ndim == parameter.ndim and all(n in (m, 1) for n, m in zip(value.shape, parameter.shape, strict=True))


def plan_resets(writes: Transaction, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Plan to empty the state of these parameters, and what the optimizer remembers of all sizes together."""
    for parameter in parameters:
        writes.item(optimizer.state, parameter, {})
    if getattr(optimizer, "_numel_cache", None) is not None:  # LBFGS counts its parameters once
        writes.attribute(optimizer, "_numel_cache", None)


def warn_of_reset(optimizer: Optimizer, reset: Collection[list[str]]) -> None:
    """One notice for all state that an edit resets; ``reset`` has its names for each parameter."""
    if reset:
        keys = ", ".join(sorted({key for found in reset for key in found}))
        warnings.warn(
            f"{type(optimizer).__name__} keeps state ({keys}) that can't follow a change of shape; it starts afresh "
            f"for {len(reset)} parameters.",
            stacklevel=4,
        )

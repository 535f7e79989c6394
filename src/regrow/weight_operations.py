"""Pruning, growing and rewiring of single weights: from what the user asks to one edit of masks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.optim import Optimizer

from .arguments import check_arguments
from .draws import draws_if_done
from .edit import Edit
from .errors import NothingToDo, NotPermissible
from .evidence.gradients import gradients
from .flips import apply_flips, apply_masks
from .method import list_methods
from .sparsity import ByWeight, Pattern, WeightAmount, check_moving, rewired, to_turn_off, to_turn_on
from .structure.weights import Weights

#: Finds the gradients of weights, where a method looks at them.
Look = Callable[[Sequence[Weights]], Mapping[Tensor, Tensor]]


WeightTarget = Weights | Sequence[Weights]


def is_weights(target: Any) -> TypeGuard[WeightTarget]:
    """Whether what is to be edited is single weights."""
    if isinstance(target, Weights):
        return True
    return isinstance(target, Sequence) and bool(target) and all(isinstance(part, Weights) for part in target)


def looks(loss: Callable[[], Tensor] | None, batches: int, method: Any) -> Look:
    """Gradients of a loss that is computed when they are asked for."""

    def look(weights: Sequence[Weights]) -> Mapping[Tensor, Tensor]:
        if loss is None:
            raise ValueError(f"{method.name} looks at gradients: pass loss=, a callable that returns the loss.")
        return gradients(weights[0].structure.model, [w.tensor for w in weights], loss, batches)

    return look


def prune_weights(
    target: WeightTarget,
    amount: WeightAmount | Sequence[int] | Tensor,
    method: Any,
    optimizer: Optimizer | None,
    generator: torch.Generator | None,
    look: Look,
    protect: Sequence[str] = (),
) -> Edit:
    """Turn weights off; see :func:`regrow.prune_`."""
    weights = _chosen(target, protect)
    if isinstance(amount, (Tensor, Sequence)) and not isinstance(amount, str):
        return apply_masks(weights[0].structure, _without(weights, amount), optimizer, "prune")
    masks = to_turn_off(amount, _scores(method, "score_weights", weights, generator, look))
    if not masks:
        raise NothingToDo("nothing to prune: so many weights are off already.")
    return apply_masks(weights[0].structure, masks, optimizer, "prune", method.name)


def _without(weights: Sequence[Weights], named: Tensor | Sequence[int]) -> dict[Weights, Tensor]:
    """The mask of one tensor without the weights with these flat indices."""
    if len(weights) != 1:
        raise TypeError("weights can be named for a single tensor; for several give an amount and a method.")
    [one] = weights
    mask = one.mask
    flat = _indices_in(named, one)
    if not flat.numel():
        raise NothingToDo("nothing to prune: no weight was named.")
    if not 0 <= int(flat.min()) <= int(flat.max()) < one.size:
        raise ValueError(f"{one.name} has weights 0 to {one.size - 1}, flat; there is no weight {int(flat.max())}.")
    off = torch.zeros(one.size, dtype=torch.bool)
    off[flat] = True
    return {one: mask & ~off.reshape(mask.shape).to(mask.device)}


def _indices_in(named: Tensor | Sequence[int], weights: Weights) -> Tensor:
    """Flat indices of weights, whichever way they are named."""
    shape = tuple(weights.tensor.shape)
    with contextlib.suppress(ValueError, TypeError, RuntimeError):
        given = torch.as_tensor(named).cpu()
        if given.dtype == torch.bool and given.shape == shape:
            return given.flatten().nonzero().squeeze(1)
        whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
        if given.ndim == 1 and (whole or not given.numel()):
            return given.long()
    raise TypeError(
        f"weights of {weights.name} are named by flat indices, or by a bool tensor of its shape {shape} that is True "
        f"where one goes, not by {named!r}."
    )


def grow_weights(
    target: WeightTarget,
    amount: WeightAmount,
    method: Any,
    optimizer: Optimizer | None,
    generator: torch.Generator | None,
    look: Look,
    protect: Sequence[str] = (),
) -> Edit:
    """Turn weights on; see :func:`regrow.grow_`."""
    weights = _chosen(target, protect)
    masks = to_turn_on(amount, _scores(method, "score_absent", weights, generator, look))
    if not masks:
        raise NothingToDo("nothing to grow: so many weights are on already.")
    return apply_masks(weights[0].structure, masks, optimizer, "grow", method.name)


@draws_if_done
def rewire_(
    target: WeightTarget,
    fraction: float,
    method: Any,
    *,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
    loss: Callable[[], Tensor] | None = None,
    batches: int = 1,
    protect: str | Sequence[str] = (),
    pattern: Pattern | None = None,
) -> Edit:
    """Let single weights go and as many come in each tensor, in place.

    Args:
        target: ``structure.weights``, some of them, or one.
        fraction: Of the weights that are on in each tensor, so many go.
        method: One with ``score_weights`` and ``score_absent``, such as :class:`regrow.RigL`.
        optimizer: Its state follows, and it holds the masks from now on.
        generator: As for :func:`regrow.grow_`.
        loss, batches: A callable that returns the loss, and how often it is called, for methods that look at gradients.
        protect: Names or patterns of tensors, or of their modules, that stay as they are.
        pattern: That the masks have and keep, as ``Pattern(2, 4)``.

    Raises:
        TypeError, ValueError: An argument is not what it should be. Nothing has been changed then.

    >>> import torch, regrow as rg
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> weights = rg.analyze(net, torch.zeros(2, 4)).weights
    >>> print(rg.prune_(weights, 0.5, rg.Magnitude()))
    2 tensors: 48 -> 24 weights, -24 params, 24 changed
    >>> print(rg.rewire_(weights, 0.25, rg.SET(), generator=torch.Generator().manual_seed(0)).action)
    rewire
    """
    protect = (protect,) if isinstance(protect, str) else tuple(protect)
    check_arguments(optimizer, generator, loss, batches)
    if pattern is not None and not isinstance(pattern, Pattern):
        raise TypeError(f"pattern is a regrow.Pattern, such as Pattern(2, 4), not {pattern!r}.")
    return rewire_weights(
        target, fraction, method, optimizer, generator, looks(loss, batches, method), protect, pattern
    )


def rewire_weights(
    target: WeightTarget,
    fraction: float,
    method: Any,
    optimizer: Optimizer | None,
    generator: torch.Generator | None,
    look: Look,
    protect: Sequence[str] = (),
    pattern: Pattern | None = None,
) -> Edit:
    """See :func:`rewire_`."""
    check_moving(fraction)
    weights = _chosen(target, protect)
    scores = _scores(method, "score_weights", weights, generator, look)
    flips = rewired(fraction, scores, _scores(method, "score_absent", weights, generator, look), pattern)
    if not flips:
        raise NothingToDo("nothing to rewire: no weight is off, or none would change places.")
    return apply_flips(weights[0].structure, flips, optimizer, "rewire", method.name)


def _chosen(target: WeightTarget, protect: Sequence[str]) -> list[Weights]:
    if not is_weights(target):
        raise TypeError(f"expected structure.weights or some of them, not {target!r}.")
    given = [target] if isinstance(target, Weights) else list(dict.fromkeys(target))
    if len({id(weights.structure) for weights in given}) > 1:
        raise ValueError("these weights belong to different structures; edit one structure at a time.")
    known = set(given[0].structure.weights)
    for weights in given:
        if weights not in known:
            raise NotPermissible(f"{weights.name} isn't part of its structure any more; take it from there again.")
    for pattern in protect:
        if not any(weights.is_called(pattern) for weights in given[0].structure.weights):
            names = ", ".join(weights.name for weights in given[0].structure.weights)
            raise ValueError(f"protect={pattern!r} matches no weights; there are {names}.")
    found = [weights for weights in given if not any(weights.is_called(pattern) for pattern in protect)]
    if not found:
        raise NothingToDo("nothing to do: all these weights are protected.")
    return found


def _scores(
    method: Any, part: str, weights: Sequence[Weights], generator: torch.Generator | None, look: Look
) -> ByWeight:
    """What a part of a method says of each weight, checked."""
    if not callable(getattr(method, part, None)) or isinstance(method, type):
        able = ", ".join(list_methods(part))
        raise TypeError(f"{method!r} has no {part}() for single weights; methods that do are {able}.")
    if generator is None:
        number = len(weights[0].structure.edits)
        generator = torch.Generator().manual_seed((torch.initial_seed() + number) % 2**63)
    seen = {"gradients": look(weights)} if part in getattr(method, "sees_gradients", ()) else {}
    return {each: _checked(method, part, each, seen, generator) for each in weights}


@torch.no_grad()
def _checked(method: Any, part: str, weights: Weights, seen: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    score = getattr(method, part)(weights, seen, generator)
    if not isinstance(score, Tensor) or score.shape != weights.tensor.shape:
        got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise ValueError(f"{method.name}.{part} returns a number for each weight of {weights.name}, not {got}.")
    if bool(score.sum().isnan()) and bool(score.isnan().any()):
        raise ValueError(f"{method.name} gave scores that are not numbers for {weights.name}.")
    return score.detach().to(weights.tensor.device)

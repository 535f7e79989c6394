"""Masks of single weights: kept beside the weights, and held while an optimizer trains them.

A weight that is off is zero in its parameter, so that a mask costs a forward pass nothing. Before each step of the
optimizer its gradient is zeroed, by which momentum and second moments stay zero too, and after it the weight itself,
whatever the optimizer did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

#: The attribute of a module under which the masks of its own parameters are, by attribute: no state dict has them.
_MASKS = "_regrow_masks"
#: And the same as numbers in the parameters' own type: multiplying by these takes a tenth of the time.
_FACTORS = "_regrow_mask_factors"
_INDICES = "_regrow_mask_indices"
_HELD, _WATCHERS = "_regrow_held_masks", "_regrow_watchers"


def masks_on(module: nn.Module) -> dict[str, Tensor]:
    """The masks of a module's own parameters by attribute, True where a weight is on; what is put there counts."""
    return vars(module).setdefault(_MASKS, {})


def mask_of(module: nn.Module, attribute: str) -> Tensor | None:
    """The mask of a parameter, where the parameter is; None where all weights are on."""
    masks = vars(module).get(_MASKS) or {}
    mask, parameter = masks.get(attribute), getattr(module, attribute)
    if mask is not None and mask.device != parameter.device:
        mask = masks[attribute] = mask.to(parameter.device)
    return mask


def _factor(module: nn.Module, attribute: str) -> Tensor:
    mask, parameter = mask_of(module, attribute), getattr(module, attribute)
    assert mask is not None
    kept = vars(module).setdefault(_FACTORS, {})
    known = kept.get(attribute)
    if known is None or known[0] is not mask or known[1].dtype != parameter.dtype:
        kept[attribute] = known = (mask, torch.empty_like(parameter).copy_(mask))
    return known[1]


def alive_indices(module: nn.Module, attribute: str) -> Tensor:
    """The flat indices of the weights of a parameter that are on, in order; found once for each mask."""
    mask = mask_of(module, attribute)
    if mask is None:
        return torch.arange(getattr(module, attribute).numel(), device=getattr(module, attribute).device)
    kept = vars(module).setdefault(_INDICES, {})
    known = kept.get(attribute)
    if known is None or known[0] is not mask:
        kept[attribute] = known = (mask, mask.flatten().nonzero().squeeze(1))
    return known[1]


def masked(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The parameters of a model that have masks, as modules and attributes."""
    for module in model.modules():
        for attribute in list(vars(module).get(_MASKS) or ()):
            if attribute in module._parameters:
                yield module, attribute


def hold_masks(model: nn.Module, optimizer: Optimizer) -> None:
    """Let an optimizer keep all weights at zero that masks have off, now and later.

    Edits do this by themselves for the optimizer that they are given, and a :class:`regrow.Shaper` for its own. Copies
    of an optimizer don't have what this gives it.

    Args:
        model: With masks, or without as yet.
        optimizer: That trains it.
    """
    held = vars(optimizer).setdefault(_HELD, [])
    if any(known is model for known in held):
        return
    held.append(model)
    optimizer.register_step_pre_hook(lambda *_: _before(model, optimizer))
    optimizer.register_step_post_hook(lambda *_: _after(model))


def watch(optimizer: Optimizer, watcher: Callable[[], Any]) -> None:
    """Have something called before each step, while gradients are still those of all weights; needs a held model."""
    vars(optimizer).setdefault(_WATCHERS, []).append(watcher)


@torch.no_grad()
def _before(model: nn.Module, optimizer: Optimizer) -> None:
    for watcher in vars(optimizer).get(_WATCHERS, ()):
        watcher()
    for module, attribute in masked(model):
        gradient = getattr(module, attribute).grad
        if gradient is not None and not gradient.is_sparse:
            gradient.mul_(_factor(module, attribute))


@torch.no_grad()
def _after(model: nn.Module) -> None:
    for module, attribute in masked(model):
        getattr(module, attribute).mul_(_factor(module, attribute))

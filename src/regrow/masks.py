"""Masks of single weights: kept beside the weights, and held while an optimizer trains them.

A weight that is off is zero in its parameter, so that a mask costs a forward pass nothing. Before each step of the
optimizer its gradient is zeroed, by which momentum and second moments stay zero too, and after it the weight itself,
whatever the optimizer did.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from .sharding import is_part, part_like

#: The attribute of a module under which the masks of its own parameters are, by attribute: no state dict has them.
_MASKS = "_regrow_masks"
#: And the same as numbers in the parameters' own type: multiplying by these takes a tenth of the time.
_FACTORS = "_regrow_mask_factors"
_INDICES = "_regrow_mask_indices"
_HELD, _WATCHERS = "_regrow_held_masks", "_regrow_watchers"

#: Where a parameter is while torch parametrises it: under the same name in this module, and with older functions as
#: an attribute with one of these endings.
_PARAMETRIZATIONS, _ENDINGS = "parametrizations", ("_v", "_orig")


def stored(module: nn.Module, attribute: str) -> nn.Parameter | None:
    """The parameter that a module has under an attribute, or that is parametrised there; None if there is neither."""
    own = module._parameters
    if own.get(attribute) is not None:
        return own[attribute]
    lists = module._modules.get(_PARAMETRIZATIONS)
    if lists is not None and attribute in lists._modules:
        steps: Any = lists._modules[attribute]
        originals: list[nn.Parameter] = list(steps.parameters(recurse=False))
        return max(originals, key=nn.Parameter.numel) if originals else None
    return next((own[attribute + end] for end in _ENDINGS if own.get(attribute + end) is not None), None)


@torch.no_grad()
def normed_dim(module: nn.Module, attribute: str) -> int | None:
    """The dimension along which a parametrised weight is divided by the norms of its rows; None where it isn't."""
    weight = stored(module, attribute)
    if weight is None or weight is module._parameters.get(attribute):
        return None
    lists = module._modules.get(_PARAMETRIZATIONS)
    if lists is not None and attribute in lists._modules:
        steps: Any = lists._modules[attribute]
        others = [p for p in steps.parameters(recurse=False) if p is not weight]
        held = {**dict(steps.named_parameters()), **{name: b.clone() for name, b in steps.named_buffers()}}
        zeros = {name: torch.zeros_like(p) if p is weight else p for name, p in held.items()}
        if bool(functional_call(steps, zeros, ()).isfinite().all()):
            return None
    else:
        others = [p for name, p in module._parameters.items() if name == f"{attribute}_g" and p is not None]
        if not others:
            return None
    return next((dim for other in others for dim, size in enumerate(other.shape) if size > 1), 0)


def place_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Under which module and attribute the mask of a parameter is kept, whether it is parametrised or not."""
    holder, _, attribute = name.rpartition(".")
    module = model.get_submodule(holder)
    above, found, inner = holder.rpartition(f"{_PARAMETRIZATIONS}.")
    ways = [(above.rstrip("."), inner)] if found else []
    ways += [(holder, attribute.removesuffix(end)) for end in _ENDINGS if attribute.endswith(end)]
    for path, plain in ways:
        base = model.get_submodule(path)
        if stored(base, plain) is module._parameters.get(attribute):
            return base, plain
    return module, attribute


def masks_on(module: nn.Module) -> dict[str, Tensor]:
    """The masks of a module's own parameters by attribute, True where a weight is on; what is put there counts."""
    return vars(module).setdefault(_MASKS, {})


def mask_of(module: nn.Module, attribute: str) -> Tensor | None:
    """The mask of a parameter, where the parameter is; None where all weights are on."""
    masks = vars(module).get(_MASKS) or {}
    mask = masks.get(attribute)
    if mask is not None and mask.device != (parameter := _held(module, attribute)).device:
        mask = masks[attribute] = mask.to(parameter.device)
    return mask


def set_mask(module: nn.Module, attribute: str, mask: Tensor | None) -> None:
    """Give a parameter another mask, or none."""
    if mask is None:
        masks_on(module).pop(attribute, None)
    else:
        masks_on(module)[attribute] = mask


def _held(module: nn.Module, attribute: str) -> nn.Parameter:
    parameter = stored(module, attribute)
    assert parameter is not None
    return parameter


def _factor(module: nn.Module, attribute: str) -> Tensor:
    mask, parameter = mask_of(module, attribute), _held(module, attribute)
    assert mask is not None
    kept = vars(module).setdefault(_FACTORS, {})
    known = kept.get(attribute)
    alike = known is not None and known[0] is mask and known[1].dtype == parameter.dtype
    if known is None or not alike or is_part(known[1]) != is_part(parameter):
        kept[attribute] = known = (mask, _sharded_like(parameter, mask.to(parameter.dtype)))
    return known[1]


def _sharded_like(parameter: Tensor, factor: Tensor) -> Tensor:
    if is_part(parameter):
        return part_like(factor, parameter)
    return torch.empty_like(parameter).copy_(factor)  # in the same memory layout


def alive_indices(module: nn.Module, attribute: str) -> Tensor:
    """The flat indices of the weights of a parameter that are on, in order; found once for each mask."""
    mask = mask_of(module, attribute)
    if mask is None:
        parameter = _held(module, attribute)
        return torch.arange(parameter.numel(), device=parameter.device)
    kept = vars(module).setdefault(_INDICES, {})
    known = kept.get(attribute)
    if known is None or known[0] is not mask:
        kept[attribute] = known = (mask, mask.flatten().nonzero().squeeze(1))
    return known[1]


def masked(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """The parameters of a model that have masks, with the modules and attributes under which these are."""
    for module in model.modules():
        for attribute in list(vars(module).get(_MASKS) or ()):
            parameter = stored(module, attribute)
            if parameter is not None and parameter.shape == masks_on(module)[attribute].shape:
                yield module, attribute, parameter


def hold_masks(model: nn.Module, optimizer: Optimizer) -> None:
    """Let an optimizer keep all weights at zero that masks have off, now and later.

    Edits do this by themselves for the optimizer that they are given, and a :class:`regrow.Shaper` for its own. Copies
    of an optimizer don't have what this gives it, nor does one that is made for a loaded model.

    Args:
        model: With masks, or without as yet.
        optimizer: That trains it.

    Raises:
        TypeError: These are no model and no optimizer.
    """
    if not isinstance(model, nn.Module) or not isinstance(optimizer, Optimizer):
        raise TypeError(f"hold_masks takes a model and an optimizer, not {model!r} and {optimizer!r}.")
    held = vars(optimizer).setdefault(_HELD, [])
    if any(known is model for known in held):
        return
    held.append(model)
    if len(held) == 1:  # once, however many models it trains
        optimizer.register_step_pre_hook(_before)
        optimizer.register_step_post_hook(_after)


def watch(optimizer: Optimizer, watcher: Callable[[], Any]) -> None:
    """Have a method called before each step, while gradients are still those of all weights; needs a held model.

    It is forgotten with its object.
    """
    vars(optimizer).setdefault(_WATCHERS, []).append(weakref.WeakMethod(watcher))


def _before(optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Zero the gradients of weights that are off, or have it done whenever a closure has computed them."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        _hide(optimizer)
        return None

    def closed() -> Any:
        loss = closure()
        _hide(optimizer)
        return loss

    return args[:1], {**kwargs, "closure": closed}


@torch.no_grad()
def _hide(optimizer: Optimizer) -> None:
    watchers = vars(optimizer).get(_WATCHERS, [])
    watchers[:] = [held for held in watchers if held() is not None]
    for held in watchers:
        held()()
    for module, attribute, parameter in _trained(optimizer):
        if parameter.grad is not None and not parameter.grad.is_sparse:
            parameter.grad.mul_(_factor(module, attribute))


@torch.no_grad()
def _after(optimizer: Optimizer, *_: Any) -> None:
    for module, attribute, parameter in _trained(optimizer):
        parameter.mul_(_factor(module, attribute))


def _trained(optimizer: Optimizer) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """What is masked of what an optimizer trains: others may train the rest of the model."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for model in vars(optimizer).get(_HELD, ()):
        for found in masked(model):
            if id(found[2]) in own:
                yield found

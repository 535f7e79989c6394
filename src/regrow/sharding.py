"""Models under ``fully_shard`` (FSDP2): gathered for an edit, with the optimizer's state, and sharded again.

What torch has for this is imported where a model needs it: it takes longer to import than all the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def is_sharded(model: nn.Module) -> bool:
    """Whether a model, or a part of it, is under ``fully_shard``."""
    return any(True for _ in _sharded(model))


def _sharded(model: nn.Module) -> Iterator[nn.Module]:
    known: Any = sys.modules.get("torch.distributed.fsdp")
    if known is not None and isinstance(model, nn.Module):  # else nobody can have called fully_shard
        yield from (module for module in model.modules() if isinstance(module, known.FSDPModule))


def is_part(tensor: Any) -> bool:
    """Whether a tensor is one of several processes' parts of a whole (a DTensor)."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "placements")


def part_like(whole: Tensor, part: Tensor) -> Tensor:
    """This process's part of what all have the whole of, as another tensor is parted."""
    from torch.distributed.tensor import distribute_tensor

    like: Any = part
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def sharding_group(model: nn.Module) -> Any:
    """The group of processes that a model is sharded over; None where there is no such."""
    found: Any = next(filter(is_part, model.parameters()), None)
    return None if found is None else found.device_mesh.get_group()


def gathered(tensor: Any) -> Any:
    """A tensor as a whole, on each process; whatever isn't sharded, as it is."""
    return tensor.full_tensor() if is_part(tensor) else tensor


@torch.no_grad()
def unshard_(model: nn.Module, optimizer: Optimizer) -> None:
    """Make a sharded model a plain one, in place: every process has all of it, and of the optimizer's state.

    Modules stay the same objects; parameters don't, and the optimizer has the new ones.
    """
    for sharded in _sharded(model):
        sharded.reshard()  # type: ignore[operator]
    new: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        held: dict[str, Any] = dict(module._parameters)
        for name, parameter in held.items():
            if is_part(parameter) and parameter not in new:
                whole = nn.Parameter(gathered(parameter.detach()).clone(), parameter.requires_grad)
                whole.grad = None if parameter.grad is None else gathered(parameter.grad).clone()
                new[parameter] = whole
            if parameter in new:
                module._parameters[name] = new[parameter]
    _replace(optimizer, new, lambda value, _: gathered(value).clone() if is_part(value) else value)
    for sharded in list(_sharded(model)):
        _forget(sharded)
    for module in model.modules():
        for flag in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            vars(module).pop(flag, None)


@torch.no_grad()
def shard_(model: nn.Module, optimizer: Optimizer, shard: Callable[[nn.Module], object]) -> None:
    """Shard a plain model as its user does, with the optimizer's state.

    Args:
        shard: Calls ``fully_shard`` on the model's parts.
    """
    before = dict(model.named_parameters())
    shard(model)
    after = dict(model.named_parameters())
    for name, parameter in before.items():
        if parameter.grad is not None and after[name] is not parameter:
            after[name].grad = _like(parameter.grad, after[name])
    new = {parameter: after[name] for name, parameter in before.items() if after[name] is not parameter}
    _replace(optimizer, new, _like)


def _like(value: Any, parameter: Tensor) -> Any:
    """A tensor of a parameter's shape sharded as it is; all processes have all of it."""
    if not isinstance(value, Tensor) or not is_part(parameter) or value.shape != parameter.shape:
        return value
    return part_like(value, parameter)


def _replace(optimizer: Optimizer, new: dict[nn.Parameter, nn.Parameter], state: Callable[[Any, Tensor], Any]) -> None:
    """Give an optimizer other parameters in place of its own, with what their state becomes."""
    for group in optimizer.param_groups:
        group["params"] = [new.get(parameter, parameter) for parameter in group["params"]]
    for parameter in [p for p in optimizer.state if p in new]:
        held = optimizer.state.pop(parameter)
        optimizer.state[new[parameter]] = {key: state(value, new[parameter]) for key, value in held.items()}


def _forget(module: Any) -> None:
    """Take away what ``fully_shard`` has made of a module: its class, hooks and state; torch has no inverse of it."""
    from torch.distributed import _composable_state
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY

    state = module._get_fsdp_state()
    _composable_state._module_state_mapping.pop(module, None)
    for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
        handle.remove()
    module.__class__ = type(module).__bases__[1]  # it is the first base of a class that was made for it
    for key in (STATE_KEY, REGISTRY_KEY):
        vars(module).pop(key, None)

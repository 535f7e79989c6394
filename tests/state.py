"""Looking at the whole state of a model and its optimizer, bit by bit, and at parts of it by unit."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules import module as global_hooks

Snapshot = dict[str, Any]

_PLAIN = (int, float, str, bool, tuple, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Snapshot:
    """Everything an edit may touch: values, gradients, layouts, identities, modes, attributes, hooks, randomness."""
    state: Snapshot = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        state[f"{name} identity"] = id(parameter)
        state[f"{name} value"] = parameter.detach().clone()
        state[f"{name} grad"] = None if parameter.grad is None else parameter.grad.clone()
        state[f"{name} requires_grad"] = parameter.requires_grad
        state[f"{name} hooks"] = list(parameter._backward_hooks or ())
    for name, buffer in model.named_buffers(remove_duplicate=False):
        state[f"{name} value"] = buffer.clone()
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, _PLAIN):
                state[f"{path}.{name}"] = value
        for name in _HOOKS:
            state[f"{path}.{name}"] = [id(hook) for hook in getattr(module, name).values()]
    if optimizer is not None:
        state.update(_flat("optimizer", optimizer.state_dict()))
        state["optimizer holds"] = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    state["random torch"] = torch.get_rng_state()
    state["random numpy"] = repr(np.random.get_state())
    state["random python"] = random.getstate()
    return state


def surroundings(model: nn.Module) -> Snapshot:
    """What else running a model may change: every hook, every attribute and what it holds, and torch's own switches."""
    state: Snapshot = {}
    for path, module in [*model.named_modules(), ("torch", global_hooks)]:
        for name, value in vars(module).items():
            if "hooks" in name and hasattr(value, "values"):
                state[f"{path}.{name}"] = [(key, id(hook)) for key, hook in value.items()]
            elif isinstance(module, nn.Module):
                state[f"{path}.{name} is"] = id(value)
                state[f"{path}.{name} holds"] = _held(value)
    state["switches"] = (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), gc.isenabled(),
        torch._C._get_mkldnn_enabled(), torch.backends.mha.get_fastpath_enabled(), torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(), torch.backends.cuda.math_sdp_enabled(), list(warnings.filters),
        torch.backends.cuda.flash_sdp_enabled(), torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return state


def _held(value: Any) -> Any:
    """The objects that a container or an object holds, by identity."""
    if isinstance(value, dict):
        return [(key, id(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, set)):
        return [id(item) for item in value]
    if isinstance(value, (nn.Module, Tensor, type)):
        return None
    return [(key, id(item)) for key, item in getattr(value, "__dict__", {}).items()]


def _flat(prefix: str, value: Any) -> Snapshot:
    match value:
        case dict():
            items: Iterable[tuple[Any, Any]] = value.items()
        case list():
            items = enumerate(value)
        case Tensor():
            return {prefix: value.clone()}
        case _:
            return {prefix: value}
    return {k: v for key, item in items for k, v in _flat(f"{prefix}.{key}", item).items()}


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """The names of what is not bit-identical (layouts of tensors included)."""
    return sorted(
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or not _same(before[name], after[name])
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return same_bits(one, other) and _layout(one) == _layout(other)
    return type(one) is type(other) and one == other


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal dtype, shape, device and bits: NaN equals NaN, and 0 differs from -0."""
    if one.dtype != other.dtype or one.shape != other.shape or one.device != other.device:
        return False
    if one.layout != torch.strided or other.layout != torch.strided:
        return one.layout == other.layout and torch.equal(one.to_dense(), other.to_dense())
    return one.is_meta or torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _layout(tensor: Tensor) -> list[int]:
    """Strides of the dimensions where they mean something."""
    if tensor.layout != torch.strided:
        return []
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, under each of their names."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach().clone() for name, tensor in named}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """For each state the optimizer keeps element by element, a copy under each parameter's name."""
    states: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor) and value.ndim:
                states.setdefault(key, {})[name] = value.clone()
    return states


def places(axis: Any) -> dict[tuple[str, int], Tensor]:
    """For each (tensor name, dim) of an axis the unit of each index; a copy, so that it survives edits."""
    return {(entry.name, entry.dim): entry.unit_of.clone() for entry in axis.entries}


def without(where: Mapping[tuple[str, int], Tensor], units: Iterable[int], values: Mapping[str, Tensor]) -> dict:
    """``values`` less what belongs to ``units``."""
    gone = torch.tensor(list(units))
    result = dict(values)
    for (name, dim), unit_of in where.items():
        if name in result:
            keep = (~torch.isin(unit_of, gone)).nonzero().flatten()
            result[name] = result[name].index_select(dim, keep)
    return result


def only(where: Mapping[tuple[str, int], Tensor], units: Iterable[int], values: Mapping[str, Tensor]) -> list[Tensor]:
    """The slices of ``values`` that belong to ``units``."""
    wanted = torch.tensor(list(units))
    return [
        values[name].index_select(dim, torch.isin(unit_of, wanted).nonzero().flatten())
        for (name, dim), unit_of in where.items()
        if name in values
    ]


def differing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """The names whose tensors are not bit-identical."""
    return sorted(
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or not same_bits(before[name], after[name])
    )


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The model's output in eval and in train mode; the model is left as it was."""
    mode = model.training
    results = {}
    for name, training in (("eval", False), ("train", True)):
        model.train(training)
        buffers = {key: value.clone() for key, value in model.named_buffers()}
        with torch.no_grad():
            results[name] = functional_call(model, buffers, (x,))
    model.train(mode)
    return results


def relative_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """The largest change of any output, as a part of the largest output."""
    return max(((after[k] - v).abs().max() / v.abs().max()).item() for k, v in before.items())


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """One step of training on a made-up loss; gradients stay. Returns the loss with its graph."""
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss

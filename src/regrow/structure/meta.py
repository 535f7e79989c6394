"""Calls on the meta device: shapes without arithmetic.

Torch has Python code for the shapes of many calls, which takes longer than all else; for common ones the shape is
told here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def to_meta(args: tuple, kwargs: dict, copy: Callable[[Tensor], Tensor]) -> tuple[tuple, dict]:
    """A call's arguments on the meta device: what the model makes or keeps by itself is real, but only its shape
    is needed."""

    def convert(value: Any) -> Any:
        return copy(value) if isinstance(value, Tensor) and not value.is_meta else value

    if kwargs:
        kwargs = {k: torch.device("meta") if k == "device" and v is not None else v for k, v in kwargs.items()}
    if all(t.is_meta for t in tensors_among([*args, *kwargs.values()])):
        return args, kwargs
    return pytree.tree_map(convert, args), pytree.tree_map(convert, kwargs)


def call(func: Any, args: tuple, kwargs: dict) -> Any:
    """Make a call."""
    if args and isinstance(args[0], Tensor) and args[0].is_meta:
        shape_of = _SHAPES.get(func)
        if shape_of is not None:
            return shape_of(*args, **kwargs)
        if torch.Tag.pointwise in func.tags:
            return _pointwise(func, args, kwargs)
    return func(*args, **kwargs)


#: Operator, and types of its arguments -> the type of its result; None: it isn't one tensor of its own.
_RESULTS: dict[object, torch.dtype | None] = {}


def _pointwise(func: Any, args: tuple, kwargs: dict) -> Any:
    """A result like the first argument, where nothing is broadcast beyond that and all lie in order."""
    like = args[0]
    key: list[object] = [func, *kwargs]
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            if (
                not value.is_contiguous()
                or value.ndim > like.ndim
                or any(n not in (1, m) for n, m in zip(reversed(value.shape), reversed(like.shape), strict=False))
            ):
                return func(*args, **kwargs)
            key.append((value.dtype, value.ndim == 0))
        else:
            key.append(value if isinstance(value, torch.dtype) else type(value))
    known = tuple(key)
    if known not in _RESULTS:
        result = func(*args, **kwargs)
        own = isinstance(result, Tensor) and all(result is not a for a in args) and not result._is_view()
        _RESULTS[known] = result.dtype if own and not func._schema.is_mutable else None
        return result
    dtype = _RESULTS[known]
    return func(*args, **kwargs) if dtype is None else torch.empty_like(like, dtype=dtype)


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    *_: float,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    for tensor in (weight, bias, running_mean, running_var):
        _check("batch norm", tensor, (channels,))
    saved = channels if training else 0
    return torch.empty_like(x), x.new_empty(saved), x.new_empty(saved)


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, _: float
) -> tuple[Tensor, Tensor, Tensor]:
    for tensor in (weight, bias):
        _check("layer norm", tensor, tuple(shape))
    if tuple(x.shape[x.ndim - len(shape) :]) != tuple(shape):
        raise RuntimeError(f"layer norm over {tuple(shape)} was given a tensor of shape {tuple(x.shape)}")
    statistics = x.new_empty([*x.shape[: x.ndim - len(shape)], *(1 for _ in shape)])
    return torch.empty_like(x, memory_format=torch.contiguous_format), statistics, statistics.clone()


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, inner: int, groups: int, _: float
) -> tuple[Tensor, Tensor, Tensor]:
    for tensor in (weight, bias):
        _check("group norm", tensor, (channels,))
    if channels % groups:
        raise RuntimeError(f"group norm over {channels} channels can't have {groups} groups")
    return torch.empty_like(x), x.new_empty((n, groups)), x.new_empty((n, groups))


def _check(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise RuntimeError(f"{name} over {shape} was given a tensor of shape {tuple(tensor.shape)}")


def _softmax(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_aten = torch.ops.aten
_SHAPES: dict[Any, Callable[..., Any]] = {
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_group_norm.default: _group_norm,
    _aten._safe_softmax.default: _softmax,
}


def tensors_among(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among a call's arguments, also those in lists."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(v for v in value if isinstance(v, Tensor))
    return found


def storage_key(tensor: Tensor) -> int:
    """Tells whose memory a tensor is: torch hands out factories' results as other objects than the calls return."""
    return tensor.untyped_storage()._cdata

"""Calls on the meta device: shapes without arithmetic.

Torch has Python code for the shapes of many calls, which takes longer than all else; for common ones the shape is
told here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
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
    first = args[0][0] if args and isinstance(args[0], list) and args[0] else args[0] if args else None
    if isinstance(first, Tensor) and first.is_meta:
        shape_of = _SHAPES.get(func)
        if shape_of is not None:
            return shape_of(*args, **kwargs)
        if torch.Tag.pointwise in func.tags or func in _ALSO_POINTWISE:
            return _pointwise(func, args, kwargs)
    return func(*args, **kwargs)


class _Known(NamedTuple):
    """What a pointwise call returns: its first argument, or a tensor of a type."""

    in_place: bool
    dtype: torch.dtype


#: Operator, and types of its arguments -> what it returns; None: neither its first argument nor one tensor of its own.
_RESULTS: dict[object, _Known | None] = {}


def _pointwise(func: Any, args: tuple, kwargs: dict) -> Any:
    """A result like the first argument, where nothing is broadcast beyond that."""
    like = args[0]
    if not isinstance(like, Tensor) or "memory_format" in kwargs or not all(like.stride()):
        return func(*args, **kwargs)
    shape = tuple(like.shape)
    key: list[object] = [func, *kwargs]
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            if value is not like and not _broadcasts(tuple(value.shape), shape):
                return func(*args, **kwargs)
            key.append((value.dtype, value.ndim == 0, value is like))
        else:
            key.append(value if isinstance(value, torch.dtype) else type(value))
    known = tuple(key)
    if known not in _RESULTS:
        result = func(*args, **kwargs)
        _RESULTS[known] = _described(func, args, result)
        return result
    found = _RESULTS[known]
    if found is None:
        return func(*args, **kwargs)
    return like if found.in_place else _like(like, found.dtype)


def _broadcasts(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return own == shape or (
        len(own) <= len(shape) and all(n in (1, m) for n, m in zip(reversed(own), reversed(shape), strict=False))
    )


def _described(func: Any, args: tuple, result: Any) -> _Known | None:
    if not isinstance(result, Tensor):
        return None
    if func._schema.is_mutable:
        return _Known(True, result.dtype) if result is args[0] and func._schema.name.endswith("_") else None
    return None if any(result is a for a in args) or result._is_view() else _Known(False, result.dtype)


def _like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """As :func:`torch.empty_like`, which torch works out in Python: in the order in which dimensions lie in memory."""
    if tensor.is_contiguous():
        return _empty(tensor.shape, tensor, dtype)
    strides, length = [0] * tensor.ndim, 1
    for dim in sorted(reversed(range(tensor.ndim)), key=tensor.stride().__getitem__):
        strides[dim], length = length, length * max(1, tensor.shape[dim])
    return torch.empty_strided(tensor.shape, strides, dtype=dtype or tensor.dtype, device="meta")


def _empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device="meta")


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    *more: Any,
) -> Tensor:
    transposed, _, groups = more
    spatial = x.ndim - 2
    numbers = [v * spatial if len(v) == 1 else v for v in (stride, padding, dilation)]
    if transposed or weight.ndim != x.ndim or not (x.is_contiguous() and weight.is_contiguous()):
        return _aten.convolution.default(x, weight, bias, stride, padding, dilation, *more)
    _check("convolution", bias, (weight.shape[0],))
    if weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups:
        shapes = f"a weight of shape {tuple(weight.shape)} and an input of shape {tuple(x.shape)}"
        raise RuntimeError(f"a convolution in {groups} groups was given {shapes}")
    shape = [
        (n + 2 * pad - step * (k - 1) - 1) // by + 1
        for n, k, by, pad, step in zip(x.shape[2:], weight.shape[2:], *numbers, strict=True)
    ]
    if min(shape, default=1) < 1:
        raise RuntimeError(f"a convolution's output would have the size {tuple(shape)}")
    return _empty((x.shape[0], weight.shape[0], *shape), x)


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
    return _like(x), _empty((saved,), x), _empty((saved,), x)


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, _: float
) -> tuple[Tensor, Tensor, Tensor]:
    for tensor in (weight, bias):
        _check("layer norm", tensor, tuple(shape))
    if tuple(x.shape[x.ndim - len(shape) :]) != tuple(shape):
        raise RuntimeError(f"layer norm over {tuple(shape)} was given a tensor of shape {tuple(x.shape)}")
    over = [*x.shape[: x.ndim - len(shape)], *(1 for _ in shape)]
    return _empty(x.shape, x), _empty(over, x), _empty(over, x)


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, inner: int, groups: int, _: float
) -> tuple[Tensor, Tensor, Tensor]:
    for tensor in (weight, bias):
        _check("group norm", tensor, (channels,))
    if channels % groups:
        raise RuntimeError(f"group norm over {channels} channels can't have {groups} groups")
    return _like(x), _empty((n, groups), x), _empty((n, groups), x)


def _addmm(bias: Tensor, left: Tensor, right: Tensor, **numbers: Any) -> Tensor:
    shape = _product(left, right)
    if not _broadcasts(tuple(bias.shape), shape):
        raise RuntimeError(f"addmm of shape {shape} was given a bias of shape {tuple(bias.shape)}")
    return _empty(shape, left)


def _mm(left: Tensor, right: Tensor) -> Tensor:
    return _empty(_product(left, right), left)


def _product(left: Tensor, right: Tensor) -> tuple[int, int]:
    if left.shape[1] != right.shape[0]:
        one, other = tuple(left.shape), tuple(right.shape)
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({one} and {other})")
    return left.shape[0], right.shape[1]


def _mean(x: Tensor, dim: list[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    over = {d % max(1, x.ndim) for d in (dim or range(x.ndim))}
    kept = [1 if d in over else n for d, n in enumerate(x.shape) if keepdim or d not in over]
    return _empty(kept, x, dtype)


def _cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    first = tensors[0]
    dim %= max(1, first.ndim)
    others = [(t.dtype, t.shape[:dim], t.shape[dim + 1 :], t.is_contiguous()) for t in tensors]
    if others.count(others[0]) < len(others) or not others[0][-1]:
        return torch.ops.aten.cat.default(tensors, dim)
    return _empty([*first.shape[:dim], sum(t.shape[dim] for t in tensors), *first.shape[dim + 1 :]], first)


def _stack(tensors: list[Tensor], dim: int = 0) -> Tensor:
    first = tensors[0]
    if any(t.shape != first.shape or t.dtype != first.dtype for t in tensors):
        return _aten.stack.default(tensors, dim)
    dim %= first.ndim + 1
    return _empty([*first.shape[:dim], len(tensors), *first.shape[dim:]], first)


def _bmm(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[0] != right.shape[0] or left.shape[2] != right.shape[1]:
        raise RuntimeError(f"bmm can't multiply tensors of shapes {tuple(left.shape)} and {tuple(right.shape)}")
    return _empty((left.shape[0], left.shape[1], right.shape[2]), left)


def _roll(x: Tensor, shifts: list[int], dims: Sequence[int] = ()) -> Tensor:
    return _empty(x.shape, x) if x.is_contiguous() else _aten.roll.default(x, shifts, dims)


def _grid_sampler(x: Tensor, grid: Tensor, *numbers: Any) -> Tensor:
    if x.ndim != 4 or grid.shape[0] != x.shape[0] or grid.shape[3] != 2 or not x.numel():
        return _aten.grid_sampler_2d.default(x, grid, *numbers)
    return _empty((*x.shape[:2], *grid.shape[1:3]), x)


def _interpolated(func: Any) -> Callable[..., Tensor]:
    def shape_of(x: Tensor, size: list[int], *numbers: Any) -> Tensor:
        if x.ndim != len(size) + 2 or not x.numel():
            return func(x, size, *numbers)
        return _empty((*x.shape[:2], *size), x).to(memory_format=suggest_memory_format(x))

    return shape_of


def _check(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise RuntimeError(f"{name} over {shape} was given a tensor of shape {tuple(tensor.shape)}")


def _softmax(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return _empty(x.shape, x)


_aten = torch.ops.aten
_SHAPES: dict[Any, Callable[..., Any]] = {
    _aten.convolution.default: _convolution,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_group_norm.default: _group_norm,
    _aten._safe_softmax.default: _softmax,
    _aten.addmm.default: _addmm,
    _aten.mm.default: _mm,
    _aten._softmax.default: _softmax,
    _aten._log_softmax.default: _softmax,
    _aten.bmm.default: _bmm,
    _aten.mean.dim: _mean,
    _aten.cat.default: _cat,
    _aten.stack.default: _stack,
    _aten.roll.default: _roll,
    _aten.grid_sampler_2d.default: _grid_sampler,
    **{
        interpolation.default: _interpolated(interpolation.default)
        for interpolation in (
            *(_aten.upsample_nearest1d, _aten.upsample_nearest2d, _aten.upsample_nearest3d),
            *(_aten._upsample_nearest_exact1d, _aten._upsample_nearest_exact2d, _aten._upsample_nearest_exact3d),
            *(_aten.upsample_linear1d, _aten.upsample_bilinear2d, _aten.upsample_trilinear3d),
            *(_aten.upsample_bicubic2d, _aten._upsample_bicubic2d_aa, _aten._upsample_bilinear2d_aa),
        )
    },
}
#: What works place by place without being marked so.
_ALSO_POINTWISE = {
    *(_aten.hardswish_.default, _aten.leaky_relu_.default, _aten.elu_.default, _aten.celu_.default),
    *(_aten.silu_.default, _aten.mish_.default, _aten.gelu_.default, _aten.hardtanh_.default),
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

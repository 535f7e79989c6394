"""The operations of programs in plain numpy, on arrays whose absent entries are NaN."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from oracle_graphs import Part, Size, Step
from oracle_reference import (
    Array,
    Operation,
    Reference,
    along,
    axis_of,
    filled,
    is_product,
    marked,
    spread,
)


def _linear(ref: Reference, step: Step, x: Array) -> Array:
    ref.follow(step, 0, 1, along(x, -1))
    rows = ref.known(step, 0, 0)
    ref.follow(step, 1, 0, rows)
    return marked(filled(x) @ ref.weight(step, 0).T + ref.weight(step, 1), (-1, rows))


def _linear_back(ref: Reference, step: Step, x: Array) -> Array:
    ref.follow(step, 0, 0, along(x, -1))
    return marked(filled(x) @ ref.weight(step, 0), (-1, ref.known(step, 0, 1)))


def _packed_linear(ref: Reference, step: Step, x: Array) -> list[Array]:
    """Equal parts of the weight stay equal."""
    whole, count = _linear(ref, step, x), step.args[0]
    parts = np.split(whole, count, -1)
    for part in parts[1:]:
        _together(ref, parts[0], part, [-1])
    return parts


def _joined_linear(ref: Reference, step: Step, x: Array) -> Array:
    for number in (0, 1):
        ref.follow(step, number, 1, along(x, -1))
    weight = np.concatenate([ref.weight(step, 0), ref.weight(step, 1)])
    rows = np.concatenate([ref.known(step, 0, 0), ref.known(step, 1, 0)], 1)
    return marked(filled(x) @ weight.T, (-1, rows))


def _directed(ref: Reference, step: Step, x: Array) -> Array:
    """The length of a row is that of what is present."""
    columns, rows, weight = along(x, -1), ref.known(step, 0, 0), ref.weight(step, 0)
    ref.follow(step, 0, 1, columns)
    ref.follow(step, 1, 0, rows)
    lengths = np.sqrt(columns @ np.square(weight).T).clip(1e-12)
    return marked(filled(x) @ weight.T * spread(ref.weight(step, 1)[:, 0] / lengths, x.ndim, x.ndim - 1), (-1, rows))


def _table(ref: Reference, step: Step, x: Array) -> Array:
    """What is left over of a table stays."""
    weight, here = ref.weight(step, 0), along(x, -1)
    rest = np.ones((len(x), len(weight) - x.shape[-1]), bool)
    ref.follow(step, 0, 0, np.concatenate([here, rest], 1))
    return x + weight[: x.shape[-1]]


def _part_in_place(ref: Reference, step: Step, x: Array) -> Array:
    first, last = _ends(ref, x, -1, *step.args)
    out = x.copy()
    out[..., first:last] *= 2
    return out


def _ends(ref: Reference, x: Array, dim: int, *sizes: Size | None) -> list[int | None]:
    """Where a slice starts and stops. If it is told by a part of the whole, equal parts stay equal."""
    found = []
    for size in sizes:
        end = None if size is None else ref.size(size, x)
        ref.count(size, along(x, dim)[:, :end].sum(1))
        if isinstance(size, Part):
            ref.require(is_product(x.reshape(*x.shape[:-1], ref.size(size.by, x), -1)))
        found.append(end)
    return found


def _conv1d(ref: Reference, step: Step, x: Array) -> Array:
    weight, groups = ref.weight(step, 0), ref.size(step.args[0], x)
    apart = x.reshape(*x.shape[:-1], groups, -1)
    ref.require(is_product(apart))
    ref.follow(step, 0, 1, along(apart, -1))
    ref.count(step.args[0], along(apart, -2).sum(1))
    rows = ref.known(step, 0, 0)
    ref.follow(step, 1, 0, rows)
    grid = np.where(rows, 0.0, np.nan).reshape(len(rows), groups, -1)
    ref.require(is_product(grid) & (along(grid, 0) == along(apart, -2)).all(1))
    padded = np.pad(filled(apart), [(0, 0), (0, 0), (1, 1), (0, 0), (0, 0)])
    kernel = weight.reshape(groups, -1, *weight.shape[1:])
    time = x.shape[-2]
    out = sum(np.einsum("sbtgi,goi->sbtgo", padded[:, :, k : k + time], kernel[..., k]) for k in range(3))
    return marked(np.asarray(out).reshape(*x.shape[:-1], -1) + ref.weight(step, 1), (-1, rows))


def _grouped(ref: Reference, step: Step, x: Array) -> Array:
    ref.follow(step, 0, 0, along(x, -2))
    ref.follow(step, 0, 2, along(x, -1))
    out = np.einsum("sbtgi,goi->sbtgo", filled(x), ref.weight(step, 0))
    return marked(out, (-2, along(x, -2)), (-1, ref.known(step, 0, 1)))


def _scale(ref: Reference, step: Step, x: Array, first: int = 0, dim: int = -1) -> tuple[Array, Array]:
    for number in (first, first + 1):
        ref.follow(step, number, 0, along(x, dim))
    return ref.weight(step, first), ref.weight(step, first + 1)


def _batch_norm(ref: Reference, step: Step, x: Array) -> Array:
    (weight, bias), (mean, var) = _scale(ref, step, x), _scale(ref, step, x, 2)
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def _normal(x: Array, axes: tuple[int, ...]) -> Array:
    """Mean 0 and variance 1 over what is present."""
    number = (~np.isnan(x)).sum(axes, keepdims=True).clip(1)
    centred = x - filled(x).sum(axes, keepdims=True) / number
    return centred / np.sqrt(np.square(filled(centred)).sum(axes, keepdims=True) / number + 1e-5)


def _layer_norm(ref: Reference, step: Step, x: Array) -> Array:
    weight, bias = _scale(ref, step, x)
    return _normal(x, (-1,)) * weight + bias


def _group_norm(ref: Reference, step: Step, x: Array) -> Array:
    weight, bias = _scale(ref, step, x)
    apart = x.reshape(*x.shape[:-1], ref.size(step.args[0], x), -1)
    ref.require(is_product(apart))
    ref.count(step.args[0], along(apart, -2).sum(1))
    return _normal(apart, (-1, -3)).reshape(x.shape) * weight + bias


def _pointwise(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def run(ref: Reference, step: Step, x: Array, y: Array) -> Array:
        _together(ref, x, y, range(-1, 1 - max(x.ndim, y.ndim), -1))
        return function(x, y)

    return run


def _together(ref: Reference, x: Array, y: Array, dims: Sequence[int]) -> None:
    """Two tensors are absent at the same places, but along what is broadcast."""
    for dim in dims:
        if x.ndim > -dim and y.ndim > -dim and x.shape[dim] > 1 and y.shape[dim] > 1:
            ref.require((along(x, dim) == along(y, dim)).all(1))


def _with_parameter(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def run(ref: Reference, step: Step, x: Array) -> Array:
        weight = ref.weight(step, 0)
        for dim in range(weight.ndim):
            if weight.shape[dim] > 1:
                ref.follow(step, 0, dim, along(x, dim - weight.ndim))
        return function(x, weight)

    return run


def _softmax(ref: Reference, step: Step, x: Array, axis: int | None = None) -> Array:
    axis = axis_of(step.args[0]) if axis is None else axis
    raised = np.exp(x - np.where(np.isnan(x), -np.inf, x).max(axis, keepdims=True).clip(-1e9))
    return raised / filled(raised).sum(axis, keepdims=True)


def _reduced(mean: bool) -> Callable[..., Array]:
    def run(ref: Reference, step: Step, x: Array) -> Array:
        axis, keep = axis_of(step.args[0]), step.args[1]
        number = (~np.isnan(x)).sum(axis, keepdims=keep)
        out = filled(x).sum(axis, keepdims=keep)
        return np.where(number > 0, out / number.clip(1) if mean else out, np.nan)

    return run


def _largest(ref: Reference, step: Step, x: Array) -> Array:
    out = np.where(np.isnan(x), -np.inf, x).max(axis_of(step.args[0]), keepdims=step.args[1])
    return np.where(np.isinf(out), np.nan, out)


def _by_size(ref: Reference, step: Step, x: Array, y: Array) -> Array:
    number = along(y, step.args[0]).sum(1)
    return x * spread(number[:, None], x.ndim, 1) ** -0.5


def _cat(ref: Reference, step: Step, *xs: Array) -> Array:
    return np.concatenate(xs, axis_of(step.args[0]))


def _chunk(ref: Reference, step: Step, x: Array) -> list[Array]:
    """Equal parts of a whole stay equal: they are rows, and what is absent is absent in each."""
    pieces = np.split(x, step.args[0], axis_of(step.args[1]))
    for piece in pieces[1:]:
        _together(ref, pieces[0], piece, [step.args[1]])
    return pieces


def _split(ref: Reference, step: Step, x: Array) -> list[Array]:
    sizes = [ref.size(n, x) for n in step.args[0]]
    return np.split(x, np.cumsum(sizes)[:-1], axis_of(step.args[1]))


def _view(ref: Reference, step: Step, x: Array) -> Array:
    out = x.reshape([len(x), *(ref.size(n, x) for n in step.args[0])])
    ref.require(is_product(out))
    for dim, size in enumerate(step.args[0]):
        ref.count(size, along(out, dim).sum(1))
    return out


def _repeat(ref: Reference, step: Step, x: Array) -> Array:
    return np.tile(x, (1, *step.args[0]))


def _slice(ref: Reference, step: Step, x: Array) -> Array:
    dim, start, stop, by = step.args
    index: list[Any] = [slice(None)] * x.ndim
    first, last = _ends(ref, x, dim, start, stop)
    index[axis_of(dim)] = slice(first, last, by)
    return x[tuple(index)]


def _glu(ref: Reference, step: Step, x: Array) -> Array:
    value, gate = np.split(x, 2, -1)
    _together(ref, value, gate, [-1])
    return value / (1 + np.exp(-gate))


def _stack(ref: Reference, step: Step, x: Array, y: Array) -> Array:
    _together(ref, x, y, range(-1, 1 - x.ndim, -1))
    return np.stack([x, y], axis_of(step.args[0]))


def _pad(ref: Reference, step: Step, x: Array) -> Array:
    return np.pad(x, [*[(0, 0)] * (x.ndim - 1), step.args])


def _low_rank(ref: Reference, step: Step, x: Array) -> Array:
    ref.follow(step, 1, 0, inner := ref.known(step, 0, 1))
    ref.follow(step, 1, 1, along(x, -1))
    rows = ref.known(step, 0, 0)
    hidden = marked(filled(x) @ ref.weight(step, 1).T, (-1, inner))
    return marked(filled(hidden) @ ref.weight(step, 0).T, (-1, rows))


def _centred(ref: Reference, step: Step, x: Array) -> Array:
    """The mean of a row runs over what is present of it."""
    columns, weight = along(x, -1), ref.weight(step, 0)
    ref.follow(step, 0, 1, columns)
    means = (columns @ weight.T) / columns.sum(1, keepdims=True).clip(1)
    out = filled(x) @ weight.T - filled(x).sum(-1, keepdims=True) * spread(means, x.ndim, x.ndim - 1)
    return marked(out, (-1, ref.known(step, 0, 0)))


def _product(x: Array, y: Array, transposed: bool, ref: Reference) -> Array:
    if transposed:
        y = np.swapaxes(y, -1, -2)
    ref.require((along(x, -1) == along(y, -2)).all(1))
    _together(ref, x, y, range(-3, 1 - max(x.ndim, y.ndim), -1))
    batch = [(dim, along(x, dim)) for dim in range(-3, 1 - x.ndim, -1)]
    return marked(filled(x) @ filled(y), (-2, along(x, -2)), (-1, along(y, -1)), *batch)


def _attention(ref: Reference, step: Step, q: Array, k: Array, v: Array) -> Array:
    """Key heads may be shared by several query heads: those left must be as many for each."""
    shape, shared = q.shape, q.shape[2] // k.shape[2]
    q = q.reshape(*shape[:2], k.shape[2], shared, *shape[3:])
    ref.require(is_product(q))
    k, v = k[:, :, :, None], v[:, :, :, None]
    places = _product(q, k, True, ref)
    places = places * spread(along(q, -1).sum(1)[:, None], q.ndim, 1) ** -0.5
    places = _softmax(ref, step, places, -1)
    out = filled(places) @ filled(v)
    ref.require((along(k, 1) == along(v, 1)).all(1))
    out = marked(out, (1, along(q, 1)), (2, along(q, 2)), (-1, along(v, -1)))
    return out.reshape(*shape[:-1], -1)


#: How each operation of a program is computed where something may be absent.
OPERATIONS: Mapping[str, Operation] = {
    "linear": _linear,
    "linear_back": _linear_back,
    "conv1d": _conv1d,
    "grouped": _grouped,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "packed_linear": _packed_linear,
    "joined_linear": _joined_linear,
    "directed": _directed,
    "table": _table,
    "norm": lambda ref, step, x: x / np.sqrt(np.square(filled(x)).sum(-1, keepdims=True)).clip(1e-12),
    "largest": _largest,
    "where": _pointwise(lambda x, y: np.where(np.isnan(x) | (x > 0), x, y)),
    "add_in_place": _pointwise(np.add),
    "part_in_place": _part_in_place,
    "add": _pointwise(np.add),
    "mul": _pointwise(np.multiply),
    "scaled": _with_parameter(np.multiply),
    "shifted": _with_parameter(np.add),
    "tanh": lambda ref, step, x: np.tanh(x),
    "sigmoid": lambda ref, step, x: 1 / (1 + np.exp(-x)),
    "softmax": _softmax,
    "sum": _reduced(False),
    "mean": _reduced(True),
    "by_size": _by_size,
    "by_number": lambda ref, step, x: x * step.args[0],
    "cat": _cat,
    "chunk": _chunk,
    "split": _split,
    "view": _view,
    "permute": lambda ref, step, x: x.transpose(0, *(d + 1 for d in step.args[0])),
    "flip": lambda ref, step, x: np.flip(x, axis_of(step.args[0])),
    "roll": lambda ref, step, x: np.roll(x, step.args[0], axis_of(step.args[1])),
    "repeat": _repeat,
    "repeat_interleave": lambda ref, step, x: np.repeat(x, step.args[0], axis_of(step.args[1])),
    "slice": _slice,
    "select": lambda ref, step, x: x.take(step.args[1], axis_of(step.args[0])),
    "unbind": lambda ref, step, x: [x.take(i, axis_of(step.args[0])) for i in range(step.args[1])],
    "expand": lambda ref, step, x: np.repeat(
        np.expand_dims(x, axis_of(step.args[0])), step.args[1], axis_of(step.args[0])
    ),
    "stack": _stack,
    "glu": _glu,
    "pad": _pad,
    "outer": lambda ref, step, x, y: x[..., :, None] * y[..., None, :],
    "low_rank": _low_rank,
    "centred": _centred,
    "gram": lambda ref, step, x: _product(np.swapaxes(x, -1, -2), x, False, ref),
    "matmul": lambda ref, step, x, y: _product(x, y, False, ref),
    "matmul_t": lambda ref, step, x, y: _product(x, y, True, ref),
    "attention": _attention,
    "fused": _attention,
}

"""What is left of a network when some indices are absent: the meaning of a removal, by plain arithmetic.

All values keep their full shapes, and an absent entry is NaN. Sums, means, norms and softmax run over what is present;
what moves entries moves the NaNs along; two tensors that meet place by place must be absent at the same places. So
nothing here knows of labels, classes, rows or rectangles. Many removals are computed side by side, along the first
dimension; those that make no sense are dropped on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from oracle_graphs import Held, Kept, Part, Program, Size, SizeOf, Step, path

Place = tuple[str, int]  # a parameter and one of its dimensions
Array = np.ndarray


class Reference:
    """Runs a program on arrays, with absent entries.

    Args:
        tensors: The parameters and buffers.
        held: The integers of the blocks, by block number and name.
        present: For labelled dimensions, a row for each removal: which indices are present.
        labelled: The dimensions that ``present`` decides; others than these follow what they first meet.

    Attributes:
        removals: The numbers of the removals that still make sense.
        present: For each dimension of each parameter met so far which indices are present.
        after: What the integers must be.
        values: All values.
    """

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Array],
        held: Mapping[tuple[int, str], int],
        present: Mapping[Place, Array],
    ) -> None:
        self.program, self.tensors, self.held = program, tensors, held
        self.present = dict(present)
        self.after: dict[tuple[int, str], Array] = {}
        count = len(next(iter(present.values())))
        self.removals = np.arange(count)
        self.ok = np.ones(count, bool)
        self.values: list[Array] = []
        self.block = 0
        self._full_rows()

    def _full_rows(self) -> None:
        for present in self.present.values():
            self.require(np.any(present, axis=1))

    def run(self, x: Array) -> Reference:
        """All steps on one input."""
        self.values = [np.repeat(x[None], len(self.removals), 0)]
        self._drop()
        for number, step in self.program.steps():
            self.block = number
            out = _REFERENCE[step.op](self, step, *(self.values[i] for i in step.inputs))
            for value in out if isinstance(out, list) else [out]:
                self.require(_is_product(value))
                self.values.append(value)
            self._drop()
            if not len(self.removals):
                return self
        absent = np.isnan(self.values[-1]).reshape(len(self.removals), -1)
        self.require(np.all(~absent, axis=1))
        self._drop()
        return self

    def require(self, ok: Array) -> None:
        """Removals for which this doesn't hold make no sense."""
        self.ok &= ok

    def _drop(self) -> None:
        if not self.ok.all():
            kept = self.ok
            self.removals = self.removals[kept]
            self.values = [v[kept] for v in self.values]
            self.present = {k: v[kept] for k, v in self.present.items()}
            self.after = {k: v[kept] for k, v in self.after.items()}
            self.ok = np.ones(len(self.removals), bool)

    def weight(self, step: Step, number: int) -> Array:
        """A parameter's values; they are the same for all removals."""
        return self.tensors[self.name(step, number)]

    def name(self, step: Step, number: int) -> str:
        return f"{path(self.block)}.{step.params[number]}"

    def follow(self, step: Step, number: int, dim: int, present: Array) -> None:
        """One dimension of a parameter is present just where what it meets is."""
        place = self.name(step, number), dim
        self.require((self.present.setdefault(place, present) == present).all(1))

    def known(self, step: Step, number: int, dim: int) -> Array:
        """What of a parameter's dimension is present; all, if nothing says otherwise."""
        size = self.weight(step, number).shape[dim]
        return self.present.setdefault((self.name(step, number), dim), np.ones((len(self.removals), size), bool))

    def size(self, size: Size, value: Array) -> int:
        """A size of the full network."""
        match size:
            case Kept(dim):
                return value.shape[dim + 1]
            case Held(name):
                return self.held[self.block, name]
            case Part(dim, by):
                return value.shape[dim + 1] // self.size(by, value)
            case SizeOf(parameter, dim):
                return self.tensors[f"{path(self.block)}.{parameter}"].shape[dim]
        return size

    def count(self, size: Size | None, left: Array) -> None:
        """If a size is an integer that a block holds, it must become what is left."""
        if isinstance(size, Held):
            self.require(self.after.setdefault((self.block, size.name), left) == left)


def along(value: Array, dim: int) -> Array:
    """Which indices of a dimension (of the tensor, without the removals) are present."""
    axis = dim + 1 if dim >= 0 else value.ndim + dim
    others = tuple(d for d in range(1, value.ndim) if d != axis)
    return np.any(~np.isnan(value), axis=others)


def _is_product(value: Array) -> Array:
    """Whether what is present are all places of some rows, columns, …, and not nothing."""
    marks = ~np.isnan(value)
    product = np.ones_like(marks)
    for dim in range(value.ndim - 1):
        product &= _spread(along(value, dim), value.ndim, dim + 1)
    return (marks == product).reshape(len(value), -1).all(1) & marks.reshape(len(value), -1).any(1)


def _spread(rows: Array, ndim: int, axis: int) -> Array:
    return rows.reshape([len(rows), *(rows.shape[1] if d == axis else 1 for d in range(1, ndim))])


def _filled(value: Array) -> Array:
    return np.nan_to_num(value, nan=0.0)


def _marked(value: Array, *rows: tuple[int, Array]) -> Array:
    """The value, absent where any of these rows (by dimension) are."""
    for dim, present in rows:
        axis = dim + 1 if dim >= 0 else value.ndim + dim
        value = np.where(_spread(present, value.ndim, axis), value, np.nan)
    return value


def _axis(dim: int) -> int:
    return dim + 1 if dim >= 0 else dim


def _linear(ref: Reference, step: Step, x: Array) -> Array:
    ref.follow(step, 0, 1, along(x, -1))
    rows = ref.known(step, 0, 0)
    ref.follow(step, 1, 0, rows)
    return _marked(_filled(x) @ ref.weight(step, 0).T + ref.weight(step, 1), (-1, rows))


def _linear_back(ref: Reference, step: Step, x: Array) -> Array:
    ref.follow(step, 0, 0, along(x, -1))
    return _marked(_filled(x) @ ref.weight(step, 0), (-1, ref.known(step, 0, 1)))


def _conv1d(ref: Reference, step: Step, x: Array) -> Array:
    weight, groups = ref.weight(step, 0), ref.size(step.args[0], x)
    apart = x.reshape(*x.shape[:-1], groups, -1)
    ref.require(_is_product(apart))
    ref.follow(step, 0, 1, along(apart, -1))
    ref.count(step.args[0], along(apart, -2).sum(1))
    rows = ref.known(step, 0, 0)
    ref.follow(step, 1, 0, rows)
    grid = np.where(rows, 0.0, np.nan).reshape(len(rows), groups, -1)
    ref.require(_is_product(grid) & (along(grid, 0) == along(apart, -2)).all(1))
    padded = np.pad(_filled(apart), [(0, 0), (0, 0), (1, 1), (0, 0), (0, 0)])
    kernel = weight.reshape(groups, -1, *weight.shape[1:])
    time = x.shape[-2]
    out = sum(np.einsum("sbtgi,goi->sbtgo", padded[:, :, k : k + time], kernel[..., k]) for k in range(3))
    return _marked(np.asarray(out).reshape(*x.shape[:-1], -1) + ref.weight(step, 1), (-1, rows))


def _grouped(ref: Reference, step: Step, x: Array) -> Array:
    ref.follow(step, 0, 0, along(x, -2))
    ref.follow(step, 0, 2, along(x, -1))
    out = np.einsum("sbtgi,goi->sbtgo", _filled(x), ref.weight(step, 0))
    return _marked(out, (-2, along(x, -2)), (-1, ref.known(step, 0, 1)))


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
    centred = x - _filled(x).sum(axes, keepdims=True) / number
    return centred / np.sqrt(np.square(_filled(centred)).sum(axes, keepdims=True) / number + 1e-5)


def _layer_norm(ref: Reference, step: Step, x: Array) -> Array:
    weight, bias = _scale(ref, step, x)
    return _normal(x, (-1,)) * weight + bias


def _group_norm(ref: Reference, step: Step, x: Array) -> Array:
    weight, bias = _scale(ref, step, x)
    apart = x.reshape(*x.shape[:-1], ref.size(step.args[0], x), -1)
    ref.require(_is_product(apart))
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
    axis = _axis(step.args[0]) if axis is None else axis
    raised = np.exp(x - np.where(np.isnan(x), -np.inf, x).max(axis, keepdims=True).clip(-1e9))
    return raised / _filled(raised).sum(axis, keepdims=True)


def _reduced(mean: bool) -> Callable[..., Array]:
    def run(ref: Reference, step: Step, x: Array) -> Array:
        axis, keep = _axis(step.args[0]), step.args[1]
        number = (~np.isnan(x)).sum(axis, keepdims=keep)
        out = _filled(x).sum(axis, keepdims=keep)
        return np.where(number > 0, out / number.clip(1) if mean else out, np.nan)

    return run


def _by_size(ref: Reference, step: Step, x: Array, y: Array) -> Array:
    number = along(y, step.args[0]).sum(1)
    return x * _spread(number[:, None], x.ndim, 1) ** -0.5


def _cat(ref: Reference, step: Step, *xs: Array) -> Array:
    return np.concatenate(xs, _axis(step.args[0]))


def _chunk(ref: Reference, step: Step, x: Array) -> list[Array]:
    """Equal parts of a whole stay equal: they are rows, and what is absent is absent in each."""
    pieces = np.split(x, step.args[0], _axis(step.args[1]))
    for piece in pieces[1:]:
        _together(ref, pieces[0], piece, [step.args[1]])
    return pieces


def _split(ref: Reference, step: Step, x: Array) -> list[Array]:
    sizes = [ref.size(n, x) for n in step.args[0]]
    return np.split(x, np.cumsum(sizes)[:-1], _axis(step.args[1]))


def _view(ref: Reference, step: Step, x: Array) -> Array:
    out = x.reshape([len(x), *(ref.size(n, x) for n in step.args[0])])
    ref.require(_is_product(out))
    for dim, size in enumerate(step.args[0]):
        ref.count(size, along(out, dim).sum(1))
    return out


def _repeat(ref: Reference, step: Step, x: Array) -> Array:
    return np.tile(x, (1, *step.args[0]))


def _slice(ref: Reference, step: Step, x: Array) -> Array:
    dim, start, stop, by = step.args
    index: list[Any] = [slice(None)] * x.ndim
    first, last = (None if size is None else ref.size(size, x) for size in (start, stop))
    index[_axis(dim)] = slice(first, last, by)
    for size, end in ((start, first), (stop, last)):
        ref.count(size, along(x, dim)[:, :end].sum(1))
    return x[tuple(index)]


def _glu(ref: Reference, step: Step, x: Array) -> Array:
    value, gate = np.split(x, 2, -1)
    _together(ref, value, gate, [-1])
    return value / (1 + np.exp(-gate))


def _stack(ref: Reference, step: Step, x: Array, y: Array) -> Array:
    _together(ref, x, y, range(-1, 1 - x.ndim, -1))
    return np.stack([x, y], _axis(step.args[0]))


def _pad(ref: Reference, step: Step, x: Array) -> Array:
    return np.pad(x, [*[(0, 0)] * (x.ndim - 1), step.args])


def _low_rank(ref: Reference, step: Step, x: Array) -> Array:
    ref.follow(step, 1, 0, inner := ref.known(step, 0, 1))
    ref.follow(step, 1, 1, along(x, -1))
    rows = ref.known(step, 0, 0)
    hidden = _marked(_filled(x) @ ref.weight(step, 1).T, (-1, inner))
    return _marked(_filled(hidden) @ ref.weight(step, 0).T, (-1, rows))


def _centred(ref: Reference, step: Step, x: Array) -> Array:
    """The mean of a row runs over what is present of it."""
    columns, weight = along(x, -1), ref.weight(step, 0)
    ref.follow(step, 0, 1, columns)
    means = (columns @ weight.T) / columns.sum(1, keepdims=True).clip(1)
    out = _filled(x) @ weight.T - _filled(x).sum(-1, keepdims=True) * _spread(means, x.ndim, x.ndim - 1)
    return _marked(out, (-1, ref.known(step, 0, 0)))


def _product(x: Array, y: Array, transposed: bool, ref: Reference) -> Array:
    if transposed:
        y = np.swapaxes(y, -1, -2)
    ref.require((along(x, -1) == along(y, -2)).all(1))
    _together(ref, x, y, range(-3, 1 - max(x.ndim, y.ndim), -1))
    batch = [(dim, along(x, dim)) for dim in range(-3, 1 - x.ndim, -1)]
    return _marked(_filled(x) @ _filled(y), (-2, along(x, -2)), (-1, along(y, -1)), *batch)


def _attention(ref: Reference, step: Step, q: Array, k: Array, v: Array) -> Array:
    """Key heads may be shared by several query heads: those left must be as many for each."""
    shape, shared = q.shape, q.shape[2] // k.shape[2]
    q = q.reshape(*shape[:2], k.shape[2], shared, *shape[3:])
    ref.require(_is_product(q))
    k, v = k[:, :, :, None], v[:, :, :, None]
    places = _product(q, k, True, ref)
    places = places * _spread(along(q, -1).sum(1)[:, None], q.ndim, 1) ** -0.5
    places = _softmax(ref, step, places, -1)
    out = _filled(places) @ _filled(v)
    ref.require((along(k, 1) == along(v, 1)).all(1))
    out = _marked(out, (1, along(q, 1)), (2, along(q, 2)), (-1, along(v, -1)))
    return out.reshape(*shape[:-1], -1)


_REFERENCE: Mapping[str, Callable[..., Any]] = {
    "linear": _linear,
    "linear_back": _linear_back,
    "conv1d": _conv1d,
    "grouped": _grouped,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
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
    "flip": lambda ref, step, x: np.flip(x, _axis(step.args[0])),
    "roll": lambda ref, step, x: np.roll(x, step.args[0], _axis(step.args[1])),
    "repeat": _repeat,
    "repeat_interleave": lambda ref, step, x: np.repeat(x, step.args[0], _axis(step.args[1])),
    "slice": _slice,
    "select": lambda ref, step, x: x.take(step.args[1], _axis(step.args[0])),
    "unbind": lambda ref, step, x: [x.take(i, _axis(step.args[0])) for i in range(step.args[1])],
    "expand": lambda ref, step, x: np.repeat(np.expand_dims(x, _axis(step.args[0])), step.args[1], _axis(step.args[0])),
    "stack": _stack,
    "glu": _glu,
    "pad": _pad,
    "outer": lambda ref, step, x, y: x[..., :, None] * y[..., None, :],
    "low_rank": _low_rank,
    "centred": _centred,
    "matmul": lambda ref, step, x, y: _product(x, y, False, ref),
    "matmul_t": lambda ref, step, x, y: _product(x, y, True, ref),
    "attention": _attention,
    "fused": _attention,
}

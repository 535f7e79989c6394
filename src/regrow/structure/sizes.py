"""Sizes in Python that remember where they come from.

Code takes sizes from the shapes of tensors and from integers that modules keep, computes with them, and hands them to
calls: ``x.view(n, self.heads, x.shape[-1] // self.heads)``. While a model is traced for the first time these integers
are :class:`Size`, which tells at the call what they were made of; so what must follow what is known without a guess.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .declared import declares_sizes
from .integers import Integer, integers
from .labels import Field


class Shape(NamedTuple):
    """A size that was the length of a labelled dimension."""

    fld: Field
    dim: int


class Kept(NamedTuple):
    """A size that was an integer of a module."""

    module: nn.Module
    integer: Integer


class Origin(NamedTuple):
    """One integer that a size was computed from, with its value then."""

    of: Shape | Kept
    value: int


class Size(int):
    """An integer with its origins; those of a quotient are the dividend's."""

    origins: tuple[Origin, ...]

    def __new__(cls, value: int, origins: tuple[Origin, ...]) -> Size:
        size = super().__new__(cls, value)
        size.origins = origins
        return size

    def __mul__(self, other: Any) -> Any:
        value = int(self) * other
        return Size(value, self.origins + getattr(other, "origins", ())) if isinstance(value, int) else value

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        value = int(self) // other
        return Size(value, self.origins) if isinstance(value, int) else value

    def __copy__(self) -> Size:
        return self

    def __deepcopy__(self, memo: object) -> Size:
        return self

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return int, (int(self),)


class SizeMode(TorchFunctionMode):
    """Inside, shapes are made of sizes, and ``given`` holds the integers handed to the torch function that runs.

    Args:
        fields_of: What labels a tensor carries.
        tie: Is told of a size that a labelled dimension was given by a slice that cuts nothing off: torch then makes
            no call that would show it.
    """

    def __init__(self, fields_of: Callable[[Tensor], Sequence[Field]], tie: Callable[[Field, int, Size], None]) -> None:
        super().__init__()
        self.fields_of, self.tie = fields_of, tie
        self.given: list[int] = []
        self._ties: dict[bytes, list[np.ndarray]] = {}

    def tied_before(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether these labels, or more, were tied to the first already; if not they are from now on."""
        earlier = self._ties.setdefault(np.unique(one).tobytes(), [])
        known = any(np.isin(other, seen).all() for seen in earlier)
        if not known:
            earlier.append(np.unique(other))
        return known

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__self__", None) is torch.Tensor.shape or func is torch.Tensor.size:
            return self._shape(func(*args, **kwargs), *args, **kwargs)
        if func is torch.Tensor.__getitem__:
            self._uncut(*args)
        if _is_composed(func):
            with self:
                return _opened(func)(*args, **kwargs)
        outside, self.given = self.given, _integers_among([*args, *kwargs.values()])
        try:
            return func(*args, **kwargs)
        finally:
            self.given = outside

    def _shape(self, found: Any, tensor: Tensor, dim: int | None = None) -> Any:
        fields = self.fields_of(tensor)
        if not fields:
            return found
        sizes = [_size(n, d, fields) for d, n in enumerate(tensor.shape)]
        return torch.Size(sizes) if isinstance(found, torch.Size) else sizes[dim or 0]

    def _uncut(self, tensor: Tensor, index: Any) -> None:
        index = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(i, slice) or i is Ellipsis for i in index):
            return
        gap = index.index(Ellipsis) if Ellipsis in index else len(index)
        first = [(d, i) for d, i in enumerate(index[:gap])]
        for dim, cut in [*first, *((d - len(index) + tensor.ndim, i) for d, i in enumerate(index) if d > gap)]:
            if isinstance(cut.stop, Size) and cut.stop == tensor.shape[dim] and not cut.start:
                for fld in self.fields_of(tensor):
                    if dim in fld.dims:
                        self.tie(fld, dim, cut.stop)

    def of(self, sizes: Sequence[int], dim: int) -> list[Size]:
        """The sizes with origins that a call of the running torch function may have got for ``sizes[dim]``."""
        given, best, found = self.given, 0, None
        for offset in range(1 - len(given), len(sizes)):
            beside = [(g, sizes[i + offset]) for i, g in enumerate(given) if 0 <= i + offset < len(sizes)]
            exact = sum(g == n != -1 for g, n in beside)
            if exact > best and all(g == n or -1 in (g, n) for g, n in beside) and 0 <= dim - offset < len(given):
                best, found = exact, given[dim - offset]
        if best:
            return [found] if isinstance(found, Size) else []
        return [size for size in given if isinstance(size, Size)]


def _is_composed(func: Any) -> bool:
    """Whether torch composes a function of others; those with a closure only choose between two of one kind."""
    return isinstance(func, FunctionType) and func.__module__ == "torch.nn.functional" and not func.__closure__


@lru_cache
def _opened(func: FunctionType) -> Callable[..., Any]:
    """A function that torch composes of others, without its question whether it is overridden: then these are seen."""
    asked = {name: _never for name in func.__globals__ if name.startswith("has_torch_function")}
    opened = FunctionType(func.__code__, {**func.__globals__, **asked}, func.__name__, func.__defaults__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


def _never(*_: Any) -> bool:
    return False


def _size(value: int, dim: int, fields: Iterable[Field]) -> int:
    return next((Size(value, (Origin(Shape(f, dim), value),)) for f in fields if dim in f.dims), value)


def _integers_among(values: Iterable[Any]) -> list[int]:
    found: list[int] = []
    for value in values:
        if isinstance(value, bool):
            continue
        if isinstance(value, int):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _integers_among(value)
        elif isinstance(value, slice):
            found += _integers_among((value.start, value.stop))
    return found


@contextlib.contextmanager
def integers_as_sizes(model: nn.Module) -> Iterator[None]:
    """Inside, the integers that modules and their configuration objects keep know that they are these."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    seen: set[tuple[int, str, Any]] = set()
    try:
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            declared = declares_sizes(module) and not list(module.children())
            for found in [i for i in integers(module) if not declared or i.item is None]:
                key = (id(found.holder), found.attribute, found.item)
                if key not in seen:
                    seen.add(key)
                    held = vars(found.holder)
                    before.append((held, found.attribute, held[found.attribute]))
                    size = Size(found.value, (Origin(Kept(module, found), found.value),))
                    held[found.attribute] = found.attribute_with(size)
        yield
    finally:
        for held, attribute, value in reversed(before):
            held[attribute] = value

"""What code decides by values is decided again in the same way when an edited model is tried.

Which boxes are kept, which rows an expert is given, when a loop ends: calls and sizes may depend on real numbers, and
an edited model has others. Whatever is decided passes through a call that makes integers, truth values or a Python
number of real numbers. In a trial such a call gives what it gave in the first trace, if it is given the same shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .meta import storage_key, tensors_among


class Decided(NamedTuple):
    """What one call decided, and the shapes that it was given."""

    shapes: tuple[tuple[int, ...], ...]
    out: tuple[Any, ...]


class Decisions:
    """Follows which memory holds real numbers that depend on the model's weights and inputs.

    A number made of sizes alone isn't among them: it may have to be another one in an edited model.
    """

    def __init__(self) -> None:
        self._storages: set[int] = set()
        self._alive: list[Tensor] = []  # a storage's key is its own only while it lives

    def add(self, tensor: Tensor) -> None:
        """A weight or an input, or what depends on these."""
        if _is_real(tensor):
            self._storages.add(storage_key(tensor))
            self._alive.append(tensor)

    def of(self, given: Sequence[Tensor], out: Any) -> Decided | None:
        """What a call decided that was given these tensors; None if it doesn't decide by values."""
        if not any(_is_real(t) and storage_key(t) in self._storages for t in given):
            return None
        for tensor in tensors_among([out]):
            self.add(tensor)
        results = tuple(_kept(result) for result in _results(out))
        return None if all(result is None for result in results) else Decided(_shapes(given), results)


def decided_again(before: Decided | None, given: Sequence[Tensor], out: Any) -> Any:
    """What a call gives in a trial: what it decided before, if there is that, in place of what it decides now."""
    if before is None or before.shapes != _shapes(given):
        return out
    again = tuple(_put(old, new) for old, new in zip(before.out, _results(out), strict=True))
    return again if isinstance(out, tuple) else list(again) if isinstance(out, list) else again[0]


def _put(old: Any, new: Any) -> Any:
    if old is None:
        return new
    if isinstance(new, Tensor):
        return new.copy_(old) if new.shape == old.shape else old.clone()
    return old


def _kept(result: Any) -> Any:
    if isinstance(result, Tensor):
        return None if _is_real(result) else result.clone()
    return result


def _results(out: Any) -> tuple[Any, ...]:
    return tuple(out) if isinstance(out, tuple | list) else (out,)


def _shapes(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(t.shape) for t in tensors)


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()

"""Assignments that are made all or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from .carry import assign


class Write(NamedTuple):
    """How to set something, what to, and what it was."""

    set: Callable[[Any], None]
    new: Any
    old: Any

    def reversed(self) -> Write:
        return Write(self.set, self.old, self.new)


class Transaction:
    """Collects writes, makes them in order, and takes all of them back if one fails."""

    def __init__(self) -> None:
        self.planned: list[Write] = []
        self.done: list[Write] = []

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.take_back()

    def attribute(self, target: Any, name: str, new: Any) -> None:
        """Plan to set an attribute."""
        self.planned.append(Write(lambda value: setattr(target, name, value), new, getattr(target, name)))

    def item(self, target: Any, key: Any, new: Any) -> None:
        """Plan to set an item that is there."""
        self.planned.append(Write(lambda value: target.__setitem__(key, value), new, target[key]))

    def tensor(self, tensor: Tensor, data: Tensor, grad: Tensor | None) -> None:
        """Plan to give a tensor other data; its gradient always has its shape, so both change as one."""

        def write(values: tuple[Tensor, Tensor | None]) -> None:
            tensor.grad = None
            assign(tensor, values[0])
            tensor.grad = values[1]

        self.planned.append(Write(write, (data, grad), (tensor.data, tensor.grad)))

    def take_back(self) -> None:
        """Take back the writes that were made, the last first."""
        while self.done:
            write = self.done.pop()
            write.set(write.old)

    def run(self) -> None:
        """Make the planned writes."""
        while self.planned:
            write = self.planned.pop(0)
            self.done.append(write)
            write.set(write.new)

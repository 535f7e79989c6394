"""Which calls the model's outputs, or what it keeps, come from: what is put out and never read makes no difference."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from .meta import storage_key

if TYPE_CHECKING:
    from .call import Call
    from .relations import Relations


class _Made(NamedTuple):
    read: frozenset[int]
    written: frozenset[int]
    marks: tuple[tuple[int, int], ...]  # what the call's rule has added to each list of marks


class Reads:
    """The storages that each call has read and written, and what was said of it that holds only if it matters."""

    def __init__(self, relations: Relations) -> None:
        self.lists: tuple[list, ...] = (relations.inexact, relations.summed)
        self.calls: list[_Made] = []

    def before(self) -> tuple[int, ...]:
        """To be handed to :meth:`note`, from before the rule."""
        return tuple(map(len, self.lists))

    def note(self, call: Call, before: tuple[int, ...]) -> None:
        """Note what a call reads and writes, and what its rule has said."""
        read = frozenset(map(storage_key, call.tensors))
        written = frozenset(map(storage_key, call.outputs))
        mutated = read if call.op._schema.is_mutable else frozenset()
        self.calls.append(_Made(read, written | mutated, tuple(zip(before, self.before(), strict=True))))

    def forget_unread(self, outputs: Iterable[Tensor], kept: Collection[Tensor]) -> None:
        """Take back what was said of calls that nothing comes from; begin anew."""
        live = {*map(storage_key, outputs), *map(storage_key, kept)}
        for call in reversed(self.calls):
            if call.written and live.isdisjoint(call.written):  # what writes to no tensor is read by Python
                for marks, (start, stop) in zip(self.lists, call.marks, strict=True):
                    del marks[start:stop]
            else:
                live |= call.read
        self.calls.clear()

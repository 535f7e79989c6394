"""What a module is given and returns on a model's example."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from .surgery import first_of, with_given


class Seen(NamedTuple):
    """One call of a module on the example: what it was given, as it was before the call, and what it returned.

    A cache that is handed on, as language models do, is filled by the call.
    """

    args: tuple
    kwargs: dict[str, Any]
    returned: Any

    def behind(self) -> tuple[tuple, dict[str, Any]]:
        """Arguments for what runs behind the module: as its own, but for the tensor, which is what it returned."""
        args, kwargs = copy.deepcopy((self.args, self.kwargs))
        return with_given(args, kwargs, first_of(self.returned))


def observed(module: nn.Module, run: Callable[[], object]) -> Seen:
    """The module's first call while something runs."""
    given: list[tuple[tuple, dict[str, Any]]] = []
    found: list[Seen] = []

    def enter(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given.append(copy.deepcopy((args, kwargs)))

    def leave(_: nn.Module, args: tuple, kwargs: dict[str, Any], returned: Any) -> None:
        found.append(Seen(*given[-1], returned))

    handle = module.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with hooked(module, leave):
            run()
    finally:
        handle.remove()
    return found[0]


@contextmanager
def hooked(module: nn.Module | None, hook: Callable[..., Any]) -> Iterator[None]:
    """Inside, a module has a forward hook; None is no module."""
    handle = None if module is None else module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()

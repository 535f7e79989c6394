"""What fails has drawn no random numbers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch

from .errors import NothingToDo

P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def drawing(generator: Any) -> Iterator[None]:
    """Inside, what fails leaves torch's random state on the CPU, and that of a generator, as they were.

    But where there is nothing to do: whoever looks again, as methods with schedules of their own do, looks at other
    draws.
    """
    own = generator.get_state() if isinstance(generator, torch.Generator) else None
    state = torch.get_rng_state()
    try:
        yield
    except NothingToDo:
        raise
    except BaseException:
        torch.set_rng_state(state)
        if own is not None:
            generator.set_state(own)
        raise


def draws_if_done(edit: Callable[P, T]) -> Callable[P, T]:
    """A function that is called in :func:`drawing`, with its ``generator=``."""

    @functools.wraps(edit)
    def done(*args: P.args, **kwargs: P.kwargs) -> T:
        with drawing(kwargs.get("generator")):
            return edit(*args, **kwargs)

    return done

"""What fails has drawn no random numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from .errors import NothingToDo

P = ParamSpec("P")
T = TypeVar("T")


def draws_if_done(edit: Callable[P, T]) -> Callable[P, T]:
    """A function that leaves torch's random state, and that of its ``generator=``, as they were where it fails.

    But where there is nothing to do: whoever looks again, as methods with schedules of their own do, looks at other
    draws.
    """

    @functools.wraps(edit)
    def done(*args: P.args, **kwargs: P.kwargs) -> T:
        generator = kwargs.get("generator")
        own = generator.get_state() if isinstance(generator, torch.Generator) else None
        state = torch.get_rng_state()
        try:
            return edit(*args, **kwargs)
        except NothingToDo:
            raise
        except BaseException:
            torch.set_rng_state(state)
            if isinstance(generator, torch.Generator) and own is not None:
                generator.set_state(own)
            raise

    return done

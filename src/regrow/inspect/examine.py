"""From what was asked for to its structure: on the meta device if possible, with real numbers otherwise."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import regrow as rg

from ..bench.errors import InputError
from ..structure import Structure
from .building import parameters_on_meta, quietly
from .sources import one_line
from .subject import Subject


def examine(name: str, build: Callable[[], Subject]) -> tuple[Subject, Structure]:
    """Build a model and analyse it; a second time with real parameters where that fails without.

    Args:
        name: of the model, for errors.
        build: builds it with its example.

    Raises:
        InputError: it can't be built, or doesn't run on its example.
    """
    with quietly():
        try:
            return _examine(name, build, on_meta=True)
        except Exception as on_meta:
            if isinstance(on_meta, InputError) and on_meta.__cause__ is None:
                raise  # said by the builder itself, which would say it again
            return _examine(name, build, on_meta=False)


def _examine(name: str, build: Callable[[], Subject], on_meta: bool) -> tuple[Subject, Structure]:
    try:
        with parameters_on_meta() if on_meta else nullcontext():
            subject = build()
    except InputError:
        raise
    except Exception as error:  # other people's code
        raise InputError(f"{name}: {one_line(error)}") from error
    try:
        return subject, rg.analyze(subject.model, args=subject.args, kwargs=subject.kwargs)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {one_line(error)}") from error

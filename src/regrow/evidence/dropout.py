"""Dropout at its mean: evidence is about what units send on average, and new ones will be dropped at other times.

Torch draws masks by ``bernoulli_`` wherever it composes dropout; fused calls have a probability among their arguments.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

_aten = torch.ops.aten


def undropped(op: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, tuple, dict[str, Any]]:
    """A call to make instead, in which masks are the probabilities of keeping."""
    if op is not _aten.bernoulli_.float:
        return op, args, kwargs
    return _aten.fill_.Scalar, (args[0], args[1] if len(args) > 1 else kwargs.get("p", 0.5)), {}


def call_undropped(op: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Make a recorded call again, without what a fused one drops."""
    if op is _aten.native_dropout.default:
        return args[0] * 1.0, torch.ones_like(args[0], dtype=torch.bool)
    at = _probability(op)
    if at is not None and len(args) > at:
        args = (*args[:at], 0.0, *args[at + 1 :])
    return op(*args, **kwargs)


@cache
def _probability(op: Any) -> int | None:
    """Where a fused call has the probability of dropping."""
    names = [argument.name for argument in op._schema.arguments]
    return names.index("dropout_p") if "dropout_p" in names else None


def is_random(op: Any) -> bool:
    """Whether a call draws random numbers."""
    return torch.Tag.nondeterministic_seeded in op.tags

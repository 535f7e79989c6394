"""Norms that use the statistics of the batch: found among calls by their operator, and run again in other ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Norm(NamedTuple):
    """Where an operator of the batch-norm family has what."""

    training: int  # position of the flag that says whether the batch's statistics are used
    momentum: int  # position of the running statistics' momentum, or of the flag where there are none

    @property
    def epsilon(self) -> int:
        """Where what is added to the variance is."""
        return self.momentum + 1 if self.momentum != self.training else self.training + 2

    def by_batch(self, *args: Any) -> bool:
        """Whether a call uses the statistics of its batch."""
        return bool(args[self.training])


def _operators() -> dict[Any, Norm]:
    aten = torch.ops.aten
    with_statistics = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit")
    found = {getattr(aten, name).default: Norm(5, 6) for name in with_statistics if hasattr(aten, name)}
    found[aten._native_batch_norm_legit.no_stats] = Norm(3, 3)
    return found


#: Operator -> where it has what.
NORMS = _operators()

Run = Callable[[Any, tuple, dict[str, Any]], Any]


def passed(op: Any, args: tuple, mean_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """In place of a norm by batch statistics: its input less ``mean_of`` it, and the empty statistics."""
    x = args[0]
    nothing = x.new_empty(0)
    return (x - mean_of(x), *[nothing] * (len(op._schema.returns) - 1))


def mean_by_channel(x: Tensor) -> Tensor:
    """The mean over all dimensions but the second."""
    return x.mean([d for d in range(x.ndim) if d != 1], keepdim=True)


def calibrating(run: Run) -> Run:
    """Running statistics become those of the batch."""

    def call(op: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        norm = NORMS.get(op)
        if norm is not None and norm.by_batch(*args) and norm.momentum != norm.training:
            args = (*args[: norm.momentum], 1.0, *args[norm.momentum + 1 :])
        return run(op, args, kwargs)

    return call

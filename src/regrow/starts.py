"""How a copy of a module starts as the identity, or at zero: by zeroing the last of what it adds, or behind a gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

#: Up to this much, relative to the largest value, two results are the same: float32 adds in another order.
TOLERANCE = 1e-5


@torch.no_grad()
def zero_until(parts_in_order: Sequence[Sequence[nn.Parameter]], distance: Callable[[], float]) -> bool:
    """Zero the parameters of submodules, the last first, until a distance is nothing; whether that is reached.

    Those that turn out not to be needed are put back, the first in use first; all where it isn't reached. Nothing is
    meant to the bit where it can be had: what is nearly nothing here, as layers scaled by a millionth are, needn't be
    so in the end.

    Args:
        parts_in_order: What may be zeroed together, in the order in which it is used: the last of a branch lets its own
            gradient through when it is zero, as one in front of a product of two zeros wouldn't.
        distance: Of what the module does from what it should do, relative.
    """
    zeroed: list[tuple[Sequence[nn.Parameter], list[Tensor]]] = []
    for parts in reversed(parts_in_order):
        if distance() == 0.0:
            break
        zeroed.append((parts, _zero(parts)))
    left = distance()
    reached = left <= TOLERANCE
    for parts, before in reversed(zeroed):
        _put_back(parts, before)
        if reached and distance() > left:
            _zero(parts)
    return reached


def _zero(parts: Sequence[nn.Parameter]) -> list[Tensor]:
    before = [part.detach().clone() for part in parts]
    for part in parts:
        part.zero_()
    return before


def _put_back(parts: Sequence[nn.Parameter], before: Sequence[Tensor]) -> None:
    for part, values in zip(parts, before, strict=True):
        part.copy_(values)


def relative_distance(one: Tensor, other: Tensor) -> float:
    """The largest difference over the largest value."""
    scale = max(float(one.abs().max()), float(other.abs().max()), 1e-12)
    return float((one - other).abs().max()) / scale

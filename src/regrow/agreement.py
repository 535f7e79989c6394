"""Decisions that several processes make alike: numbers are averaged over them, and choices are the first one's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_group: ContextVar[Any] = ContextVar("group", default=None)


@contextlib.contextmanager
def together(group: Any) -> Iterator[None]:
    """Inside, processes of a group decide alike; all of them come here with the same edit. None is a single process."""
    token = _group.set(group)
    try:
        yield
    finally:
        _group.reset(token)


@torch.no_grad()
def averaged(tensor: Tensor) -> Tensor:
    """The mean of a tensor over processes, the same bits on each; itself where there is one."""
    group = _group.get()
    if group is None:
        return tensor
    total = tensor.detach().clone().contiguous()
    dist.all_reduce(total, group=group)
    return total.div_(dist.get_world_size(group)) if total.is_floating_point() else total


def averaged_number(value: float) -> float:
    """The mean of a number over processes."""
    if _group.get() is None:
        return value
    return float(averaged(torch.tensor(value, dtype=torch.float64)))


def agreed(value: T) -> T:
    """What the first process has, on all of them: plain values, and tensors within."""
    group = _group.get()
    if group is None:
        return value
    held = [value]
    dist.broadcast_object_list(held, dist.get_global_rank(group, 0), group=group)
    return held[0]

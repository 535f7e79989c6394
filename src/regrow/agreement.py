"""Decisions that several processes make alike: numbers are averaged over them, and choices are the first one's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

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
    group = _group.get()
    if group is None:
        return value
    return float(averaged(torch.tensor(value, dtype=torch.float64, device=_device_of(group))))


def agreed(value: T) -> T:
    """What the first process has, on all of them: plain values, and tensors within, where each process has its own."""
    group = _group.get()
    if group is None:
        return value
    own: list[Any] = [t.device for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
    held = [pytree.tree_map(lambda v: v.detach().cpu() if isinstance(v, Tensor) else v, value)]
    dist.broadcast_object_list(held, dist.get_global_rank(group, 0), group=group)
    device = own[0] if own else "cpu"
    return pytree.tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, held[0])


def told_by_any(found: Mapping[str, str]) -> dict[str, str]:
    """What any of the processes found, by name; of several the first one's word."""
    group = _group.get()
    if group is None:
        return dict(found)
    held: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(held, dict(found), group=group)
    together: dict[str, str] = {}
    for each in held:
        together = each | together
    return together


def _device_of(group: Any) -> torch.device:
    """Where a group's processes can meet: NCCL's only on their GPUs."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")

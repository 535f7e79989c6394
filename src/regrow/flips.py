"""Edits of masks: single weights go off or come on, undone as a whole like every other edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from .carry import MASK, Follower, check_holds, followers, kept_masks, plan_resets, resets, warn_of_reset
from .edit import Edit
from .masks import hold_masks, mask_of, masks_on
from .structure import Structure
from .structure.example import named_tensors
from .structure.weights import Weights
from .transaction import Transaction, Write


class Flips(NamedTuple):
    """Which weights of a tensor go off and which come on: flat indices, in ascending order."""

    off: Tensor
    on: Tensor

    @classmethod
    def between(cls, before: Tensor, after: Tensor) -> Flips:
        """What turns one mask into another."""
        off, on = (before & ~after).flatten().nonzero(), (after & ~before).flatten().nonzero()
        return cls(off.squeeze(1), on.squeeze(1))

    @property
    def all(self) -> Tensor:
        return torch.cat(self)


@dataclass(frozen=True)
class _Flipped:
    """What single entries of a tensor and of its followers were.

    Args:
        shape: Of the tensor.
        where: The entries, as flat indices.
        old: Their values; of the tensor under "", of a follower under its key.
    """

    shape: torch.Size
    where: Tensor
    old: dict[str, Tensor]

    @property
    def sizes(self) -> dict[int, int]:
        return dict(enumerate(self.shape))

    def before(self, tensor: Tensor) -> Tensor:
        return _put(tensor.detach().clone(), self.where, self.old[""])

    def follower_before(self, follower: Follower) -> Tensor:
        if follower.key not in self.old:
            return follower.tensor
        return _put(follower.tensor.clone(), self.where, self.old[follower.key])


def at(tensor: Tensor, where: Tensor) -> Tensor:
    """The values at flat indices, as they lie row by row, whatever the memory layout."""
    where = where.to(tensor.device)
    if tensor.is_contiguous():
        return tensor.view(-1)[where]
    return tensor[torch.unravel_index(where, tensor.shape)]


def _put(tensor: Tensor, where: Tensor, values: Tensor | float) -> Tensor:
    """Set the values at flat indices, in place."""
    where = where.to(tensor.device)
    values = torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device)
    if tensor.is_contiguous():
        tensor.view(-1)[where] = values
    else:
        tensor[torch.unravel_index(where, tensor.shape)] = values
    return tensor


def apply_masks(
    structure: Structure,
    masks: Mapping[Weights, Tensor],
    optimizer: Optimizer | None,
    action: str,
    method: str = "",
) -> Edit:
    """Give tensors other masks, each in its tensor's shape; see :func:`apply_flips`."""
    flips = {weights: Flips.between(weights.mask, mask.to(weights.tensor.device)) for weights, mask in masks.items()}
    return apply_flips(structure, flips, optimizer, action, method)


@torch.no_grad()
def apply_flips(
    structure: Structure,
    flips: Mapping[Weights, Flips],
    optimizer: Optimizer | None,
    action: str,
    method: str = "",
) -> Edit:
    """Turn weights off, which makes them zero, and on, where they start from zero; the one way for single weights.

    The optimizer's state of both is zero, but what divides a step, which for those that come on is the mean of the
    tensor's other weights that are on.

    Args:
        optimizer: Its state follows, and it holds the masks from now on.

    Raises:
        ValueError: The optimizer is another model's.
    """
    tensors = {weights.name: weights.tensor for weights in flips}
    if optimizer is not None:
        check_holds(optimizer, tensors.values())
    unable = {} if optimizer is None else resets(optimizer, set(tensors.values()))
    edit = _describe(structure, flips, optimizer, action, method)
    kept = kept_masks(structure.model)
    with Transaction() as writes:
        for weights, flip in flips.items():
            following = [f for f in followers(weights.tensor, optimizer, kept) if f.key != MASK]
            edit._past[weights.name] = _plan(writes, weights, flip, following)
        writes.run()
        done = len(writes.done)
        for weights, flip in flips.items():
            writes.planned.append(_mask_write(weights, flip))
        if optimizer is not None:
            plan_resets(writes, optimizer, unable)
        writes.run()
        edit._bookkeeping = writes.done[done:]
    structure.edits.append(edit._token)
    if optimizer is not None:
        hold_masks(structure.model, optimizer)
        warn_of_reset(optimizer, unable.values())
    return edit


def _plan(writes: Transaction, weights: Weights, flip: Flips, following: list[Follower]) -> _Flipped:
    """Plan the writes of one tensor and its followers; returns what undoing them takes."""
    tensor, where = weights.tensor, flip.all
    old = {"": at(tensor.detach(), where)}
    for follower in (f for f in following if f.key != "grad" and f.tensor.shape == tensor.shape):
        old[follower.key] = at(follower.tensor, where)
        writes.planned.append(_values(follower.tensor, where, 0.0, old[follower.key]))
        if follower.divides and len(flip.on):
            begin = _mean_of_others(weights, flip, follower.tensor)
            writes.planned.append(_values(follower.tensor, flip.on, begin, at(follower.tensor, flip.on)))
    writes.planned.append(_values(tensor.detach(), where, 0.0, old[""]))
    return _Flipped(tensor.shape, where, old)


def _mean_of_others(weights: Weights, flip: Flips, state: Tensor) -> float:
    stay = weights.mask
    _put(stay, flip.off, False)
    return float(state[stay].mean()) if bool(stay.any()) else 0.0


def _values(tensor: Tensor, where: Tensor, new: float, old: Tensor) -> Write:
    """Sets values at flat indices, where the tensor is."""

    def write(values: Tensor | float) -> None:
        _put(tensor, where, values)

    return Write(write, new, old)


def _mask_write(weights: Weights, flip: Flips) -> Write:
    """Sets the mask of a tensor, or takes it away where all weights are on."""
    store, attribute = masks_on(weights.owner), weights.attribute
    mask = _put(_put(weights.mask, flip.off, False), flip.on, True)

    def write(value: Tensor | None) -> None:
        if value is None:
            store.pop(attribute, None)
        else:
            store[attribute] = value

    full = weights.alive - len(flip.off) + len(flip.on) == weights.size
    return Write(write, None if full else mask, mask_of(weights.owner, attribute))


def _describe(
    structure: Structure,
    flips: Mapping[Weights, Flips],
    optimizer: Optimizer | None,
    action: str,
    method: str,
) -> Edit:
    sizes = {w.name: (w.alive, w.alive - len(flip.off) + len(flip.on)) for w, flip in flips.items()}
    change = sum(now - was for was, now in sizes.values())
    alive, flops = alive_parameters(structure), structure.flops()
    new, removed = ({w.name: flip[i] for w, flip in flips.items()} for i in (1, 0))
    params = (alive, alive + change)
    return Edit(structure, action, method, sizes, params, (flops, flops), new, removed, optimizer, {}, kind="weight")


def alive_parameters(structure: Structure) -> int:
    """The parameters of a model without those that masks have off."""
    every = sum(t.numel() for t in named_tensors(structure.model).values() if isinstance(t, torch.nn.Parameter))
    off = sum(weights.size - weights.alive for weights in structure.weights)
    return every - off

"""Edits of masks: single weights go off or come on, undone as a whole like every other edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class _Flipped:
    """What single entries of a tensor and of its followers were.

    Args:
        where: The entries, in the tensor's shape.
        old: Their values in order; of the tensor under "", of a follower under its key.
    """

    where: Tensor
    old: dict[str, Tensor]

    @property
    def sizes(self) -> dict[int, int]:
        return dict(enumerate(self.where.shape))

    def before(self, tensor: Tensor) -> Tensor:
        return _with(tensor.detach(), self.where, self.old[""])

    def follower_before(self, follower: Follower) -> Tensor:
        if follower.key not in self.old:
            return follower.tensor
        return _with(follower.tensor, self.where, self.old[follower.key])


def _with(tensor: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """A copy with other values at some entries, in the same memory layout."""
    return tensor.clone().masked_scatter_(where.to(tensor.device), values.to(tensor))


@torch.no_grad()
def apply_masks(
    structure: Structure,
    masks: Mapping[Weights, Tensor],
    optimizer: Optimizer | None,
    action: str,
    method: str = "",
) -> Edit:
    """Give tensors other masks: what goes off becomes zero, what comes on starts from zero; the one way for weights.

    The optimizer's state of both is zero, but what divides a step, which for those that come on is the mean of the
    tensor's other weights that are on.

    Args:
        masks: The new mask of each tensor, in its shape.
        optimizer: Its state follows, and it holds the masks from now on.

    Raises:
        ValueError: A mask has another shape than its tensor, or the optimizer is another model's.
    """
    for weights, mask in masks.items():
        if mask.shape != weights.tensor.shape:
            raise ValueError(f"the mask of {weights.name} has shape {tuple(mask.shape)}, not that of the weights.")
    tensors = {weights.name: weights.tensor for weights in masks}
    if optimizer is not None:
        check_holds(optimizer, tensors.values())
    before = {weights: weights.mask for weights in masks}
    after = {weights: mask.to(before[weights].device) for weights, mask in masks.items()}
    unable = {} if optimizer is None else resets(optimizer, set(tensors.values()))
    edit = _describe(structure, before, after, optimizer, action, method)
    kept = kept_masks(structure.model)
    with Transaction() as writes:
        for weights, mask in after.items():
            following = [f for f in followers(weights.tensor, optimizer, kept) if f.key != MASK]
            edit._past[weights.name] = _flip(writes, weights.tensor, before[weights], mask, following)
        writes.run()
        done = len(writes.done)
        for weights, mask in after.items():
            writes.planned.append(_mask_write(weights, mask))
        if optimizer is not None:
            plan_resets(writes, optimizer, unable)
        writes.run()
        edit._bookkeeping = writes.done[done:]
    structure.edits.append(edit._token)
    if optimizer is not None:
        hold_masks(structure.model, optimizer)
        warn_of_reset(optimizer, unable.values())
    return edit


def _flip(writes: Transaction, tensor: Tensor, before: Tensor, after: Tensor, following: list[Follower]) -> _Flipped:
    """Plan the writes of one tensor and its followers; returns what undoing them takes."""
    where = before ^ after
    old = {"": tensor.detach()[where]}
    for follower in (f for f in following if f.key != "grad" and f.tensor.shape == tensor.shape):
        old[follower.key] = follower.tensor[where]
        new = follower.tensor.masked_fill(where, 0)
        arrived = where & after
        if follower.divides and bool(arrived.any()):
            others = after & before
            new.masked_fill_(arrived, float(follower.tensor[others].mean()) if bool(others.any()) else 0.0)
        follower.plan(writes, new)
    writes.tensor(tensor, tensor.detach().masked_fill(where, 0), tensor.grad)
    return _Flipped(where, old)


def _mask_write(weights: Weights, mask: Tensor) -> Write:
    """Sets the mask of a tensor, or takes it away where all weights are on."""
    store, attribute = masks_on(weights.owner), weights.attribute

    def write(value: Tensor | None) -> None:
        if value is None:
            store.pop(attribute, None)
        else:
            store[attribute] = value

    return Write(write, None if bool(mask.all()) else mask, mask_of(weights.owner, attribute))


def _describe(
    structure: Structure,
    before: Mapping[Weights, Tensor],
    after: Mapping[Weights, Tensor],
    optimizer: Optimizer | None,
    action: str,
    method: str,
) -> Edit:
    sizes = {weights.name: (int(before[weights].sum()), int(mask.sum())) for weights, mask in after.items()}
    change = sum(now - was for was, now in sizes.values())
    alive = alive_parameters(structure)
    flops = structure.flops()
    return Edit(
        structure,
        action,
        method,
        sizes,
        (alive, alive + change),
        (flops, flops),
        {w.name: (mask & ~before[w]).flatten().nonzero().flatten() for w, mask in after.items()},
        {w.name: (before[w] & ~mask).flatten().nonzero().flatten() for w, mask in after.items()},
        optimizer,
        {},
        kind="weight",
    )


def alive_parameters(structure: Structure) -> int:
    """The parameters of a model without those that masks have off."""
    every = sum(t.numel() for t in named_tensors(structure.model).values() if isinstance(t, torch.nn.Parameter))
    off = sum(weights.size - weights.alive for weights in structure.weights)
    return every - off

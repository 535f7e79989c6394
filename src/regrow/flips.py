"""Edits of masks: single weights go off or come on, undone as a whole like every other edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .applying import check_sizes
from .carry import MASK, Follower, check_holds, followers, kept_masks, plan_resets, resets, warn_of_reset
from .edit import Edit
from .errors import NotPermissible
from .masks import hold_masks, mask_of, set_mask
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
        weights: Of the tensor.
        flip: The entries.
        old: Their values; of the tensor under "", of a follower under its key.
        mask: The tensor's mask since then; None where all are on.
    """

    weights: Weights
    flip: Flips
    old: dict[str, Tensor]
    mask: Tensor | None

    @property
    def where(self) -> Tensor:
        return self.flip.all

    def check(self, name: str, tensor: Tensor) -> None:
        mask = torch.ones_like(tensor, dtype=torch.bool) if self.mask is None else self.mask
        check_sizes(name, tensor, dict(enumerate(mask.shape)))
        if not torch.equal(mask.to(tensor.device), self.weights.mask):
            raise NotPermissible(f"the mask of {name} was changed elsewhere; it can't be undone from here.")

    def before(self, tensor: Tensor) -> Tensor:
        return _put(tensor.detach().clone(), self.where, self.old[""])

    def follower_before(self, follower: Follower) -> Tensor:
        if follower.key in ("grad", MASK) or follower.tensor.shape != self.weights.tensor.shape:
            return follower.tensor
        state = follower.tensor.clone()
        if follower.key in self.old:
            return _put(state, self.where, self.old[follower.key])
        if follower.divides and len(self.flip.off):  # the optimizer has had this state only since then
            _put(state, self.flip.off, _mean_of_others(self.weights, self.flip, state))
            return _put(state, self.flip.on, 0.0)
        return _put(state, self.where, 0.0)


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
    flips = {weights: _leaving_rows(weights, flip) for weights, flip in flips.items()}
    tensors = {weights.name: weights.tensor for weights in flips}
    if optimizer is not None:
        check_holds(optimizer, tensors.values())
    unable = {} if optimizer is None else resets(optimizer, set(tensors.values()))
    edit = _describe(structure, flips, optimizer, action, method)
    if optimizer is not None:
        warn_of_reset(optimizer, unable.values())  # before anything is written: a warning may be an error
    kept, masks = kept_masks(structure.model), list[Write]()
    with Transaction() as writes:
        for weights, flip in flips.items():
            following = [f for f in followers(weights.tensor, optimizer, kept) if f.key != MASK]
            new = _mask_write(weights, flip)
            masks.append(new)
            old = _plan(writes, weights, flip, following)
            edit._past[weights.name] = _Flipped(weights, flip, old, new.new)
        writes.run()
        done = len(writes.done)
        writes.planned += masks
        if optimizer is not None:
            plan_resets(writes, optimizer, unable)
        writes.run()
        edit._bookkeeping = writes.done[done:]
    structure.edits.append(edit._token)
    if optimizer is not None:
        hold_masks(structure.model, optimizer)
    return edit


def _leaving_rows(weights: Weights, flip: Flips) -> Flips:
    """Where rows are divided by their norms, a row that would lose all of its weights keeps the largest."""
    dim = weights.normed if len(flip.off) else None
    if dim is None:
        return flip
    on = weights.mask
    after = _put(_put(on.clone(), flip.off, False), flip.on, True)
    flat = torch.arange(weights.size, device=on.device).reshape(on.shape).movedim(dim, 0).flatten(1)
    emptied = on.flatten()[flat].any(1) & ~after.flatten()[flat].any(1)
    values = weights.tensor.detach().abs().masked_fill(~on, -1.0).flatten()[flat]
    stay = flat.gather(1, values.argmax(1, keepdim=True)).squeeze(1)[emptied]
    return flip._replace(off=flip.off[~torch.isin(flip.off, stay)])


def _plan(writes: Transaction, weights: Weights, flip: Flips, following: list[Follower]) -> dict[str, Tensor]:
    """Plan the writes of one tensor and its followers; returns the old values of each, the tensor's under ""."""
    tensor, where = weights.tensor, flip.all
    old = {"": at(tensor.detach(), where)}
    for follower in (f for f in following if f.key != "grad" and f.tensor.shape == tensor.shape):
        old[follower.key] = at(follower.tensor, where)
        writes.planned.append(_values(follower.tensor, where, 0.0, old[follower.key]))
        if follower.divides and len(flip.on):
            begin = _mean_of_others(weights, flip, follower.tensor)
            writes.planned.append(_values(follower.tensor, flip.on, begin, at(follower.tensor, flip.on)))
    writes.planned.append(_values(tensor.detach(), where, 0.0, old[""]))
    return old


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
    mask = _put(_put(weights.mask, flip.off, False), flip.on, True)
    full = weights.alive - len(flip.off) + len(flip.on) == weights.size
    return mask_write(weights.owner, weights.attribute, None if full else mask)


def mask_write(owner: nn.Module, attribute: str, mask: Tensor | None) -> Write:
    """Gives a parameter another mask, or none."""
    return Write(lambda value: set_mask(owner, attribute, value), mask, mask_of(owner, attribute))


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

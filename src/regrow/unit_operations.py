"""Growing and pruning of units: from what the user asks to one edit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .agreement import agreed, averaged
from .amounts import axes_of, to_grow, to_prune
from .applying import apply
from .carry import Masks, kept_masks
from .edit import Edit
from .errors import NothingToDo, NotPermissible
from .evidence import gather
from .evidence.gradients import gradients, learning
from .evidence.twice import remembered
from .filling import halved
from .growing.recalibration import recalibrated
from .limits import Limits
from .method import Grown
from .pace import Pace
from .pruning.absorption import absorbed
from .rows import with_rows
from .structure import Axis, Entry, Structure
from .structure.maps import FRESH

#: What growing a structure means when no axes are named, and what pruning one means.
GROWS: tuple[str, ...] = ("neuron",)
PRUNES: tuple[str, ...] = ("neuron", "head")


def grow_units(
    target: Any,
    amount: Any,
    method: Any,
    optimizer: Optimizer | None,
    generator: torch.Generator | None,
    loss: Callable[[], Tensor] | None,
    batches: int,
    limits: Limits,
    lr_factor: float = 1.0,
    memory: dict[str, Any] | None = None,
) -> Edit:
    """Add units to axes; see :func:`regrow.grow_`.

    Args:
        memory: What a method that decides how many has noted at earlier calls.
    """
    gains = to_grow(axes_of(target, limits, GROWS, "growable"), amount, limits)
    if not gains:
        raise NothingToDo("nothing to grow: every axis is at its largest size or protected.")
    structure = next(iter(gains)).structure
    generator = seeded(structure) if generator is None else generator
    recalibrates, device = getattr(method, "recalibrates", False), next(structure.model.parameters()).device.type
    with remembered(structure.model, device) if recalibrates else nullcontext([]) as calls:
        seen = seen_of(method, list(gains), loss, batches, generator)
    gains = {axis: num for axis, num in gains.items() if axis in seen}
    if hasattr(method, "settle"):
        free = not isinstance(amount, Mapping) and limits.round_to == 1
        most = {axis: limits.most(axis) for axis in gains}
        gains = _settled(method, gains, most, free, seen, {} if memory is None else memory)
    grown = grown_by(method, gains, seen, generator)
    _check_copies(grown)
    maps = {axis: np.append(np.arange(axis.size), np.full(num, FRESH)) for axis, num in gains.items()}
    values = {axis: each.fresh for axis, each in grown.items()}
    paces = _paces(grown, lr_factor, optimizer, method)
    copies = {axis: each.copies for axis, each in grown.items() if each.copies}
    changed = _changed(grown, kept_masks(structure.model))
    grow = partial(apply, structure, maps, values, optimizer, "grow", method.name, paces=paces, copies=copies)
    if not recalibrates:
        return grow(changed)
    # What norms get of new units is seen only with them there.
    before = {name: structure.tensor(name).detach() for name in changed}
    attempt = grow(changed)
    try:
        running = agreed(recalibrated(attempt, before, calls))
    finally:
        attempt.undo_()
    return grow(running | changed)


def prune_units(
    target: Any,
    amount: Any,
    method: Any,
    optimizer: Optimizer | None,
    generator: torch.Generator | None,
    loss: Callable[[], Tensor] | None,
    batches: int,
    limits: Limits,
) -> Edit:
    """Remove units of axes; see :func:`regrow.prune_`."""
    seen: dict[Axis, dict[str, Any]] = {}
    if isinstance(amount, (Sequence, Tensor)) and not isinstance(amount, str):
        removed, name = _named_units(target, amount, limits), ""
    else:
        axes = axes_of(target, limits, PRUNES, "prunable")
        seen = seen_of(method, axes, loss, batches, generator)
        axes = [axis for axis in axes if axis in seen]
        with torch.no_grad():
            scores = {}
            for axis in axes:
                with _looking_at_values(method, axis):
                    scores[axis] = averaged(_scores(method, axis, seen[axis]))
        removed, name = to_prune(axes, amount, limits, scores), method.name
    if not removed:
        raise NothingToDo("nothing to prune: every axis is at its smallest size or protected.")
    maps = {axis: np.setdiff1d(np.arange(axis.size), units) for axis, units in removed.items()}
    structure = next(iter(removed)).structure
    absorbs = name and getattr(method, "absorb", False)
    changed = absorbed(structure, removed, loss, batches) if absorbs else {}
    if name and hasattr(method, "compensate"):
        changed |= method.compensate(removed, seen)
    changed = {name: averaged(values) for name, values in changed.items()}  # they go with means on data
    return apply(structure, maps, {}, optimizer, "prune", name, changed)


def seeded(structure: Structure) -> torch.Generator:
    """Where randomness comes from if nobody says: torch's initial seed and the number of edits so far."""
    return torch.Generator().manual_seed((torch.initial_seed() + len(structure.edits)) % 2**63)


def _settled(
    method: Any,
    gains: Mapping[Axis, int],
    most: Mapping[Axis, int],
    free: bool,
    seen: Mapping[Axis, Any],
    memory: dict[str, Any],
) -> dict[Axis, int]:
    """How many units each axis gains, where the method decides; all processes do as the first."""
    chosen = agreed({axis.name: num for axis, num in method.settle(gains, most, free, seen, memory).items() if num})
    if not chosen:
        raise NothingToDo(f"{method.name} adds no units now.")
    return {axis: chosen[axis.name] for axis in seen if axis.name in chosen}


def _named_units(target: Any, units: Sequence[int] | Tensor, limits: Limits) -> dict[Axis, list[int]]:
    if not isinstance(target, Axis):
        raise TypeError("units can be named for a single axis; for several give an amount and a method.")
    chosen = target.check_units(units.tolist() if isinstance(units, Tensor) else units)
    protected = sorted(set(chosen) & set(limits.protected_units(target)))
    left = target.size - len(chosen)
    if not target.prunable:
        raise NotPermissible(f"{target.name} can't be pruned: {target.prunable.reason}.")
    if protected or limits.spares(target):
        raise NotPermissible(f"units {protected or chosen} of {target.name} are protected; leave them out.")
    if left < (limits.min_size or 1):
        raise NotPermissible(
            f"asked to prune {len(chosen)} of the {target.size} units of {target.name}; "
            f"at least {limits.min_size or 1} must stay."
        )
    if left % limits.round_to:
        raise NotPermissible(f"{left} units of {target.name} would stay, which is no multiple of {limits.round_to}.")
    return {target: chosen} if chosen else {}


def seen_of(
    method: Any,
    axes: Sequence[Axis],
    loss: Callable[[], Tensor] | None,
    batches: int,
    generator: torch.Generator | None,
) -> dict[Axis, dict[str, Any]]:
    """What the method needs to see of each axis; nothing without a need."""
    needs, looked = getattr(method, "needs", {}), "score" in getattr(method, "sees_gradients", ())
    if not (needs or looked) or not axes:
        return {axis: {} for axis in axes}
    if loss is None:
        raise ValueError(
            f"{method.name} looks at the loss: pass loss=, a callable that returns it (to a Shaper, step(closure))."
        )
    if not looked:
        return gather(axes, needs, loss, batches, generator, getattr(method, "leaves_out", False))
    weights = ("in", "out", "tied")  # which may be buffers; other buffers, such as statistics, are written to
    entries = [e for axis in axes for e in axis.entries if isinstance(e.tensor, nn.Parameter) or e.role in weights]
    tensors = list(dict.fromkeys(e.tensor for e in entries if e.tensor.is_floating_point()))
    with learning(tensors):
        found = gradients(axes[0].structure.model, tensors, loss, batches)
    return {axis: {"gradients": found} for axis in axes}


@torch.no_grad()
def grown_by(
    method: Any, gains: Mapping[Axis, int], seen: Mapping[Axis, Mapping[str, Any]], generator: torch.Generator
) -> dict[Axis, Grown]:
    """What a method makes of each axis, the same on all processes."""
    return {axis: _alike(axis, _grown(method, axis, num, seen[axis], generator)) for axis, num in gains.items()}


def _grown(method: Any, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Grown:
    """A method's values for new units; their shapes are checked where they are written."""
    with _looking_at_values(method, axis):
        grown = method.fresh(axis, num, seen, generator)
    grown = grown if isinstance(grown, Grown) else Grown(grown)
    for given in (grown.fresh, grown.old):
        if not isinstance(given, dict) or not all(isinstance(v, Tensor) for v in given.values()):
            raise TypeError(f"{method.name}.fresh returns a dict of tensors by entry, not {type(given).__name__}.")
        if not set(given) <= set(axis.entries):
            raise ValueError(f"{method.name}.fresh gave values for entries that {axis.name} doesn't have.")
    return grown


@contextmanager
def _looking_at_values(method: Any, axis: Axis) -> Iterator[None]:
    """Inside, a method may look at weights; where there are none, that is said."""
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if not any(entry.tensor.is_meta for entry in axis.entries):
            raise
        raise NotPermissible(
            f"{method.name} looks at weights, and those of {axis.name} are on the meta device, without values; load "
            "them first, or name the units to prune."
        ) from error


def _check_copies(grown: Mapping[Axis, Grown]) -> None:
    """Copies of units come alone along their dimensions.

    Raises:
        NotPermissible: Another axis that grows lies along the same dimension, as groups of a convolution and the
            channels in them do: what either copies would be copied twice.
    """
    for axis in (axis for axis, each in grown.items() if each.copies):
        for other in (other for other in grown if other is not axis):
            for one, two in itertools.product(axis.entries, other.entries):
                if one.key == two.key and bool(((one.unit_of >= 0) & (two.unit_of >= 0)).any()):
                    raise NotPermissible(
                        f"units of {axis.name} and of {other.name} can't be copied in one edit: both lie along "
                        f"dimension {one.dim} of {one.name}; grow one after the other."
                    )


def _paces(
    grown: Mapping[Axis, Grown], lr_factor: float, optimizer: Optimizer | None, method: Any
) -> dict[Axis, dict[Entry, list[Pace]]]:
    """How new units learn, where that isn't as fast as the others."""
    if isinstance(lr_factor, bool) or not isinstance(lr_factor, (int, float)) or not 0 <= lr_factor < math.inf:
        raise ValueError(f"lr_factor is a number that isn't negative, not {lr_factor!r}.")
    paces: dict[Axis, dict[Entry, list[Pace]]] = {axis: {} for axis in grown}
    for axis, each in grown.items():
        if lr_factor != 1:
            learning = [e for e in axis.entries if isinstance(e.tensor, nn.Parameter)]
            paces[axis] = {entry: [Pace("update", lr_factor)] for entry in learning}
        for entry, factor in each.gradient_factors.items():
            if isinstance(optimizer, torch.optim.SGD):
                paces[axis].setdefault(entry, []).append(Pace("gradient", factor))
            else:  # optimizers that divide by a gradient's size undo a factor on it, but want it like the others'
                root = factor**0.5
                paces[axis][entry] = [Pace("gradient", root), Pace("update", lr_factor * root)]
    if optimizer is None and any(paces.values()):
        raise ValueError(
            f"these units of {method.name} learn at a pace of their own: pass the optimizer that trains them."
        )
    return paces


def _alike(axis: Axis, grown: Grown) -> Grown:
    """New units as the first of several processes has them."""

    entries = {(e.name, e.dim): e for e in axis.entries}

    def alike(values: Mapping[Entry, Any]) -> dict[Entry, Any]:
        found = agreed({(e.name, e.dim): v.detach() if isinstance(v, Tensor) else v for e, v in values.items()})
        return {entries[place]: value for place, value in found.items()}

    return Grown(alike(grown.fresh), alike(grown.old), agreed(grown.copies), alike(grown.gradient_factors))


def _changed(grown: Mapping[Axis, Grown], masks: Masks) -> dict[str, Tensor]:
    """The tensors in which old units change, as they will be; single weights that are off stay so."""
    changed: dict[str, Tensor] = {}
    for each in grown.values():
        for entry, rows in each.old.items():
            changed[entry.name] = with_rows(entry, changed.get(entry.name, entry.tensor.detach()), rows)
    for axis, each in grown.items():
        for entry in axis.with_role("in") if each.copies else ():
            changed[entry.name] = halved(entry, changed.get(entry.name, entry.tensor.detach()), each.copies)
    structure = next(iter(grown)).structure
    for name in changed if masks else ():
        store, attribute = masks.get(structure.tensor(name), ({}, ""))
        if attribute in store:
            changed[name] = changed[name] * store[attribute]
    return changed


def _scores(method: Any, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
    """A method's scores on the CPU, checked."""
    scores = method.score(axis, seen)
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (axis.size,):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{method.name}.score returns one number for each of the {axis.size} units, not {got}.")
    scores = scores.detach().float().cpu()
    if bool(scores.isnan().any()):
        raise ValueError(f"{method.name} gave scores that are not numbers for {axis.name}; its weights hold NaN.")
    return scores

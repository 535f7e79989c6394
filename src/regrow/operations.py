"""grow_ and prune_: from what the user asks to one edit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .agreement import agreed, averaged
from .amounts import Amount, Target, axes_of, to_grow, to_prune
from .arguments import check_arguments
from .carry import Masks, kept_masks
from .depth_operations import LayerTarget, grow_depth, is_depth, prune_depth
from .edit import Edit, apply
from .errors import NothingToDo, NotPermissible
from .evidence import gather
from .evidence.gradients import gradients
from .evidence.twice import remembered
from .filling import halved
from .growing.deepen import Deepen
from .growing.random import Random
from .growing.recalibration import recalibrated
from .growing.rigl import RigL
from .limits import Limits
from .method import Grown, list_methods
from .pace import Pace
from .pruning.absorption import absorbed
from .pruning.l1 import L1
from .pruning.magnitude import Magnitude
from .pruning.taylor import Taylor
from .rows import with_rows
from .sparsity import WeightAmount
from .structure import Axis, Entry
from .structure.maps import FRESH
from .weight_operations import WeightTarget, grow_weights, is_weights, looks, prune_weights

#: What growing a structure means when no axes are named, and what pruning one means.
GROWS: tuple[str, ...] = ("neuron",)
PRUNES: tuple[str, ...] = ("neuron", "head")


def grow_(
    target: Target | WeightTarget | LayerTarget,
    amount: Amount | WeightAmount,
    method: Any = None,
    *,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
    loss: Callable[[], Tensor] | None = None,
    batches: int = 1,
    round_to: int = 1,
    min_size: int | None = None,
    max_size: int | None = None,
    protect: str | Sequence[str] = (),
    lr_factor: float = 1.0,
    parallel: bool = False,
) -> Edit:
    """Add units to an axis, to several, or to all neuron axes of a structure, in place.

    Args:
        target: An axis, a sequence of axes of one structure, or the structure; or some of ``structure.weights``, of
            which single weights come on that are off; or some of ``structure.layers`` or ``structure.cells``, each of
            which is followed by ``amount`` new ones that compute the identity at first.
        amount: Units for each axis (int), a fraction of each axis's size (float, at least one unit), or a mapping
            from axis names to either. Of single weights the number in all, a fraction of those that are on, a mapping
            from names to either, or a :class:`regrow.Sparsity` to get down to.
        method: A method with ``fresh``; :class:`regrow.Random` by default. For single weights one with
            ``score_absent``; :class:`regrow.RigL` by default. For layers and cells :class:`regrow.Deepen`.
        optimizer: Its state follows: the old units' is kept to the bit, the new units' is zero, but second moments and
            whatever else divides a step, which are the mean of the axis's other units.
        generator: Where randomness comes from; by default one seeded by torch's initial seed and the number of
            edits so far. The global random state is never touched.
        loss, batches: A callable without arguments that returns a differentiable scalar, and how often it is
            called, for methods that look at the loss; others ignore it.
        round_to: Sizes become multiples of this, by growing a little more.
        min_size, max_size: What each new size is at least and at most.
        protect: Names or patterns of axes that stay as they are.
        lr_factor: A factor on what each step of the optimizer does to the weights of the new units.
        parallel: For layers and cells, whether what comes runs beside them, ``f(x) + g(x)``, instead of behind.

    Raises:
        NotPermissible: An axis can't grow, or all are at their largest size.
        TypeError, ValueError: An argument is not what it should be. Nothing has been changed then.

    >>> import torch, regrow as rg
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> structure = rg.analyze(net, torch.zeros(2, 4))
    >>> print(rg.grow_(structure["0"], 4))
    0: 8 -> 12, +28 params, +50.0 % FLOPs
    >>> net
    Sequential(
      (0): Linear(in_features=4, out_features=12, bias=True)
      (1): ReLU()
      (2): Linear(in_features=12, out_features=2, bias=True)
    )
    """
    if lr_factor != 1 and (is_depth(target) or is_weights(target)):
        raise ValueError("lr_factor is for new units, not for single weights, layers or cells.")
    if not isinstance(parallel, bool):
        raise TypeError(f"parallel is True or False, not {parallel!r}.")
    if parallel and not is_depth(target):
        raise ValueError("parallel is for layers and cells: their new ones run behind them or beside them.")
    if is_depth(target):
        method = Deepen() if method is None else method
        _check(method, "followers", "grow", optimizer, generator, loss, batches)
        spared = _of_whole(round_to, min_size, max_size, protect)
        return grow_depth(target, amount, method, optimizer, generator, parallel, loss, spared)
    if is_weights(target):
        method = RigL() if method is None else method
        _check(method, "score_absent", "grow", optimizer, generator, loss, batches)
        look, spared = looks(loss, batches, method), _of_whole(round_to, min_size, max_size, protect)
        return grow_weights(target, amount, method, optimizer, generator, look, spared)  # type: ignore[arg-type]
    method = Random() if method is None else method
    _check(method, "fresh", "grow", optimizer, generator, loss, batches)
    limits = Limits(round_to, min_size, max_size, protect)  # type: ignore[arg-type]
    gains = to_grow(axes_of(target, limits, GROWS, "growable"), amount, limits)
    if not gains:
        raise NothingToDo("nothing to grow: every axis is at its largest size or protected.")
    structure = next(iter(gains)).structure
    if generator is None:
        generator = torch.Generator().manual_seed((torch.initial_seed() + len(structure.edits)) % 2**63)
    recalibrates, device = getattr(method, "recalibrates", False), next(structure.model.parameters()).device.type
    with remembered(structure.model, device) if recalibrates else nullcontext([]) as calls:
        seen = _seen(method, list(gains), loss, batches, generator)
    if hasattr(method, "settle"):
        free = not isinstance(amount, Mapping) and limits.round_to == 1
        gains = method.settle(gains, {axis: limits.most(axis) for axis in gains}, free, seen)
        chosen = agreed({axis.name: num for axis, num in gains.items()})
        gains = {axis: chosen[axis.name] for axis in seen if axis.name in chosen}
    with torch.no_grad():
        grown = {axis: _alike(_grown(method, axis, num, seen[axis], generator)) for axis, num in gains.items()}
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


def prune_(
    target: Target | WeightTarget | LayerTarget,
    amount: Amount | WeightAmount | Sequence[int] | Tensor,
    method: Any = None,
    *,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
    loss: Callable[[], Tensor] | None = None,
    batches: int = 1,
    round_to: int = 1,
    min_size: int | None = None,
    max_size: int | None = None,
    protect: str | Sequence[str] | Sequence[int] | Mapping[str, Sequence[int]] = (),
    fold: bool = False,
) -> Edit:
    """Remove units from an axis, from several, or from all neuron and head axes of a structure, in place.

    Args:
        target: An axis, a sequence of axes of one structure, or the structure; or some of ``structure.weights``, of
            which single weights go off; or layers or cells, of which ``amount`` leave the model, a single one for 1.
        amount: Units in all (int) or a fraction of all units (float below 1), ranked over all axes alike; a mapping
            from axis names to either, each axis by itself; a :class:`regrow.Threshold` or :class:`regrow.Valley` of
            the scores, or a :class:`regrow.Budget`; or, for one axis, the units to remove. Of single weights likewise a
            number, a fraction of those that are on, a mapping or a threshold; a :class:`regrow.Sparsity` to get up to,
            or a :class:`regrow.Pattern`; or, for one tensor, flat indices, or a bool tensor, True where one goes.
        method: A method with ``score``; :class:`regrow.L1` by default. For single weights one with ``score_weights``;
            :class:`regrow.Magnitude` by default. For layers and cells one with ``score_layers``;
            :class:`regrow.Taylor` by default.
        optimizer: Its state follows.
        generator: As for :func:`grow_`.
        loss, batches: As for :func:`grow_`; methods that absorb what units send, as :class:`regrow.L1`, do so by its
            mean on these batches, and let running statistics follow.
        round_to: Sizes become multiples of this, by removing a little less.
        min_size, max_size: What each new size is at least and at most; at least one unit always stays.
        protect: Names or patterns of axes that stay as they are; for one axis, units that stay; or a mapping from axis
            names to units that stay.
        fold: For layers, whether the layer that feeds one that leaves does what both did, in eval mode: for norms, and
            linear layers behind linear ones.

    Raises:
        NotPermissible: An axis can't be pruned, or not that far.
        TypeError, ValueError: An argument is not what it should be. Nothing has been changed then.
    """
    if fold and not is_depth(target):
        raise ValueError("fold is for layers: what feeds one that leaves does what both did.")
    if is_depth(target):
        method = Taylor() if method is None else method
        _check(method, "score_layers", "prune", optimizer, generator, loss, batches)
        spared = _of_whole(round_to, min_size, max_size, protect)
        return prune_depth(target, amount, method, optimizer, loss, batches, spared, fold)
    if is_weights(target):
        method = Magnitude() if method is None else method
        _check(method, "score_weights", "prune", optimizer, generator, loss, batches)
        look, spared = looks(loss, batches, method), _of_whole(round_to, min_size, max_size, protect)
        return prune_weights(target, amount, method, optimizer, generator, look, spared)  # type: ignore[arg-type]
    limits = Limits(round_to, min_size, max_size, protect)  # type: ignore[arg-type]
    method = L1() if method is None else method
    _check(method, "score", "prune", optimizer, generator, loss, batches)
    if isinstance(amount, (Sequence, Tensor)) and not isinstance(amount, str):
        removed, name = _named_units(target, amount, limits), ""
    else:
        axes = axes_of(target, limits, PRUNES, "prunable")
        seen = _seen(method, axes, loss, batches, generator)
        with torch.no_grad():
            scores = {axis: averaged(_scores(method, axis, seen[axis])) for axis in axes}
        removed, name = to_prune(axes, amount, limits, scores), method.name
    if not removed:
        raise NothingToDo("nothing to prune: every axis is at its smallest size or protected.")
    maps = {axis: np.setdiff1d(np.arange(axis.size), units) for axis, units in removed.items()}
    structure = next(iter(removed)).structure
    absorbs = name and getattr(method, "absorb", False)
    changed = absorbed(structure, removed, loss, batches) if absorbs else {}
    changed = {name: averaged(values) for name, values in changed.items()}  # they go with means on data
    return apply(structure, maps, {}, optimizer, "prune", name, changed)


def _of_whole(round_to: int, min_size: int | None, max_size: int | None, protect: Any) -> tuple[str, ...]:
    """What of the limits holds where no units are edited: names of what stays as it is."""
    if round_to != 1 or min_size is not None or max_size is not None:
        raise ValueError("round_to, min_size and max_size are for units, not for single weights, layers or cells.")
    limits = Limits(protect=protect)
    if isinstance(limits.protect, Mapping) or not all(isinstance(p, str) for p in limits.protect):
        raise TypeError(f"protect holds names here, not {protect!r}.")
    return limits.protect  # type: ignore[return-value]


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


def _seen(
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
        raise ValueError(f"{method.name} looks at the loss: pass loss=, a callable that returns it.")
    if not looked:
        return gather(axes, needs, loss, batches, generator)
    tensors = dict.fromkeys(e.tensor for axis in axes for e in axis.entries if e.tensor.requires_grad)
    found = gradients(axes[0].structure.model, list(tensors), loss, batches)
    return {axis: {"gradients": found} for axis in axes}


def _grown(method: Any, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Grown:
    """A method's values for new units; their shapes are checked where they are written."""
    grown = method.fresh(axis, num, seen, generator)
    grown = grown if isinstance(grown, Grown) else Grown(grown)
    for given in (grown.fresh, grown.old):
        if not isinstance(given, dict) or not all(isinstance(v, Tensor) for v in given.values()):
            raise TypeError(f"{method.name}.fresh returns a dict of tensors by entry, not {type(given).__name__}.")
        if not set(given) <= set(axis.entries):
            raise ValueError(f"{method.name}.fresh gave values for entries that {axis.name} doesn't have.")
    return grown


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


def _alike(grown: Grown) -> Grown:
    """New units as the first of several processes has them."""

    def alike(rows: Mapping[Entry, Tensor]) -> dict[Entry, Tensor]:
        return dict(zip(rows, agreed([values.detach() for values in rows.values()]), strict=True))

    return dataclasses.replace(grown, fresh=alike(grown.fresh), old=alike(grown.old), copies=agreed(grown.copies))


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


def _check(method: Any, part: str, action: str, optimizer: Any, generator: Any, loss: Any, batches: Any) -> None:
    if not callable(getattr(method, part, None)) or isinstance(method, type):
        raise TypeError(f"{method!r} can't {action}; a method with {part}() can: {', '.join(list_methods(part))}.")
    check_arguments(optimizer, generator, loss, batches)

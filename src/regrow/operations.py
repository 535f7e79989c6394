"""grow_ and prune_: from what the user asks to one edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .amounts import Amount, Target, plain
from .arguments import check_arguments
from .depth_operations import LayerTarget, grow_depth, is_depth, prune_depth
from .distributed import check_alone
from .draws import draws_if_done
from .edit import Edit
from .growing.deepen import Deepen
from .growing.random import Random
from .growing.rigl import RigL
from .joint.homeostasis import Homeostasis
from .joint_operations import adapt_units
from .limits import Limits
from .method import list_methods
from .pruning.l1 import L1
from .pruning.magnitude import Magnitude
from .pruning.taylor import Taylor
from .sparsity import WeightAmount
from .unit_operations import grow_units, prune_units
from .weight_operations import WeightTarget, grow_weights, is_weights, looks, prune_weights


@draws_if_done
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
        NotPermissible: An axis can't grow, or all are at their largest size; or the model is in a live wrapper of
            several processes, whose edits a :class:`regrow.Shaper` makes.
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
    amount = plain(amount)
    if lr_factor != 1 and (is_depth(target) or is_weights(target)):
        raise ValueError("lr_factor is for new units, not for single weights, layers or cells.")
    if not isinstance(parallel, bool):
        raise TypeError(f"parallel is True or False, not {parallel!r}.")
    if parallel and not is_depth(target):
        raise ValueError("parallel is for layers and cells: their new ones run behind them or beside them.")
    if not is_weights(target):  # masks change no shapes
        check_alone(target)
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
    return grow_units(target, amount, method, optimizer, generator, loss, batches, limits, lr_factor)


@draws_if_done
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
        NotPermissible: An axis can't be pruned, or not that far; or as for :func:`grow_`.
        TypeError, ValueError: An argument is not what it should be. Nothing has been changed then.
    """
    amount = plain(amount)
    if fold and not is_depth(target):
        raise ValueError("fold is for layers: what feeds one that leaves does what both did.")
    if not is_weights(target):  # masks change no shapes
        check_alone(target)
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
    return prune_units(target, amount, method, optimizer, generator, loss, batches, limits)


@draws_if_done
def adapt_(
    target: Target,
    method: Any = None,
    *,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
    loss: Callable[[], Tensor] | None = None,
    batches: int = 1,
    min_size: int | None = None,
    max_size: int | None = None,
    protect: str | Sequence[str] | Mapping[str, Sequence[int]] = (),
) -> Edit:
    """Let units go and others come, in one edit, in place.

    Args:
        target: An axis, several, or a structure, of which it is all neuron and head axes.
        method: A method with ``exchange``; :class:`regrow.Homeostasis` by default, which keeps the model's FLOPs.
        optimizer, generator, loss, batches: As for :func:`grow_`.
        min_size, max_size, protect: As for :func:`prune_`.

    Raises:
        NotPermissible: Of no axis it is known what its units are worth, or nothing is to be changed.
        TypeError, ValueError: An argument is not what it should be. Nothing has been changed then.
    """
    check_alone(target)
    method = Homeostasis() if method is None else method
    _check(method, "exchange", "adapt", optimizer, generator, loss, batches)
    limits = Limits(1, min_size, max_size, protect)  # type: ignore[arg-type]
    return adapt_units(target, method, optimizer, generator, loss, batches, limits)


def _of_whole(round_to: int, min_size: int | None, max_size: int | None, protect: Any) -> tuple[str, ...]:
    """What of the limits holds where no units are edited: names of what stays as it is."""
    if round_to != 1 or min_size is not None or max_size is not None:
        raise ValueError("round_to, min_size and max_size are for units, not for single weights, layers or cells.")
    limits = Limits(protect=protect)
    if isinstance(limits.protect, Mapping) or not all(isinstance(p, str) for p in limits.protect):
        raise TypeError(f"protect holds names here, not {protect!r}.")
    return limits.protect  # type: ignore[return-value]


def _check(method: Any, part: str, action: str, optimizer: Any, generator: Any, loss: Any, batches: Any) -> None:
    if not callable(getattr(method, part, None)) or isinstance(method, type):
        raise TypeError(f"{method!r} can't {action}; a method with {part}() can: {', '.join(list_methods(part))}.")
    check_arguments(optimizer, generator, loss, batches)

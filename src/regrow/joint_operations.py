"""Growing and pruning at once: one edit, decided by a method that sees both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .agreement import agreed, averaged
from .amounts import axes_of
from .applying import apply
from .edit import Edit
from .errors import NothingToDo, NotPermissible
from .joint.exchange import Exchange
from .limits import Limits
from .pruning.absorption import absorbed
from .structure import Axis, Structure
from .unit_operations import PRUNES, grown_by, seeded, seen_of


def adapt_units(
    target: Any,
    method: Any,
    optimizer: Optimizer | None,
    generator: torch.Generator | None,
    loss: Callable[[], Tensor] | None,
    batches: int,
    limits: Limits,
    memory: dict[str, Any] | None = None,
) -> Edit:
    """Let units go and others come; see :func:`regrow.adapt_`.

    Args:
        memory: What the method has noted at earlier calls.
    """
    axes = _axes_of(target, limits)
    structure = axes[0].structure
    generator = seeded(structure) if generator is None else generator
    seen = seen_of(method, axes, loss, batches, generator)
    chosen = _agreed(method.exchange(seen, limits, {} if memory is None else memory), structure)
    if not chosen.removed and not chosen.gained:
        raise NothingToDo(f"{method.name} changes nothing now.")
    grown = grown_by(method, chosen.gained, seen, generator)
    if any(each.old or each.copies or each.gradient_factors for each in grown.values()):
        raise TypeError(f"{method.name} changes old units too, which can't be while others go; it can only grow.")
    values = {axis: each.fresh for axis, each in grown.items()}
    absorbs = chosen.removed and getattr(method, "absorb", False)
    changed = absorbed(structure, chosen.removed, loss, batches) if absorbs else {}
    changed = {name: averaged(tensor) for name, tensor in changed.items()}
    return apply(structure, chosen.maps(), values, optimizer, "adapt", method.name, changed)


def _axes_of(target: Any, limits: Limits) -> list[Axis]:
    """The axes that a call is about; of a structure those of which units may go or come."""
    if not isinstance(target, Structure):
        return axes_of(target, limits, PRUNES, "prunable")
    found: dict[Axis, None] = {}
    for verdict in ("prunable", "growable"):
        if any(axis.kind in PRUNES and getattr(axis, verdict) for axis in target.axes):
            found |= dict.fromkeys(axes_of(target, limits, PRUNES, verdict))
    if not found:
        raise NotPermissible("there is no axis to edit here; print(structure) says what is frozen and why.")
    return [axis for axis in target.axes if axis in found]


def _agreed(chosen: Exchange, structure: Structure) -> Exchange:
    """What the first of several processes has chosen, without what is empty."""
    removed, gained = agreed(
        (
            {axis.name: list(units) for axis, units in chosen.removed.items() if units},
            {axis.name: num for axis, num in chosen.gained.items() if num},
        )
    )
    return Exchange(
        {structure[name]: units for name, units in removed.items()},
        {structure[name]: num for name, num in gained.items()},
    )

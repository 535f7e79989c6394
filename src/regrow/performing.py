"""How a Shaper does an action: what the action is about, what its method has to go by, and what is spared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .actions import WHOLE, Action, Adapt, Grow, Prune, Rewire
from .arguments import check_arguments
from .depth_operations import grow_depth, prune_depth
from .draws import drawing
from .edit import Edit
from .errors import NothingToDo
from .joint_operations import adapt_units
from .limits import Limits
from .progress import Ages, Progress
from .sharding import gathered
from .structure import Axis, Weights
from .targets import Targets
from .unit_operations import grow_units, prune_units
from .weight_operations import grow_weights, looks, prune_weights, rewire_weights

Closure = Callable[[], Tensor] | None


class HeldGradients:
    """Gradients of single weights as a step had them, before masks hide some."""

    def __init__(self) -> None:
        self._held: dict[Weights, Tensor] = {}
        self.missing = False  # whether some of these had none

    def clear(self) -> None:
        """Forget them."""
        self._held, self.missing = {}, False

    def keep(self, weights: Weights) -> None:
        """Keep those of a tensor, if a scaler won't skip the step for them."""
        gradient = gathered(weights.tensor.grad)
        self.missing |= gradient is None
        if gradient is not None and bool(gradient.isfinite().all()):
            self._held[weights] = gradient.clone()

    def of(self, weights: Sequence[Weights]) -> dict[Tensor, Tensor] | None:
        """Those of several tensors by the tensor; None if one has none, or has another shape now."""
        if not all(w in self._held and self._held[w].shape == w.tensor.shape for w in weights):
            return None
        return {w.tensor: self._held[w] for w in weights}


class Performer:
    """Does the actions of a plan.

    Args:
        optimizer: Follows.
        generator: Where randomness comes from.
        targets: What each action is about.
        progress, ages: What is remembered of earlier steps; both are noted in.
    """

    def __init__(
        self, optimizer: Optimizer, generator: torch.Generator, targets: Targets, progress: Progress, ages: Ages
    ) -> None:
        self.optimizer, self.generator, self.targets = optimizer, generator, targets
        self.progress, self.ages, self.held = progress, ages, HeldGradients()
        self.heard: Closure = None  # the loss of the step itself, and whether it has the loss's value
        self.knows_value = False

    def perform(self, action: Action, closure: Closure, step: int) -> Edit | None:
        """Do an action that is due at a step; None if there is nothing to do.

        Raises:
            NotPermissible: It can't be done, and nothing of it has been done.
        """
        check_arguments(self.optimizer, self.generator, closure, action.batches)
        if closure is None and looks_at_loss(action) and (self.knows_value or not weighs_loss(action)):
            closure = self.heard
        try:
            with drawing(self.generator):
                if action.kind == "weight":
                    return self._on_weights(action, closure, step)
                if action.kind in WHOLE:
                    return self._on_layers(action, closure)
                return self._on_units(action, closure, step)
        except NothingToDo:
            return None

    def _on_units(self, action: Action, closure: Closure, step: int) -> Edit | None:
        axes, limits = self.targets[action], action.limits
        if not isinstance(action, Grow):
            axes, limits = self._sparing_the_young(action, step)
        if not axes:
            return None
        given = (action.method, self.optimizer, self.generator, closure, action.batches, Limits(**limits))
        if isinstance(action, Adapt):
            return adapt_units(axes, *given, memory=self.progress.memory(action))
        amount = self.progress.amount(action, self.targets[action])
        if isinstance(action, Grow):
            return grow_units(axes, amount, *given, memory=self.progress.memory(action))
        return prune_units(axes, amount, *given)

    def _sparing_the_young(self, action: Action, step: int) -> tuple[Sequence[Axis], dict[str, Any]]:
        """The axes of which units may go, and the limits, in which those that came a short while ago are protected."""
        axes, limits = self.targets[action], action.limits
        young = self.ages.young(axes, step - getattr(action.method, "grace", 0))
        if young:
            spared = Limits(protect=limits.pop("protect"))
            axes, limits["protect"] = [axis for axis in axes if not spared.spares(axis)], young
        return axes, limits

    def _on_weights(self, action: Action, closure: Closure, step: int) -> Edit:
        weights = self.targets[action]
        look, held = looks(closure, action.batches, action.method), self.held.of(weights)
        if action.batches == 1 and held is not None:
            look = lambda _: held  # noqa: E731, the step's own cost nothing
        elif closure is None and action.batches == 1 and sees_gradients(action) and not self.held.missing:
            self.progress.late = sorted({*self.progress.late, step})
            raise NothingToDo(f"{action.method.name} waits for the gradients of the next step.")
        given = (action.method, self.optimizer, self.generator, look, action.protect)
        pattern = {"pattern": action.pattern} if isinstance(action, Rewire) else {}
        return _ON_WEIGHTS[type(action)](weights, action.amount, *given, **pattern)

    def _on_layers(self, action: Action, closure: Closure) -> Edit:
        layers = self.targets.matching(action)
        if isinstance(action, Grow):
            memory = self.progress.memory(action)
            given = (self.generator, action.parallel, closure, action.protect, memory)
            return grow_depth(layers, action.amount, action.method, self.optimizer, *given)
        given = (closure, action.batches, action.protect)
        return prune_depth(layers, self.progress.amount(action, layers), action.method, self.optimizer, *given)


_ON_WEIGHTS: dict[type[Action], Callable[..., Edit]] = {
    Grow: grow_weights,
    Prune: prune_weights,
    Rewire: rewire_weights,
}


def weighs_loss(action: Action) -> bool:
    """Whether an action looks at the value of the loss as well."""
    return bool(getattr(action.method, "weighs_loss", False))


def looks_at_loss(action: Action) -> bool:
    """Whether an action on units or layers looks at gradients of the loss, and doesn't compare losses."""
    method = action.method
    if action.kind == "weight":
        return False
    if action.kind in WHOLE:
        return getattr(method, "skips", "") == "first order"
    return bool(getattr(method, "needs", {})) or "score" in getattr(method, "sees_gradients", ())


def sees_gradients(action: Action) -> bool:
    """Whether an action looks at the gradients of single weights."""
    return action.kind == "weight" and bool(getattr(action.method, "sees_gradients", ()))

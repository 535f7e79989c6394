"""Plans: what to do to a model's structure, and at which steps. All of it is plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .actions import Action, Grow, Prune, Rewire, check_step
from .schedules import Schedule


@dataclass(frozen=True)
class Every:
    """An action at every ``period``-th step after ``start``, up to and including ``stop``."""

    period: int
    action: Action
    start: int = 0
    stop: int | None = None

    def due(self, step: int) -> Iterator[Action]:
        """The actions due at a step; steps count from 1."""
        in_time = step > self.start and (self.stop is None or step <= self.stop)
        if in_time and (step - self.start) % self.period == 0:
            yield self.action.at(self._time(step))

    def _time(self, step: int) -> float | None:
        """How much of the time between the first due step and the last has gone; None if there is no last."""
        if self.stop is None:
            return None
        most = (self.stop - self.start) // self.period - 1
        return ((step - self.start) // self.period - 1) / most if most else 1.0

    def entries(self) -> Iterator[tuple[Action, int | None]]:
        """Each action with its last due step, None if it never ends."""
        last = None if self.stop is None else self.start + (self.stop - self.start) // self.period * self.period
        yield self.action, last


@dataclass(frozen=True)
class At:
    """An action at named steps."""

    steps: tuple[int, ...]
    action: Action

    def due(self, step: int) -> Iterator[Action]:
        """The actions due at a step; steps count from 1."""
        if step in self.steps:
            yield self.action

    def entries(self) -> Iterator[tuple[Action, int | None]]:
        """Each action with its last due step."""
        yield self.action, max(self.steps)


@dataclass(frozen=True)
class Chain:
    """Several plans as one; at a step, actions are done in this order."""

    plans: tuple[Plan, ...]

    def due(self, step: int) -> Iterator[Action]:
        """The actions due at a step, in order."""
        for plan in self.plans:
            yield from plan.due(step)

    def entries(self) -> Iterator[tuple[Action, int | None]]:
        """Each action with its last due step, None if it never ends."""
        for plan in self.plans:
            yield from plan.entries()


Plan = Every | At | Chain


def every(period: int, action: Action, start: int = 0, stop: int | None = None) -> Every:
    """``action`` at steps ``start + period``, ``start + 2·period``, …, not after ``stop``. Steps count from 1.

    Raises:
        TypeError, ValueError: A number isn't a whole number, or negative, or the action is none.

    >>> import regrow as rg
    >>> plan = rg.every(100, rg.Grow(rg.Random(), 8), start=200, stop=400)
    >>> [step for step in range(1, 1000) if list(plan.due(step))]
    [300, 400]
    """
    check_step("period", period, 1)
    check_step("start", start, 0)
    if stop is not None:
        check_step("stop", stop, start + period)
    elif isinstance(getattr(action, "amount", None), Schedule):
        raise ValueError(f"{action.amount!r} needs to know when it ends; give every() a stop.")
    return Every(period, _checked(action), start, stop)


def at(steps: int | list[int] | tuple[int, ...], action: Action) -> At:
    """``action`` at one step or at several. Steps count from 1.

    Raises:
        TypeError, ValueError: A step isn't a positive whole number, there is none, or the action is none.
    """
    named = (steps,) if isinstance(steps, int) else tuple(steps)
    if not named:
        raise ValueError("at() needs a step.")
    for step in named:
        check_step("a step", step, 1)
    if isinstance(getattr(action, "amount", None), Schedule):
        raise ValueError(f"{action.amount!r} needs to know when it begins and ends; use every() with a stop.")
    return At(named, _checked(action))


def chain(*plans: Plan) -> Chain:
    """Several plans as one; actions due at the same step are done in the order given.

    Raises:
        TypeError: One of them is no plan.
    """
    for plan in plans:
        if not isinstance(plan, (Every, At, Chain)):
            raise TypeError(f"chain takes plans, made by every(), at() or chain(), not {plan!r}.")
    return Chain(plans)


def _checked(action: Any) -> Action:
    if not isinstance(action, (Grow, Prune, Rewire)):
        raise TypeError(f"a plan holds Grow(…), Prune(…) or Rewire(…), not {action!r}.")
    return action

"""Plans: what to do to a model's structure, and at which steps. All of it is plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from .actions import Action, Adapt, Grow, Prune, Rewire, check_step
from .conditions import Condition
from .method import Method, Suggestion
from .schedules import Schedule

if TYPE_CHECKING:
    from .preview import Preview

#: Whether what waits for a condition has it now.
Holds = Callable[["When | Until"], bool]


def _unknown(_: When | Until) -> bool:
    return False


class Plan:
    """What is to be done at which steps; made by :func:`every`, :func:`at`, :func:`when`, :func:`until`,
    :func:`chain`."""

    def due(self, step: int, holds: Holds = _unknown) -> Iterator[Action]:
        """The actions due at a step, in order; steps count from 1.

        Args:
            holds: Tells of parts of the plan that wait for a condition whether it holds; by default none does.
        """
        raise NotImplementedError

    def entries(self, holds: Holds = _unknown) -> Iterator[tuple[Action, int | None]]:
        """Each action with its last due step, None if it never ends.

        Args:
            holds: As for :meth:`due`: what has ended has no entries any more.
        """
        raise NotImplementedError

    def waiting(self) -> Iterator[When | Until]:
        """The parts that wait for a condition."""
        return iter(())

    def preview(self, model: nn.Module, x: Any, steps: int) -> Preview:
        """What the plan will do: sizes and FLOPs at each step, and what the training will cost.

        It is done to a copy of the model, without training: growth by other values, and pruning as much of each axis,
        relative to its size. What follows from values or the loss (:class:`regrow.Threshold`, conditions) is named, but
        can't be foreseen.

        Args:
            model: As it will begin; it is left alone.
            x: Its example.
            steps: Of the training.

        Raises:
            ValueError: As :class:`regrow.Shaper`.

        >>> import torch, regrow as rg
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> print(rg.every(10, rg.Grow(rg.GradMax(), 4), stop=20).preview(net, torch.rand(2, 4), steps=40))
            step        params      FLOPs  what
               0            58        192
              10            86        288  Grow(gradmax): 0: 8 -> 12, +28 params, +50.0 % FLOPs
              20           114        384  Grow(gradmax): 0: 12 -> 16, +28 params, +33.3 % FLOPs
        40 steps: 3.74e+04 FLOPs of training, 81% of those at the final size
        """
        from .preview import preview  # which knows the Shaper, which knows plans

        check_step("steps", steps, 1)
        return preview(self, model, x, steps)


@dataclass(frozen=True)
class Every(Plan):
    """An action at every ``period``-th step after ``start``, up to and including ``stop``."""

    period: int
    action: Action
    start: int = 0
    stop: int | None = None

    def due(self, step: int, holds: Holds = _unknown) -> Iterator[Action]:
        """The action, where it is due at a step."""
        in_time = step > self.start and (self.stop is None or step <= self.stop)
        if in_time and (step - self.start) % self.period == 0:
            yield self.action.at(step, self._time(step))

    def _time(self, step: int) -> float | None:
        """How much of the time between the first due step and the last has gone; None if there is no last."""
        if self.stop is None:
            return None
        most = (self.stop - self.start) // self.period - 1
        return ((step - self.start) // self.period - 1) / most if most else 1.0

    def entries(self, holds: Holds = _unknown) -> Iterator[tuple[Action, int | None]]:
        """The action with its last due step, None if it never ends."""
        last = None if self.stop is None else self.start + (self.stop - self.start) // self.period * self.period
        yield self.action, last


@dataclass(frozen=True)
class At(Plan):
    """An action at named steps."""

    steps: tuple[int, ...]
    action: Action

    def due(self, step: int, holds: Holds = _unknown) -> Iterator[Action]:
        """The action, where it is due at a step."""
        if step in self.steps:
            yield self.action.at(step, None)

    def entries(self, holds: Holds = _unknown) -> Iterator[tuple[Action, int | None]]:
        """The action with its last due step."""
        yield self.action, max(self.steps)


@dataclass(frozen=True)
class When(Plan):
    """An action at every step after ``start``, up to and including ``stop``, at which a condition holds."""

    condition: Condition
    action: Action
    start: int = 0
    stop: int | None = None

    def due(self, step: int, holds: Holds = _unknown) -> Iterator[Action]:
        """The action, if its condition holds."""
        if step > self.start and (self.stop is None or step <= self.stop) and holds(self):
            yield self.action.at(step, None)

    def entries(self, holds: Holds = _unknown) -> Iterator[tuple[Action, int | None]]:
        """The action with the last step at which it may be due, None if it never ends."""
        yield self.action, self.stop

    def waiting(self) -> Iterator[When | Until]:
        """Itself."""
        yield self


@dataclass(frozen=True)
class Until(Plan):
    """A plan that ends for good when a condition has held once."""

    condition: Condition
    plan: Plan

    def due(self, step: int, holds: Holds = _unknown) -> Iterator[Action]:
        """What the plan has due, unless it has ended."""
        if not holds(self):
            yield from self.plan.due(step, holds)

    def entries(self, holds: Holds = _unknown) -> Iterator[tuple[Action, int | None]]:
        """Each action with its last due step, None if it never ends."""
        if not holds(self):
            yield from self.plan.entries(holds)

    def waiting(self) -> Iterator[When | Until]:
        """Itself, and what waits within."""
        yield self
        yield from self.plan.waiting()


@dataclass(frozen=True)
class Chain(Plan):
    """Several plans as one; at a step, actions are done in this order."""

    plans: tuple[Plan, ...]

    def due(self, step: int, holds: Holds = _unknown) -> Iterator[Action]:
        """The actions due at a step, in order."""
        for plan in self.plans:
            yield from plan.due(step, holds)

    def entries(self, holds: Holds = _unknown) -> Iterator[tuple[Action, int | None]]:
        """Each action with its last due step, None if it never ends."""
        for plan in self.plans:
            yield from plan.entries(holds)

    def waiting(self) -> Iterator[When | Until]:
        """What waits within."""
        for plan in self.plans:
            yield from plan.waiting()


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
    elif _needs_time(action):
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
    if _needs_time(action):
        raise ValueError(f"{action.amount!r} needs to know when it begins and ends; use every() with a stop.")
    return At(named, _checked(action))


def when(condition: Condition, action: Action, start: int = 0, stop: int | None = None) -> When:
    """``action`` at every step after ``start``, and not after ``stop``, at which a condition holds.

    Args:
        condition: As :class:`regrow.Plateau`, :class:`regrow.Below` or :class:`regrow.Above`; what it looks at is
            reported to the Shaper, as ``shaper.step(loss=loss)``.

    Raises:
        TypeError, ValueError: The condition or the action is none, or a step is no step.

    >>> import regrow as rg
    >>> plan = rg.when(rg.Plateau(200), rg.Grow(rg.Deepen(), 1, kind="cell"), stop=2_000)
    """
    check_step("start", start, 0)
    if stop is not None:
        check_step("stop", stop, start + 1)
    if _needs_time(action):
        raise ValueError(f"{action.amount!r} needs to know when it begins and ends; use every() with a stop.")
    return When(_checked_condition(condition), _checked(action), start, stop)


def until(condition: Condition, plan: Plan | Method) -> Until:
    """``plan``, until a condition has held once.

    Raises:
        TypeError: The condition or the plan is none.

    >>> import regrow as rg
    >>> plan = rg.until(rg.Above("params", 10_000_000), rg.every(100, rg.Grow(rg.GradMax(), 16)))
    """
    return Until(_checked_condition(condition), as_plan(plan))


def chain(*plans: Plan | Method) -> Chain:
    """Several plans as one; actions due at the same step are done in the order given.

    Raises:
        TypeError: One of them is no plan, nor a method with a schedule of its own.
    """
    return Chain(tuple(map(as_plan, plans)))


def as_plan(value: Any) -> Plan:
    """A plan as it is; of a method with a schedule of its own, what it suggests.

    Raises:
        TypeError: It is neither.

    >>> from regrow.growing.autogrow import AutoGrow
    >>> as_plan(AutoGrow()).period
    200
    """
    if isinstance(value, Plan):
        return value
    schedule = getattr(value, "schedule", None)
    if isinstance(value, type) or not callable(schedule):
        raise TypeError(
            f"a plan is made by every(), at(), when(), until() or chain(), or a method with a schedule, not {value!r}."
        )
    suggested: Suggestion = schedule()
    action = _ACTIONS[suggested.verb](value, suggested.amount, **suggested.options)
    return every(suggested.period, action)


#: The actions that methods suggest by name.
_ACTIONS: dict[str, type[Action]] = {"grow": Grow, "prune": Prune, "adapt": Adapt}


def _needs_time(action: Any) -> bool:
    amount = getattr(action, "amount", None)
    return isinstance(amount, Schedule) and amount.curve != "constant"


def _checked_condition(condition: Any) -> Condition:
    if not isinstance(condition, Condition) or isinstance(condition, type):
        raise TypeError(f"a condition is a Plateau(…), Below(…) or Above(…), not {condition!r}.")
    return condition


def _checked(action: Any) -> Action:
    if not isinstance(action, (Grow, Prune, Rewire, Adapt)):
        raise TypeError(f"a plan holds Grow(…), Prune(…), Rewire(…) or Adapt(…), not {action!r}.")
    return action

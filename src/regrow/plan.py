"""Plans: what to do to a model's structure, and at which steps. All of it is plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .amounts import Amount, Limits, check_fraction, units_of
from .cutoffs import Budget, Threshold, Valley


@dataclass(frozen=True)
class Action:
    """What a plan does at a step; see :class:`Grow` and :class:`Prune`."""

    method: Any
    amount: Amount
    where: str = "*"
    round_to: int = 1
    min_size: int | None = None
    max_size: int | None = None
    protect: str | tuple[str, ...] = ()
    batches: int = 1

    def __post_init__(self) -> None:
        if not callable(getattr(self.method, self._part, None)) or isinstance(self.method, type):
            raise TypeError(f"{type(self).__name__} takes a method with {self._part}(), not {self.method!r}.")
        if not isinstance(self.where, str):
            raise TypeError(f"where is a pattern of axis names, not {self.where!r}.")
        limits = Limits(self.round_to, self.min_size, self.max_size, self.protect)
        object.__setattr__(self, "protect", limits.protect)
        _check_step("batches", self.batches, 1)
        amounts = self.amount.values() if isinstance(self.amount, Mapping) else [self.amount]
        for amount in amounts:
            self._check_amount(amount)

    _part = ""

    def _check_amount(self, amount: Any) -> None:
        units_of(amount, 1)

    @property
    def limits(self) -> dict[str, Any]:
        """The keyword arguments of grow_ and prune_ that bound the edit."""
        return {name: getattr(self, name) for name in ("round_to", "min_size", "max_size", "protect")}


@dataclass(frozen=True)
class Grow(Action):
    """Add units: ``amount`` to each axis that ``where`` matches (all neuron axes by default).

    Args:
        method: A method with ``fresh``, such as :class:`regrow.Random`.
        amount: Units (int), a fraction of the present size (float), or a mapping from axis names to either.
        where: A pattern of axis names.
        round_to, min_size, max_size, protect, batches: As for :func:`regrow.grow_`.
    """

    _part = "fresh"


@dataclass(frozen=True)
class Prune(Action):
    """Remove units: ``amount`` over all axes that ``where`` matches (neuron and head axes), ranked together.

    Args:
        method: A method with ``score``, such as :class:`regrow.L1`.
        amount: Units in all (int), a fraction of all (float), a mapping from axis names to either, each axis by
            itself; or a :class:`regrow.Threshold`, :class:`regrow.Valley` or :class:`regrow.Budget`.
        where: A pattern of axis names.
        round_to, min_size, max_size, protect, batches: As for :func:`regrow.prune_`.
    """

    _part = "score"

    def _check_amount(self, amount: Any) -> None:
        if not isinstance(amount, (Threshold, Valley, Budget)):
            units_of(amount, 1)
            check_fraction(amount)


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
            yield self.action

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
    _check_step("period", period, 1)
    _check_step("start", start, 0)
    if stop is not None:
        _check_step("stop", stop, start + period)
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
        _check_step("a step", step, 1)
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


def _check_step(what: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is a whole number of steps, not {value!r}.")
    if value < least:
        raise ValueError(f"{what} is at least {least}, not {value}.")


def _checked(action: Any) -> Action:
    if not isinstance(action, (Grow, Prune)):
        raise TypeError(f"a plan holds Grow(…) or Prune(…), not {action!r}.")
    return action

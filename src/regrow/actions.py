"""What a plan does at a step. All of it is plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .amounts import check_fraction, units_of
from .cutoffs import Budget, Threshold, Valley
from .limits import Limits
from .schedules import Schedule
from .sparsity import Pattern, Sparsity, check_moving, check_weight_amount
from .structure.axis import KINDS, TAGS

#: Kinds that aren't units of axes.
WHOLE = ("weight", "layer", "cell")


@dataclass(frozen=True)
class Toward:
    """An amount that a schedule has at a step: a fraction of the units that there were at first has gone, or come."""

    fraction: float


@dataclass(frozen=True)
class Action:
    """What a plan does at a step; see :class:`Grow` and :class:`Prune`."""

    method: Any
    amount: Any
    where: str = "*"
    round_to: int = 1
    min_size: int | None = None
    max_size: int | None = None
    protect: str | tuple[str, ...] = ()
    batches: int = 1
    kind: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in (None, *WHOLE, *KINDS, *TAGS):
            known = ", ".join((*WHOLE, *KINDS, *sorted(TAGS)))
            raise ValueError(f"there is no kind {self.kind!r} to {self._verb}; kinds are {known}.")
        for part in self._parts:
            if not callable(getattr(self.method, part, None)) or isinstance(self.method, type):
                what = f" for kind={self.kind!r}" if self.kind in WHOLE else ""
                raise TypeError(f"{type(self).__name__} takes a method with {part}(){what}, not {self.method!r}.")
        if not isinstance(self.where, str):
            raise TypeError(f"where is a pattern of axis names, not {self.where!r}.")
        limits = Limits(self.round_to, self.min_size, self.max_size, self.protect)
        object.__setattr__(self, "protect", limits.protect)
        check_step("batches", self.batches, 1)
        if self.kind in WHOLE and (self.round_to, self.min_size, self.max_size) != (1, None, None):
            raise ValueError(f"round_to, min_size and max_size are for units, not for kind={self.kind!r}.")
        self._check_amounts()

    def _check_amounts(self) -> None:
        if isinstance(self.amount, Schedule):
            for value in (self.amount.start, self.amount.end):
                dataclasses.replace(self, amount=self._amount_of(value))  # is checked by itself
        elif callable(self.amount):  # a function of the step
            return
        elif self.kind == "weight":
            check_weight_amount(self.amount, growing=isinstance(self, Grow))
        elif self.kind in WHOLE and not isinstance(self.amount, Toward):
            self._check_number()
        elif isinstance(self.amount, Toward):
            self._check_toward(self.amount.fraction)
        else:
            for amount in self.amount.values() if isinstance(self.amount, Mapping) else [self.amount]:
                self._check_amount(amount)

    _verb: ClassVar[str] = ""
    _of_units: ClassVar[tuple[str, ...]] = ()
    _of_weights: ClassVar[tuple[str, ...]] = ()
    _of_layers: ClassVar[tuple[str, ...]] = ()

    @property
    def _parts(self) -> tuple[str, ...]:
        """What a method needs to have for it."""
        if self.kind in ("layer", "cell"):
            return self._of_layers
        return self._of_weights if self.kind == "weight" else self._of_units

    @property
    def place(self) -> tuple[object, ...]:
        """What of the structure it is about; the same at every step."""
        names = tuple(self.amount) if isinstance(self.amount, Mapping) else ()
        return type(self).__name__, self.kind, self.where, names

    def at(self, step: int, time: float | None) -> Action:
        """The action with the amount that it has at a step, which is at a time from 0 to 1 for schedules."""
        if isinstance(self.amount, Schedule):
            return dataclasses.replace(self, amount=self._amount_of(self.amount.at(0.0 if time is None else time)))
        if callable(self.amount):
            return dataclasses.replace(self, amount=self.amount(step))
        return self

    def _amount_of(self, value: float) -> Any:
        """What a schedule's value means."""
        return Sparsity(value) if self.kind == "weight" else Toward(value)

    def _check_amount(self, amount: Any) -> None:
        if not isinstance(amount, Budget):
            units_of(amount, 1)

    def _check_toward(self, fraction: float) -> None:
        if fraction < 0:
            raise ValueError(f"a schedule of units goes from 0 on, not to {fraction!r}.")

    def _check_number(self) -> None:
        """An amount of layers or cells."""
        units_of(self.amount, 1)
        check_fraction(self.amount)

    @property
    def limits(self) -> dict[str, Any]:
        """The keyword arguments of grow_ and prune_ that bound the edit."""
        return {name: getattr(self, name) for name in ("round_to", "min_size", "max_size", "protect")}


@dataclass(frozen=True)
class Grow(Action):
    """Add units: ``amount`` to each axis that ``where`` matches (all neuron axes by default).

    Args:
        method: A method with ``fresh``, such as :class:`regrow.Random`.
        amount: Units (int), a fraction of the present size (float), or a mapping from axis names to either; a schedule
            of the fraction by which each axis is larger than when it was due first; or a function of the step that
            returns any of these but a schedule.
        where: A pattern of axis names; the name of an axis means that one, of whatever kind.
        kind: Only axes of this kind or tag; or "weight": single weights that are off come on, with a method that has
            ``score_absent`` and amounts as for :func:`regrow.grow_`, or a schedule of the sparsity; or "layer" or
            "cell": each that ``where`` matches is followed by new ones, with a method as :class:`regrow.Deepen`.
        parallel: For layers and cells, whether what comes runs beside them.
        round_to, min_size, max_size, protect, batches: As for :func:`regrow.grow_`.

    Raises:
        ValueError: An option is none of what is said above.
    """

    _verb: ClassVar[str] = "grow"
    _of_units: ClassVar[tuple[str, ...]] = ("fresh",)
    _of_weights: ClassVar[tuple[str, ...]] = ("score_absent",)
    _of_layers: ClassVar[tuple[str, ...]] = ("followers",)

    parallel: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel and self.kind not in ("layer", "cell"):
            raise ValueError(f"parallel is for layers and cells, not for kind={self.kind!r}.")

    def _check_toward(self, fraction: float) -> None:
        super()._check_toward(fraction)
        if self.kind in WHOLE:
            raise TypeError(f"{self.kind}s grow by a number for each, not by a schedule.")

    def _check_number(self) -> None:
        if isinstance(self.amount, bool) or not isinstance(self.amount, int) or self.amount < 1:
            raise ValueError(
                f"an amount of {self.kind}s for each is a whole number of at least 1, not {self.amount!r}."
            )


@dataclass(frozen=True)
class Prune(Action):
    """Remove units: ``amount`` over all axes that ``where`` matches (neuron and head axes), ranked together.

    Args:
        method: A method with ``score``, such as :class:`regrow.L1`.
        amount: Units in all (int), a fraction of all (float), a mapping from axis names to either, each axis by
            itself; or a :class:`regrow.Threshold`, :class:`regrow.Valley` or :class:`regrow.Budget`; a schedule of the
            fraction that is gone of what there was when it was due first; or a function of the step that returns any
            of these but a schedule.
        where: A pattern of axis names; the name of an axis means that one, of whatever kind.
        kind: Only axes of this kind or tag; or "weight": single weights go off, with a method that has
            ``score_weights`` and amounts as for :func:`regrow.prune_`, or a schedule of the sparsity; or "layer" or
            "cell": so many of those that ``where`` matches leave, with a method that has ``score_layers``.
        round_to, min_size, max_size, protect, batches: As for :func:`regrow.prune_`.
    """

    _verb: ClassVar[str] = "prune"
    _of_units: ClassVar[tuple[str, ...]] = ("score",)
    _of_weights: ClassVar[tuple[str, ...]] = ("score_weights",)
    _of_layers: ClassVar[tuple[str, ...]] = ("score_layers",)

    def _check_toward(self, fraction: float) -> None:
        super()._check_toward(fraction)
        check_fraction(float(fraction))

    def _check_amount(self, amount: Any) -> None:
        if not isinstance(amount, (Threshold, Valley, Budget)):
            units_of(amount, 1)
            check_fraction(amount)


@dataclass(frozen=True)
class Rewire(Action):
    """Let single weights go and as many come in each tensor that ``where`` matches: training at constant sparsity.

    Args:
        method: A method with ``score_weights`` and ``score_absent``, such as :class:`regrow.RigL`.
        amount: The fraction of the weights that are on that may go, or a schedule of it, as ``cosine(0.3, 0.0)``.
        where: A pattern of tensors' names, or of their modules'.
        protect, batches, pattern: As for :func:`regrow.rewire_`.

    Raises:
        TypeError: An option is of the wrong kind.
        ValueError: An option is none of what is said above.
    """

    kind: str | None = "weight"
    pattern: Pattern | None = None

    _verb: ClassVar[str] = "rewire"
    _of_weights: ClassVar[tuple[str, ...]] = ("score_weights", "score_absent")

    def __post_init__(self) -> None:
        if self.kind != "weight":
            raise ValueError(f"only single weights can be rewired, not {self.kind!r}.")
        if self.pattern is not None and not isinstance(self.pattern, Pattern):
            raise TypeError(f"pattern is a regrow.Pattern, such as Pattern(2, 4), not {self.pattern!r}.")
        super().__post_init__()

    def _check_amounts(self) -> None:
        if isinstance(self.amount, Schedule):
            for value in (self.amount.start, self.amount.end):
                check_moving(value)
        elif not callable(self.amount):
            check_moving(self.amount)

    def _amount_of(self, value: float) -> float:
        return value


@dataclass(frozen=True)
class Adapt(Action):
    """Let units go and others come at once, as a method decides that sees both sides.

    Args:
        method: A method with ``exchange``, such as :class:`regrow.Homeostasis`.
        amount: None; the method knows.
        where: A pattern of axis names.
        kind: Only axes of this kind or tag.
        min_size, max_size, protect, batches: As for :func:`regrow.adapt_`.

    Raises:
        ValueError: An option is none of what is said above.
    """

    amount: None = None

    _verb: ClassVar[str] = "adapt"
    _of_units: ClassVar[tuple[str, ...]] = ("exchange", "fresh")

    def __post_init__(self) -> None:
        if self.kind in WHOLE:
            raise ValueError(f"only units can be exchanged, not {self.kind}s.")
        if self.round_to != 1:
            raise ValueError("single units are exchanged; round_to can't be held.")
        super().__post_init__()

    def _check_amounts(self) -> None:
        if self.amount is not None:
            raise TypeError(f"the method knows how much; give it its budget instead of the amount {self.amount!r}.")


def check_step(what: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is a whole number of steps, not {value!r}.")
    if value < least:
        raise ValueError(f"{what} is at least {least}, not {value}.")

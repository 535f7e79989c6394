"""What a method is, and the registry of methods.

A method is a frozen dataclass: its fields are its configuration, its class attribute ``name`` is what it is
registered under. It has those of the parts below that it needs, and no others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from .rows import Fresh, Rows
from .structure import Axis, Entry


@dataclasses.dataclass(frozen=True)
class Grown:
    """New units that change old ones, as a split does, or that don't learn as fast as the others.

    Attributes:
        fresh: The values of the new units, as :meth:`Grower.fresh` gives them.
        old: What old units become: for an entry, rows of all of them, shape ``(axis.size, indices of a unit, other
            dimensions)``; entries left out keep their values.
        copies: The old units that the first of the new ones are copies of. What a unit sent, it and its copy send half
            each: ``fresh`` has halves for the copies, and the old unit's weights are halved for it.
        gradient_factors: For an entry, a factor on the gradient of its new rows from now on.
    """

    fresh: Fresh
    old: Rows = dataclasses.field(default_factory=dict)
    copies: Sequence[int] = ()
    gradient_factors: Mapping[Entry, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """When a method wants to act, and how much: what :class:`regrow.Shaper` takes for a plan.

    Attributes:
        period: Every how many steps.
        amount: As in an action of a plan.
        verb: The action: "grow", "prune" or "adapt".
        options: Further arguments of the action.
    """

    period: int
    amount: Any
    verb: Literal["grow", "prune", "adapt"] = "grow"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Method(Protocol):
    """Every method has a name; see :class:`Grower`, :class:`Pruner` and :class:`Penalty` for what it may do."""

    name: ClassVar[str]


@runtime_checkable
class Grower(Method, Protocol):
    """A method that can make new units.

    It may have ``needs``, what it must see of an axis (:data:`regrow.evidence.Needs`), and ``settle(gains, most, free,
    seen, memory)``, which decides how many units each axis gains where the user's amount leaves that open, or that none
    does now; in ``memory`` it may note plain values for the next time that its action is due in a plan. It may
    have ``schedule()``, a :class:`Suggestion` that is a plan by itself. Running statistics follow what its units change
    where ``recalibrates`` is true; where ``leaves_out`` is true, axes that it can't look at are passed over; where
    ``weighs_loss`` is true, the loss's value matters to it, and not only its gradients.
    """

    def fresh(self, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Fresh | Grown:
        """The values of ``num`` new units of ``axis``, and what becomes of old ones if they change.

        For an entry with ``k`` indices a unit and the tensor's shape ``(…, size, …)`` at its dimension, the
        value has shape ``(…, num * k, …)``, as the indices lie in the tensor. Entries left out become zero.
        """
        ...


@runtime_checkable
class Pruner(Method, Protocol):
    """A method that can tell how much units matter.

    It may have ``needs`` and ``leaves_out`` as a :class:`Grower`; ``absorb``, whether what units send on average goes
    into what lies behind them when they leave; and ``compensate(removed, seen)``, which gives new values of tensors by
    name, in their shapes before that.
    """

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        """How much each unit matters, shape ``(axis.size,)``; the lowest go first, over all axes alike."""
        ...


@runtime_checkable
class Penalty(Method, Protocol):
    """A method that adds to the loss while training.

    It may also have ``project(axis)``, which a Shaper calls after each step of the optimizer, ``welcome(axis, new)``,
    which it calls when another method has grown new units of an axis, and ``grace``, for how many steps it then doesn't
    prune them. A method that acts ``jointly`` is given all axes that it acts on as well: ``welcome(axis, new, axes)``.
    """

    def penalty(self, axis: Axis) -> Tensor:
        """A differentiable scalar for one axis; where the class attribute ``jointly`` is true, for several together."""
        ...


_METHODS: dict[str, type] = {}
T = TypeVar("T", bound=type)


def register(cls: T) -> T:
    """Make a method known under its ``name``; usable as a class decorator.

    Raises:
        TypeError: It is no frozen dataclass, or has no name.
        ValueError: Another class has the name.
    """
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"a method is a frozen dataclass; decorate {cls.__name__} with @dataclass(frozen=True).")
    name = getattr(cls, "name", None)
    if not isinstance(name, str):
        raise TypeError(f"a method has a name; give {cls.__name__} a class attribute name: ClassVar[str] = '…'.")
    known = _METHODS.setdefault(name, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"the name {name!r} is taken by {known.__module__}.{known.__qualname__}.")
    _METHODS[name] = cls
    return cls


def list_methods(part: str | None = None) -> list[str]:
    """The names of all registered methods, or of those with a part, such as "fresh", "score" or "followers".

    >>> import regrow as rg
    >>> rg.list_methods("followers")
    ['autogrow', 'deepen']
    """
    return sorted(name for name, cls in _METHODS.items() if part is None or hasattr(cls, part))


def create_method(method: str, **config: Any) -> Any:
    """Make a registered method from its name and configuration; the inverse of :func:`method_config`.

    Raises:
        ValueError: There is no such method, or it has no such field, or the value is not allowed.

    >>> import regrow as rg
    >>> rg.create_method("l1", strength=1e-3)
    L1(strength=0.001, grace=100, absorb=True)
    """
    if method not in _METHODS:
        raise ValueError(f"there is no method {method!r}; there are {', '.join(list_methods())}.")
    fields = [f.name for f in dataclasses.fields(_METHODS[method])]
    for key in config:
        if key not in fields:
            raise ValueError(f"{method} has no field {key!r}; it has {', '.join(fields) or 'none'}.")
    return _METHODS[method](**config)


def method_config(method: Method) -> dict[str, Any]:
    """A method as plain values that JSON can hold, with its name under ``"method"``."""
    return {"method": method.name, **dataclasses.asdict(method)}  # type: ignore[call-overload]

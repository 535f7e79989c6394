"""Plans as JSON and back: each value is a table with its kind and what of it isn't as by default."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from .actions import Adapt, Grow, Prune, Rewire
from .conditions import Above, Below, Plateau
from .cutoffs import Budget, Threshold, Valley
from .method import create_method, list_methods, method_config
from .plan import At, Chain, Every, Plan, Until, When, at, chain, every, until, when
from .schedules import Schedule
from .sparsity import Pattern, Sparsity

#: The values that a plan is made of, beside methods, by their names in JSON.
_KINDS: dict[str, type] = {
    kind.__name__.lower(): kind
    for kind in (
        *(At, Chain, Every, Until, When, Grow, Prune, Rewire, Adapt, Above, Below, Plateau),
        *(Budget, Threshold, Valley, Schedule, Pattern, Sparsity),
    )
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
#: A plan within a plan within a plan …: no more of these.
_DEEPEST = 50


def plan_to_json(plan: Plan) -> str:
    """A plan as JSON; methods go by the names under which they are registered.

    Raises:
        TypeError: It isn't a plan, or has a part that JSON can't hold, as a function for an amount.

    >>> import regrow as rg
    >>> text = rg.plan_to_json(rg.every(100, rg.Grow(rg.Random(), 8)))
    >>> text
    '{"is": "every", "period": 100, "action": {"is": "grow", "method": {"method": "random"}, "amount": 8}}'
    >>> rg.plan_from_json(text) == rg.every(100, rg.Grow(rg.Random(), 8))
    True
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"a plan is made by every(), at(), when(), until() or chain(), not {plan!r}.")
    return json.dumps(_plain(plan))


def _plain(value: Any) -> Any:
    if type(value) in _NAMES:
        fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        held = {f.name: _plain(now) for f, now in fields if f.default is dataclasses.MISSING or now != f.default}
        return {"is": _NAMES[type(value)], **held}
    if getattr(value, "name", None) in list_methods() and dataclasses.is_dataclass(value):
        defaults = {f.name: f.default for f in dataclasses.fields(value)}
        config = method_config(value).items()  # type: ignore[arg-type]
        return {name: _plain(now) for name, now in config if name == "method" or now != defaults[name]}
    if isinstance(value, Mapping):
        return {"is": "mapping", "items": [[name, _plain(now)] for name, now in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"JSON can't hold {value!r} of a plan; a schedule, or a registered method, can be written.")


def plan_from_json(text: str) -> Plan:
    """The plan that :func:`plan_to_json` wrote; nothing but plans, actions, amounts, conditions and methods is made.

    Raises:
        ValueError: It is no plan.
    """
    try:
        plan = _made(json.loads(text), 0)
        if not isinstance(plan, Plan):
            raise TypeError("it is something else")
    except (TypeError, ValueError, KeyError, RecursionError, AttributeError) as error:
        raise ValueError(f"this is no plan: {error}") from error
    return plan


def _made(held: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"parts are nested more than {_DEEPEST} deep")
    if isinstance(held, list):
        return tuple(_made(part, depth + 1) for part in held)
    if not isinstance(held, dict):
        return held
    fields = {name: _made(value, depth + 1) for name, value in held.items() if name not in ("is", "method")}
    if "is" not in held:
        return create_method(held["method"], **fields)
    if held["is"] == "mapping":
        return dict(fields["items"])
    if "method" in held:
        fields["method"] = _made(held["method"], depth + 1)
    kind = _KINDS[held["is"]]
    made = kind(**fields)
    return _checked(made)


def _checked(made: Any) -> Any:
    """What plans are made by checks what the plain values don't."""
    if isinstance(made, Every):
        return every(made.period, made.action, made.start, made.stop)
    if isinstance(made, At):
        return at(made.steps, made.action)
    if isinstance(made, When):
        return when(made.condition, made.action, made.start, made.stop)
    if isinstance(made, Until):
        return until(made.condition, made.plan)
    return chain(*made.plans) if isinstance(made, Chain) else made

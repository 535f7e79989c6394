"""Which rule speaks for which operator."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..call import Call
from ..trace import Trace

#: A function of the trace and the call: it says which labels are equal, which are frozen, and which the outputs carry.
Rule = Callable[[Trace, Call], None]

_RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators, replacing the one they have.

    The rule reads what is known of the call's tensors (``trace.of``), says how their labels relate
    (``trace.relations``), and sets what its outputs carry (``trace.set``). What it doesn't set carries no labels.

    Args:
        operators: Names with their namespace and without overload, as ``"mylib::fused_scale"``.

    Raises:
        ValueError: A name has no namespace.

    >>> import regrow as rg
    >>> @rg.rule("mylib::halve")  # as any pointwise call: what goes in comes out at the same places
    ... def halve(trace, call):
    ...     known = trace.of(call.tensors[0])
    ...     trace.set(call.out, known.fields, known.origin)
    """
    for name in operators:
        if "::" not in name:
            raise ValueError(f"an operator is named with its namespace, as 'aten::add', not {name!r}.")

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def rules_for(*names: str) -> Callable[[Rule], Rule]:
    """:func:`rule` for ATen operators, several to a string."""
    return rule(*(name if "::" in name else f"aten::{name}" for name in " ".join(names).split()))


def rule_of(call: Call) -> Rule | None:
    """The rule for a call's operator, or None."""
    found = _RULES.get(call.operator)
    if found is None and torch.Tag.pointwise in call.op.tags:
        return _RULES["aten::alias"]
    return found

"""regrow with one relation left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import pytest

from regrow.structure import prove
from regrow.structure import trace as tracing
from regrow.structure.axis import Axis, Verdict
from regrow.structure.call import Call
from regrow.structure.inherited import Inherited
from regrow.structure.journal import Comparison
from regrow.structure.relations import Relations
from regrow.structure.rules import registry
from regrow.structure.shifts import Shifts
from regrow.structure.trace import Trace

Patch = Callable[[pytest.MonkeyPatch], None]


def said_by(operators: str, *said: str) -> Patch:
    """The rules of some operators say nothing by these methods or lists of the relations."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for name in operators.split():
            rule = registry._RULES[f"aten::{name}"]
            for what in said:
                rule = _without(rule, what)
            monkeypatch.setitem(registry._RULES, f"aten::{name}", rule)

    return patch


def _without(rule: registry.Rule, said: str) -> registry.Rule:
    def mutilated(trace: Trace, call: Call) -> None:
        with _unsaid(trace.relations, said):
            rule(trace, call)

    return mutilated


@contextmanager
def _unsaid(relations: Relations, said: str) -> Iterator[None]:
    """Only of the first trace: the proof stays whole."""
    if isinstance(relations, Inherited):
        yield
        return
    listed = getattr(relations, said)
    if isinstance(listed, list):
        before = len(listed)
        yield
        del listed[before:]
        return
    with mock.patch.object(relations, said, lambda *args, **kwargs: None):
        yield


def nothing(owner: type, method: str, unless: str = "") -> Patch:
    """A method does nothing at all, or only where its last argument, a reason, says so."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        whole = getattr(owner, method)

        def mutilated(*args: Any) -> None:
            if unless and unless not in args[-1]:
                whole(*args)

        monkeypatch.setattr(owner, method, mutilated)

    return patch


def _constraints(which: int) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        whole = Relations.constraints

        def mutilated(relations: Relations) -> Any:
            slabs, rectangles = whole(relations)
            return ([], rectangles) if which == 0 else (slabs, [])

        monkeypatch.setattr(Relations, "constraints", mutilated)

    return patch


def _number_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """No numbers are compared."""
    monkeypatch.setattr(tracing, "numbers_of", lambda *args: ())


def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trials: what the relations say is taken as it is."""

    def run(proof: prove.Proof) -> list[Axis]:
        for axis in proof.axes:
            if axis.size == 1:
                axis.prunable = axis.growable = Verdict(False, "is the only one of its kind")
        return proof.axes

    monkeypatch.setattr(prove.Proof, "run", run)


class Mutant(NamedTuple):
    """A relation left out.

    Attributes:
        shown_by: A program for which the mutilated regrow is wrong.
        mended: The proof finds the relation again by itself.
        alone: The relations alone, unproven, are right for that program.
    """

    patch: Patch
    shown_by: str
    mended: bool = False
    alone: bool = True


POINTWISE = "alias"  # the rule of all pointwise calls

MUTANTS: dict[str, Mutant] = {
    "what is added is equal": Mutant(said_by(POINTWISE, "equate"), "add", mended=True),
    "what is multiplied is equal": Mutant(said_by(POINTWISE, "equate"), "mul", mended=True),
    "a scale is equal": Mutant(said_by(POINTWISE, "equate"), "scaled", mended=True),
    "what is contracted is equal": Mutant(said_by("addmm mm", "equate"), "plain"),
    "what attention contracts is equal": Mutant(said_by("bmm", "equate"), "attention", mended=True),
    "what the kernel contracts is equal": Mutant(
        said_by("_scaled_dot_product_flash_attention_for_cpu", "equate"), "attention kernel", mended=True
    ),
    "channels are equal": Mutant(said_by("convolution", "equate"), "conv"),
    "batch norm is equal": Mutant(said_by("native_batch_norm", "equate"), "batch norm"),
    "layer norm is equal": Mutant(said_by("native_layer_norm", "equate"), "layer norm"),
    "group norm is equal": Mutant(said_by("native_group_norm", "equate"), "group norm"),
    "halves of glu are equal": Mutant(said_by("glu", "equate", "rectangle"), "glu"),
    "slabs": Mutant(_constraints(0), "conv"),
    "rectangles": Mutant(_constraints(1), "shuffle"),
    "a view is a rectangle": Mutant(said_by("view _unsafe_view", "rectangle"), "rows"),
    "parts are rows": Mutant(nothing(Relations, "join_parts"), "halves apart", alone=False),
    "outputs stay": Mutant(nothing(Relations, "freeze", "model's output"), "plain", mended=True),
    "inputs stay": Mutant(nothing(Relations, "freeze", "size that carries no labels"), "plain", mended=True),
    "what is picked stays": Mutant(nothing(Relations, "freeze", "picked out"), "first picked"),
    "a mean is inexact": Mutant(said_by("mean", "mark_inexact"), "mean"),
    "softmax is inexact": Mutant(said_by("_softmax", "mark_inexact"), "softmax"),
    "layer norm is inexact": Mutant(said_by("native_layer_norm", "mark_inexact"), "layer norm"),
    "a group is inexact": Mutant(said_by("native_group_norm", "mark_inexact"), "group norm"),
    "groups of all are inexact": Mutant(said_by("native_group_norm", "mark_inexact"), "one group"),
    "the kernel's scale is inexact": Mutant(
        said_by("_scaled_dot_product_flash_attention_for_cpu", "mark_inexact"), "attention kernel"
    ),
    "columns consume": Mutant(said_by("addmm mm", "roles"), "plain"),
    "a scale scales": Mutant(said_by("native_batch_norm", "roles"), "batch norm"),
    "rows and columns are read": Mutant(said_by(POINTWISE, "roles"), "scaled"),
    "heads have a kind": Mutant(said_by("bmm", "kinds"), "attention"),
    "groups have a kind": Mutant(said_by("native_group_norm", "kinds"), "group norm"),
    "what meets data stays": Mutant(said_by(POINTWISE, "equate"), "rows by data", mended=True),
    "combinations": Mutant(_constraints(0), "outer"),
    "what is summed is silent": Mutant(said_by("sum", "summed"), "rows summed"),
    "what isn't zero when silent": Mutant(nothing(Shifts, "note"), "sigmoid summed"),
    "numbers in calls": Mutant(_number_of_calls, "by size", alone=False),
    "outputs of calls are compared": Mutant(nothing(Comparison, "_compare"), "literal rows", alone=False),
    "groups are counted": Mutant(said_by("convolution", "sizes"), "conv", mended=True),
    "heads are counted": Mutant(said_by("view _unsafe_view", "sizes"), "attention", mended=True),
}

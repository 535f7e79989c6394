"""regrow with one relation left out, and the programs that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import pytest

from oracle_graphs import BlockSpec, Held, Kept, Program, Size, Spec, Step, outputs
from regrow.structure import prove
from regrow.structure import trace as tracing
from regrow.structure.axis import Axis, Verdict
from regrow.structure.inherited import Inherited
from regrow.structure.journal import Comparison
from regrow.structure.relations import Relations
from regrow.structure.rules import registry
from regrow.structure.trace import Call, Trace

Patch = Callable[[pytest.MonkeyPatch], None]

# --------------------------------------------------------------------------------------------------
# programs


def _program(steps: Sequence[Step], params: Mapping[str, Spec], width: int, **held: int) -> Program:
    """Steps, and at last a linear layer that reads the last value, which is of that width."""
    value = sum(map(outputs, steps))
    last = BlockSpec([Step("linear", (value,), ("o", "p"))], {"o": Spec((2, width)), "p": Spec((2,))})
    return Program([BlockSpec(list(steps), dict(params), held), last])


def _layer(name: str, width: int, before: int = 3) -> dict[str, Spec]:
    return {name: Spec((width, before), (0,)), f"{name}_bias": Spec((width,))}


def _linear(value: int, name: str) -> Step:
    return Step("linear", (value,), (name, f"{name}_bias"))


def _view(value: int, *sizes: Size) -> Step:
    return Step("view", (value,), (), ((Kept(0), Kept(1), *sizes),))


def _after_layer(width: int, *steps: Step, out: int | None = None, **params: Spec) -> Program:
    return _program([_linear(0, "w"), *steps], {**_layer("w", width), **params}, out or width)


def _normed(op: str, *args: object, **held: int) -> Program:
    params = {"scale": Spec((6,), (), "scale"), "shift": Spec((6,))}
    if op == "batch_norm":
        params |= {"mean": Spec((6,), (), "mean"), "var": Spec((6,), (), "var")}
    steps = [_linear(0, "w"), Step(op, (1,), tuple(params), args)]
    return _program(steps, {**_layer("w", 6), **params}, 6, **held)


def _two_layers(op: str, width: int, out: int) -> Program:
    steps = [_linear(0, "w"), _linear(0, "v"), Step(op, (1, 2), (), (-1,) if op == "cat" else ())]
    return _program(steps, _layer("w", width) | _layer("v", width), out)


def _attention(kernel: bool) -> Program:
    """Two heads of three features; keys are values too."""
    steps = [_linear(0, "w"), _linear(0, "v")]
    for value in (1, 2):
        steps += [_view(value, Held("heads"), -1), Step("permute", (len(steps) + 1,), (), ((0, 2, 1, 3),))]
    if kernel:
        steps += [Step("fused", (4, 6, 6))]
    else:
        steps += [
            Step("matmul_t", (4, 6)),
            Step("by_number", (7,), (), (0.6,)),
            Step("softmax", (8,), (), (-1,)),
            Step("matmul", (9, 6)),
        ]
    steps += [Step("permute", (len(steps),), (), ((0, 2, 1, 3),))]
    steps += [_view(len(steps), -1)]
    return _program(steps, _layer("w", 6) | _layer("v", 6), 6, heads=2)


def _conv() -> Program:
    """Three groups of two channels, with one output channel each."""
    kernel = {"k": Spec((3, 2, 3), (0,)), "k_bias": Spec((3,))}
    steps = [_linear(0, "w"), Step("conv1d", (1,), ("k", "k_bias"), (Held("groups"),))]
    return _program(steps, {**_layer("w", 6), **kernel}, 3, groups=3)


def _shuffle() -> Program:
    steps = [_linear(0, "w"), _view(1, Held("groups"), -1), Step("permute", (2,), (), ((0, 1, 3, 2),)), _view(3, -1)]
    return _program(steps, _layer("w", 9), 9, groups=3)


def _rows(width: int, *steps: Step, out: int) -> Program:
    """Three groups of features."""
    return _program([_linear(0, "w"), _view(1, Held("groups"), -1), *steps], _layer("w", width), out, groups=3)


def _rows_added() -> Program:
    """Features beside others that stand in rows and columns."""
    steps = [_linear(0, "w"), _view(1, Held("groups"), -1), Step("softmax", (2,), (), (3,)), _view(3, -1)]
    steps += [_linear(0, "v"), Step("tanh", (5,)), Step("add", (4, 6))]
    return _program(steps, _layer("w", 6) | _layer("v", 6), 6, groups=3)


def _outer() -> Program:
    steps = [_linear(0, "w"), _linear(0, "v"), Step("outer", (1, 2)), _view(3, -1)]
    return _program(steps, _layer("w", 3) | _layer("v", 3), 9)


def _tied() -> Program:
    steps = [
        _linear(0, "w"),
        Step("tanh", (1,)),
        _linear(2, "v"),
        Step("tanh", (3,)),
        Step("linear_back", (4,), ("v",)),
    ]
    return _program(steps, {**_layer("w", 4), **_layer("v", 3, 4)}, 4)


PROGRAMS: dict[str, Program] = {
    "plain": _after_layer(4, Step("sigmoid", (1,))),
    "add": _two_layers("add", 4, 4),
    "mul": _two_layers("mul", 4, 4),
    "cat": _two_layers("cat", 3, 6),
    "beside the input": _after_layer(4, Step("cat", (1, 0), (), (-1,)), out=7),
    "scaled": _after_layer(4, Step("scaled", (1,), ("s",)), s=Spec((4,))),
    "shifted": _after_layer(4, Step("shifted", (1,), ("s",)), s=Spec((4,))),
    "mean": _after_layer(4, Step("mean", (1,), (), (-1, True)), Step("mul", (1, 2))),
    "softmax": _after_layer(4, Step("softmax", (1,), (), (-1,))),
    "by size": _after_layer(4, Step("by_size", (1, 1), (), (-1,))),
    "first picked": _after_layer(5, Step("slice", (1,), (), (2, 0, 1, 1)), Step("mul", (1, 2))),
    "halves apart": _after_layer(
        8, Step("chunk", (1,), (), (2, -1)), Step("tanh", (3,)), Step("cat", (2, 4), (), (-1,)), out=8
    ),
    "gated": _after_layer(8, Step("chunk", (1,), (), (2, -1)), Step("mul", (2, 3)), out=4),
    "glu": _after_layer(8, Step("glu", (1,)), out=4),
    "centred": _program(
        [_linear(0, "w"), Step("centred", (1,), ("v",))], {**_layer("w", 4), "v": Spec((3, 4), (0,))}, 3
    ),
    "batch norm": _normed("batch_norm"),
    "layer norm": _normed("layer_norm"),
    "group norm": _normed("group_norm", Held("groups"), groups=3),
    "one group": _normed("group_norm", 1),
    "conv": _conv(),
    "shuffle": _shuffle(),
    "rows added": _rows_added(),
    "rows": _rows(9, Step("tanh", (2,)), _view(3, -1), out=9),
    "rows summed": _rows(9, Step("sum", (2,), (), (2, False)), out=3),
    "sigmoid summed": _rows(9, Step("sigmoid", (2,)), Step("sum", (3,), (), (2, False)), out=3),
    "rows by data": _rows(9, _view(0, 1, 3), Step("mul", (2, 3)), _view(4, -1), out=9),
    "literal rows": _after_layer(9, _view(1, 3, -1), Step("tanh", (2,)), _view(3, -1)),
    "flipped": _after_layer(4, Step("flip", (1,), (), (-1,)), Step("tanh", (2,))),
    "mirrored": _after_layer(6, Step("flip", (1,), (), (-1,)), Step("mul", (1, 2))),
    "outer": _outer(),
    "tied": _tied(),
    "attention": _attention(kernel=False),
    "attention kernel": _attention(kernel=True),
}

#: The kinds of their axes.
KINDS = {
    "plain": {"neuron"},
    "conv": {"neuron", "head"},
    "group norm": {"neuron", "head"},
    "attention": {"head", "feature"},
    "attention kernel": {"head", "feature"},
}


# --------------------------------------------------------------------------------------------------
# what is left out


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
    "what isn't zero when silent": Mutant(nothing(Trace, "shifted"), "sigmoid summed"),
    "numbers in calls": Mutant(_number_of_calls, "by size", alone=False),
    "outputs of calls are compared": Mutant(nothing(Comparison, "_compare"), "literal rows", alone=False),
    "groups are counted": Mutant(said_by("convolution", "sizes"), "conv", mended=True),
    "heads are counted": Mutant(said_by("view _unsafe_view", "sizes"), "attention", mended=True),
}

"""Programs written by hand: one for each relation, and the smallest for all that random ones have found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oracle_graphs import BlockSpec, Held, Kept, Program, Size, SizeOf, Spec, Step, outputs


def _program(steps: Sequence[Step], params: Mapping[str, Spec], width: int, /, **held: int) -> Program:
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


def _after_layer(width: int, /, *steps: Step, out: int = 0, **more: Spec | int) -> Program:
    """A layer, and steps with their parameters and integers."""
    params = {name: spec for name, spec in more.items() if isinstance(spec, Spec)}
    held = {name: integer for name, integer in more.items() if isinstance(integer, int)}
    return _program([_linear(0, "w"), *steps], {**_layer("w", width), **params}, out or width, **held)


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
# what random programs have found


def _split(first: int, second: int) -> Program:
    """Pieces as wide as what reads them."""
    readers = {"x": Spec((2, first), (0,)), "y": Spec((2, second), (0,)), "x_bias": Spec((2,)), "y_bias": Spec((2,))}
    pieces = Step("split", (1,), (), ((SizeOf("x", 1), SizeOf("y", 1)), -1))
    steps = [_linear(0, "w"), pieces, _linear(2, "x"), _linear(3, "y"), Step("add", (4, 5))]
    return _program(steps, {**_layer("w", first + second), **readers}, 2)


def _scale(width: int) -> dict[str, Spec]:
    return {"scale": Spec((width,), (), "scale"), "shift": Spec((width,))}


def _groups(width: int, groups: int, *steps: Step, out: int, copies: int = 1) -> Program:
    """Groups whose number is literal, of a layer or of copies of it."""
    first = [_linear(0, "w"), Step("repeat", (1,), (), ((1, 1, copies),))]
    norm = Step("group_norm", (2,), ("scale", "shift"), (groups,))
    return _program([*first, norm, *steps], _layer("w", width // copies) | _scale(width), out)


def _batch_norm(width: int, value: int) -> tuple[Step, dict[str, Spec]]:
    params = {**_scale(width), "mean": Spec((width,), (), "mean"), "var": Spec((width,), (), "var")}
    return Step("batch_norm", (value,), tuple(params)), params


def _same_in_all_groups() -> Program:
    kernel = {"k": Spec((4, 3, 3), (0,)), "k_bias": Spec((4,))}
    steps = [_linear(0, "w"), Step("repeat", (1,), (), ((1, 1, 2),))]
    steps += [Step("conv1d", (2,), ("k", "k_bias"), (Held("groups"),))]
    return _program(steps, {**_layer("w", 3), **kernel}, 4, groups=2)


def _normed_and_summed(product: bool) -> Program:
    """New units must be silent behind a batch norm, for no column reads them."""
    norm, params = _batch_norm(6, 3)
    made = [_linear(0, "v"), Step("mul", (1, 2))] if product else [Step("tanh", (1,)), Step("sigmoid", (2,))]
    steps = [_linear(0, "w"), *made, norm, _view(4, Held("heads"), -1), Step("sum", (5,), (), (2, False))]
    layers = _layer("w", 6) | _layer("v", 6) if product else _layer("w", 6)
    return _program(steps, {**layers, **params}, 3, heads=2)


def _normed_and_summed_beside() -> Program:
    norm, params = _batch_norm(3, 2)
    steps = [_linear(0, "w"), Step("tanh", (1,)), norm, Step("sum", (3,), (), (-1, True)), Step("mul", (3, 4))]
    return _program(steps, {**_layer("w", 3), **params}, 3)


def _rolled(name: str, width: int) -> Program:
    """Which units are tried together depends on names."""
    return _program([_linear(0, name), Step("roll", (1,), (), (1, -1)), Step("tanh", (2,))], _layer(name, width), width)


def _literal_half(*steps: Step, width: int) -> Program:
    """Something literal is done to one of two halves, which then become one."""
    value = len(steps) + 1
    gate = [Step("chunk", (value,), (), (2, -1)), Step("sigmoid", (value + 2,)), Step("mul", (value + 1, value + 3))]
    return _after_layer(width, *steps, *gate, out=width // 2)


_CUT_APART = (
    Step("slice", (1,), (), (2, None, 2, 1)),
    Step("by_number", (2,), (), (2.0,)),
    Step("slice", (1,), (), (2, 2, None, 1)),
    Step("cat", (3, 4), (), (-1,)),
)

FOUND: dict[str, Program] = {
    **{f"rolled {width} as {name}": _rolled(name, width) for name, width in (("w", 3), ("u", 4), ("s", 5), ("w", 6))},
    **{f"flipped {n}": _after_layer(n, Step("flip", (1,), (), (-1,)), Step("tanh", (2,))) for n in (3, 5)},
    "every other": _after_layer(6, Step("slice", (1,), (), (2, None, None, 2)), Step("tanh", (2,)), out=3),
    "rolled rows": _after_layer(
        6, Step("roll", (1,), (), (1, -1)), _view(2, Held("rows"), -1), Step("mean", (3,), (), (3, False)), out=3,
        rows=3,
    ),
    "flipped rows": _after_layer(6, Step("flip", (1,), (), (-1,)), _view(2, Held("rows"), -1), _view(3, -1), rows=3),
    "literal inside": _after_layer(6, _view(1, -1, 2), Step("softmax", (2,), (), (3,)), _view(3, -1)),
    "literal inside, repeated": _after_layer(
        6, _view(1, -1, 3), Step("repeat_interleave", (2,), (), (2, 3)), _view(3, Held("width")), out=12, width=12
    ),
    "literal half": _literal_half(*_CUT_APART, width=4),
    "literal half, in place": _literal_half(Step("part_in_place", (1,), (), (None, 2)), width=4),
    "literal third, in place": _literal_half(Step("part_in_place", (1,), (), (None, 3)), width=6),
    "joined weight": _after_layer(
        4, Step("joined_linear", (1,), ("x", "y")), out=4, x=Spec((2, 4), (0,)), y=Spec((2, 4), (0,))
    ),
    "literal groups": _groups(8, 4, out=8),
    "literal groups, chunked": _groups(4, 4, Step("chunk", (3,), (), (2, -1)), Step("mul", (4, 5)), out=2),
    "literal groups, mirrored": _groups(6, 6, Step("flip", (3,), (), (-1,)), Step("mul", (3, 4)), out=6),
    "groups of the same": _groups(6, 2, out=6, copies=2),
    "the same in all groups": _same_in_all_groups(),
    "split in equal parts": _split(3, 3),
    "split in other parts": _split(4, 2),
    "softmax summed": _rows(9, Step("softmax", (2,), (), (3,)), Step("sum", (3,), (), (2, False)), out=3),
    "heads scaled and summed": _after_layer(
        6, Step("sigmoid", (1,)), _view(2, Held("heads"), -1), Step("scaled", (3,), ("s",)),
        Step("sum", (4,), (), (3, False)), out=2, s=Spec((2, 1)), heads=2,
    ),
    "normed and summed": _normed_and_summed(product=False),
    "a product, normed and summed": _normed_and_summed(product=True),
    "normed and summed beside": _normed_and_summed_beside(),
}  # fmt: skip

"""What random programs are made of: parts, each a block with one operation that always occurs in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hypothesis import strategies as st

from oracle_attention import attention
from oracle_draw import Builder, Choice, OutOfLabels, composite, divisors
from oracle_graphs import Kept, Part, Program, Size, SizeOf

Make = Callable[[Builder], list[int]]  # the flat values that a part gives


class Kind(NamedTuple):
    """How a part is made, and the operation that always occurs in it."""

    op: str
    make: Make


def _two(op: str) -> Make:
    def part(b: Builder) -> list[int]:
        one = b.base()
        fitting = [v for v in b.flat[1:] if b.width(v) == b.width(one)]
        other = b.one_of(fitting) if fitting and b.choose(3) else b.linear(b.one_of(b.flat), b.width(one))
        return [b.emit(op, one, other)]

    return part


def _cat(b: Builder) -> list[int]:
    one = b.base()
    values = [one, b.one_of([v for v in b.flat if b.shape(v)[1] == b.shape(one)[1]])]
    return [b.emit("cat", *(values if b.choose(2) else values[::-1]), args=(-1,))]


def _stack(b: Builder) -> list[int]:
    one = b.base()
    return [b.together(b.emit("stack", one, b.emit("tanh", one), args=(2,)))]


def _residual(b: Builder) -> list[int]:
    one = b.base()
    inner = b.emit("tanh", b.linear(one, b.one_of([2, 3])))
    return [b.emit("add", one, b.linear(inner, b.width(one)))]


def _split(b: Builder) -> list[int]:
    """The pieces are as wide as what reads them, and so are independent."""
    one = b.base(lambda width: width >= 4)
    first = b.one_of(range(2, b.width(one) - 1))
    readers = [b.param(2, n, labelled=(0,)) for n in (first, b.width(one) - first)]
    pieces = b.emit("split", one, args=(tuple(SizeOf(p, 1) for p in readers), -1))
    outs = [b.emit("linear", pieces + i, params=(p, b.param(2))) for i, p in enumerate(readers)]
    return [b.emit("add", *outs)]


def _even(width: int) -> bool:
    return width % 2 == 0 and width > 2


def _chunk(b: Builder) -> list[int]:
    pieces = b.emit("chunk", b.base(_even), args=(2, -1))
    if b.choose(3):
        return [b.emit("mul", pieces, b.emit("sigmoid", pieces + 1))]
    return [pieces, b.emit("tanh", pieces + 1)]


def _halves(b: Builder) -> list[int]:
    """As a gated chunk, by slices."""
    one = b.base(_even)
    half = b.width(one) // 2
    cut: Size = b.held("half", half) if b.choose(2) else Part(2, 2)
    pieces = [b.emit("slice", one, args=(2, *ends, 1)) for ends in ((None, cut), (cut, None))]
    return [b.emit("mul", pieces[0], b.emit("sigmoid", pieces[1]))]


def _glu(b: Builder) -> list[int]:
    return [b.emit("glu", b.base(_even))]


def _shuffle(b: Builder) -> list[int]:
    one = b.base(composite)
    apart = b.apart(one, b.one_of(divisors(b.width(one))), "groups")
    return [b.together(b.emit("permute", apart, args=((0, 1, 3, 2),)))]


def _rows(change: Callable[[Builder, int, int], int]) -> Make:
    """Something is done along rows or along columns."""

    def part(b: Builder) -> list[int]:
        one = b.base(composite)
        apart = b.apart(one, b.one_of(divisors(b.width(one))))
        changed = change(b, apart, 2 + b.choose(2))
        return [changed if b.values[changed].ndim == 3 else b.together(changed)]

    return part


def _scaled_rows(b: Builder, apart: int, dim: int) -> int:
    groups, inside = b.shape(apart)[2:]
    shape = b.one_of([(groups, 1), (groups, inside), (inside,)])
    return b.emit("scaled", apart, params=(b.param(*shape),))


def _moved_softmax(b: Builder, apart: int, dim: int) -> int:
    order = b.one_of([(0, 3, 1, 2), (0, 2, 1, 3), (0, 1, 3, 2)])
    moved = b.emit("softmax", b.emit("permute", apart, args=(order,)), args=(-1,))
    return b.emit("permute", moved, args=(tuple(sorted(range(4), key=order.__getitem__)),))


def _flatten(b: Builder) -> list[int]:
    """Time becomes part of the features."""
    one = b.base()
    moved = b.emit("permute", one, args=((0, 2, 1),)) if b.choose(2) else one
    return [b.linear(b.emit("view", moved, args=((Kept(0), 1, -1),)), 2)]


def _moved(op: str, *args: int) -> Make:
    def part(b: Builder) -> list[int]:
        one = b.base()
        moved = b.emit(op, one, args=(*args, -1))
        return [b.emit(b.one_of(["add", "mul"]), one, moved) if b.choose(3) == 0 else b.emit("tanh", moved)]

    return part


def _slice(b: Builder) -> list[int]:
    one = b.base(lambda width: width >= 3)
    first = b.one_of(range(1, b.width(one)))
    cuts: list[tuple[int | None, int | None, int]] = [(None, first, 1), (first, None, 1), (-first, None, 1)]
    cuts += [(None, -first, 1), (None, None, 2), (0, 1, 1)]
    piece = b.emit("slice", one, args=(2, *b.one_of(cuts)))
    if b.width(piece) == 1:
        return [b.emit("mul", one, piece)]
    return [b.emit("tanh", piece), *([one] if b.choose(2) else [])]


def _repeated(op: str, *args: object) -> Make:
    return lambda b: [b.emit(op, b.base(), args=args)]


def _outer(b: Builder) -> list[int]:
    one = b.base(lambda width: width <= 3)
    other = b.one_of([v for v in [*b.flat, one] if b.width(v) <= 3])
    return [b.together(b.emit("outer", one, other))]


def _grouped(b: Builder) -> list[int]:
    one = b.base(composite)
    apart = b.apart(one, b.one_of(divisors(b.width(one))), "groups")
    groups, inside = b.shape(apart)[2:]
    weight = b.param(groups, 2, inside, labelled=(1,))
    return [b.together(b.emit("grouped", apart, params=(weight,)))]


def _conv(b: Builder) -> list[int]:
    one = b.base(composite)
    width = b.width(one)
    groups = b.one_of([1, *divisors(width), width])
    outs = width if groups in (1, width) else groups * b.one_of([1, 2])
    weight = b.param(outs, width // groups, 3, labelled=(0,))
    count = groups if groups == 1 or b.choose(5) == 0 else b.held("groups", groups)
    return [b.emit("conv1d", one, params=(weight, b.param(outs)), args=(count,))]


def _norm(op: str) -> Make:
    def part(b: Builder) -> list[int]:
        one = b.base(composite if op == "group_norm" else lambda width: True)
        width = b.width(one)
        params = [b.param(width, kind="scale"), b.param(width)]
        args: tuple = ()
        if op == "batch_norm":
            params += [b.param(width, kind="mean"), b.param(width, kind="var")]
        if op == "group_norm":
            groups = b.one_of([1, *divisors(width), width])
            args = (groups if groups == 1 or b.choose(4) == 0 else b.held("groups", groups),)
        return [b.emit(op, one, params=params, args=args)]

    return part


def _with_parameter(op: str) -> Make:
    def part(b: Builder) -> list[int]:
        one = b.base()
        return [b.emit(op, one, params=(b.param(b.width(one)),))]

    return part


def _times(op: str) -> Make:
    def part(b: Builder) -> list[int]:
        one = b.base()
        return [b.emit("mul", one, b.emit(op, one, args=(-1, True)))]

    return part


def _by_size(b: Builder) -> list[int]:
    one = b.base()
    return [b.emit("by_size", one, one, args=(-1,))]


def _tied(b: Builder) -> list[int]:
    """A weight is used in both directions."""
    one = b.base()
    weight = b.param(2, b.width(one), labelled=(0,))
    inner = b.emit("tanh", b.emit("linear", one, params=(weight, b.param(2))))
    return [b.emit("linear_back", inner, params=(weight,))]


def _twice(b: Builder) -> list[int]:
    """A square layer that is applied twice."""
    one = b.base()
    layer = b.param(b.width(one), b.width(one), labelled=(0,)), b.param(b.width(one))
    return [b.emit("linear", b.emit("tanh", b.emit("linear", one, params=layer)), params=layer)]


def _gram(b: Builder) -> list[int]:
    """Every feature with every other."""
    one = b.base(lambda width: width <= 4)
    return [b.emit("view", b.emit("gram", one), args=((Kept(0), 1, -1),))]


def _unbound(b: Builder) -> list[int]:
    one = b.base(_even)
    pieces = b.emit("unbind", b.apart(one, 2), args=(2, 2))
    if b.choose(2):
        return [b.emit("mul", pieces, b.emit("sigmoid", pieces + 1))]
    return [pieces, b.emit("tanh", pieces + 1)]


def _positions(b: Builder) -> list[int]:
    """What is added differs from time to time."""
    one = b.base()
    return [b.emit("shifted", one, params=(b.param(b.shape(one)[1], b.width(one)),))]


def _low_rank(b: Builder) -> list[int]:
    one = b.base()
    weight, inner = b.param(3, 3, labelled=(0, 1)), b.param(3, b.width(one))
    return [b.emit("low_rank", one, params=(weight, inner))]


def _centred(b: Builder) -> list[int]:
    one = b.base()
    return [b.emit("centred", one, params=(b.param(2, b.width(one), labelled=(0,)),))]


def _packed_weight(b: Builder) -> list[int]:
    one = b.one_of(b.flat)
    weight = b.param(6, b.width(one), labelled=(0,))
    pieces = b.emit("packed_linear", one, params=(weight, b.param(6)), args=(2,))
    if b.choose(2):
        return [b.emit("mul", pieces, b.emit("sigmoid", pieces + 1))]
    return [pieces, b.emit("tanh", pieces + 1)]


def _joined_weight(b: Builder) -> list[int]:
    one = b.base()
    weights = [b.param(n, b.width(one), labelled=(0,)) for n in (2, b.one_of([2, 3]))]
    return [b.emit("joined_linear", one, params=weights)]


def _directed(b: Builder) -> list[int]:
    one = b.base()
    return [b.emit("directed", one, params=(b.param(3, b.width(one), labelled=(0,)), b.param(3, 1, kind="scale")))]


def _table(b: Builder) -> list[int]:
    one = b.base()
    return [b.emit("table", one, params=(b.param(b.width(one) + b.choose(2)),))]


def _part_in_place(b: Builder) -> list[int]:
    one = b.base(_even)
    half = b.width(one) // 2
    cut: Size = b.one_of([half, b.held("half", half), Part(2, 2)])
    ends = b.one_of([(None, cut), (cut, None)])
    return [b.emit("part_in_place", one, args=ends)]


PARTS: dict[str, Kind] = {
    "add": Kind("add", _two("add")),
    "mul": Kind("mul", _two("mul")),
    "cat": Kind("cat", _cat),
    "stack": Kind("stack", _stack),
    "residual": Kind("add", _residual),
    "split": Kind("split", _split),
    "chunk": Kind("chunk", _chunk),
    "halves": Kind("slice", _halves),
    "glu": Kind("glu", _glu),
    "shuffle": Kind("permute", _shuffle),
    "flatten": Kind("view", _flatten),
    "flip": Kind("flip", _moved("flip")),
    "roll": Kind("roll", _moved("roll", 1)),
    "slice": Kind("slice", _slice),
    "repeat": Kind("repeat", _repeated("repeat", (1, 1, 2))),
    "repeat each": Kind("repeat_interleave", _repeated("repeat_interleave", 2, -1)),
    "pad": Kind("pad", _repeated("pad", 1, 0)),
    "outer": Kind("outer", _outer),
    "grouped": Kind("grouped", _grouped),
    "conv": Kind("conv1d", _conv),
    "batch norm": Kind("batch_norm", _norm("batch_norm")),
    "layer norm": Kind("layer_norm", _norm("layer_norm")),
    "group norm": Kind("group_norm", _norm("group_norm")),
    "scaled": Kind("scaled", _with_parameter("scaled")),
    "shifted": Kind("shifted", _with_parameter("shifted")),
    "mean": Kind("mean", _times("mean")),
    "sum": Kind("sum", _times("sum")),
    "by size": Kind("by_size", _by_size),
    "softmax": Kind("softmax", lambda b: [b.emit("softmax", b.base(), args=(-1,))]),
    "sigmoid": Kind("sigmoid", lambda b: [b.emit("sigmoid", b.base())]),
    "tied": Kind("linear_back", _tied),
    "twice": Kind("linear", _twice),
    "gram": Kind("gram", _gram),
    "unbound": Kind("unbind", _unbound),
    "positions": Kind("shifted", _positions),
    "row picked": Kind("select", _rows(lambda b, v, dim: b.emit("select", v, args=(dim, b.choose(2) - 1)))),
    "expanded": Kind("expand", lambda b: [b.together(b.emit("expand", b.base(), args=(2, 2)))]),
    "packed weight": Kind("packed_linear", _packed_weight),
    "joined weight": Kind("joined_linear", _joined_weight),
    "directed": Kind("directed", _directed),
    "table": Kind("table", _table),
    "norm": Kind("norm", lambda b: [b.emit("norm", b.base())]),
    "largest": Kind("largest", _times("largest")),
    "where": Kind("where", _two("where")),
    "add in place": Kind("add_in_place", _two("add_in_place")),
    "part in place": Kind("part_in_place", _part_in_place),
    "low rank": Kind("low_rank", _low_rank),
    "centred": Kind("centred", _centred),
    "sum of rows": Kind("sum", _rows(lambda b, v, dim: b.emit("sum", v, args=(dim, False)))),
    "mean of rows": Kind("mean", _rows(lambda b, v, dim: b.emit("mean", v, args=(dim, False)))),
    "softmax of rows": Kind("softmax", _rows(lambda b, v, dim: b.emit("softmax", v, args=(dim,)))),
    "moved rows": Kind("softmax", _rows(_moved_softmax)),
    "mean times rows": Kind("mul", _rows(lambda b, v, dim: b.emit("mul", v, b.emit("mean", v, args=(dim, True))))),
    "scaled rows": Kind("scaled", _rows(_scaled_rows)),
    "flipped rows": Kind("flip", _rows(lambda b, v, dim: b.emit("flip", v, args=(dim,)))),
    "repeated rows": Kind("repeat_interleave", _rows(lambda b, v, dim: b.emit("repeat_interleave", v, args=(2, dim)))),
    "joined rows": Kind("cat", _rows(lambda b, v, dim: b.emit("cat", v, b.emit("tanh", v), args=(dim,)))),
    "attention by hand": Kind("matmul", attention(kernel=False, shared=1)),
    "attention kernel": Kind("attention", attention(kernel=True, shared=1)),
    "shared heads by hand": Kind("matmul_t", attention(kernel=False, shared=2)),
    "shared heads, kernel": Kind("attention", attention(kernel=True, shared=2)),
}


def build(parts: Sequence[str], choose: Choice, time: int = 2) -> Program | None:
    """A program of these parts, in order; None where they need too many labels."""
    builder = Builder(choose, time)
    try:
        for part in parts:
            made = PARTS[part].make(builder)
            builder.flat += [v for v in made if v not in builder.flat]
            builder.start()
    except OutOfLabels:
        return None
    builder.program.blocks.pop()
    return builder.finish()


@st.composite
def programs(draw: st.DrawFn, part: str) -> Program | None:
    """Programs in which one part occurs, with up to two others before and after it."""
    others = draw(st.lists(st.sampled_from(sorted(PARTS)), max_size=2))
    place = draw(st.integers(0, len(others)))
    time = draw(st.integers(2, 3))
    return build([*others[:place], part, *others[place:]], lambda n: draw(st.integers(0, n - 1)), time)

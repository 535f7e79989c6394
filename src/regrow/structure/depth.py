"""Layers and cells: modules that may leave a model, and places where one may enter."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..patterns import means
from .axis import YES, Verdict
from .spans import Recording, Span

if TYPE_CHECKING:
    from . import Structure


@dataclass(eq=False)
class Layer:
    """A module with parameters, and whether it can be taken out or followed by another one.

    Args:
        name: Of the module.
        module: The module itself.
        shape: Of what it puts out, on the analysed example.
        channels: The dimension of that along which its units lie.
        prunable: Whether its output can take its input's place: it is left out then.
        growable: Whether a new layer can follow it.
        activation: The operator that reads first what it puts out, without its namespace, as "relu".
        passed: Of a tuple that it returns, which places are arguments as they were given, and which ones, by position
            or name.
    """

    name: str
    module: nn.Module = field(repr=False)
    shape: tuple[int, ...]
    channels: int
    prunable: Verdict = YES
    growable: Verdict = YES
    activation: str = ""
    passed: tuple[tuple[int, int | str], ...] = field(default=(), repr=False)
    structure: Structure = field(init=False, repr=False)
    kind = "layer"

    @property
    def params(self) -> int:
        """Parameters that it has."""
        return sum(p.numel() for p in self.module.parameters())

    def is_called(self, pattern: str) -> bool:
        """Whether a pattern means it."""
        return means(pattern, self.name)

    def __str__(self) -> str:
        return f"{self.name}: {self.kind} of {self.params:,} parameters"


@dataclass(eq=False, repr=False)
class Cell(Layer):
    """A block of modules that repeats, by the calls that it makes and their wiring, whatever its sizes and class.

    Args:
        pattern: The number of its kind: cells that repeat each other have the same.
        keeps_shape: Whether it puts out what it is given in shape.
    """

    pattern: int = 0
    keeps_shape: bool = True
    kind = "cell"


def find_depth(recording: Recording) -> tuple[tuple[Layer, ...], tuple[Cell, ...]]:
    """All layers and cells, in execution order; cells that change shapes last."""
    times = Counter(span.module for span in recording.spans)
    spans = [span for span in recording.spans if span.stop >= 0 and span.name and _has_weights(span.module)]
    layers = [_layer(recording, span, times[span.module]) for span in _innermost(spans)]
    cells = list(_cells(recording, [span for span in spans if times[span.module] == 1]))
    return tuple(layers), tuple(sorted(cells, key=lambda cell: not cell.keeps_shape))


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _innermost(spans: Sequence[Span]) -> list[Span]:
    """Of modules that make the same calls, one around the other, the inner one; each module once."""
    found: dict[tuple[int, int], Span] = {}
    seen: set[nn.Module] = set()
    for span in spans:
        if span.module not in seen and span.outputs:
            seen.add(span.module)
            found[span.start, span.stop] = span
    return sorted(found.values(), key=lambda span: (span.start, -span.stop))


def _layer(recording: Recording, span: Span, times: int) -> Layer:
    shape = tuple(span.outputs[0].shape)
    prunable = growable = YES
    first = span.returned[0] if isinstance(span.returned, tuple) and span.returned else span.returned
    if times > 1:
        prunable = growable = Verdict(False, f"it is called {times} times in one run")
    elif not isinstance(first, Tensor):
        prunable = growable = Verdict(False, f"it returns a {type(span.returned).__name__}")
    elif not _keeps(span):
        was = tuple(span.given.shape) if span.given is not None else "several tensors"
        prunable = Verdict(False, f"it makes {was} into {shape}")
    elif _more_than_one(recording, span):
        prunable = Verdict(False, "it returns more than one tensor that others read")
    channels, activation = _channels(recording, span), _read_first_by(recording, span)
    return Layer(span.name, span.module, shape, channels, prunable, growable, activation, span.passed)


def _read_first_by(recording: Recording, span: Span) -> str:
    readers = (step for step in recording.steps[span.stop :] if span.made_by in step.reads)
    return next((step.name.partition("::")[2].rstrip("_") for step in readers if step.name not in _COPY), "")


def _keeps(span: Span) -> bool:
    """Whether the first tensor that comes out is as the first that goes in."""
    given, made = span.given, span.outputs[0]
    if given is None:
        return False
    return given.shape == made.shape and given.dtype == made.dtype and given.is_floating_point()


def _more_than_one(recording: Recording, span: Span) -> bool:
    """Whether later calls read more of what a module makes than its first tensor."""
    last = recording.last_read
    return any(made is None or last.get(made, -1) >= span.stop for made in span.others)


#: Calls whose channels are the dimension behind the batch's.
_CHANNELS_FIRST = ("convolution", "batch_norm", "group_norm", "instance_norm")


def _channels(recording: Recording, span: Span) -> int:
    """Where the units of a module's output lie: what is as long as those of the last call in it that reads a weight.

    Of several such dimensions it is where that call has them, as far as what it makes isn't moved afterwards.
    """
    shape = tuple(span.outputs[0].shape)
    for step in reversed(recording.steps[span.start : span.stop]):
        if (
            "-" in step.reads
            and step.shape
            and ("convolution" in step.name or "norm" in step.name or "mm" in step.name)
        ):
            own = 1 if any(name in step.name for name in _CHANNELS_FIRST) else len(step.shape) - 1
            alike = [dim for dim, size in enumerate(shape) if dim and size == step.shape[own]]
            same = [dim for dim in alike if step.shape == shape and dim == own]
            return (same or alike or [len(shape) - 1])[-1]
    return len(shape) - 1


def _cells(recording: Recording, spans: list[Span]) -> Iterator[Cell]:
    """Cells are the outermost modules that repeat and of which some keep shapes; and what stands in a row with them.

    What changes shapes in a row of cells, as the first block of a stage, is one too if it repeats. A module that is no
    more than a row of cells is none.
    """
    groups: dict[object, list[Span]] = {}
    for span in spans:
        if _is_block(span):
            groups.setdefault(_signature(recording, span), []).append(span)
    repeated = {number: members for number, members in enumerate(groups.values()) if len(members) > 1}
    repeated = {n: once for n, members in repeated.items() if len(once := _each_once(members)) > 1}
    kept = {n: members for n, members in repeated.items() if any(_keeps_alone(recording, m) for m in members)}
    kept = {n: members for n, members in kept.items() if not any(_is_row(m, kept) for m in members)}
    outer = {n: members for n, members in kept.items() if not any(_inside(m, kept.values()) for m in members)}
    chosen = {n: list(members) for n, members in outer.items()}
    rows = {_row(span) for members in outer.values() for span in members}
    for n, members in repeated.items():
        if n not in outer:
            chosen[n] = [span for span in members if _row(span) in rows]
    if not outer:
        chosen = _innermost_groups(repeated)
    for number, span in sorted(((n, s) for n, found in chosen.items() for s in found), key=lambda pair: pair[1].start):
        layer = _layer(recording, span, 1)
        held = [getattr(layer, f.name) for f in fields(Layer) if f.init]
        yield Cell(*held, pattern=number, keeps_shape=_keeps_alone(recording, span))


def _each_once(members: Sequence[Span]) -> list[Span]:
    """Of modules around each other that make the same calls, the one that is named as most others are, by numbers."""
    like = Counter(_likeness(span) for span in members)
    found: dict[tuple[int, int], Span] = {}
    for span in members:
        known = found.setdefault((span.start, span.stop), span)
        if like[_likeness(span)] > like[_likeness(known)]:
            found[span.start, span.stop] = span
    return list(found.values())


def _likeness(span: Span) -> str:
    return re.sub(r"\d+", "0", span.name)


def _keeps_alone(recording: Recording, span: Span) -> bool:
    return _keeps(span) and not _more_than_one(recording, span)


def _row(span: Span) -> str:
    """The name of the module that a module stands in."""
    return span.name.rpartition(".")[0]


def _is_row(span: Span, groups: Mapping[int, Sequence[Span]]) -> bool:
    """Whether a module makes no other calls than those of blocks in it, of which two or more repeat each other.

    Attention and a perceptron that are blocks of their own are a cell together.
    """
    inside = [(s, n) for n, members in groups.items() for s in members if s is not span and _within(s, span)]
    outer = [(s, n) for s, n in inside if not any(o is not s and _within(s, o) for o, _ in inside)]
    repeat = len({n for _, n in outer}) < len(outer)
    return repeat and sum(s.stop - s.start for s, _ in outer) == span.stop - span.start


def _within(span: Span, other: Span) -> bool:
    return other.start <= span.start and span.stop <= other.stop


def _inside(span: Span, groups: Iterable[Sequence[Span]]) -> bool:
    """Whether a module stands inside one of another group."""
    return any(_within(span, o) for members in groups if span not in members for o in members)


def _innermost_groups(repeated: Mapping[int, Sequence[Span]]) -> dict[int, list[Span]]:
    """Where no block keeps shapes, as in DenseNet, cells are the innermost that repeat."""
    every = [span for members in repeated.values() for span in members]
    inner = {
        n: [s for s in members if not any(o is not s and _within(o, s) for o in every)]
        for n, members in repeated.items()
    }
    return {n: members for n, members in inner.items() if members}


def _is_block(span: Span) -> bool:
    """Whether more than one module inside has weights of its own."""
    inside = [m for m in span.module.modules() if any(True for _ in m.parameters(recurse=False))]
    return len(inside) > 1


def _signature(recording: Recording, span: Span) -> object:
    """The calls of a module with their wiring, without sizes: what repeats it makes the same.

    How many tensors of one kind are read in a row is a size too: layers of a DenseNet repeat each other.
    """
    found = []
    for number, step in enumerate(recording.steps[span.start : span.stop], span.start):
        if step.name in _NO_MATTER:
            continue
        reads = tuple(
            read if isinstance(read, str) else number - read if read >= span.start else "+" for read in step.reads
        )
        found.append((step.name, tuple(read for read, _ in groupby(reads))))
    return tuple(found)


#: Calls that do nothing to values.
_COPY = frozenset({"aten::clone", "aten::detach", "aten::alias", "aten::view", "aten::_unsafe_view"})
#: Calls that depend on how memory lies.
_NO_MATTER = frozenset({"aten::detach", "aten::alias"})

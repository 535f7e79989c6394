"""The one relation under all rules: labels at the same place are equal.

A rule gives the dimensions of its tensors *places*; dimensions with the same place run together. Pointwise
calls share all places, contractions share some and lose those that the output does not have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from torch import Tensor

from .call import Call
from .labels import Field, rows_along
from .relations import Relations
from .trace import Trace
from .views import reshaped


class Operand(NamedTuple):
    """A tensor whose dimensions have been given places."""

    tensor: Tensor
    fields: tuple[Field, ...]  # over places
    bare: Mapping[int, int]  # places with a size but no labels -> the tensor's dimension, or -1 for a part of one
    origin: str

    @classmethod
    def at(
        cls, tensor: Tensor, fields: tuple[Field, ...], sizes: Iterable[tuple[int, int, int]], origin: str
    ) -> Operand:
        """Find the bare places among those given with their dimensions and sizes.

        A tensor with one value everywhere has none.
        """
        if origin == "uniform":
            return cls(tensor, fields, {}, origin)
        covered = {place for f in fields for place in f.dims}
        return cls(tensor, fields, {p: d for p, d, n in sizes if n > 1 and p not in covered}, origin)

    def without(self, place: int, fields: Iterable[Field]) -> Operand:
        """The operand with other fields, and nothing bare at one place."""
        return self._replace(fields=tuple(fields), bare={p: d for p, d in self.bare.items() if p != place})


def relate(
    trace: Trace, call: Call, operands: Sequence[Operand], output: Sequence[int], factors: Sequence[int] = ()
) -> list[Field]:
    """Equate the operands' labels place by place; returns the fields over the places in ``output``.

    A label that meets a size without labels there can't change: that size comes from data or from Python.

    Args:
        factors: What the operands are multiplied by each other, by numbers: those with one number belong together, and
            :data:`ADDED` ones are added to the product. What is put out has the labels of a factor that is silent.
    """
    relations = trace.relations
    operands = [_beside_bare(trace, call, operand, operands) for operand in operands]
    multiplied = call.name.rstrip("_") in ("mul", "div")
    factors = factors or (range(len(operands)) if multiplied else [0] * len(operands))
    order = range(len(operands))
    if len(set(factors)) > 1:
        order = sorted(order, key=lambda i: _precedence(trace, call, operands, i, output))
    first = factors[order[0]] if operands else 0
    of = [first if number == ADDED else number for number in factors]
    _equate(relations, [(f, of[i]) for i in order for f in operands[i].fields])
    result: list[Field] = []
    for operand in (operands[i] for i in order):
        beside = len(set(factors)) > 1 and trace.shifted(operand.tensor)
        for f in operand.fields:
            seen = relations.restrict(f, output)
            if seen is not None:
                _add(relations, result, seen, beside)
    return result


def _equate(relations: Relations, fields: Iterable[tuple[Field, int]]) -> None:
    """Equate fields, each with the number of its factor, where they share places.

    Of those that lie alike and belong to one factor the first stands for all.
    """
    first: dict[tuple[tuple[int, ...], int], Field] = {}
    for fld, factor in fields:
        like = first.setdefault((fld.dims, factor), fld)
        relations.equate(like.labels, fld.labels)
    for ((_, a), f), ((_, b), g) in combinations(first.items(), 2):
        equate_fields(relations, f, g, a != b)


#: The number of what is added to a product.
ADDED = -1


def _precedence(
    trace: Trace, call: Call, operands: Sequence[Operand], number: int, output: Sequence[int]
) -> tuple[bool, ...]:
    """Of factors the first is one that is zero where units are silent, along all that is labelled; data before weights.

    What is divided comes before what it is divided by.
    """
    operand, every = operands[number], {p for o in operands for f in o.fields for p in f.dims if p in output}
    whole = every <= {p for f in operand.fields for p in f.dims}
    divisor = number > 0 and call.name.startswith("div")
    return divisor, trace.shifted(operand.tensor), not whole, operand.origin != "data"


def _beside_bare(trace: Trace, call: Call, operand: Operand, operands: Sequence[Operand]) -> Operand:
    """An operand whose labels along places that are bare in another can't change."""
    for other in operands:
        if other is operand or not operand.fields or not other.bare:
            continue
        fixed = [f for f in operand.fields if any(d in other.bare for d in f.dims)]
        if fixed:
            dims = {other.bare[d] for f in fixed for d in f.dims if d in other.bare}
            if id(other.tensor) in trace.inputs and min(dims) >= 0:
                trace.met_input(other.tensor, dims, fixed)
            why = _why_bare(trace, call, other.tensor)
            kept = [trace.relations.collapse(f, other.bare, why) if f in fixed else f for f in operand.fields]
            operand = operand._replace(fields=tuple(f for f in kept if f is not None))
    return operand


def _why_bare(trace: Trace, call: Call, tensor: Tensor) -> str:
    if id(tensor) in trace.inputs:
        return "fed by the model's input"
    return f"meets a size that carries no labels, in {call.name}"


def equate_fields(relations: Relations, one: Field, other: Field, apart: bool = False) -> None:
    """Equate two fields where they share places."""
    common = [place for place in one.dims if place in other.dims]
    if not common:
        return
    a, b = relations.restrict(one, common), relations.restrict(other, common)
    if a is not None and b is not None:
        order = [b.dims.index(place) for place in a.dims]
        relations.equate(a.labels, b.labels.transpose(order), apart)


def _add(relations: Relations, fields: list[Field], new: Field, beside: bool = False) -> None:
    """Add a field that is already equated with the others: of two that share places the wider says it all.

    Two that share only some are combined: a product of queries and keys has heads, and features of both.

    Args:
        beside: A wider one doesn't replace what is there, which alone is silent.
    """
    for i, old in enumerate(fields):
        if set(new.dims) <= set(old.dims):
            return
        if set(old.dims) <= set(new.dims) and not beside:
            del fields[i]
            return _add(relations, fields, new)
        if set(old.dims) & set(new.dims):
            del fields[i]
            return _add(relations, fields, relations.combined([old, new]))
    fields.append(new)


def aligned(trace: Trace, tensor: Tensor, ndim: int) -> Operand:
    """A tensor as it is broadcast to ``ndim`` dimensions; the places are those dimensions.

    What was expanded is the same all along, and no obstacle.
    """
    known, offset = trace.of(tensor), ndim - tensor.ndim
    fields = known.fields
    if offset:
        fields = tuple(Field(tuple(d + offset for d in f.dims), f.labels) for f in fields)
    shape, strides = tensor.shape, tensor.stride()
    sizes = [(d + offset, d, shape[d] if strides[d] else 1) for d in range(tensor.ndim)]
    return Operand.at(tensor, fields, sizes, known.origin)


def along(trace: Trace, tensor: Tensor, dim: int) -> Operand:
    """A one-dimensional tensor that lies along one dimension of another."""
    known = trace.of(tensor)
    fields = tuple(Field((dim,), f.labels) for f in known.fields)
    return Operand.at(tensor, fields, [(dim, 0, tensor.shape[0])], known.origin)


def note_role(trace: Trace, fields: Iterable[Field], role: str) -> None:
    """What the weights with these labels do to the data they meet."""
    trace.relations.roles.extend((f.labels.ravel(), role) for f in fields)


def note_computed(trace: Trace, operands: Sequence[Operand], multiplied: bool) -> None:
    """One weight is computed from several: each is to units what the result is."""
    for one, other in combinations(operands, 2):
        pairs = ((f.labels, g.labels) for f in one.fields for g in other.fields if f.dims == g.dims)
        trace.relations.computed.extend((f, g, multiplied) for f, g in pairs)


def common_origin(origins: Iterable[str]) -> str:
    """What comes out when these meet: data if any is, else weight if any is."""
    found = set(origins)
    return next((o for o in ("data", "weight") if o in found), "uniform")


def contract(
    trace: Trace, call: Call, tensors: Sequence[Tensor], spec: str, sizes: dict[str, int] | None = None
) -> tuple[Sequence[Field], str]:
    """Contractions in the letters of einsum, ``"nk,km->nm"``; returns the output's fields and origin.

    ``(gj)`` is one dimension seen as ``sizes["g"]`` times the rest; no label may lie on a ``.``.
    """
    *inputs, output = _parsed(spec)
    extents: dict[str, int] = {}
    for tensor, dims in zip(tensors, inputs, strict=True):
        for letters, size in zip(dims, tensor.shape, strict=True):
            first = (sizes or {})[letters[0]] if len(letters) > 1 else size
            extents.update(zip(letters, (first, size // max(1, first)), strict=False))
    operands = [_lettered(trace, call, t, dims, extents) for t, dims in zip(tensors, inputs, strict=True)]
    operands = _with_constants(trace, operands)
    kept = {ord(c) for letters in output for c in letters}
    shifted = [{ord(c) for d in trace.shifts.of(t) for c in spec[d]} for t, spec in zip(tensors, inputs, strict=True)]
    _note_sides(trace, operands, kept, shifted)
    for place in {p for o in operands for f in o.fields for p in f.dims} - kept:
        dims = [next((d for d, letters in enumerate(spec) if chr(place) in letters), -1) for spec in inputs]
        _note_sum(trace, call, operands, place, dims)
    places = [ord(c) for letters in output for c in letters]
    fields = relate(trace, call, operands, places, range(len(operands)))
    return _joined(trace.relations, fields, output, extents), common_origin(o.origin for o in operands)


@lru_cache
def _parsed(spec: str) -> list[list[str]]:
    """``"b(gj).,k->bk"`` -> ``[["b", "gj", "."], ["k"], ["b", "k"]]``."""
    return [
        [group or single for group, single in re.findall(r"\((\w+)\)|([\w.])", part)]
        for part in spec.replace("->", ",").split(",")
    ]


def _lettered(trace: Trace, call: Call, tensor: Tensor, dims: list[str], extents: dict[str, int]) -> Operand:
    """A tensor with its dimensions named; those of several letters are split."""
    known = trace.of(tensor)
    window = [d for d, letters in enumerate(dims) if letters == "."]
    why = f"lies along the window of {call.name}"
    fields = known.fields
    if window:
        fields = [f for f in (trace.relations.collapse(f, window, why) for f in fields) if f is not None]
    letters = "".join(dims)
    if len(letters) > len(dims):
        split = [n if c == "." else extents[c] for d, n in zip(dims, tensor.shape, strict=True) for c in d]
        fields = reshaped(trace.relations, fields, tensor.shape, split)
    placed = tuple(Field(tuple(ord(letters[d]) for d in f.dims), f.labels) for f in fields)
    sizes = [
        (ord(c), d if len(group) == 1 else -1, extents[c]) for d, group in enumerate(dims) for c in group if c != "."
    ]
    return Operand.at(tensor, placed, sizes, known.origin)


def _with_constants(trace: Trace, operands: list[Operand]) -> list[Operand]:
    """What a weight reads that is computed from buffers alone, as a table of coordinates, is data, and makes units.

    A single vector is none: spectral norm multiplies weights by such.
    """
    if any(o.origin != "weight" for o in operands):
        return operands
    constant = [o.tensor.ndim > 1 and trace.is_constant(o.tensor) for o in operands]
    if all(constant):
        return operands
    for operand in (o for o, fixed in zip(operands, constant, strict=True) if fixed):
        note_role(trace, operand.fields, "out")
    return [o._replace(origin="data") if fixed else o for o, fixed in zip(operands, constant, strict=True)]


def _note_sides(trace: Trace, operands: Sequence[Operand], kept: set[int], shifted: Sequence[set[int]]) -> None:
    """A weight's contracted side consumes the data that it meets, its outer side produces new data.

    Of a product of two weights, as in low-rank ones, the right one is taken to come first.
    """
    meets_data = any(o.origin != "weight" for o in operands)
    for operand, off in zip(operands, shifted, strict=True):
        for fld in operand.fields if operand.origin == "weight" else ():
            outer = set(fld.dims) <= kept
            if not outer and set(fld.dims) & kept:
                trace.relations.contracted.append(rows_along(fld, set(fld.dims) - kept))
            if off & set(fld.dims) - kept:
                trace.relations.mark_inexact([fld], "a weight isn't zero where its parameter is")
            if meets_data:
                note_role(trace, [fld], "out" if outer else "in")
            elif not outer:
                note_role(trace, [fld], "in" if operand is operands[0] else "out")


def _note_sum(trace: Trace, call: Call, operands: Sequence[Operand], place: int, dims: Sequence[int]) -> None:
    """Where no weight meets the data that are added up, one of them has to be silent by itself."""
    met = [(o, f, d) for o, d in zip(operands, dims, strict=True) for f in o.fields if place in f.dims]
    if not any(o.origin == "weight" for o, _, _ in met):
        silent = [m for m in met if m[2] not in trace.shifts.of(m[0].tensor)]
        operand, fld, dim = (silent or met)[0]
        note_summed(trace, call, operand.tensor, dim, fld, place, [f for _, f, _ in silent[1:]])


def note_summed(
    trace: Trace, call: Call, data: Tensor, dim: int, fld: Field, place: int, others: Iterable[Field] = ()
) -> None:
    """These data are added up along a dimension, which is this place of the field, with no weight in between.

    Args:
        others: Fields that have the place as well, of what the data are multiplied by.
    """
    shifted = dim in trace.shifts.of(data)
    reason = f"is added up by {call.name} where what is silent isn't zero" if shifted else ""
    trace.relations.add_up(fld, place, reason, others=others)


def _joined(relations: Relations, fields: Sequence[Field], dims: list[str], extents: dict[str, int]) -> Sequence[Field]:
    """From letters to the output's dimensions; letters that share a dimension become one again."""
    letters = "".join(dims)
    spread = [Field(tuple(letters.index(chr(p)) for p in f.dims), f.labels) for f in fields]
    if len(letters) == len(dims):
        return spread
    joined = [math.prod(extents[c] for c in group) for group in dims]
    return reshaped(relations, spread, [extents[c] for c in letters], joined)

"""The one relation under all rules: labels at the same place are equal.

A rule gives the dimensions of its tensors *places*; dimensions with the same place run together. Pointwise
calls share all places, contractions share some and lose those that the output does not have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .relations import Field, Relations
from .trace import Call, Trace


class Operand(NamedTuple):
    """A tensor whose dimensions have been given places."""

    tensor: Tensor
    fields: tuple[Field, ...]  # over places
    sizes: dict[int, int]  # place -> size there
    origin: str


def relate(trace: Trace, call: Call, operands: Sequence[Operand], output: Sequence[int]) -> list[Field]:
    """Equate the operands' labels place by place; returns the fields over the places in ``output``.

    A label that meets a size without labels there is frozen: that size comes from data or from Python.
    """
    relations = trace.relations
    for operand in operands:
        covered = {place for f in operand.fields for place in f.dims}
        bare = {place for place, size in operand.sizes.items() if size > 1 and place not in covered}
        if bare and operand.origin != "uniform":
            others = (f for o in operands if o is not operand for f in o.fields)
            relations.freeze((f for f in others if bare & set(f.dims)), _why_bare(trace, call, operand.tensor))
    for one, other in combinations(operands, 2):
        for f in one.fields:
            for g in other.fields:
                equate_fields(relations, f, g)
    result: list[Field] = []
    for f in (f for o in operands for f in o.fields):
        seen = relations.restrict(f, output)
        if seen is not None:
            _add(relations, result, seen)
    return result


def _why_bare(trace: Trace, call: Call, tensor: Tensor) -> str:
    if id(tensor) in trace.inputs:
        return "fed by the model's input"
    return f"meets a size that carries no labels, in {call.name}"


def equate_fields(relations: Relations, one: Field, other: Field) -> None:
    """Equate two fields where they share places."""
    common = [place for place in one.dims if place in other.dims]
    a, b = relations.restrict(one, common), relations.restrict(other, common)
    if a is not None and b is not None:
        order = [b.dims.index(place) for place in a.dims]
        relations.equate(a.labels, b.labels.transpose(order))


def _add(relations: Relations, fields: list[Field], new: Field) -> None:
    """Add a field that is already equated with the others: of two that share places the wider says it all."""
    for i, old in enumerate(fields):
        if set(new.dims) <= set(old.dims):
            return
        if set(old.dims) <= set(new.dims):
            fields[i] = new
            return
        if set(old.dims) & set(new.dims):
            relations.freeze([old, new], "is laid out in two ways over the same dimensions")
            return
    fields.append(new)


def aligned(trace: Trace, tensor: Tensor, ndim: int) -> Operand:
    """A tensor as it is broadcast to ``ndim`` dimensions; the places are those dimensions."""
    known, offset = trace.of(tensor), ndim - tensor.ndim
    fields = tuple(Field(tuple(d + offset for d in f.dims), f.labels) for f in known.fields)
    return Operand(tensor, fields, {d + offset: n for d, n in enumerate(tensor.shape)}, known.origin)


def along(trace: Trace, tensor: Tensor, dim: int) -> Operand:
    """A one-dimensional tensor that lies along one dimension of another."""
    known = trace.of(tensor)
    fields = tuple(Field((dim,), f.labels) for f in known.fields)
    return Operand(tensor, fields, {dim: tensor.shape[0]}, known.origin)


def note_role(trace: Trace, fields: Iterable[Field], role: str) -> None:
    """What the weights with these labels do to the data they meet."""
    trace.relations.roles.extend((f.labels.ravel(), role) for f in fields)


def common_origin(origins: Iterable[str]) -> str:
    """What comes out when these meet: data if any is, else weight if any is."""
    found = set(origins)
    return next((o for o in ("data", "weight") if o in found), "uniform")


def contract(
    trace: Trace, call: Call, tensors: Sequence[Tensor], spec: str, sizes: dict[str, int] | None = None
) -> tuple[list[Field], str]:
    """Contractions in the letters of einsum, ``"nk,km->nm"``; returns the output's fields and origin.

    ``(gj)`` is one dimension seen as ``sizes["g"]`` times the rest; no label may lie on a ``.``.
    """
    inputs, _, output = spec.partition("->")
    operands = [
        _lettered(trace, call, tensor, _dimensions(subscripts), sizes or {})
        for tensor, subscripts in zip(tensors, inputs.split(","), strict=True)
    ]
    _note_sides(trace, operands, output)
    fields = relate(trace, call, operands, [ord(c) for c in output])
    extents = {place: size for operand in operands for place, size in operand.sizes.items()}
    return _joined(trace.relations, fields, _dimensions(output), extents), common_origin(o.origin for o in operands)


def _dimensions(subscripts: str) -> list[str]:
    """``"b(gj).."`` -> ``["b", "gj", ".", "."]``."""
    found: list[str] = []
    inside = False
    for c in subscripts:
        if c in "()":
            inside = c == "("
            found += [""] if inside else []
        elif inside:
            found[-1] += c
        else:
            found.append(c)
    return found


def _lettered(trace: Trace, call: Call, tensor: Tensor, dims: list[str], sizes: dict[str, int]) -> Operand:
    extents: dict[int, int] = {}
    for letters, size in zip(dims, tensor.shape, strict=True):
        first = sizes[letters[0]] if len(letters) > 1 else int(size)
        extents.update(zip(map(ord, letters), (first, int(size) // first), strict=False))
    extents.pop(ord("."), None)
    fields = []
    known = trace.of(tensor)
    for fld in known.fields:
        letters = "".join(dims[d] for d in fld.dims)
        if "." in letters:
            trace.relations.freeze([fld], f"lies along the window of {call.name}")
            continue
        places = [ord(c) for c in letters if extents[ord(c)] > 1]
        labels = fld.labels.reshape([extents[p] for p in places])
        trace.relations.rectangle(labels)
        fields.append(Field(tuple(places), labels))
    return Operand(tensor, tuple(fields), extents, known.origin)


def _note_sides(trace: Trace, operands: Sequence[Operand], output: str) -> None:
    """A weight's contracted side consumes the data that it meets, its outer side produces new data.

    Of a product of two weights, as in low-rank ones, the right one is taken to come first.
    """
    kept = {ord(c) for c in output}
    meets_data = any(o.origin == "data" for o in operands)
    for operand in operands:
        for fld in operand.fields if operand.origin == "weight" else ():
            outer = set(fld.dims) <= kept
            if meets_data:
                note_role(trace, [fld], "out" if outer else "in")
            elif not outer:
                note_role(trace, [fld], "in" if operand is operands[0] else "out")


def _joined(relations: Relations, fields: Sequence[Field], dims: list[str], sizes: dict[int, int]) -> list[Field]:
    """From letters to the output's dimensions; letters that share a dimension become one again."""
    results = []
    for dim, letters in enumerate(dims):
        places = [ord(c) for c in letters if sizes[ord(c)] > 1]
        here = [f for f in fields if set(f.dims) & set(places)]
        for fld in here:
            if set(fld.dims) <= set(places):
                continue
            where = tuple(next(d for d, ls in enumerate(dims) if chr(p) in ls) for p in fld.dims)
            if len(places) > 1 or any(len(dims[d]) > 1 for d in where):
                relations.freeze([fld], "is laid out over several dimensions that a group joins")
            elif dim == where[0]:
                results.append(Field(where, fld.labels))
        inside = [f for f in here if set(f.dims) <= set(places)]
        if inside:
            results.append(Field((dim,), _over(relations, inside, places, sizes).ravel()))
    return results


def _over(relations: Relations, fields: Sequence[Field], places: list[int], sizes: dict[int, int]) -> np.ndarray:
    """Fields over some of the places as one over all; each of theirs then stands for a row of it."""
    covered = [p for p in places if any(p in f.dims for f in fields)]
    if len(fields) == 1 and fields[0].dims == tuple(covered):
        labels = fields[0].labels
    else:
        whole = Field(tuple(covered), relations.new_labels(math.prod(sizes[p] for p in covered)))
        whole = whole._replace(labels=whole.labels.reshape([sizes[p] for p in covered]))
        relations.rectangle(whole.labels)
        for fld in fields:
            equate_fields(relations, whole, fld)
        labels = whole.labels
    shape = [sizes[p] if p in covered else 1 for p in places]
    return np.broadcast_to(labels.reshape(shape), [sizes[p] for p in places])

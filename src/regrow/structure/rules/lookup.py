"""Calls that pick entries by the values of another tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..call import Call
from ..labels import Field
from ..relate import Operand, aligned, note_role, relate
from ..trace import Trace
from .pointwise import note_stream
from .registry import rules_for

LOOKED_UP = "its entries are looked up by their numbers"
HOLDS_NUMBERS = "holds the numbers of what is looked up"
_MASKS = (torch.bool, torch.uint8)


@rules_for("embedding")
def embedding(trace: Trace, call: Call) -> None:
    """Rows are looked up, columns pass."""
    table, indices = call["weight"], call["indices"]
    trace.relations.freeze(trace.of(indices).fields, HOLDS_NUMBERS)
    fields = []
    for fld in trace.of(table).fields:
        if fld.dims == (0,):
            trace.looked_up(fld)
        else:
            note_role(trace, [fld], "out")
            trace.relations.note_kind(fld.labels, "embedding")
            fields.append(Field((indices.ndim,), fld.labels))
    trace.set(call.out, fields, "data")


@rules_for("_embedding_bag _embedding_bag_forward_only")
def embedding_bag(trace: Trace, call: Call) -> None:
    """Rows are looked up and reduced, columns pass."""
    trace.relations.freeze(trace.of(call["indices"]).fields, HOLDS_NUMBERS)
    for fld in trace.of(call["weight"]).fields:
        if fld.dims == (0,):
            trace.looked_up(fld)
        else:
            note_role(trace, [fld], "out")
            trace.relations.note_kind(fld.labels, "embedding")
            trace.set(call.outputs[0], [fld], "data")


@rules_for("index _unsafe_index")
def index(trace: Trace, call: Call) -> None:
    """The dimensions that are indexed can't change; the others pass."""
    data, (taken, place) = call.tensors[0], _indices(trace, call)
    moved = [Field(tuple(place[d] for d in f.dims), f.labels) for f in _others(trace, data, taken)]
    trace.set(call.out, moved, trace.of(data).origin)


@rules_for("index_put index_put_ _index_put_impl_ _unsafe_index_put")
def write_by_index(trace: Trace, call: Call) -> None:
    """The dimensions that are indexed can't change; along the others what is written runs along with its target."""
    data, (taken, place) = call.tensors[0], _indices(trace, call)
    fields = [Field(tuple(place[d] for d in f.dims), f.labels) for f in _others(trace, data, taken)]
    written = _written(trace, call, set(place.values()))
    beside = _constant_beside(fields, written)
    sizes = [(at, d, data.shape[d]) for d, at in place.items()]
    target = Operand.at(data, tuple(fields), sizes, trace.of(data).origin)
    fields = relate(trace, call, [target, written], sorted(place.values()))
    back = {at: d for d, at in place.items()}
    _set_written(trace, call, data, [Field(tuple(back[d] for d in f.dims), f.labels) for f in fields])
    trace.shifts.add(call.out, {back[d] for d in beside})


def _indices(trace: Trace, call: Call) -> tuple[set[int], dict[int, int]]:
    """The dimensions that are indexed, and where the others are in what is picked out."""
    for tensor in (t for t in call["indices"] if t is not None):
        trace.relations.freeze(trace.of(tensor).fields, HOLDS_NUMBERS)
    taken = _indexed(call["indices"])
    return taken, _places(call.tensors[0].ndim, taken, _spans(call["indices"]))


def _others(trace: Trace, data: Tensor, taken: set[int]) -> list[Field]:
    """The fields along the dimensions that aren't indexed."""
    fields = []
    for fld in trace.of(data).fields:
        if fld.dims[0] in taken and len(fld.dims) == 1:
            trace.looked_up(fld)
        else:
            seen = trace.relations.collapse(fld, taken, LOOKED_UP)
            fields += [seen] if seen is not None else []
    return fields


def _written(trace: Trace, call: Call, others: set[int]) -> Operand:
    """What is written, as it is broadcast to what is picked out; along the indices it can't change."""
    operand = aligned(trace, call["values"], len(others) + _spans(call["indices"]))
    inside = set(range(len(others) + _spans(call["indices"]))) - others
    found = (trace.relations.collapse(f, inside, "is written to places that are looked up") for f in operand.fields)
    bare = {place: dim for place, dim in operand.bare.items() if place not in inside}
    return operand._replace(fields=tuple(f for f in found if f is not None), bare=bare)


def _constant_beside(fields: list[Field], written: Operand) -> set[int]:
    """The places along which silent units are overwritten by what may be another number than zero."""
    if not written.tensor.is_meta and not torch.count_nonzero(written.tensor):
        return set()
    lone = (f for f in fields if not any(set(f.dims) & set(g.dims) for g in written.fields))
    return {place for f in lone for place in f.dims}


def _set_written(trace: Trace, call: Call, data: Tensor, fields: list[Field]) -> None:
    """A view that gains labels would have to give them to a base that isn't followed from here."""
    if call.out is data:
        before = {d for f in trace.of(data).fields for d in f.dims}
        gained = [f for f in fields if not set(f.dims) <= before] if data._is_view() else []
        trace.relations.freeze(gained, f"is written into a part of another tensor by {call.name}")
        trace.written(data)
    trace.set(call.out, fields, "data")


def _indexed(indices: list[Tensor | None]) -> set[int]:
    """The dimensions that are indexed; a mask takes several."""
    taken: set[int] = set()
    dim = 0
    for tensor in indices:
        width = tensor.ndim if tensor is not None and tensor.dtype in _MASKS else 1
        taken.update(range(dim, dim + width) if tensor is not None else ())
        dim += width
    return taken


def _spans(indices: list[Tensor | None]) -> int:
    """How many dimensions the indices have in what is picked out."""
    return max(1 if tensor.dtype in _MASKS else tensor.ndim for tensor in indices if tensor is not None)


def _places(ndim: int, taken: set[int], spans: int) -> dict[int, int]:
    """Where the other dimensions arrive: the indices stand where the first of them stood, or in front if apart."""
    together = max(taken) - min(taken) + 1 == len(taken)
    front = min(taken) if together else 0
    others = [d for d in range(ndim) if d not in taken]
    return {d: i if i < front else i + spans for i, d in enumerate(others)}


@rules_for("index_select gather take_along_dim")
def select_by_index(trace: Trace, call: Call) -> None:
    """One dimension is looked up; the others pass."""
    data, dim = call.tensors[0], call["dim"] % max(1, call.tensors[0].ndim)
    trace.relations.freeze(trace.of(call["index"]).fields, HOLDS_NUMBERS)
    found = (trace.relations.collapse(f, [dim], LOOKED_UP) for f in trace.of(data).fields)
    trace.set(call.out, [f for f in found if f is not None], trace.of(data).origin)


@rules_for(
    "index_add index_add_ index_copy index_copy_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ scatter"
)
def add_by_index(trace: Trace, call: Call) -> None:
    """What is added runs along with what it is added to, but for the dimension that is looked up."""
    data, dim = call.tensors[0], call["dim"] % call.tensors[0].ndim
    source = call.get("source", call.get("src"))
    operands = [aligned(trace, data, data.ndim)]
    operands += [aligned(trace, source, data.ndim)] if isinstance(source, Tensor) else []
    kept = []
    for operand in operands:
        found = (trace.relations.collapse(f, [dim], LOOKED_UP) for f in operand.fields)
        kept.append(operand.without(dim, (f for f in found if f is not None)))
    if "add" in call.name and len(kept) == 2:
        note_stream(trace, kept)
    _set_written(trace, call, data, relate(trace, call, kept, range(data.ndim)))

"""Calls that pick entries by the values of another tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..relate import aligned, note_role, relate
from ..relations import Field
from ..trace import Call, Trace
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
            trace.set(call.outputs[0], [fld], "data")


@rules_for("index index_put index_put_ _index_put_impl_ _unsafe_index")
def index(trace: Trace, call: Call) -> None:
    """The dimensions that are indexed can't change; the others pass."""
    data, indices = call.tensors[0], call["indices"]
    for tensor in (t for t in indices if t is not None):
        trace.relations.freeze(trace.of(tensor).fields, HOLDS_NUMBERS)
    taken, spans = _indexed(indices)
    fields = []
    for fld in trace.of(data).fields:
        if fld.dims[0] in taken and len(fld.dims) == 1:
            trace.looked_up(fld)
        else:
            seen = trace.relations.collapse(fld, taken, LOOKED_UP)
            fields += [seen] if seen is not None else []
    if call.name == "index" or call.name == "_unsafe_index":
        place = _places(data.ndim, taken, spans)
        moved = [Field(tuple(place[d] for d in f.dims), f.labels) for f in fields]
        trace.set(call.out, moved, trace.of(data).origin)
        return
    trace.relations.freeze(trace.of(call["values"]).fields, "is written to places that are looked up")
    trace.relations.freeze(fields, "is written to at places that are looked up")
    trace.set(call.out, (), "data")


def _indexed(indices: list[Tensor | None]) -> tuple[set[int], int]:
    """The dimensions that are indexed (a mask takes several), and how many dimensions the indices have."""
    taken: set[int] = set()
    dim = spans = 0
    for tensor in indices:
        mask = tensor is not None and tensor.dtype in _MASKS
        width = tensor.ndim if tensor is not None and mask else 1
        if tensor is not None:
            taken.update(range(dim, dim + width))
            spans = max(spans, 1 if mask else tensor.ndim)
        dim += width
    return taken, spans


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
    fields = relate(trace, call, kept, range(data.ndim))
    if call.out is data:
        trace.written(data)
    trace.set(call.out, fields, "data")

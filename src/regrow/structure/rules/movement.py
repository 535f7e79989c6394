"""Data movement has no rules of its own: the call runs on the labels, and they are read off where they arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..call import Call
from ..labels import FIXED, Field, PythonSize
from ..relate import Operand, aligned, common_origin, note_computed, relate
from ..tied import cut_freely, note_parts, note_sizes
from ..trace import Trace
from ..views import reshaped, varying
from .registry import rules_for


@rules_for("view _unsafe_view reshape _reshape_alias")
def view(trace: Trace, call: Call) -> None:
    """Dimensions are split and merged; sizes may be Python integers that have to follow."""
    data = call.tensors[0]
    known = trace.of(data)
    fields = reshaped(trace.relations, known.fields, data.shape, call.out.shape)
    trace.set(call.out, fields, known.origin)
    note_sizes(trace, call, call.get("size", call.get("shape", ())), call.out.shape, fields)


@rules_for("t transpose permute movedim squeeze unsqueeze expand squeeze_ unsqueeze_ t_ transpose_ numpy_T")
def rename(trace: Trace, call: Call) -> None:
    """Dimensions only change places."""
    data, known = call.tensors[0], trace.of(call.tensors[0])
    if known.fields:
        place = _PLACES[call.name.rstrip("_")](call, data)
        fields = [Field(tuple(place[d] for d in f.dims), f.labels) for f in known.fields]
        trace.set(call.out, [_in_order(trace, f) for f in fields], known.origin)
    else:
        trace.set(call.out, (), known.origin)


def _in_order(trace: Trace, fld: Field) -> Field:
    """A field's dimensions are in ascending order."""
    if fld.dims == tuple(sorted(fld.dims)):
        return fld
    order = sorted(range(len(fld.dims)), key=fld.dims.__getitem__)
    return Field(tuple(sorted(fld.dims)), trace.relations.transposed(fld.labels, order))


def _permuted(order: Sequence[int]) -> dict[int, int]:
    return {old % len(order): new for new, old in enumerate(order)}


def _transposed(call: Call, data: Tensor) -> dict[int, int]:
    one, other = (d % max(1, data.ndim) for d in (call["dim0"], call["dim1"]))
    return {one: other, other: one} | {d: d for d in range(data.ndim) if d not in (one, other)}


def _squeezed(call: Call, data: Tensor) -> dict[int, int]:
    dims = call.get("dim")
    dims = range(data.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % data.ndim for d in dims if data.shape[d] == 1}
    return {d: i for i, d in enumerate(d for d in range(data.ndim) if d not in gone)}


def _unsqueezed(call: Call, data: Tensor) -> dict[int, int]:
    new = call["dim"] % (data.ndim + 1)
    return {d: d + (d >= new) for d in range(data.ndim)}


_PLACES: dict[str, Callable[[Call, Tensor], dict[int, int]]] = {
    "t": lambda call, data: {d: data.ndim - 1 - d for d in range(data.ndim)},
    "numpy_T": lambda call, data: {d: data.ndim - 1 - d for d in range(data.ndim)},
    "transpose": _transposed,
    "permute": lambda call, data: _permuted(call["dims"]),
    "squeeze": _squeezed,
    "unsqueeze": _unsqueezed,
    "expand": lambda call, data: {d: d + call.out.ndim - data.ndim for d in range(data.ndim)},
}


@rules_for("slice select split split_with_sizes unsafe_split unsafe_split_with_sizes unbind narrow unfold")
def cut(trace: Trace, call: Call) -> None:
    """Parts of one dimension; equal parts of a whole stay equal."""
    data = call.tensors[0]
    known, dim = trace.of(data), call.get("dim", call.get("dimension", 0)) % max(1, data.ndim)
    dropped = call.name in ("select", "unbind")
    arrived: list[list[Field]] = [[] for _ in call.outputs]
    for fld in known.fields:
        if dim in fld.dims:
            for found, piece in zip(arrived, _moved(trace, call, fld, data), strict=True):
                found += [piece] if piece is not None else []
            continue
        dims = tuple(d - (dropped and d > dim) for d in fld.dims)
        for found in arrived:
            found.append(Field(dims, fld.labels))
    for out, fields in zip(call.outputs, arrived, strict=True):
        trace.set(out, fields, known.origin)
    given = call.get("split_sizes")
    if given and trace.sizes is not None:
        note_parts(trace, trace.sizes, given, arrived, dim)
    else:
        for out, fields, size in zip(
            call.outputs, arrived, given or [call.get("split_size", -1)] * len(call.outputs), strict=False
        ):
            note_sizes(trace, call, [size if d == dim else -1 for d in range(out.ndim)], out.shape, fields)
    _note_parts(trace, call, known.fields, dim)


def _note_parts(trace: Trace, call: Call, fields: Sequence[Field], dim: int) -> None:
    for fld in fields if trace.gathering else ():
        if dim not in fld.dims:
            continue
        axis, size, start = fld.dims.index(dim), call.tensors[0].shape[dim], 0
        if call.name == "slice" and call.get("step", 1) == 1:
            start = call.get("start") or 0
            start = min(size, start + size if start < 0 else start)
            for bound in {start, start + call.out.shape[dim]} - {0, size}:
                before = Field(fld.dims, fld.labels.take(range(bound), axis))
                sizes = [bound if d == dim else -1 for d in range(call.out.ndim)]
                note_sizes(trace, call, sizes, sizes, [before])
        if not cut_freely(trace, call, fld, dim) and ("split" in call.name or call.name == "slice"):
            for out in call.outputs:
                trace.relations.part(fld.labels, axis, start, start + out.shape[dim])
                start += out.shape[dim]


@rules_for("channel_shuffle native_channel_shuffle")
def shuffle(trace: Trace, call: Call) -> None:
    """Groups are dealt out in turn: channels are a rectangle of groups and what each holds."""
    data, groups = call.tensors[0], call["groups"]
    known, (batch, channels, *rest) = trace.of(data), data.shape
    shape = (batch, groups, channels // groups, *rest)
    fields = reshaped(trace.relations, known.fields, data.shape, shape)
    for seen in (trace.relations.restrict(f, (1,)) for f in fields):
        if seen is not None:
            trace.note(call, seen.labels, "group")
            trace.relations.sizes.append(PythonSize(call.module, "", "groups", seen.labels))
    swapped = {1: 2, 2: 1}
    fields = [Field(tuple(swapped.get(d, d) for d in f.dims), f.labels) for f in fields]
    dealt = (batch, channels // groups, groups, *rest)
    trace.set(call.out, reshaped(trace.relations, fields, dealt, data.shape), known.origin)


@rules_for("roll flip repeat constant_pad_nd pixel_shuffle pixel_unshuffle diagonal")
def reorder(trace: Trace, call: Call) -> None:
    """Everything else that moves labels about."""
    data = call.tensors[0]
    known = trace.of(data)
    fields = []
    for fld in known.fields:
        [moved] = _moved(trace, call, fld, data)
        fields += [moved] if moved is not None else []
    trace.set(call.out, _disjoint(trace, call, fields), known.origin)


def _moved(trace: Trace, call: Call, fld: Field, data: Tensor) -> list[Field | None]:
    """What becomes of a field; what doesn't concern its dimensions passes."""
    others = tuple((k, _hashable(v)) for k, v in call.arguments.items() if not isinstance(v, Tensor))
    key = (call.op, others, fld.dims, id(fld.labels), tuple(data.shape))
    if key not in trace.relations.moved:
        # Dimensions without labels have one index here, but for calls that look at their sizes.
        small = call.name not in _SIZED
        shape = [1 if small else n for n in data.shape]
        for dim, size in zip(fld.dims, fld.labels.shape, strict=True):
            shape[dim] = size
        view = [n if d in fld.dims else 1 for d, n in enumerate(shape)]
        labels = torch.tensor(fld.labels).reshape(view).expand(shape)
        arguments = {k: labels if v is data else v for k, v in call.arguments.items()}
        if call.name == "constant_pad_nd":
            arguments |= {"pad": _pads_of(call["pad"], fld, data.ndim), "value": FIXED}
        result = call.op(**arguments)
        parts = list(result) if isinstance(result, (list, tuple)) else [result]
        found = [varying(part.numpy()) for part in parts]
        found = [_as_before(part, fld) for part in found]
        picked = [p.numpy().ravel()[:1] for p, f in zip(parts, found, strict=True) if f is None and p.numel()]
        for moved in found:
            if moved is not None:
                trace.relations.rectangle(moved.labels)
        trace.relations.moved[key] = (fld.labels, found, picked)
    _, found, picked = trace.relations.moved[key]
    for labels in picked:
        trace.relations.freeze([Field((0,), labels)], f"is picked out by its position in {call.name}")
        trace.picked(labels)
    return found


_SIZED = {"pixel_shuffle", "pixel_unshuffle", "diagonal"}


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_before(moved: Field | None, fld: Field) -> Field | None:
    """Equal arrays are one array, so that they are known by their identity."""
    if moved is not None and np.array_equal(moved.labels, fld.labels):
        return Field(moved.dims, fld.labels)
    return moved


def _pads_of(pads: Sequence[int], fld: Field, ndim: int) -> list[int]:
    """The padding of a field's own dimensions."""
    return [n if ndim - 1 - i // 2 in fld.dims else 0 for i, n in enumerate(pads)]


def _disjoint(trace: Trace, call: Call, fields: Sequence[Field]) -> list[Field]:
    """A dimension carries one field: where two were mixed into it, both are frozen."""
    clashing = [f for f in fields if any(f is not g and set(f.dims) & set(g.dims) for g in fields)]
    trace.relations.freeze(clashing, f"is mixed with another labelled dimension by {call.name}")
    return [f for f in fields if not any(f is g for g in clashing)]


@rules_for("as_strided as_strided_")
def same_memory(trace: Trace, call: Call) -> None:
    """Torch lays out the result of some calls anew; a view of another shape could be anything."""
    data, known = call.tensors[0], trace.of(call.tensors[0])
    if tuple(call["size"]) == tuple(data.shape) or not known.fields:
        trace.set(call.out, known.fields, known.origin)
    else:
        trace.relations.freeze(known.fields, "is seen by its place in memory")
        trace.set(call.out, (), "data")


@rules_for("view_as_complex")
def as_complex(trace: Trace, call: Call) -> None:
    """The last dimension's two entries become one number."""
    data = call.tensors[0]
    fields = (trace.relations.collapse(f, [data.ndim - 1], "is a complex number") for f in trace.of(data).fields)
    trace.set(call.out, [f for f in fields if f is not None], trace.of(data).origin)


@rules_for("view_as_real real imag")
def as_real(trace: Trace, call: Call) -> None:
    """Real and imaginary parts belong together."""
    known = trace.of(call.tensors[0])
    trace.set(call.out, known.fields, known.origin)


@rules_for("stack")
def stacking(trace: Trace, call: Call) -> None:
    """Along the new dimension everything stands side by side; all others run together."""
    new = call.get("dim", 0) % call.out.ndim
    operands = [aligned(trace, t, t.ndim) for t in call["tensors"]]
    fields = relate(trace, call, operands, range(call.out.ndim))
    moved = [Field(tuple(d + (d >= new) for d in f.dims), f.labels) for f in fields]
    origin = common_origin(o.origin for o in operands)
    if origin == "weight":
        note_computed(trace, operands, multiplied=False)
    trace.set(call.out, moved, origin)


@rules_for("cat")
def concatenation(trace: Trace, call: Call) -> None:
    """Along the joined dimension labels stand one after the other; along the others they run together."""
    tensors = [t for t in call["tensors"] if t.ndim == call.out.ndim]
    joined = call.get("dim", 0) % call.out.ndim
    operands = [aligned(trace, t, t.ndim) for t in tensors]
    trace.set(call.out, *_joined(trace, call, operands, [t.shape[joined] for t in tensors], joined))


def _joined(
    trace: Trace, call: Call, operands: Sequence[Operand], sizes: Sequence[int], joined: int
) -> tuple[list[Field], str]:
    own = [next((f for f in o.fields if joined in f.dims), None) for o in operands]
    rest = [_without(trace, o, joined) for o in operands]
    fields = relate(trace, call, rest, range(call.out.ndim))
    origin = common_origin(o.origin for o in operands)
    if origin == "weight":
        note_computed(trace, rest, multiplied=False)
    found = _side_by_side(trace, own, sizes, joined, call.out.shape)
    if found is None:
        return fields, origin
    return [*(f for f in fields if set(f.dims).isdisjoint(found.dims)), found], origin


def _side_by_side(
    trace: Trace, own: Sequence[Field | None], sizes: Sequence[int], joined: int, shape: Sequence[int]
) -> Field | None:
    """One field from those of all pieces; what has no labels there can't change."""
    if all(f is None for f in own):
        return None
    over = sorted({d for f in own if f is not None for d in f.dims})
    key = ("cat", tuple(n if f is None else id(f.labels) for f, n in zip(own, sizes, strict=True)), tuple(over), joined)
    if key not in trace.relations.moved:
        pieces = []
        for fld, size in zip(own, sizes, strict=True):
            extents = [size if d == joined else shape[d] for d in over]
            if fld is None:
                pieces.append(np.full(extents, FIXED))
            else:
                view = [n if d in fld.dims else 1 for d, n in zip(over, extents, strict=True)]
                pieces.append(np.broadcast_to(fld.labels.reshape(view), extents))
        found = varying(np.concatenate(pieces, over.index(joined)), over)
        if found is not None:
            trace.relations.rectangle(found.labels)
        trace.relations.moved[key] = (own, found)
    return trace.relations.moved[key][1]


def _without(trace: Trace, operand: Operand, dim: int) -> Operand:
    """An operand as seen from all dimensions but one."""
    others = [d for f in operand.fields for d in f.dims if d != dim]
    seen = (trace.relations.restrict(f, others) for f in operand.fields)
    return operand.without(dim, (f for f in seen if f is not None))

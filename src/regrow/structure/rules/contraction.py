"""Products over dimensions: matrices, convolutions, attention."""

from __future__ import annotations

import math

from torch import Tensor

from ..call import Call
from ..labels import Field, PythonSize
from ..relate import Operand, aligned, along, contract, note_role, relate
from ..trace import Trace
from .registry import rules_for

_PRODUCTS = {
    "mm": "nk,km->nm", "addmm": "nk,km->nm", "bmm": "bnk,bkm->bnm", "baddbmm": "bnk,bkm->bnm", "mv": "nk,k->n",
    "addmv": "nk,k->n", "dot": "k,k->", "vdot": "k,k->", "ger": "n,m->nm",
}  # fmt: skip


@rules_for("mm bmm addmm baddbmm mv addmv dot vdot ger")
def matrix_product(trace: Trace, call: Call) -> None:
    """``(b) n k`` times ``(b) k m``, with what is added to it."""
    *added, left, right = call.tensors
    fields, origin = contract(trace, call, [left, right], _PRODUCTS[call.name])
    trace.set(call.out, fields, origin)
    if call.name in ("bmm", "baddbmm"):
        _note_attention(trace, call, left, right)
    elif origin == "weight" and left.ndim + right.ndim < 4:
        for tensor in (left, right):
            trace.relations.mark_inexact(trace.of(tensor).fields, "a norm of the weight runs over it")
    for tensor in added:
        _add_shift(trace, call, aligned(trace, tensor, call.out.ndim))
    trace.book_flops([right, left], 2 * call.out.numel() * left.shape[-1])


@rules_for("_grouped_mm")
def grouped_product(trace: Trace, call: Call) -> None:
    """Each stretch of rows meets the matrix of its own expert; experts are picked by their numbers."""
    data, weight = call["self"], call["mat2"]
    for fld in trace.of(weight).fields:
        seen = trace.relations.restrict(fld, (0,)) if weight.ndim == 3 else None
        trace.relations.freeze([seen] if seen is not None else [], "its entries are looked up by their numbers")
    if (data.ndim, weight.ndim) != (2, 3):
        trace.relations.freeze(
            [f for t in (data, weight) for f in trace.of(t).fields], f"has a ragged side in {call.name}"
        )
        return trace.set(call.out, (), "data")
    trace.set(call.out, *contract(trace, call, [data, weight], "nk,ekm->nm"))
    trace.book_flops([weight], 2 * data.numel() * weight.shape[-1])
    return None


@rules_for("_trilinear")
def trilinear(trace: Trace, call: Call) -> None:
    """Three tensors, each without the dimensions that it is expanded along, multiplied and added up."""
    tensors, expanded = [call["i1"], call["i2"], call["i3"]], [call["expand1"], call["expand2"], call["expand3"]]
    letters = "abcdefghijklmnopqrstuvwxyz"[: tensors[0].ndim + len(expanded[0])]
    specs = ["".join(c for d, c in enumerate(letters) if d not in without) for without in (*expanded, call["sumdim"])]
    trace.set(call.out, *contract(trace, call, tensors, f"{','.join(specs[:3])}->{specs[3]}"))
    summed = {c: n for t, spec in zip(tensors, specs, strict=False) for c, n in zip(spec, t.shape, strict=True)}
    trace.book_flops(tensors, 2 * math.prod(summed.values()))


def _note_attention(trace: Trace, call: Call, left: Tensor, right: Tensor) -> None:
    """Where data meet data head by head, what else those have that have heads are features of these."""
    if any(trace.of(t).origin != "data" for t in (left, right)):
        return
    for tensor, contracted in ((left, 2), (right, 1)):
        fields = trace.of(tensor).fields
        heads = [h for h in (trace.relations.restrict(f, (0,)) for f in fields) if h is not None]
        for fld in heads:
            trace.note(call, fld.labels, "head")
        for fld in fields if heads else ():
            if contracted in fld.dims:
                trace.note(call, fld.labels, "feature")
            elif fld.dims != (0,):
                trace.relations.note_kind(fld.labels, "feature")


@rules_for(
    "convolution _convolution cudnn_convolution mkldnn_convolution convolution_overrideable",
)
def convolution(trace: Trace, call: Call) -> None:
    """Groups are a letter of their own, so that a group stands for all its channels on both sides."""
    data, weight, groups = call["input"], call["weight"], call["groups"]
    transposed = call.get("transposed", False)
    window = "." * (weight.ndim - 2)
    batch = "b" if data.ndim == weight.ndim else ""
    kernel = f"(gi)o{window}" if transposed else f"(go)i{window}"
    places = _places(call, weight)
    if groups == 1:
        kernel, spec = (f"io{window}" if transposed else f"oi{window}"), f"{batch}i{places}"
        trace.set(call.out, *contract(trace, call, [data, weight], f"{spec},{kernel}->{batch}o{places}"))
    else:
        spec = f"{batch}(gi){places},{kernel}->{batch}(go){places}"
        trace.set(call.out, *contract(trace, call, [data, weight], spec, {"g": groups}))
        _note_groups(trace, call, data, groups)
    if call.get("bias") is not None:
        _add_shift(trace, call, along(trace, call["bias"], dim=len(batch)))
    moved = data if transposed else call.out
    trace.book_flops([weight, data], 2 * weight.numel() * moved.numel() // moved.shape[len(batch)])


def _places(call: Call, weight: Tensor) -> str:
    """The letters of the window: where it is a single place that doesn't move in steps, labels along it pass."""
    found = ""
    for i, size in enumerate(weight.shape[2:]):
        step, pad = (call[name][i % len(call[name])] for name in ("stride", "padding"))
        found += "xyz"[i] if (size, step, pad) == (1, 1, 0) else "."
    return found


@rules_for("torchvision::deform_conv2d")
def deformable_convolution(trace: Trace, call: Call) -> None:
    """As a convolution; offsets and masks are data of fixed size."""
    data, weight, offset, mask = (call[name] for name in ("input", "weight", "offset", "mask"))
    for tensor in (offset, mask):
        trace.relations.freeze(trace.of(tensor).fields, "says where a deformable convolution looks")
    spec = "b(gi)..,(go)i..->b(go)"
    trace.set(call.out, *contract(trace, call, [data, weight], spec, {"g": call["groups"]}))
    _add_shift(trace, call, along(trace, call["bias"], dim=1))


def _add_shift(trace: Trace, call: Call, operand: Operand) -> None:
    """Relate a bias to the output that it has been added to."""
    out = aligned(trace, call.out, call.out.ndim)
    trace.set(call.out, relate(trace, call, [out, operand], range(call.out.ndim)), out.origin)
    if operand.origin == "weight":
        note_role(trace, operand.fields, "shift")


def _note_groups(trace: Trace, call: Call, data: Tensor, groups: int) -> None:
    """The number of groups is a Python integer, and has to follow them."""
    channels = next((f.labels for f in trace.of(data).fields if f.dims == (data.ndim - call["weight"].ndim + 1,)), None)
    if channels is None:
        return
    owner = trace.owner_of(call["weight"])
    if len(channels) > groups:
        seen = trace.relations.restrict(Field((0, 1), channels.reshape(groups, -1)), (0,))
        assert seen is not None
        channels = seen.labels
        trace.relations.note_kind(channels, "group", f"{owner}.groups")
    trace.relations.sizes.append(PythonSize(call.module, owner, "groups", channels))


@rules_for(
    "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
def attention(trace: Trace, call: Call) -> None:
    """Batch and heads run along, query and key are contracted over features; key heads may be shared by several."""
    query, key, value = call["query"], call["key"], call["value"]
    spec = "b(gr)nd,bgmd,bgme->b(gr)ne"
    fields, origin = contract(trace, call, [query, key, value], spec, {"g": key.shape[1]})
    for tensor in (query, key):
        inside = [f for f in trace.of(tensor).fields if 3 in f.dims]
        trace.relations.mark_inexact(inside, "the kernel scales by its size")
        for fld in inside:
            trace.note(call, fld.labels, "feature")
    for fld in trace.of(value).fields:
        if 3 in fld.dims:
            trace.relations.note_kind(fld.labels, "feature")
    for heads in (trace.relations.restrict(f, (1,)) for f in fields):
        if heads is not None:
            trace.note(call, heads.labels, "head")
    trace.set(call.outputs[0], fields, origin)
    for out in call.outputs[1:]:
        trace.set(out, (), "data")
    trace.book_flops([query, key], 2 * query.numel() * key.shape[2])
    trace.book_flops([call.outputs[0], value], 2 * call.outputs[0].numel() * key.shape[2])

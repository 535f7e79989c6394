"""How each family of ATen calls relates the labels of its tensors.

A rule is a function of the trace and the call: it says which labels are equal, which are frozen, and which
labels the outputs carry. A call without a rule freezes what it touches and is named in the analysis; nothing
is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .relate import Operand, aligned, along, common_origin, contract, note_role, relate
from .relations import FIXED, Field, PythonSize
from .trace import Call, Trace

Rule = Callable[[Trace, Call], None]

_RULES: dict[str, Rule] = {}


def rules_for(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators, by their names without namespace and overload."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(" ".join(names).split(), rule))
        return rule

    return register


def rule_of(op: Any) -> Rule | None:
    """The rule for an operator, or None."""
    namespace, _, name = op._schema.name.partition("::")
    if namespace == "aten" and name in _RULES:
        return _RULES[name]
    return pointwise if torch.Tag.pointwise in op.tags else None


# -- pointwise calls and factories ------------------------------------------------------------------


@rules_for(
    "alias contiguous detach _to_copy native_dropout bernoulli_ hardswish_ copy_ lift_fresh fill_ zero_",
    "zeros_like ones_like empty_like full_like rand_like randn_like",
)
def pointwise(trace: Trace, call: Call) -> None:
    """All dimensions run together, as broadcasting aligns them."""
    tensors = call.tensors
    ndim = call.outputs[0].ndim
    operands = [aligned(trace, t, ndim) for t in tensors]
    fields = relate(trace, call, operands, range(ndim))
    _note_gates(trace, call, operands)
    for out in call.outputs:
        if any(out is t for t in tensors):
            _check_written(trace, call, out, fields)
        trace.set(out, fields, common_origin(o.origin for o in operands))


def _note_gates(trace: Trace, call: Call, operands: Sequence[Operand]) -> None:
    """A weight that meets data is a scale or a shift of it."""
    role = {"mul": "scale", "div": "scale", "add": "shift", "sub": "shift"}.get(call.name.rstrip("_"))
    if role and any(o.origin == "data" for o in operands):
        note_role(trace, (f for o in operands if o.origin == "weight" for f in o.fields), role)


def _check_written(trace: Trace, call: Call, tensor: Tensor, fields: Sequence[Field]) -> None:
    """A view that gains labels would have to give them to a base that isn't followed from here."""
    before = {d for f in trace.of(tensor).fields for d in f.dims}
    if tensor._is_view():
        gained = [f for f in fields if not set(f.dims) <= before]
        trace.relations.freeze(gained, f"is written into a part of another tensor by {call.name}")
    if any(trace.of(t).origin == "data" for t in call.tensors):
        trace.written(tensor)


@rules_for("empty zeros ones full scalar_tensor new_empty new_zeros new_ones new_full empty_strided")
def factory(trace: Trace, call: Call) -> None:
    """One value everywhere: no labels, and no obstacle."""
    for out in call.outputs:
        trace.set_uniform(out)


# -- contractions -------------------------------------------------------------------------------------


@rules_for("mm bmm addmm baddbmm")
def matrix_product(trace: Trace, call: Call) -> None:
    """``(b) n k`` times ``(b) k m``, with what is added to it."""
    *added, left, right = call.tensors
    spec = "nk,km->nm" if left.ndim == 2 else "bnk,bkm->bnm"
    trace.set(call.out, *contract(trace, call, [left, right], spec))
    for tensor in added:
        _add_shift(trace, call, aligned(trace, tensor, call.out.ndim))
    weight = right if trace.of(right).origin == "weight" else left
    trace.book_flops(weight, 2 * call.out.numel() * left.shape[-1])


@rules_for("convolution _convolution cudnn_convolution mkldnn_convolution")
def convolution(trace: Trace, call: Call) -> None:
    """Groups are a letter of their own, so that a group stands for all its channels on both sides."""
    data, weight, groups = call["input"], call["weight"], call["groups"]
    transposed = call.get("transposed", False)
    window = "." * (data.ndim - 2)
    kernel = f"(gi)o{window}" if transposed else f"(go)i{window}"
    spec = f"b(gi){window},{kernel}->b(go)"
    trace.set(call.out, *contract(trace, call, [data, weight], spec, {"g": groups}))
    if call.get("bias") is not None:
        _add_shift(trace, call, along(trace, call["bias"], dim=1))
    if groups > 1:
        _note_groups(trace, call, data, groups)
    moved = data if transposed else call.out
    trace.book_flops(weight, 2 * weight.numel() * moved.numel() // moved.shape[1])


def _add_shift(trace: Trace, call: Call, operand: Operand) -> None:
    """Relate a bias to the output that it has been added to."""
    out = aligned(trace, call.out, call.out.ndim)
    trace.set(call.out, relate(trace, call, [out, operand], range(call.out.ndim)), out.origin)
    if operand.origin == "weight":
        note_role(trace, operand.fields, "shift")


def _note_groups(trace: Trace, call: Call, data: Tensor, groups: int) -> None:
    """The number of groups is a Python integer, and has to follow them."""
    channels = next((f.labels for f in trace.of(data).fields if f.dims == (1,)), None)
    if channels is None:
        return
    owner = trace.owner_of(call["weight"])
    if len(channels) > groups:
        whole = Field((0, 1), channels.reshape(groups, -1))
        seen = trace.relations.restrict(whole, (0,))
        assert seen is not None
        channels = seen.labels
        trace.relations.groups.append((channels, f"{owner}.groups"))
    trace.relations.sizes.append(PythonSize(call.module, owner, "groups", channels))


# -- normalisation ------------------------------------------------------------------------------------


@rules_for(
    "native_batch_norm cudnn_batch_norm miopen_batch_norm",
    "_native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update",
)
def batch_norm(trace: Trace, call: Call) -> None:
    """Scale, shift and statistics lie along the channels."""
    data = call["input"]
    operands = [aligned(trace, data, data.ndim)]
    for argument, role in _BATCH_NORM_ROLES.items():
        tensor = call.get(argument)
        if tensor is not None:
            operands.append(along(trace, tensor, dim=1))
            note_role(trace, operands[-1].fields, role)
    trace.set(call.outputs[0], relate(trace, call, operands, range(data.ndim)), "data")


_BATCH_NORM_ROLES = {"weight": "scale", "bias": "shift", "running_mean": "mean", "running_var": "var"}


# -- data movement ------------------------------------------------------------------------------------


@rules_for(
    "view _unsafe_view reshape _reshape_alias t transpose permute expand squeeze unsqueeze repeat",
    "slice select split split_with_sizes unbind constant_pad_nd roll flip pixel_shuffle pixel_unshuffle unfold",
)
def movement(trace: Trace, call: Call) -> None:
    """No rule of its own: the call runs on the labels themselves, and they are read off where they arrive."""
    moved = call.tensors[0]
    known = trace.of(moved)
    arrived: list[list[Field]] = [[] for _ in call.outputs]
    for fld in known.fields:
        for found, moved_field in zip(arrived, _move(call, moved, fld), strict=True):
            if moved_field is not None and _is_whole(fld, moved_field):
                found.append(moved_field)
            else:
                # The numbers in Python that said where to cut would have to follow an edit.
                trace.relations.freeze([fld], f"is cut, split or reordered by {call.name}")
    for out, fields in zip(call.outputs, arrived, strict=True):
        trace.set(out, _disjoint(trace, call, fields), known.origin)


def _move(call: Call, moved: Tensor, fld: Field) -> list[Field | None]:
    shape = [1] * moved.ndim
    for dim, size in zip(fld.dims, fld.labels.shape, strict=True):
        shape[dim] = size
    labels = torch.tensor(fld.labels).reshape(shape).expand(moved.shape)
    if call.name in ("view", "_unsafe_view", "_reshape_alias"):
        result = labels.reshape(call.out.shape)
    else:
        result = call.op(**{k: labels if v is moved else v for k, v in call.arguments.items()})
    return [_varying(t) for t in (result if isinstance(result, (list, tuple)) else [result])]


def _varying(labels: Tensor) -> Field | None:
    """Only the dimensions on which labels differ are kept."""
    dims = []
    for dim, size in enumerate(labels.shape):
        first = labels.narrow(dim, 0, min(size, 1))
        if labels.stride(dim) != 0 and not torch.equal(first.expand_as(labels), labels):
            dims.append(dim)
        else:
            labels = first
    return Field(tuple(dims), labels.numpy().reshape([labels.shape[d] for d in dims])) if dims else None


def _is_whole(before: Field, after: Field) -> bool:
    """Dimensions may move, merge with others and be repeated as a whole; the labels along them stay as they are."""
    if np.array_equal(before.labels, after.labels):
        return True
    labels = before.labels.ravel()
    copies, rest = divmod(after.labels.size, len(labels))
    if len(after.dims) > 1 or rest:
        return False
    for inner in range(1, copies + 1):
        if copies % inner == 0:
            tiles = after.labels.reshape(copies // inner, len(labels), inner)
            if (tiles == labels[None, :, None]).all():
                return True
    return False


def _disjoint(trace: Trace, call: Call, fields: Sequence[Field]) -> list[Field]:
    """A dimension carries one field: where two were merged into it, both are frozen."""
    clashing = [f for f in fields if any(f is not g and set(f.dims) & set(g.dims) for g in fields)]
    trace.relations.freeze(clashing, f"is merged with another labelled dimension by {call.name}")
    return [f for f in fields if not any(f is g for g in clashing)]


@rules_for("cat")
def concatenation(trace: Trace, call: Call) -> None:
    """Along the joined dimension labels stand one after the other; along the others they run together."""
    tensors = [t for t in call["tensors"] if t.ndim == call.out.ndim]
    joined = call.get("dim", 0) % call.out.ndim
    pieces = [_piece(trace, call, tensor, joined) for tensor in tensors]
    rest = [_without(aligned(trace, t, t.ndim), joined) for t in tensors]
    fields = relate(trace, call, rest, range(call.out.ndim))
    if any(piece.any() for piece in pieces):
        fields.append(Field((joined,), np.concatenate(pieces)))
    trace.set(call.out, fields, common_origin(o.origin for o in rest))


def _piece(trace: Trace, call: Call, tensor: Tensor, dim: int) -> np.ndarray:
    for fld in trace.of(tensor).fields:
        if fld.dims == (dim,):
            return fld.labels
        if dim in fld.dims:
            trace.relations.freeze([fld], "is joined with others along one of its two dimensions")
    return np.full(tensor.shape[dim], FIXED)


def _without(operand: Operand, dim: int) -> Operand:
    fields = tuple(f for f in operand.fields if dim not in f.dims)
    return operand._replace(fields=fields, sizes={d: n for d, n in operand.sizes.items() if d != dim})


# -- reductions ---------------------------------------------------------------------------------------


@rules_for("sum mean amax amin var std any all")
def reduction(trace: Trace, call: Call) -> None:
    """Labels of the reduced dimensions are dropped, the others pass."""
    data, out = call.tensors[0], call.out
    dims = call.get("dim")
    reduced = {d % data.ndim for d in ([dims] if isinstance(dims, int) else dims or range(data.ndim))}
    left = [d for d in range(data.ndim) if d not in reduced]
    place = {d: d if out.ndim == data.ndim else i for i, d in enumerate(left)}
    known = trace.of(data)
    fields = [f for f in (trace.relations.restrict(f, left) for f in known.fields) if f is not None]
    if call.name != "sum":
        lost = (f for f in known.fields if reduced & set(f.dims))
        trace.relations.inexact.extend((f.labels.ravel(), f"{call.name} runs over it") for f in lost)
    trace.set(out, [Field(tuple(place[d] for d in f.dims), f.labels) for f in fields], known.origin)


@rules_for(
    "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d max_pool3d_with_indices avg_pool3d",
    "_adaptive_avg_pool3d upsample_nearest2d upsample_bilinear2d reflection_pad2d replication_pad2d",
)
def window(trace: Trace, call: Call) -> None:
    """The last dimensions are looked at through a window; batch and channels pass."""
    data = call.tensors[0]
    known = trace.of(data)
    inner = data.ndim - (3 if "3d" in call.name else 2)
    inside = [f for f in known.fields if max(f.dims) >= inner]
    trace.relations.freeze(inside, f"lies along the window of {call.name}")
    fields = [f for f in known.fields if max(f.dims) < inner]
    for out in call.outputs:
        trace.set(out, fields, known.origin)

"""Calls that work place by place, and calls that make tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..call import Call
from ..labels import Field
from ..relate import Operand, aligned, common_origin, note_computed, note_role, relate
from ..trace import Trace
from .registry import rules_for


@rules_for(
    "alias contiguous detach clone _to_copy native_dropout bernoulli bernoulli_ hardswish_ copy_ lift lift_fresh fill_",
    "zero_ zeros_like ones_like empty_like full_like rand_like randn_like uniform_ normal_ random_ celu elu_ gelu_ ",
    "leaky_relu_ rrelu rrelu_with_noise rrelu_with_noise_functional _prelu_kernel prelu nan_to_num tril triu",
    "_conj resolve_conj _fw_primal lerp polar complex masked_fill masked_fill_ isin detach_ silu_",
    "hardswish mish_ exponential_ normal_functional log_sigmoid_forward floor_divide floor_divide_",
)
def pointwise(trace: Trace, call: Call) -> None:
    """All dimensions run together, as broadcasting aligns them."""
    tensors = call.tensors
    outputs = call.outputs
    ndim = outputs[0].ndim
    operands = [aligned(trace, t, ndim) for t in tensors]
    if len(operands) == 1:
        fields: Sequence[Field] = operands[0].fields
    else:
        fields = relate(trace, call, operands, range(ndim))
        _note_meeting(trace, call, operands)
    origin = common_origin(o.origin for o in operands)
    for out in outputs:
        if any(out is t for t in tensors):
            _check_written(trace, call, out, fields)
        if out.ndim == ndim:  # what else is put out is scratch memory
            trace.set(out, fields, origin)


def _note_meeting(trace: Trace, call: Call, operands: Sequence[Operand]) -> None:
    """A weight that meets data is a scale or a shift of it; data that meet data may make a stream."""
    name = call.name.rstrip("_")
    with_data = [o for o in operands if o.origin == "data"]
    if not with_data:
        return note_computed(trace, operands, multiplied=name in ("mul", "div"))
    role = {"mul": "scale", "div": "scale", "add": "shift", "sub": "shift"}.get(name)
    if role and len(with_data) < len(operands):
        note_role(trace, (f for o in operands if o.origin == "weight" for f in o.fields), role)
    elif name == "add":
        note_stream(trace, operands)


def note_stream(trace: Trace, operands: Sequence[Operand]) -> None:
    """Data that are added to other data make a stream."""
    one, other = operands[:2]
    for f in one.fields if one.origin == other.origin == "data" else ():
        if any(f.dims == g.dims and f.labels is not g.labels for g in other.fields):
            trace.relations.note_kind(f.labels, "stream")


def _check_written(trace: Trace, call: Call, tensor: Tensor, fields: Sequence[Field]) -> None:
    """A view that gains labels has to give them to its base, or they can't change."""
    before = {d for f in trace.of(tensor).fields for d in f.dims}
    if tensor._is_view():
        gained = [f for f in fields if not set(f.dims) <= before and not _handed_on(trace, tensor, f)]
        bare = [f for f in _of_base(trace, tensor) if not any(set(f.dims) & set(g.dims) for g in fields)]
        trace.relations.freeze([*gained, *bare], f"is written into a part of another tensor by {call.name}")
    if any(trace.of(t).origin == "data" for t in call.tensors):
        trace.written(tensor)


def _base_alike(view: Tensor) -> Tensor | None:
    """The tensor that a view is a part of, if its dimensions are that tensor's."""
    base = view._base
    return base if base is not None and base.ndim == view.ndim and base.stride() == view.stride() else None


def _of_base(trace: Trace, view: Tensor) -> list[Field]:
    """What the tensor carries that a view is a part of, along the dimensions that it has whole."""
    base = _base_alike(view)
    if base is None:
        return []
    return [f for f in trace.of(base).fields if all(base.shape[d] == view.shape[d] for d in f.dims)]


def _handed_on(trace: Trace, view: Tensor, fld: Field) -> bool:
    """Whether a part that is cut out of a tensor along other dimensions gives it its labels: it had none before."""
    base = _base_alike(view)
    if base is None:
        return False
    known = trace.of(base)
    whole = all(base.shape[d] == view.shape[d] for d in fld.dims)
    beside = [f for f in known.fields if not set(f.dims).isdisjoint(fld.dims)]
    if not whole or any(f.dims != fld.dims for f in beside) or (not beside and known.origin != "uniform"):
        return False
    for other in beside:
        trace.relations.equate(other.labels, fld.labels)
    if not beside:
        trace.set(base, (*known.fields, fld), "data")
    return True


@rules_for(
    "empty zeros ones full scalar_tensor new_empty new_zeros new_ones new_full empty_strided new_empty_strided",
)
def factory(trace: Trace, call: Call) -> None:
    """One value everywhere: no labels, and no obstacle."""
    for out in call.outputs:
        trace.set_uniform(out)


@rules_for("arange linspace rand randn randint randperm eye")
def numbered(trace: Trace, call: Call) -> None:
    """Values that differ from place to place: whatever meets them can't change size."""
    for out in call.outputs:
        trace.set(out, (), "data")

"""Normalisations: scale, shift and statistics lie along what is normalised."""

from __future__ import annotations

from torch import Tensor

from ..call import Call
from ..integers import Integer
from ..labels import Field, PythonSize
from ..relate import ADDED, aligned, along, note_computed, note_role, relate
from ..tied import lying_along
from ..trace import Trace
from ..views import reshaped
from .registry import rules_for

_ROLES = {"weight": "scale", "bias": "shift", "running_mean": "mean", "running_var": "var"}
#: Statistics belong to the data, which are multiplied by the scale.
_FACTORS = {"scale": 1, "shift": ADDED, "mean": 0, "var": 0}


@rules_for(
    "native_batch_norm cudnn_batch_norm miopen_batch_norm",
    "_native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update",
)
def batch_norm(trace: Trace, call: Call) -> None:
    """Everything lies along the channels; statistics of a batch run over all else."""
    data = call["input"]
    if call.get("training", call.name == "_batch_norm_with_update"):
        _statistics_over(trace, call, data, [d for d in range(data.ndim) if d != 1])
    _note_untold(trace, call, "num_features", 1)
    _scaled(trace, call, data, 1)


@rules_for("native_layer_norm _fused_rms_norm")
def layer_norm(trace: Trace, call: Call) -> None:
    """Statistics run over the last dimensions, along which scale and shift lie."""
    data = call["input"]
    first = data.ndim - len(call["normalized_shape"])
    _statistics_over(trace, call, data, range(first, data.ndim))
    operands, factors = [aligned(trace, data, data.ndim)], [0]
    for argument, role in list(_ROLES.items())[:2]:
        tensor = call.get(argument)
        if tensor is not None:
            operands.append(aligned(trace, tensor, data.ndim))
            factors.append(_FACTORS[role])
            note_role(trace, operands[-1].fields, role)
    for dim in range(first, data.ndim):
        _note_untold(trace, call, "normalized_shape", dim, dim - first)
    _set(trace, call, relate(trace, call, operands, range(data.ndim), factors))


@rules_for("native_group_norm")
def group_norm(trace: Trace, call: Call) -> None:
    """Each group is normalised by itself, so that whole groups may go; their number is a Python integer."""
    data, groups = call["input"], call["group"]
    for fld in trace.of(data).fields:
        if fld.dims != (1,) or groups == 1:
            _statistics_over(trace, call, data, range(1, data.ndim), [fld])
            continue
        [split] = reshaped(trace.relations, [fld], data.shape[:2], (data.shape[0], groups, data.shape[1] // groups))
        trace.relations.mark_inexact(_within(trace, split), f"{call.name} runs over it")
        if len(split.dims) > 1:
            heads = trace.relations.restrict(split, (1,))
            assert heads is not None
            trace.picked(heads.labels)  # what comes out doesn't tell how many groups there are
            split = heads
            trace.relations.note_kind(split.labels, "group", ".".join(filter(None, (_layer(trace, call), "groups"))))
        if split.dims == (1,):
            trace.relations.sizes.append(PythonSize(call.module, _layer(trace, call), "num_groups", split.labels))
    _note_untold(trace, call, "num_channels", 1)
    _scaled(trace, call, data, 1)


def _layer(trace: Trace, call: Call) -> str:
    """The module that the scale belongs to, or, without one, the module that runs, by name."""
    if call.get("weight") is not None:
        return trace.owner_of(call["weight"])
    return trace.module_names.get(call.module, "") if call.module is not None else ""


def _note_untold(trace: Trace, call: Call, attribute: str, dim: int, item: int | None = None) -> None:
    """A size that the running module keeps, and that none of its tensors tells, follows what is normalised.

    Examples that are normalised one by one lie side by side: their labels repeat, and are counted once.
    """
    if call.module is None or any(call.get(argument) is not None for argument in _ROLES):
        return
    held = getattr(call.module, attribute, None)
    value = held[item] if isinstance(held, tuple) and item is not None else held
    for fld in (f for f in trace.of(call["input"]).fields if dim in f.dims):
        _, labels = lying_along(trace, fld, dim)
        if isinstance(value, int) and value == len(labels):
            integer = Integer(call.module, "", attribute, item, int(value))
            trace.relations.sizes.append(PythonSize(call.module, "", integer.name, labels, integer))


def _within(trace: Trace, split: Field) -> list[Field]:
    inside = trace.relations.restrict(split, (2,))
    return [] if inside is None else [inside]


def _statistics_over(trace: Trace, call: Call, data: Tensor, dims: object, fields: list[Field] | None = None) -> None:
    over = set(dims)  # type: ignore[call-overload]
    found = [f for f in (trace.of(data).fields if fields is None else fields) if over & set(f.dims)]
    for fld in found:
        seen = trace.relations.restrict(fld, tuple(over))
        trace.relations.mark_inexact([seen] if seen is not None else [], f"{call.name} runs over it")


def _scaled(trace: Trace, call: Call, data: Tensor, dim: int) -> None:
    operands, factors = [aligned(trace, data, data.ndim)], [0]
    for argument, role in _ROLES.items():
        tensor = call.get(argument)
        if tensor is not None:
            operands.append(along(trace, tensor, dim=dim))
            factors.append(_FACTORS[role])
            note_role(trace, operands[-1].fields, role)
    _set(trace, call, relate(trace, call, operands, range(data.ndim), factors))


def _set(trace: Trace, call: Call, fields: list[Field]) -> None:
    trace.set(call.outputs[0], fields, trace.of(call["input"]).origin)
    for statistics in call.outputs[1:]:
        trace.set(statistics, (), "data")


@rules_for("_weight_norm_interface")
def weight_norm(trace: Trace, call: Call) -> None:
    """A direction, each of whose rows is scaled to a length."""
    direction, length = call["v"], call["g"]
    operands = [aligned(trace, direction, direction.ndim), aligned(trace, length, direction.ndim)]
    fields = relate(trace, call, operands, range(direction.ndim))
    note_role(trace, operands[1].fields, "scale")
    for fld in trace.of(direction).fields:
        for dim in fld.dims:
            if length.shape[dim] == 1:
                trace.relations.add_up(fld, dim, weight=True)
    note_computed(trace, operands, multiplied=True)
    trace.shifts.divided_by(trace, direction, [d for d, n in enumerate(length.shape) if n > 1])
    trace.set(call.outputs[0], fields, "weight")
    trace.set(call.outputs[1], trace.of(length).fields, "weight")


@rules_for("_softmax _log_softmax _safe_softmax softmax log_softmax")
def softmax(trace: Trace, call: Call) -> None:
    """Everything along one dimension adds up to one."""
    data = call.tensors[0]
    _statistics_over(trace, call, data, [call["dim"] % max(1, data.ndim)])
    known = trace.of(data)
    trace.set(call.outputs[0], known.fields, known.origin)


@rules_for("glu")
def gated(trace: Trace, call: Call) -> None:
    """One half of a dimension is multiplied by the other."""
    data, dim = call.tensors[0], call.get("dim", -1) % call.tensors[0].ndim
    shape = data.shape
    halves = (*shape[:dim], 2, shape[dim] // 2, *shape[dim + 1 :])
    fields = []
    for fld in reshaped(trace.relations, trace.of(data).fields, shape, halves):
        if dim in fld.dims:
            axis = fld.dims.index(dim)
            one, other = (fld.labels.take(i, axis) for i in (0, 1))
            trace.relations.equate(one, other, apart=True)
            fld = Field(tuple(d for d in fld.dims if d != dim), one)
        fields.append(Field(tuple(d if d < dim else d - 1 for d in fld.dims), fld.labels))
    trace.set(call.out, fields, trace.of(data).origin)

"""Calls that reduce, look through a window, or work along one dimension."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..call import Call
from ..labels import Field
from ..relate import note_summed
from ..trace import Trace
from ..views import reshaped
from .registry import rules_for

#: What adds nothing where a unit is silent.
_NEUTRAL = {"sum", "nansum", "linalg_vector_norm", "norm"}


@rules_for(
    "sum nansum mean amax amin aminmax var std var_mean std_mean any all prod norm linalg_vector_norm logsumexp",
    "max min argmax argmin median count_nonzero _is_all_true _is_any_true",
)
def reduction(trace: Trace, call: Call) -> None:
    """Labels of the reduced dimensions are dropped, the others pass."""
    data = call.tensors[0]
    dims = call.get("dim")
    if dims is None or dims == []:
        dims = range(data.ndim)
    reduced = {d % max(1, data.ndim) for d in ([dims] if isinstance(dims, int) else dims)}
    left = [d for d in range(data.ndim) if d not in reduced]
    known = trace.of(data)
    fields = [f for f in (trace.relations.restrict(f, left) for f in known.fields) if f is not None]
    lost = [f for f in (trace.relations.restrict(f, tuple(reduced)) for f in known.fields) if f is not None]
    if call.name.startswith("arg") or (call.name in ("max", "min", "median") and len(call.outputs) > 1):
        trace.relations.freeze(lost, f"is counted along by {call.name}")
    elif call.name not in _NEUTRAL:
        trace.relations.mark_inexact(lost, f"{call.name} runs over it")
    else:
        for fld in known.fields:
            for dim in reduced.intersection(fld.dims):
                if known.origin == "data":
                    note_summed(trace, call, data, dim, fld, dim)
                else:
                    trace.relations.add_up(fld, dim, weight=True)
    for out in call.outputs:
        place = {d: d if out.ndim == data.ndim else i for i, d in enumerate(left)}
        trace.set(out, [Field(tuple(place[d] for d in f.dims), f.labels) for f in fields], known.origin)


@rules_for("cumsum cumprod cumsum_ logcumsumexp cummax cummin sort topk argsort kthvalue mode")
def running(trace: Trace, call: Call) -> None:
    """What is done along a dimension depends on the order there."""
    data = call.tensors[0]
    _pass_but(trace, call, data, [call.get("dim", -1) % max(1, data.ndim)], f"is ordered or added up by {call.name}")


@rules_for(
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d",
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d adaptive_avg_pool1d",
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d",
    "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d",
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa max_unpool2d",
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
    "fractional_max_pool2d grid_sampler_2d grid_sampler_3d",
)
def window(trace: Trace, call: Call) -> None:
    """The last dimensions are looked at through a window; batch and channels pass."""
    data = call.tensors[0]
    count = next((int(c) for c in reversed(call.name) if c.isdigit()), 2)
    _pass_but(trace, call, data, range(data.ndim - count, data.ndim), f"lies along the window of {call.name}")


@rules_for("torchvision::roi_align torchvision::roi_pool torchvision::ps_roi_align torchvision::ps_roi_pool")
def regions(trace: Trace, call: Call) -> None:
    """Regions are cut out of images; channels pass."""
    _pass_but(trace, call, call.tensors[0], [0, 2, 3], f"lies along the regions of {call.name}")


@rules_for("_fft_r2c _fft_c2r _fft_c2c")
def fourier(trace: Trace, call: Call) -> None:
    """All along the transformed dimensions is mixed; the others pass."""
    data = call.tensors[0]
    _pass_but(trace, call, data, [d % data.ndim for d in call["dim"]], f"is transformed by {call.name}")


@rules_for("im2col")
def columns(trace: Trace, call: Call) -> None:
    """Windows become columns: each channel stands there once for each place of the window."""
    data, out = call.tensors[0], call.out
    fields = _without(trace, call, data, [data.ndim - 2, data.ndim - 1])
    places = out.shape[-2] // data.shape[-3]
    trace.set(out, [f._replace(labels=f.labels.repeat(places)) for f in fields], trace.of(data).origin)


@rules_for("col2im")
def folded(trace: Trace, call: Call) -> None:
    """Columns become images again: what stands for one channel, at all places of the window, goes together."""
    data, channels = call.tensors[0], call.out.shape[-3]
    fields = _without(trace, call, data, [data.ndim - 1])
    shape = (*data.shape[:-2], channels, data.shape[-2] // channels, data.shape[-1])
    split = reshaped(trace.relations, fields, data.shape, shape)
    why = f"lies along the window of {call.name}"
    found = (trace.relations.collapse(f, [data.ndim - 1], why) for f in split)
    trace.set(call.out, [f for f in found if f is not None], trace.of(data).origin)


def _pass_but(trace: Trace, call: Call, data: Tensor, dims: Iterable[int], why: str) -> None:
    known = trace.of(data)
    fields = _without(trace, call, data, dims, why)
    for out in call.outputs:
        trace.set(out, fields, known.origin)


def _without(trace: Trace, call: Call, data: Tensor, dims: Iterable[int], why: str = "") -> list[Field]:
    why = why or f"lies along the window of {call.name}"
    found = (trace.relations.collapse(f, dims, why) for f in trace.of(data).fields)
    return [f for f in found if f is not None]

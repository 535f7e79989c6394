"""Whether a pointwise call gives zero where its labelled inputs are zero: found out by calling it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from .call import Call

#: What inputs without labels may hold; they must make no difference.
_OTHERS = ((0.7, True), (-1.3, False))

_KNOWN: dict[object, tuple[bool, bool]] = {}


def stays(call: Call, labelled: Sequence[bool]) -> bool:
    """Whether zero stays zero.

    Args:
        call: A pointwise call.
        labelled: Which of its tensors carry labels; these are zero where a unit is silent.

    >>> from regrow.structure.call import Call
    >>> x, aten = torch.ones(2), torch.ops.aten
    >>> [stays(Call(op, (x,), {}, x, None), [True]) for op in (aten.gelu.default, aten.sigmoid.default)]
    [True, False]
    """
    return _result(call, labelled)[0]


def finite(call: Call, labelled: Sequence[bool]) -> bool:
    """Whether the result is finite where these tensors are zero, for instance none that is divided by."""
    return _result(call, labelled)[1]


def _result(call: Call, labelled: Sequence[bool]) -> tuple[bool, bool]:
    values = tuple(v.dtype if isinstance(v, Tensor) else repr(v) for v in _leaves(call))
    key = (call.op, values, tuple(labelled), tuple(call.arguments))
    if key not in _KNOWN:
        found = [_at_zero(call, labelled, *others) for others in _OTHERS]
        _KNOWN[key] = all(zero for zero, _ in found), all(finite for _, finite in found)
    return _KNOWN[key]


def _leaves(call: Call) -> list[Any]:
    return pytree.tree_leaves(list(call.arguments.values()))


def _at_zero(call: Call, labelled: Sequence[bool], number: float, truth: bool) -> tuple[bool, bool]:
    """Whether the result is zero, and whether it is finite."""
    zero = iter(labelled)

    def probe(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return "cpu" if isinstance(value, torch.device) else value
        fill = 0 if next(zero) else truth if value.dtype == torch.bool else number
        return torch.full((1,) * value.ndim, fill, dtype=value.dtype)

    try:
        with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
            out = call.op(**pytree.tree_map(probe, call.arguments))
    except Exception:  # with values of other kinds than it takes: nothing is known
        return False, True
    tensors = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
    return all(not t.any() for t in tensors), all(bool(t.isfinite().all()) for t in tensors)

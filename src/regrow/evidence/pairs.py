"""Where nothing but pointwise maps lie between one linear call that makes the units and those that read them.

There a growth matrix is a correlation of what the first reads with the gradients at the others, times the slope of the
maps at zero, and costs less than a backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..structure import Entry
from .correlation import Window, correlate
from .normalisation import NORMS
from .passage import TINY, Constant, Passage, Slot, Step

_aten = torch.ops.aten
_CONVOLUTION = _aten.convolution.default
#: Linear call -> where its input, its weight and its bias are.
LINEAR = {_CONVOLUTION: (0, 1, 2), _aten.mm.default: (0, 1, None), _aten.addmm.default: (1, 2, 0)}
#: Calls that leave a weight what it is, and the ones that leave every number of a hidden tensor where it is.
SAME_WEIGHT = {_aten.t.default, _aten._to_copy.default, _aten.detach.default, _aten.alias.default}
_SAME_ROWS = {_aten.view.default, _aten._unsafe_view.default, _aten._to_copy.default, _aten.clone.default}
_PRODUCTS = {_aten.mul.Tensor, _aten.mul_.Tensor}
#: Calls that are told all sizes of what they put out.
_SIZED = {_aten.view.default, _aten._unsafe_view.default}


@dataclass(frozen=True)
class Linear:
    """A linear call: a convolution in one group, or a product with a matrix."""

    weight: Entry
    windows: tuple[Window, ...]  # none for a matrix

    @classmethod
    def of(cls, step: Step, weight: Entry, dim: int) -> Linear | None:
        """The call, if it is one that has the units along that dimension of its weight."""
        if step.op not in LINEAR or weight.dim != dim:
            return None
        if step.op is not _CONVOLUTION:
            return cls(weight, ())
        stride, padding, dilation, transposed, _, groups = step.args[3:9]
        if transposed or groups != 1:
            return None
        kernel = weight.tensor.shape[2:]
        return cls(weight, tuple(Window(*w) for w in zip(kernel, stride, padding, dilation, strict=True)))


@dataclass(frozen=True)
class Reader:
    """One linear call that reads the units."""

    linear: Linear
    end: int
    slope: float
    centred: bool  # whether a norm by the batch's statistics lies on the way


@dataclass(frozen=True)
class Pairs:
    """One linear call that makes the units of data, and all that read them."""

    source: Linear
    x: Tensor
    readers: tuple[Reader, ...]
    normed_first: bool  # whether a norm by the batch's statistics is all that sees what the source makes
    calls: tuple[Any, ...]  # what the passage was made of
    any_number: bool  # whether the calls are the same for any number of examples

    def of_next(self, passage: Passage) -> Pairs | None:
        """The pairs of a passage that was made of the same calls on another batch; None if it wasn't."""
        if _calls(passage) != self.calls:
            return None
        inputs = (step.args[LINEAR[step.op][0]] for step in passage.steps if step.op in LINEAR)
        return replace(self, x=next(x.tensor for x in inputs if isinstance(x, Constant)))

    @classmethod
    def of(cls, passage: Passage, from_right: bool = True) -> Pairs | None:
        """The pairs of a passage, if it is made of nothing else; slopes as :meth:`Passage.gain_at_zero` has them."""
        return _Walk(passage, TINY if from_right else 0.0).run() if len(passage.sources) == 1 else None

    def matrix(self, gradients: dict[int, Tensor], readers: Sequence[Entry], centre: bool) -> Tensor:
        """M, as :func:`growth_matrix` gives it, with the readers' parts in this order."""
        parts = []
        for entry in readers:
            first, *others = (self._part(r, gradients[r.end], centre) for r in self.readers if r.linear.weight is entry)
            parts.append(sum(others, first))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _part(self, reader: Reader, g: Tensor, centre: bool) -> Tensor:
        g = reader.slope * g.to(torch.promote_types(torch.float32, g.dtype))
        width = self.source.weight.tensor[0].numel()
        if self.source.windows:
            matrix = correlate(self.x.to(g), g, self.source.windows, reader.linear.windows).reshape(width, -1)
        else:
            matrix = self.x.to(g).T @ g
        if centre and reader.centred:
            sums, number = self.sums()
            matrix = matrix - torch.outer(sums / number, self._sent_back(reader, g))
        return matrix

    def enough_examples(self) -> int:
        """How many examples have 20 times as many positions as the source has weights for a unit."""
        if not self.any_number:
            return len(self.x)
        positions = [w.positions(n) for w, n in zip(self.source.windows, self.x.shape[2:], strict=True)]
        return min(len(self.x), max(2, -(-20 * self.source.weight.tensor[0].numel() // math.prod(positions))))

    def sums(self) -> tuple[Tensor, int]:
        """The sum of all that the source reads, shape ``(incoming width,)``, and how many there are."""
        exact = torch.promote_types(torch.float32, self.x.dtype)
        total = self.x.to(exact).sum(0)
        positions = [w.positions(n) for w, n in zip(self.source.windows, self.x.shape[2:], strict=True)]
        for window, number in zip(self.source.windows, positions, strict=True):
            # The image's first dimension becomes the window's taps; those before have been moved to the end.
            at = torch.arange(window.kernel)[:, None] * window.dilation + torch.arange(number) * window.stride
            total = _summed(total, 1, at - window.padding)
        return total.flatten(), len(self.x) * math.prod(positions)

    def products(self) -> Tensor | None:
        """The sum of x·xᵀ over all that the source reads; None where no shorter way is known."""
        exact = torch.promote_types(torch.float32, self.x.dtype)
        x = self.x.to(exact)
        if not self.source.windows:
            return x.T @ x
        mirrored = [_mirrored(window) for window in self.source.windows]
        if any(w.stride > 1 for w in self.source.windows) or any(w.padding < 0 for w in mirrored):
            return None
        width = self.source.weight.tensor[0].numel()
        found = correlate(x, x, self.source.windows, mirrored)
        return found.flip(list(range(found.ndim - len(mirrored), found.ndim))).reshape(width, width)

    def _sent_back(self, reader: Reader, g: Tensor) -> Tensor:
        """Σ over hidden positions of what the gradient sends back through each outgoing weight."""
        total = g.sum(0)
        hidden = [w.positions(n) for w, n in zip(self.source.windows, self.x.shape[2:], strict=True)]
        for window, length in zip(reader.linear.windows, hidden, strict=True):
            outputs = torch.arange(window.positions(length))
            at = torch.arange(window.kernel)[:, None] * window.dilation + outputs * window.stride - window.padding
            weights = ((at >= 0) & (at < length)).to(total)
            total = torch.tensordot(total, weights, dims=([1], [1]))
        return total.flatten()


def _calls(passage: Passage) -> tuple[Any, ...]:
    """The calls of a passage with their slots and numbers."""
    plain = (int, float, bool, Slot)
    return tuple((step.op, step.outputs, tuple(a for a in step.args if isinstance(a, plain))) for step in passage.steps)


def _mirrored(window: Window) -> Window:
    """Reads, at each position of the image, the hidden positions whose window has it, the last tap first."""
    reach = window.dilation * (window.kernel - 1)
    return Window(window.kernel, 1, reach - window.padding, window.dilation)


def _summed(total: Tensor, dim: int, at: Tensor) -> Tensor:
    """Sums over one dimension at rows of positions; the rows become the last dimension."""
    weights = torch.zeros(len(at), total.shape[dim], dtype=total.dtype, device=total.device)
    for row, positions in zip(weights, at, strict=True):
        inside = positions[(positions >= 0) & (positions < total.shape[dim])]
        row[inside] = 1.0
    return torch.tensordot(total, weights, dims=([dim], [1]))


class _Walk:
    """Follows a passage from its source, as long as it is pointwise."""

    def __init__(self, passage: Passage, shift: float) -> None:
        self.passage, self.shift = passage, shift
        self.weights = {s: e for s, entries in passage.entries.items() if len(entries) == 1 for e in entries}
        self.hidden: dict[int, tuple[float, float, bool]] = {}  # slot -> value and slope at zero, whether centred
        self.masks: dict[int, float] = {}  # slot of what has the shape of units -> the number that it is full of
        self.source: tuple[Linear, Tensor] | None = None
        self.made = -1  # the slot of what it makes
        self.readers: list[Reader] = []
        self.users: set[bool] = set()  # of what the source makes: whether each is a norm

    def run(self) -> Pairs | None:
        for step in self.passage.steps:
            slots = step.slots()
            if self.made in slots:
                self.users.add(step.op in NORMS and NORMS[step.op].by_batch(*step.args))
            known = self._same_weight(step, slots) or self._mask(step, slots)
            if not (known or self._linear(step) or self._pointwise(step, slots)):
                return None
        if self.source is None or {r.end for r in self.readers} != set(self.passage.ends):
            return None
        linear, x = self.source
        shapes = {len(r.linear.windows) for r in self.readers}
        if shapes != {len(linear.windows)}:
            return None
        any_number = not any(step.op in _SIZED for step in self.passage.steps)
        return Pairs(linear, x, tuple(self.readers), self.users == {True}, _calls(self.passage), any_number)

    def _same_weight(self, step: Step, slots: list[int]) -> bool:
        if step.op not in SAME_WEIGHT or len(slots) != 1 or slots[0] not in self.weights:
            return False
        self.weights.update({out: self.weights[slots[0]] for out in step.outputs if out is not None})
        return True

    def _mask(self, step: Step, slots: list[int]) -> bool:
        """What dropout makes its mask of: see :mod:`regrow.evidence.dropout`."""
        (out, *_) = step.outputs
        if out is None or len(slots) != 1:
            return False
        if step.op is _aten.empty_like.default and slots[0] in self.hidden:
            self.masks[out] = math.nan
        elif step.op is _aten.fill_.Scalar and slots[0] in self.masks:
            self.masks[out] = float(step.args[1])
        elif step.op is _aten.div_.Scalar and slots[0] in self.masks:
            self.masks[out] /= float(step.args[1])
        else:
            return False
        return True

    def _linear(self, step: Step) -> bool:
        if step.op not in LINEAR:
            return False
        at, weight_at, _ = LINEAR[step.op]
        given, weight = step.args[at], step.args[weight_at]
        entry = self.weights.get(weight.number) if isinstance(weight, Slot) else None
        (out,) = step.outputs
        if entry is None or out is None:
            return False
        if isinstance(given, Constant) and self.source is None and entry.role == "out":
            linear = Linear.of(step, entry, 0)
            if linear is not None:
                self.source, self.made = (linear, given.tensor), out
                self.hidden[out] = 0.0, 1.0, False
                return True
        if isinstance(given, Slot) and given.number in self.hidden and entry.role == "in":
            linear = Linear.of(step, entry, 1)
            if linear is not None:
                _, slope, centred = self.hidden[given.number]
                self.readers.append(Reader(linear, out, slope, centred))
                return True
        return False

    def _pointwise(self, step: Step, slots: list[int]) -> bool:
        """Scalar maps, norms, and calls that only put units beside others."""
        hidden = [slot for slot in slots if slot in self.hidden]
        if len(hidden) != 1 or step.outputs[0] is None:
            return False
        value, slope, centred = self.hidden[hidden[0]]
        if step.op in NORMS and NORMS[step.op].by_batch(*step.args):
            found: tuple[float, float, bool] | None = value, slope, True
        elif step.op in _PRODUCTS and len(slots) == 2 and slots[1] in self.masks:
            found = value * self.masks[slots[1]], slope * self.masks[slots[1]], centred
        elif len(slots) > 1:
            return False
        elif step.op in _SAME_ROWS:
            found = (value, slope, centred) if self._keeps_rows(step) else None
        elif step.op is _aten.cat.default:
            found = (value, slope, centred) if self._beside(step) else None
        elif torch.Tag.pointwise in step.op.tags and not step.constants():
            derived = _derived(step, value + self.shift, slope)
            found = None if derived is None else (*derived, centred)
        else:
            return False
        if found is None:
            return False
        self.hidden[step.outputs[0]] = found
        return True

    def _keeps_rows(self, step: Step) -> bool:
        if step.op not in _SIZED:
            return True
        assert self.source is not None
        linear, _ = self.source
        return not linear.windows and step.args[1][-1] == linear.weight.tensor.shape[0]

    def _beside(self, step: Step) -> bool:
        assert self.source is not None
        tensors = step.args[0]
        dim = step.args[1] if len(step.args) > 1 else 0
        others = [t.tensor for t in tensors if isinstance(t, Constant)]
        if not others:
            return True
        channels = 1 if self.source[0].windows else others[0].ndim - 1
        return dim % others[0].ndim == channels and bool(self.source[0].windows or others[0].ndim == 2)


#: Operator, its other arguments and the value before it -> value and slope behind it.
_KNOWN: dict[tuple[Any, str, float], tuple[float, float] | None] = {}


def _derived(step: Step, value: float, slope: float) -> tuple[float, float] | None:
    """The value and the slope behind a scalar map; None behind one that has no slope."""
    template = step.given(dict.fromkeys(step.slots(), _HOLE))
    key = step.op, repr(template), value
    if key not in _KNOWN:
        _KNOWN[key] = _at(step, value)
    found = _KNOWN[key]
    return None if found is None else (found[0], slope * found[1])


_HOLE: Any = "the hidden tensor"


def _at(step: Step, value: float) -> tuple[float, float] | None:
    x = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        args, kwargs = step.given(dict.fromkeys(step.slots(), x * 1.0))
        y = step.op(*args, **kwargs)
        if not y.requires_grad:
            return None
        (derivative,) = torch.autograd.grad(y, x)
    return float(y.detach()), float(derivative)

"""What pruned units still send goes into the next layer, so that little changes with them.

A unit whose gate is zero, batch norm's γ say, still sends the activation of its shift β, the same for every input. What
that contributes to the next layer is a constant for each of its outputs (but at borders that are padded with zeros):
it is added to the layer's bias, or taken off the running mean of the norm behind it. Where the loss can be computed
the mean of what units send goes there, whatever their gates are: see :mod:`regrow.pruning.recalibration`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..evidence.normalisation import NORMS
from ..evidence.passage import Passage
from ..evidence.recording import Recorder
from ..rows import rows_of
from ..structure import Axis, Structure
from ..structure.example import named_tensors
from ..structure.running import untouched
from .gates import scales
from .recalibration import recalibrated


def absorbed(
    structure: Structure,
    removed: Mapping[Axis, Sequence[int]],
    loss: Callable[[], Tensor] | None = None,
    batches: int = 1,
) -> dict[str, Tensor]:
    """The tensors that take what the removed units send, as they will be, by name.

    Runs the model once in eval mode on the example that it was analysed on. Layers that neither have a bias nor a norm
    with running statistics behind them take nothing.

    Args:
        structure: Of the model.
        removed: The units that will go.
        loss: Called on a few batches; the means of what units send on them are taken. Without it only units whose gates
            are zero are counted with: what those send doesn't depend on the data.
        batches: How many.

    Raises:
        TypeError, ValueError: The loss is no finite differentiable scalar, or there is no batch left.
    """
    read = [axis for axis in removed if axis.with_role("in")]
    # Where the weights that read a unit are its gate, it sends nothing when that is zero.
    axes = read if loss is not None else [axis for axis in read if scales(axis)]
    names = {tensor: name for name, tensor in named_tensors(structure.model).items()}
    recorder = _FollowedBy(axes)
    device = next(iter(names)).device.type
    with untouched(structure.model), torch.no_grad(), torch.autocast(device, enabled=False):
        structure.model.eval()
        if axes:
            with recorder:
                structure.run_example()
        if loss is None:
            return _shut(recorder, removed, names)
    biases = {names[taker] for taker, sign in recorder.takers.values() if sign > 0 and taker in names}
    return recalibrated(structure, removed, biases, loss, batches)


def _shut(
    recorder: _FollowedBy, removed: Mapping[Axis, Sequence[int]], names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """What takes the constants of units with zero gates."""
    changed: dict[str, Tensor] = {}
    for passage in recorder.outlines():
        taken = set()
        for slot, constant in _constants(passage, removed[passage.axis]).items():
            taker, sign = recorder.takers.get((passage.axis, slot), (None, 0.0))
            if not bool(constant.isfinite().all()):  # weights that are divided by their own length can't all be zero
                continue
            if taker in names and taker not in taken:  # a layer that is used twice takes it once
                before = changed.get(names[taker], taker.detach())
                changed[names[taker]] = before + (sign * constant).to(before)
                taken.add(taker)
    return changed


def _constants(passage: Passage, units: Sequence[int]) -> dict[int, Tensor]:
    """What units with zero gates contribute to each output of each consumer, by the passage's ends."""
    size = passage.axis.size
    rows = {e: rows_of(e, e.tensor.detach(), size) for e in passage.read}
    shut = rows | {e: torch.zeros_like(rows[e]) for e in scales(passage.axis) if e in rows}
    kept = torch.ones(size, dtype=torch.bool)
    kept[list(units)] = False
    for entry in passage.readers:
        shut[entry] = rows[entry].clone()
        shut[entry][kept] = 0.0
    silent = shut | {e: torch.zeros_like(rows[e]) for e in passage.readers}
    sent, nothing = passage.outputs(shut), passage.outputs(silent)
    # The middle value: padded borders get less.
    return {slot: (sent[slot] - nothing[slot]).movedim(1, 0).flatten(1).median(1).values for slot in sent}


class _FollowedBy(Recorder):
    """Records also which tensor can take a constant that is added to a consumer's output.

    Attributes:
        takers: Axis and slot of an end -> that tensor, and the sign with which it takes it.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        super().__init__(axes)
        self.takers: dict[tuple[Axis, int], tuple[Tensor, float]] = {}
        self._open: dict[int, list[tuple[Axis, int]]] = {}  # id of an output -> ends that it still is

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        ends = self._open.pop(id(args[0]), ()) if args else ()
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for axis, slot, tensor in self.new_ends:
            bias = next((a for a in args if isinstance(a, nn.Parameter) and a.ndim == 1), None)
            if tensor.ndim < 2:
                continue
            if bias is not None:
                self.takers[axis, slot] = bias, 1.0
            else:
                self._open.setdefault(id(tensor), []).append((axis, slot))
        for axis, slot in ends:
            if func in NORMS and len(args) > 4 and isinstance(args[3], Tensor):
                self.takers[axis, slot] = args[3], -1.0
            elif func is torch.ops.aten.add.Tensor and isinstance(args[1], nn.Parameter) and args[1].ndim == 1:
                self.takers[axis, slot] = args[1], 1.0
            elif func in _SAME and isinstance(out, Tensor):
                self._open.setdefault(id(out), []).append((axis, slot))
                self._alive.append(out)
        return out


_SAME = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}

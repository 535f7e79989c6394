"""Statistics that methods ask for, gathered in one pass over a few batches that leaves no trace.

A method says what it needs, and gets it as ``seen``; nothing is computed that nobody asked for.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..agreement import told_by_any
from ..errors import NotPermissible
from ..structure import Axis
from ..structure.running import untouched
from .growth import Growth
from .passage import Passage
from .recording import Recorder

__all__ = ["Evidence", "Growth", "Needs", "Passage", "computed", "gather", "looking"]


class Evidence(Protocol):
    """Gathers what a method needs to know about one axis.

    It may have ``agree()``, which averages what it gathered over processes that train copies of the model.
    """

    def add(self, passage: Passage) -> None:
        """See one batch.

        Raises:
            NotPermissible: There is no such evidence about this axis.
        """
        ...


#: Name -> makes the evidence about an axis that a method finds under that name in ``seen``, given where randomness
#: comes from.
Needs = Mapping[str, Callable[[Axis, torch.Generator], Evidence]]


def gather(
    axes: Sequence[Axis],
    needs: Needs,
    loss: Callable[[], Tensor],
    batches: int = 1,
    generator: torch.Generator | None = None,
    leave_out: bool = False,
) -> dict[Axis, dict[str, Any]]:
    """What a method needs to know about axes, gathered while the loss is computed on a few batches.

    Afterwards the model is as before: running statistics and other buffers, gradients, modes, and the random state.

    Args:
        axes: Of one structure.
        needs: What is gathered about each of them.
        loss: Returns a differentiable scalar; called once for each batch.
        batches: How many.
        generator: Where randomness comes from; by default one with seed 0.
        leave_out: Whether axes about which there is no such evidence are left out, as long as there are others.

    Raises:
        NotPermissible: There is no such evidence about an axis, or about any.
        ValueError: The loss is no finite differentiable scalar, or there is none any more, or it isn't scaled and
            gradients are in float16.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    seen: dict[Axis, dict[str, Any]] = {axis: {} for axis in axes}
    refused: dict[Axis, NotPermissible] = {}
    for axis, evidence in seen.items():
        with _noting(refused, axis):
            evidence.update((name, make(axis, generator)) for name, make in needs.items())
    if len(refused) == len(axes):
        raise _together(refused, len(axes))
    with looking(axes[0].structure.model) as restore:
        for _ in range(batches):
            passages = _passages(axes, loss)
            restore()  # old units' running statistics are what they were, for whoever looks at them
            found = {passage.axis: passage for passage in passages}
            for axis in (axis for axis in axes if axis not in refused):
                with _noting(refused, axis):
                    passage = _reached(found, axis)
                    for evidence in seen[axis].values():
                        evidence.add(passage)
            refused = _by_any(refused, axes)
            if refused and not (leave_out and len(refused) < len(axes)):
                raise _together(refused, len(axes))
    seen = {axis: evidence for axis, evidence in seen.items() if axis not in refused}
    for evidence in (evidence for of_axis in seen.values() for evidence in of_axis.values()):
        if hasattr(evidence, "agree"):
            evidence.agree()
    return seen


def _reached(passages: Mapping[Axis, Passage], axis: Axis) -> Passage:
    if axis in passages:
        return passages[axis]
    raise NotPermissible(
        f"no gradient of the loss reaches what reads the units of {axis.name}: no such weight was used, or it is "
        "frozen; choose other axes, or a method that doesn't look at the loss."
    )


@contextlib.contextmanager
def _noting(refused: dict[Axis, NotPermissible], axis: Axis) -> Iterator[None]:
    try:
        yield
    except NotPermissible as error:
        refused[axis] = error


def _by_any(refused: Mapping[Axis, NotPermissible], axes: Sequence[Axis]) -> dict[Axis, NotPermissible]:
    """What any of several processes refuses, all do."""
    found = told_by_any({axis.name: str(error) for axis, error in refused.items()})
    return {axis: NotPermissible(found[axis.name]) for axis in axes if axis.name in found}


def _together(refused: Mapping[Axis, NotPermissible], number: int) -> NotPermissible:
    """What is said where some of several axes can't be looked at: all at once, as they have to be left out at once."""
    if number == 1 or len(refused) == 1:
        return next(iter(refused.values()))
    reasons = "\n".join(f"- {error}" for error in refused.values())
    names = [axis.name for axis in refused]
    return NotPermissible(
        f"{len(refused)} of these {number} axes can't be; leave them out, protect={names}:\n{reasons}"
    )


@contextlib.contextmanager
def looking(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Inside, the model may be run and differentiated; nothing of that stays.

    Yields what puts buffers back, which runs move.
    """
    buffers = _Buffers(model)
    with untouched(model, garbage_waits=False), torch.enable_grad():
        try:
            yield buffers.restore
        finally:
            buffers.restore()


def _passages(axes: Sequence[Axis], loss: Callable[[], Tensor]) -> list[Passage]:
    recorder = Recorder(axes)
    with recorder:
        value = computed(loss)
    passages = recorder.passages(value)
    for passage in passages:
        for gradient in passage.ends.values():
            if gradient.dtype == torch.float16 and abs(passage.loss) < _SCALED:
                raise ValueError(
                    f"the gradients at what reads the units of {passage.axis.name} are in float16, and the loss isn't "
                    "scaled: most of them vanish; return scaler.scale(loss), or use bfloat16."
                )
            if not math.isfinite(float(gradient.sum().abs())) and not bool(torch.isfinite(gradient).all()):
                raise ValueError(
                    f"the gradients at what reads the units of {passage.axis.name} are not finite; "
                    "lower the learning rate or the loss's scale, or leave that axis out."
                )
    return passages


#: A loss above this has been scaled, by a GradScaler or by being a sum, so that its gradients don't vanish in float16.
_SCALED = 128.0


def computed(loss: Callable[[], Tensor]) -> Tensor:
    """The loss on its next batch.

    Raises:
        TypeError, ValueError: It is no finite differentiable scalar, or there is no batch left.
    """
    try:
        value: Any = loss()
    except StopIteration as error:
        raise ValueError("the loss has no batch left: it raised StopIteration; give it a fresh loader.") from error
    if not isinstance(value, Tensor):
        raise TypeError(f"loss returns a scalar tensor, not {type(value).__name__}.")
    if value.numel() != 1:
        raise ValueError(f"loss returns a scalar, not a tensor of shape {tuple(value.shape)}; reduce it to one number.")
    if not value.requires_grad:
        raise ValueError("loss returns a tensor without a gradient; compute it from the model outside torch.no_grad().")
    if not math.isfinite(value.item()):
        raise ValueError(f"the loss is {value.item()} on these batches; nothing can be learned from it.")
    return value


class _Buffers:
    """The buffers of a model as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self._held = [(m._buffers, dict(m._buffers)) for m in model.modules()]
        self._values = [(b, b.detach().clone()) for _, held in self._held for b in held.values() if b is not None]

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the buffers that were replaced, and the values of those that were written to."""
        for store, held in self._held:
            store.clear()
            store.update(held)
        for buffer, value in self._values:
            if not torch.equal(buffer, value):  # a norm's kernels write without telling autograd's version counter
                buffer.copy_(value)

"""What a model did between the weights that produce an axis's units and the outputs of those that consume them.

A passage is a recording on one batch that can run again with other units in the place of the old ones. With the
gradients ∂L/∂z that reached the consumers' outputs z it tells, to first order, what the loss does when such units are
added: ``Σ ⟨∂L/∂z, z(units)⟩``. What growing methods look at are derivatives of that number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import NotPermissible
from ..rows import Rows, number_of, rows_of, with_rows
from ..structure import Axis, Entry
from .dropout import call_undropped, is_random
from .normalisation import NORMS, Run, calibrating, mean_by_channel, passed

#: A value that is nothing beside any other, and yet on the positive side of zero.
TINY = 1e-20


class Slot(NamedTuple):
    """Stands, in a recorded call, for a tensor that follows the axis's units."""

    number: int


def leaves(values: Iterable[Any]) -> Iterator[Any]:
    """What a call's arguments hold: they are nested in lists and tuples only."""
    for value in values:
        if isinstance(value, (list, tuple)) and not isinstance(value, Slot):
            yield from leaves(value)
        else:
            yield value


@dataclass(eq=False)
class Constant:
    """A recorded tensor that doesn't follow the units."""

    tensor: Tensor


@dataclass(frozen=True)
class Step:
    """One recorded call; tensors that follow the units are slots."""

    op: Any
    args: tuple
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]  # the slots of the tensors returned, None for those nobody follows

    def slots(self) -> list[int]:
        """The slots among the arguments."""
        return [leaf.number for leaf in leaves((*self.args, *self.kwargs.values())) if isinstance(leaf, Slot)]

    def constants(self) -> list[Tensor]:
        """The tensors among the arguments that don't follow the units."""
        return [leaf.tensor for leaf in leaves((*self.args, *self.kwargs.values())) if isinstance(leaf, Constant)]

    def given(self, values: dict[int, Tensor]) -> tuple[tuple, dict[str, Any]]:
        """The arguments, with these tensors in the slots."""

        def fill(value: Any) -> Any:
            if isinstance(value, Slot):
                return values[value.number]
            if isinstance(value, Constant):
                return value.tensor
            if isinstance(value, (list, tuple)):
                return type(value)(fill(v) for v in value)
            return value

        return fill(self.args), {key: fill(value) for key, value in self.kwargs.items()}


@dataclass
class Passage:
    """The calls from an axis's tensors to the outputs of what consumes its units, as they were on one batch.

    Attributes:
        axis: Whose units pass.
        roots: Slot -> the parameter or buffer that is in it.
        steps: The calls, in order.
        ends: Slot of each consumer's output -> the gradient of the loss there.
        made: Slot of a root that met data which don't follow the units -> slots of what came of the two.
        custom: Whether the model defines derivatives by itself on the way, by ``torch.autograd.Function``.
        loss: On this batch.
    """

    axis: Axis
    roots: dict[int, Tensor]
    steps: list[Step]
    ends: dict[int, Tensor]
    made: dict[int, set[int]]
    custom: bool = False
    loss: float = 0.0

    def __post_init__(self) -> None:
        self.entries: dict[int, list[Entry]] = {
            slot: [e for e in self.axis.entries if e.tensor is root] for slot, root in self.roots.items()
        }

    @property
    def normalised(self) -> bool:
        """Whether the units pass a norm that uses the statistics of the batch."""
        return any(NORMS[step.op].by_batch(*step.args) for step in self.steps if step.op in NORMS)

    @property
    def epsilon(self) -> float:
        """The smallest ε of the norms on the way that use the batch's statistics."""
        norms = [(NORMS[step.op], step.args) for step in self.steps if step.op in NORMS]
        return min(float(args[norm.epsilon]) for norm, args in norms if norm.by_batch(*args))

    @property
    def sources(self) -> list[Entry]:
        """The weights that make units of data; others that produce, as a depthwise convolution's, only pass them on."""
        found = [e for slot, entries in self.entries.items() if slot in self.made for e in entries]
        return [e for e in found if e.role == "out"]

    @property
    def readers(self) -> list[Entry]:
        """The weights that read the units."""
        return [e for e in self.read if e.role == "in"]

    @property
    def read(self) -> list[Entry]:
        """The entries that the recorded calls have read."""
        return [entry for entries in self.entries.values() for entry in entries]

    def first_examples(self, number: int) -> Passage:
        """The same on the first of the batch's examples, for calls to which the number of examples doesn't matter."""

        def cut(value: Any) -> Any:
            if isinstance(value, Constant) and value.tensor.ndim > 1:
                return Constant(value.tensor[:number])
            return (
                type(value)(map(cut, value)) if isinstance(value, (list, tuple)) and type(value) is not Slot else value
            )

        steps = [replace(step, args=cut(step.args)) for step in self.steps]
        return replace(self, steps=steps, ends={slot: g[:number] for slot, g in self.ends.items()})

    def outputs(self, units: Rows) -> dict[int, Tensor]:
        """What the consumers put out for these units, by the slots of :attr:`ends`."""
        values = self._run(units, call_undropped)
        return {slot: values[slot] for slot in self.ends}

    def gain(self, units: Rows) -> Tensor:
        """What adding units would do to the loss, to first order: a scalar, differentiable in ``units``.

        Args:
            units: Rows of as many units as the axis has; entries left out keep the old units' values.
        """
        return self._gain(units, call_undropped)

    def gain_at_zero(self, units: Rows, centre: bool = True, from_right: bool = True) -> Tensor:
        """The same in the limit of units that are zero.

        Args:
            units: As for :meth:`gain`.
            centre: Norms subtract the mean of the batch; else they do nothing. Nowhere do they divide.
            from_right: Activations have their derivative from the right, as if a tiny positive shift came before.
        """

        def call(op: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
            if op in NORMS and NORMS[op].by_batch(*args):
                return passed(op, args, mean_by_channel if centre else torch.zeros_like)
            if from_right and torch.Tag.pointwise in op.tags and isinstance(args[0], Tensor) and _alone(args, kwargs):
                return op(args[0] + TINY, *args[1:], **kwargs)
            return call_undropped(op, args, kwargs)

        return self._gain(units, call)

    def gain_as_made(self, units: Rows) -> Tensor:
        """The same with norms that do nothing to the batch, as new ones in eval mode."""

        def call(op: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
            if op in NORMS and NORMS[op].by_batch(*args):
                return passed(op, args, torch.zeros_like)
            return call_undropped(op, args, kwargs)

        return self._gain(units, call)

    def check_units_apart(self) -> None:
        """What one unit sends doesn't depend on the others.

        Raises:
            NotPermissible: It does.
        """
        size = self.axis.size
        first = torch.arange(size) < size // 2
        sources = {e: rows_of(e, e.tensor.detach(), size) for e in self.sources}
        moved = {e: torch.where(_beside(first, rows), 2 * rows + 1, rows) for e, rows in sources.items()}
        (before, after) = (self.received(rows)[~first] for rows in (sources, moved))
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
            raise NotPermissible(
                f"what a unit of {self.axis.name} sends depends on the others, as behind a norm or a softmax over "
                "them; leave that axis out (protect=), or grow it by Random."
            )

    def received(self, units: Rows) -> Tensor:
        """The gradient of the outgoing weights of these units, with the old ones' weights: a row for each unit."""
        weights = {e: rows_of(e, e.tensor.detach(), self.axis.size).requires_grad_() for e in self.readers}
        with torch.enable_grad():
            found = torch.autograd.grad(self.gain({**units, **weights}), list(weights.values()))
        return torch.cat([gradient.flatten(1) for gradient in found], 1)

    def made_of(self, entry: Entry, units: Rows) -> list[Tensor]:
        """What one of the sources makes of the data for these units, differentiable in them."""
        slots = next(slots for root, slots in self.made.items() if entry in self.entries[root])
        last = max(i for i, step in enumerate(self.steps) if not slots.isdisjoint(step.outputs))
        values = self._run(units, call_undropped, self.steps[: last + 1])
        return [values[slot] for slot in sorted(slots)]

    def calibrated(self, units: Rows) -> dict[Entry, Tensor]:
        """The statistics that norms find for units: rows for the entries that are running means and variances."""
        with torch.no_grad():
            values = self._run(units, calibrating(call_undropped))
        return {
            entry: rows_of(entry, values[slot], self.axis.size)
            for slot, entries in self.entries.items()
            for entry in entries
            if entry.role in ("mean", "var")
        }

    def _gain(self, units: Rows, call: Run) -> Tensor:
        values = self._run(units, call)
        exact = torch.promote_types(torch.float32, next(iter(self.ends.values())).dtype)
        return torch.stack([(values[slot].to(exact) * g.to(exact)).sum() for slot, g in self.ends.items()]).sum()

    def _run(self, units: Rows, call: Run, steps: Sequence[Step] | None = None) -> dict[int, Tensor]:
        values = dict(self._roots_with(units))
        steps = self.steps if steps is None else steps
        with _the_same_draws(steps, next(iter(values.values())).device):
            for step in steps:
                out = call(step.op, *step.given(values))
                tensors = [t for t in leaves((out,)) if isinstance(t, Tensor)]
                values.update((slot, t) for slot, t in zip(step.outputs, tensors, strict=True) if slot is not None)
        return values

    def _roots_with(self, units: Rows) -> Iterator[tuple[int, Tensor]]:
        for slot, root in self.roots.items():
            tensor = root.detach().clone()
            for entry in self.entries[slot]:
                if entry in units:
                    tensor = with_rows(entry, tensor, units[entry])
            yield slot, tensor


def _beside(mask: Tensor, rows: Tensor) -> Tensor:
    return mask.to(rows.device).reshape(-1, *[1] * (rows.ndim - 1))


@contextlib.contextmanager
def _the_same_draws(steps: Sequence[Step], device: torch.device) -> Iterator[None]:
    """Calls that draw random numbers draw the same ones whenever they run again."""
    if not any(is_random(step.op) for step in steps):
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _alone(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether the first argument is the only tensor, and one of real numbers."""
    others = leaves((*args[1:], *kwargs.values()))
    return args[0].is_floating_point() and not any(isinstance(v, Tensor) for v in others)


def parts_of(passage: Passage, units: Rows) -> list[dict[Entry, Tensor]]:
    """Units in parts of as many as the axis has, as a passage takes them; the last is filled up with its own first."""
    size, number = passage.axis.size, number_of(units)
    parts = []
    for start in range(0, number, size):
        index = torch.arange(start, start + size)
        index[index >= number] = start
        parts.append({entry: rows[index.to(rows.device)] for entry, rows in units.items()})
    return parts

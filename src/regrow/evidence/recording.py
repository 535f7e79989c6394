"""Recording, while the loss is computed, what passes between the producers and the consumers of axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from ..structure import Axis
from .dropout import undropped
from .passage import Constant, Passage, Slot, Step, leaves


@dataclass(frozen=True)
class _Kind:
    """What a tensor that follows an axis is."""

    roots: frozenset[int]  # slots of the parameters and buffers that it was computed from; none once data have joined
    reads: bool = False  # computed from weights that read the units, and nothing else that follows them

    @property
    def has_units(self) -> bool:
        return not self.roots


@dataclass
class _Draft:
    """A passage while it is recorded."""

    axis: Axis
    kinds: dict[int, _Kind] = field(default_factory=dict)  # by slot
    memory: dict[int, int] = field(default_factory=dict)  # slot -> address
    roots: dict[int, Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    ends: dict[int, GradientEdge | None] = field(default_factory=dict)
    custom: bool = False
    made: dict[int, set[int]] = field(default_factory=dict)  # root that met data -> slots of what came of it

    def slot(self, kind: _Kind | None = None) -> int:
        """A new slot; without a kind one of a root that does more than read."""
        slot = len(self.kinds)
        self.kinds[slot] = _Kind(frozenset([slot])) if kind is None else kind
        return slot

    def result(self, slots: Sequence[int]) -> _Kind:
        """What a call makes of what is in these slots and of nothing else."""
        kinds = [self.kinds[slot] for slot in slots]
        roots = frozenset().union(*(kind.roots for kind in kinds))
        if all(kind.reads for kind in kinds):
            return _Kind(roots, reads=True)
        if any(kind.has_units for kind in kinds):
            return _Kind(frozenset())
        return _Kind(roots)


class Recorder(TorchDispatchMode):
    """A mode in which the loss is computed.

    Tensors are followed from each axis's parameters and buffers through all that is computed from them. Where units
    meet weights that read them, the output is an end: what comes later isn't the axis's any more.

    Attributes:
        new_ends: The ends that the last call made: axis, slot and tensor.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        super().__init__()
        self._drafts = [_Draft(axis) for axis in axes]
        self._followed: dict[int, dict[int, int]] = {}  # id of a tensor -> number of a draft -> slot
        self._alive: list[Tensor] = []  # ids stay unique only while their tensors live
        self.new_ends: list[tuple[Axis, int, Tensor]] = []
        self._waiting: list[tuple[_Draft, int, Tensor]] = []
        self._constants: dict[int, list[Constant]] = {}  # address -> what is recorded of it
        for number, draft in enumerate(self._drafts):
            for entry in draft.axis.entries:
                if number not in self._followed.get(id(entry.tensor), ()):
                    slot = draft.slot()
                    draft.kinds[slot] = _Kind(frozenset([slot]), reads=entry.role == "in")
                    draft.roots[slot] = entry.tensor
                    self._follow(entry.tensor, number, slot)

    def _follow(self, tensor: Tensor, number: int, slot: int) -> None:
        self._followed.setdefault(id(tensor), {})[number] = slot
        self._alive.append(tensor)

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        self._attach()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self._attach()
        self.new_ends = []
        func, args, kwargs = undropped(func, args, kwargs or {})
        given = _tensors((*args, *kwargs.values()))
        # Also a call that writes to its arguments is recorded with what these were.
        found = {number for t in given for number in self._followed.get(id(t), ())}
        if func._schema.is_mutable:
            self._keep(given)
        out = func(*args, **kwargs)
        for number in sorted(found):
            self._record(number, func, args, kwargs, given, out)
        return out

    def _attach(self) -> None:
        """Torch gives an output its place in the graph only when the call is over; later it may be written to."""
        for draft, slot, tensor in self._waiting:
            edge = get_gradient_edge(tensor) if tensor.requires_grad else None
            draft.ends[slot] = edge
            draft.custom |= edge is not None and _has_custom(edge.node, len(draft.steps))
        self._waiting.clear()

    def _record(self, number: int, op: Any, args: tuple, kwargs: dict, given: list[Tensor], out: Any) -> None:
        draft = self._drafts[number]
        slots = [self._followed[id(t)][number] for t in given if number in self._followed.get(id(t), ())]
        reads = [draft.kinds[slot].reads for slot in slots]
        consumed = any(reads) and not all(reads)
        kind, origins = draft.result(slots), frozenset[int]()
        if kind.roots and not kind.reads and any(number not in self._followed.get(id(t), ()) for t in given):
            kind, origins = _Kind(frozenset()), kind.roots
        outputs: list[int | None] = []
        for tensor in _tensors([out]):
            if not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
                outputs.append(None)
                continue
            known = self._followed.get(id(tensor), {}).get(number)
            slot = draft.slot(kind) if known is None else known
            outputs.append(slot)
            draft.memory[slot] = tensor.untyped_storage()._cdata
            for root in origins:
                draft.made.setdefault(root, set()).add(slot)
            if consumed:
                self._waiting.append((draft, slot, tensor))
                self.new_ends.append((draft.axis, slot, tensor))
                self._alive.append(tensor)
            elif known is None:
                self._follow(tensor, number, slot)
        apart = op in _APART
        fill = lambda v: self._recorded(v, number, apart)  # noqa: E731
        step = Step(op, tuple(map(fill, args)), {k: fill(v) for k, v in kwargs.items()}, tuple(outputs))
        draft.steps.append(step)

    def _recorded(self, value: Any, number: int, apart: bool) -> Any:
        if isinstance(value, Tensor):
            slot = self._followed.get(id(value), {}).get(number)
            if slot is not None:
                return Slot(slot)
            if apart:  # what only stands beside the units tells nothing about them
                return Constant(value.new_zeros(()).expand(value.shape))
            constant = Constant(value.detach())
            self._constants.setdefault(value.untyped_storage()._cdata, []).append(constant)
            return constant
        if isinstance(value, (list, tuple)):
            return type(value)(self._recorded(v, number, apart) for v in value)
        return value

    def _keep(self, given: Sequence[Tensor]) -> None:
        """A call is about to write: what is recorded of the memory of its arguments stays what it was."""
        for tensor in given:
            for constant in self._constants.pop(tensor.untyped_storage()._cdata, ()):
                constant.tensor = constant.tensor.clone()

    def outlines(self) -> list[Passage]:
        """A passage for each axis whose units are read, without gradients."""
        drafts = [draft for draft in self._drafts if draft.ends]
        return [self._finished(draft, dict.fromkeys(draft.ends, torch.empty(0))) for draft in drafts]

    def passages(self, loss: Tensor) -> list[Passage]:
        """A passage for each axis, with the gradients of a loss that was computed in this mode.

        Axes are missing whose units no weight reads that a gradient reaches.
        """
        edges = [edge for draft in self._drafts for edge in draft.ends.values() if edge is not None]
        found = torch.autograd.grad(loss, edges, allow_unused=True) if edges else ()
        gradients = dict(zip(edges, found, strict=True))
        passages = []
        for draft in self._drafts:
            at_ends = {slot: gradients[edge] for slot, edge in draft.ends.items() if edge is not None}
            ends = {slot: gradient for slot, gradient in at_ends.items() if gradient is not None}
            if ends:
                passages.append(self._finished(draft, ends, float(loss.detach())))
        return passages

    @staticmethod
    def _finished(draft: _Draft, ends: dict[int, Tensor], loss: float = 0.0) -> Passage:
        steps = _needed(draft, set(ends))
        used = {slot for step in steps for slot in step.slots()}
        roots = {slot: root for slot, root in draft.roots.items() if slot in used}
        made = {root: slots for root, slots in draft.made.items() if root in used}
        return Passage(draft.axis, roots, steps, ends, made, draft.custom, loss)


def _has_custom(node: Any, depth: int) -> bool:
    """Whether a derivative that isn't torch's own lies within so many steps behind a node."""
    layer = {node}
    for _ in range(depth):
        if any(isinstance(n, BackwardCFunction) for n in layer):
            return True
        layer = {n for each in layer for n, _ in each.next_functions if n is not None}
    return False


#: Calls that put tensors beside each other.
_APART = {torch.ops.aten.cat.default, torch.ops.aten.stack.default}


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves(values) if isinstance(leaf, Tensor)]


def _needed(draft: _Draft, wanted: set[int]) -> list[Step]:
    """The steps that the wanted slots depend on, and those that write into the memory of one."""
    kept = []
    written = {draft.memory[slot] for slot in wanted}
    for step in reversed(draft.steps):
        outputs = {slot for slot in step.outputs if slot is not None}
        writes = step.op._schema.is_mutable and not written.isdisjoint(draft.memory[slot] for slot in outputs)
        if writes or not wanted.isdisjoint(outputs):
            kept.append(step)
            given = step.slots()
            wanted |= set(given)
            written |= {draft.memory[slot] for slot in given if slot in draft.memory}
    return kept[::-1]

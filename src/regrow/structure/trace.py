"""Run a model once and hand every ATen call it makes to the rules.

Every index of every dimension of every parameter and buffer gets a *label*, an integer. The trace
carries the labels from tensor to tensor; the rules (``rules.py``) say how a call relates them, and
the relations gathered here are solved in ``solve.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import meta
from .boundary import Boundary, name_of_input
from .call import Call
from .decisions import Decided, Decisions, decided_again
from .flops import Flops
from .integers import integers
from .journal import Comparison, Journal, Record, extent, numbers_of
from .labels import UNIFORM, UNKNOWN, Field, Labelled, Source
from .reads import Reads
from .relations import Relations
from .running import Insides, module_stack, plain_call, plain_kernels
from .shifts import Shifts
from .sizes import SizeMode, integers_as_sizes
from .sources import Sources


class Trace(TorchDispatchMode):
    """The labels of every tensor alive, the relations found so far, and the module being run.

    A first trace gathers relations and writes a journal; a second one, of an edited model, runs on inherited labels
    and compares itself with that journal.
    """

    def __init__(
        self,
        rule_of: Callable[[Call], Rule | None],
        on_meta: bool,
        relations: Relations,
        journal: Journal | Comparison,
        boundary: Boundary | None = None,
    ) -> None:
        super().__init__()
        self.rule_of, self.on_meta = rule_of, on_meta
        self.relations, self.journal = relations, journal
        self.gathering = isinstance(journal, Journal)
        self.boundary = Boundary() if boundary is None else boundary
        self.sources = Sources()
        self.buffers: Collection[str] = ()  # names of sources that nobody trains
        self.order: dict[str, int] = {}  # tensor name -> number of the first call that read it
        self.unknown: dict[str, int] = {}  # calls without a rule -> how often they were made
        self.flops = Flops()
        self.count_flops = True
        self.modules: list[nn.Module] = []
        self.module_names: dict[nn.Module, str] = {}
        self.inputs: dict[int, int] = {}  # id -> number
        self.calls = 0
        self.mkldnn = False  # whether calls on real tensors may use its kernels
        self._labelled: dict[int, Labelled] = {}
        self._names: dict[int, str] = {}
        self._numels: dict[str, int] = {}
        self._uniform: set[int] = set()  # storages
        self._alive: list[Tensor] = []  # ids stay unique only while their tensors live
        self._picked: list[np.ndarray] = []
        self.shifts, self.reads, self.decisions = Shifts(), Reads(relations), Decisions()
        self.sizes: SizeMode | None = None  # in a first trace, where sizes in Python come from
        self._integers: dict[nn.Module | None, set[int]] = {}

    def of(self, tensor: Tensor) -> Labelled:
        """What is known of a tensor."""
        known = self._labelled.get(id(tensor))
        if known is None:
            return UNIFORM if self._uniform and meta.storage_key(tensor) in self._uniform else UNKNOWN
        return known

    def set(self, tensor: Tensor, fields: Iterable[Field], origin: str) -> None:
        """Note the labels and the origin of a tensor."""
        self._labelled[id(tensor)] = Labelled(tuple(fields), origin)
        self._alive.append(tensor)

    def set_uniform(self, tensor: Tensor) -> None:
        """Note that a tensor has one value everywhere."""
        self.set(tensor, (), "uniform")
        self._uniform.add(meta.storage_key(tensor))

    def shifted(self, tensor: Tensor) -> bool:
        """Whether what is silent may be another number than zero there, as after a sigmoid."""
        return bool(self.shifts.of(tensor))

    def written(self, tensor: Tensor) -> None:
        """Note that a tensor was written to: what shares its memory isn't uniform any more."""
        self._uniform.discard(meta.storage_key(tensor))
        base = tensor._base
        if base is not None:
            self.set(base, self.of(base).fields, "data")

    def looked_up(self, fld: Field) -> None:
        """These labels are indices by which entries are looked up: they can't change, unless growing was asked for."""
        if self.opened(fld):
            source = self.sources.of(fld.labels)
            name = source.tensor.rpartition(".")[0] if source is not None else ""
            self.relations.note_kind(fld.labels, "input", f"{name}.entries" if name else "entries")
            self.relations.roles.append((fld.labels.ravel(), "out"))
        else:
            self.relations.freeze([fld], "its entries are looked up by their numbers")

    def opened(self, fld: Field) -> bool:
        """Whether labels at the model's boundary may change, because the user asked for it."""
        source = self.sources.of(fld.labels) if self.boundary.opened else None
        return source is not None and self.boundary.opens(source.tensor)

    def met_input(self, tensor: Tensor, dims: Iterable[int], fields: Iterable[Field]) -> None:
        """A weight's labels met an input along these dimensions."""
        if any(self.opened(f) for f in fields):
            self.boundary.met.setdefault(self.inputs[id(tensor)], set()).update(dims)

    def note(self, call: Call, labels: np.ndarray, kind: str) -> None:
        """Say what kind of thing labels are: an axis of them is called by the module that was running."""
        name = self.module_names.get(call.module, "") if call.module is not None else ""
        self.relations.note_kind(labels, kind, f"{name}.{kind}s" if name else f"{kind}s")

    def integers_of(self, module: nn.Module | None) -> Collection[int]:
        """The values of the integers that a module keeps."""
        if module not in self._integers:
            self._integers[module] = {found.value for found in integers(module)} if module is not None else set()
        return self._integers[module]

    def picked(self, labels: np.ndarray) -> None:
        """Single labels were picked out by position: what is at that position must stay."""
        self._picked.append(labels)

    def add_source(self, name: str, tensor: Tensor, labels: Mapping[int, np.ndarray] | None = None) -> None:
        """Label every dimension of a parameter or buffer that has more than one index.

        Args:
            labels: Inherited labels of its dimensions.
        """
        self.set(tensor, self._fields(name, tensor, range(tensor.ndim), labels), "weight")
        self.decisions.add(tensor)
        self._names[id(tensor)] = name
        self._numels[name] = max(1, tensor.numel())

    def _fields(
        self, name: str, tensor: Tensor, dims: Iterable[int], labels: Mapping[int, np.ndarray] | None
    ) -> list[Field]:
        fields = []
        for dim, size in ((d, tensor.shape[d]) for d in dims):
            if labels is not None and dim in labels:
                found = labels[dim]
            elif size > 1:
                found = self.relations.new_labels(size)
                self.sources.append(Source(name, dim, size, int(found[0])))
            else:
                continue
            if size > 1:
                fields.append(Field((dim,), found))
        return fields

    def add_input(self, number: int, tensor: Tensor, labels: Mapping[int, np.ndarray] | None = None) -> None:
        """A tensor the user hands in: its sizes are data, but for those that may grow."""
        self.inputs[id(tensor)] = number
        self.decisions.add(tensor)
        if id(tensor) not in self._labelled:
            dims = sorted(self.boundary.met.get(number, ()))
            self.set(tensor, self._fields(name_of_input(number), tensor, dims, labels), "data")

    def name_of(self, tensor: Tensor) -> str | None:
        """The parameter or buffer that a weight is, or was computed from."""
        if id(tensor) in self._names:
            return self._names[id(tensor)]
        known = self.of(tensor)
        sources = [self.sources.of(f.labels) for f in known.fields] if known.origin == "weight" else []
        return next((s.tensor for s in sources if s is not None), None)

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a weight is a buffer, or computed from buffers alone."""
        if tensor.requires_grad or not self.buffers:
            return False
        bases = [self.relations.bases(f.labels) for f in self.of(tensor).fields]
        sources = [source for labels in bases for source in self.sources.beneath(labels)]
        return bool(sources) and all(source.tensor in self.buffers for source in sources)

    def owner_of(self, tensor: Tensor) -> str:
        """The module that a weight belongs to, by name."""
        return (self.name_of(tensor) or "").rpartition(".")[0]

    def numel_of(self, name: str) -> int:
        """The number of elements of a parameter or buffer."""
        return self._numels[name]

    def book_flops(self, tensors: Sequence[Tensor], flops: float) -> None:
        """Book the FLOPs of a call that multiplies tensors."""
        if self.count_flops:
            self.flops.book(self, tensors, flops)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given, decided = (*args, *kwargs.values()), None
        if self.on_meta:
            args, kwargs = meta.to_meta(args, kwargs, self._meta_copy)
            out = meta.call(func, args, kwargs)
        else:
            out, decided = self._call(func, args, kwargs)
        if func is torch.ops.aten.empty.memory_format and not out.numel():
            return out  # the scratch memory of a batch norm
        call = Call(func, args, kwargs, out, self.modules[-1] if self.modules else None)
        inputs = tuple(map(self.of, call.tensors))
        self._relate(call)
        self.calls += 1
        if not call.copies:  # whether memory is copied may depend on sizes
            self._write_down(call, given, inputs, decided)
        return out

    def _call(self, func: Any, args: tuple, kwargs: dict) -> tuple[Any, Decided | None]:
        """A call on real tensors, with what it decided; in a trial it decides as before."""
        given = meta.tensors_among((*args, *kwargs.values()))
        out = plain_call(func, args, kwargs, self.mkldnn)
        decided = self.decisions.of(given, out)
        if decided is not None and isinstance(self.journal, Comparison):
            before = self.journal.expected(func)
            out = out if before is None else decided_again(before.decided, given, out)
        return out, decided

    def _relate(self, call: Call) -> None:
        """What the operator's rule says; and, in a first trace, what is read, and where zeros don't stay zero."""
        rule, said = self.rule_of(call), self.reads.before()
        if rule is None:
            self._unknown_call(call)
        else:
            rule(self, call)
        if self.gathering or call.copies:
            self.shifts.note(self, call)
        if self.gathering:
            self.reads.note(call, said)
            for name in {self._names[id(t)] for t in call.tensors if id(t) in self._names}:
                self.order.setdefault(name, self.calls)

    def _write_down(
        self, call: Call, given: Sequence[Any], inputs: tuple[Labelled, ...], decided: Decided | None
    ) -> None:
        """Write the call down, or compare it with what was written down; where zeros don't stay zero is as it was."""
        picked, self._picked = tuple(self._picked), []
        before = self.journal.note(
            Record(
                call.op,
                numbers_of(call, given, bool(inputs) and inputs[0].origin == "uniform"),
                inputs,
                tuple(map(self.of, call.outputs)),
                tuple(map(extent, call.outputs)),
                picked,
                call.module,
                tuple(map(self.shifts.of, call.outputs)),
                decided,
            )
        )
        for tensor, dims in zip(call.outputs, before.shifts, strict=True):
            self.shifts.set(tensor, dims)

    def _meta_copy(self, tensor: Tensor) -> Tensor:
        copy = tensor.to("meta")
        known = self._labelled.get(id(tensor))
        if known is not None:
            self.set(copy, known.fields, known.origin)
        return copy

    def _unknown_call(self, call: Call) -> None:
        name = str(call.op)
        touched = [f for t in call.tensors for f in self.of(t).fields]
        if touched:
            self.unknown[name] = self.unknown.get(name, 0) + 1
            self.relations.freeze(touched, f"meets {name}, for which there is no rule")
        origin = "data" if call.tensors or call.outputs else "uniform"
        for out in call.outputs:
            self.set(out, (), origin)


#: Says how a call relates the labels of its tensors.
Rule = Callable[[Trace, Call], None]


def run(
    trace: Trace,
    insides: Insides,
    args: tuple,
    kwargs: dict[str, Any],
    tensors: Mapping[Tensor, Tensor],
    sizes: Callable[[nn.Module], Iterable[tuple[str, Any]]] = lambda module: (),
) -> Any:
    """One forward pass of a model under the trace, with ``tensors`` in place of its own.

    Args:
        sizes: Attributes that its modules then have to have.
    """
    with contextlib.ExitStack() as stack:
        trace.mkldnn = stack.enter_context(plain_kernels())
        for inside in (torch.enable_grad(), insides.swapped(tensors), module_stack(trace.modules)):
            stack.enter_context(inside)
        if trace.sizes is not None:
            stack.enter_context(integers_as_sizes(insides.model))
            stack.enter_context(trace.sizes)
        for module in insides.modules:
            for attribute, size in list(sizes(module)):
                setattr(module, attribute, size)
        with trace:
            return insides.model(*args, **kwargs)

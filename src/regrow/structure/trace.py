"""Run a model once and hand every ATen call it makes to the rules.

Every index of every dimension of every parameter and buffer gets a *label*, an integer. The trace
carries the labels from tensor to tensor; the rules (``rules.py``) say how a call relates them, and
the relations gathered here are solved in ``solve.py``.
"""

from __future__ import annotations

import bisect
import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from . import meta
from .meta import tensors_among
from .relations import UNIFORM, UNKNOWN, Field, Labelled, Relations, Source


class Call:
    """One ATen call: its arguments by their schema names, what it returned, and where it was made."""

    def __init__(self, op: Any, args: tuple, kwargs: dict, out: Any, module: nn.Module | None) -> None:
        self.op, self.out, self.module = op, out, module
        self.arguments: dict[str, Any] = dict(kwargs)
        for spec, value in zip(op._schema.arguments, args, strict=False):
            self.arguments[spec.name] = value

    @property
    def name(self) -> str:
        """The operator's name without namespace and overload, as ``"convolution"``."""
        return self.op._schema.name.partition("::")[2]

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def get(self, argument: str, default: Any = None) -> Any:
        return self.arguments.get(argument, default)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, in order."""
        return tensors_among(self.arguments.values())

    @property
    def outputs(self) -> list[Tensor]:
        return tensors_among([self.out])


class Trace(TorchDispatchMode):
    """The labels of every tensor alive, the relations found so far, and the module being run."""

    def __init__(self, rule_of: Callable[[Any], Callable[[Trace, Call], None] | None], on_meta: bool) -> None:
        super().__init__()
        self.rule_of = rule_of
        self.on_meta = on_meta
        self.relations = Relations()
        self.sources: list[Source] = []
        self.order: dict[str, int] = {}  # tensor name -> number of the first call that read it
        self.unknown: dict[str, int] = {}  # calls without a rule -> how often they were made
        self.flops: dict[str | None, float] = {}  # tensor name -> FLOPs per element; None: not by weights
        self.count_flops = True
        self.modules: list[nn.Module] = []
        self.inputs: set[int] = set()
        self._labelled: dict[int, Labelled] = {}
        self._names: dict[int, str] = {}
        self._uniform: set[int] = set()  # storages
        self._alive: list[Tensor] = []  # ids stay unique only while their tensors live
        self._calls = 0

    def of(self, tensor: Tensor) -> Labelled:
        """What is known of a tensor."""
        known = self._labelled.get(id(tensor))
        if known is None and meta.storage_key(tensor) in self._uniform:
            return UNIFORM
        return UNKNOWN if known is None else known

    def set(self, tensor: Tensor, fields: Iterable[Field], origin: str) -> None:
        """Note the labels and the origin of a tensor."""
        self._labelled[id(tensor)] = Labelled(tuple(fields), origin)
        self._alive.append(tensor)

    def set_uniform(self, tensor: Tensor) -> None:
        """Note that a tensor has one value everywhere."""
        self.set(tensor, (), "uniform")
        self._uniform.add(meta.storage_key(tensor))

    def written(self, tensor: Tensor) -> None:
        """Note that a tensor was written to: what shares its memory isn't uniform any more."""
        self._uniform.discard(meta.storage_key(tensor))
        base = tensor._base
        if base is not None:
            self.set(base, self.of(base).fields, "data")

    def add_source(self, name: str, tensor: Tensor) -> None:
        """Label every dimension of a parameter or buffer that has more than one index."""
        fields = []
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                labels = self.relations.new_labels(size)
                self.sources.append(Source(name, dim, size, int(labels[0])))
                fields.append(Field((dim,), labels))
        self.set(tensor, fields, "weight")
        self._names[id(tensor)] = name

    def add_input(self, tensor: Tensor) -> None:
        """A tensor the user hands in: its sizes are data."""
        self.inputs.add(id(tensor))
        self.set(tensor, (), "data")

    def source_of(self, labels: np.ndarray) -> Source | None:
        """The tensor dimension whose own labels these are."""
        first = int(labels.flat[0])
        index = bisect.bisect_right(self.sources, first, key=lambda source: source.start) - 1
        if index >= 0 and first < self.sources[index].start + self.sources[index].size:
            return self.sources[index]
        return None

    def name_of(self, tensor: Tensor) -> str | None:
        """The parameter or buffer that a weight is, or was computed from."""
        known = self.of(tensor)
        sources = [self.source_of(f.labels) for f in known.fields] if known.origin == "weight" else []
        return next((s.tensor for s in sources if s is not None), None)

    def owner_of(self, tensor: Tensor) -> str:
        """The module that a weight belongs to, by name."""
        return (self.name_of(tensor) or "").rpartition(".")[0]

    def book_flops(self, weight: Tensor, flops: float) -> None:
        """Book the FLOPs of a call on the weight it reads, so that they follow its size."""
        if not self.count_flops:
            return
        name = self.name_of(weight)
        share = flops / weight.numel() if name else flops
        self.flops[name] = self.flops.get(name, 0.0) + share

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        op, kwargs = func, kwargs or {}
        if self.on_meta:
            args, kwargs = meta.to_meta(args, kwargs, self._meta_copy)
        out = meta.call(op, args, kwargs)
        call = Call(op, args, kwargs, out, self.modules[-1] if self.modules else None)
        for tensor in call.tensors:
            name = self._names.get(id(tensor))
            if name is not None:
                self.order.setdefault(name, self._calls)
        self._calls += 1
        rule = self.rule_of(op)
        if rule is None:
            self._unknown_call(call)
        else:
            rule(self, call)
        return out

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


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, mode flags and every random state are as before."""
    flags = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training
            random.setstate(python)
            np.random.set_state(numpy)


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})


@contextlib.contextmanager
def swapped(model: nn.Module, tensors: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Inside, the model has other tensors in place of its parameters and buffers; ties stay ties.

    Whatever attributes its modules are given meanwhile, by the code that runs too, they are as before afterwards.
    """
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    stores: list[dict[str, Any]] = [s for module in model.modules() for s in (module._parameters, module._buffers)]
    before = [dict(store) for store in stores]
    try:
        for store in stores:
            store.update({key: tensors[t] for key, t in store.items() if t is not None})
        yield
    finally:
        for module, held in attributes:
            vars(module).clear()
            vars(module).update(held)
        for store, items in zip(stores, before, strict=True):
            store.clear()
            store.update(items)


def run(trace: Trace, model: nn.Module, args: tuple, kwargs: dict[str, Any], tensors: Mapping[Tensor, Tensor]) -> Any:
    """One forward pass of ``model`` under the trace, with ``tensors`` in place of its own."""
    with (
        torch.enable_grad(),
        _no_fused_cpu_kernels(),
        swapped(model, tensors),
        module_stack(trace.modules),
        trace,
    ):
        return model(*args, **kwargs)


@contextlib.contextmanager
def module_stack(stack: list[nn.Module]) -> Iterator[None]:
    """Keep in ``stack`` the modules whose forward is running, outermost first."""
    enter = global_hooks.register_module_forward_pre_hook(lambda module, _: stack.append(module))
    leave = global_hooks.register_module_forward_hook(lambda *_: _no_result(stack.pop()), always_call=True)
    try:
        yield
    finally:
        enter.remove()
        leave.remove()


def _no_result(_: Any) -> None:
    """A forward hook that returned something would replace the module's output."""


@contextlib.contextmanager
def _no_fused_cpu_kernels() -> Iterator[None]:
    """Without mkldnn, recurrent layers show as the plain calls that they are made of."""
    # torch.backends.mkldnn.flags would also set TF32, which warns on machines that have none.
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)

"""One run of a model, with the stretch of calls that each module makes, and how these are wired."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import meta
from .example import Example, tensors_in
from .running import Insides, plain_kernels, untouched


@dataclass(eq=False)
class Span:
    """One call of a module.

    Attributes:
        module, name: Which one.
        start, stop: The calls of operators that it makes, by number.
        outputs: The tensors that it returns, in order.
        given: The first of its arguments that is a tensor.
        given_by: The call that made that one.
        returned: What it returns, as it is.
        made_by: The call that made the first of its outputs.
        passed: Of a tuple that it returns, which places are arguments as they were given, and which ones, by position
            or name.
        others: The calls that made the rest of what it returns; None for what no call made.
    """

    module: nn.Module
    name: str
    start: int
    stop: int = -1
    outputs: list[Tensor] = field(default_factory=list)
    returned: Any = None
    made_by: int | None = None
    passed: tuple[tuple[int, int | str], ...] = ()
    others: list[int | None] = field(default_factory=list)
    given: Tensor | None = None
    given_by: int | None = None


@dataclass
class Step:
    """One call of an operator: its name, for each tensor that it reads the number of the call that made it, and the
    shape of what it makes first.

    What no call made is "-" for parameters and buffers, and "+" for whatever else comes from outside.
    """

    name: str
    reads: list[int | str]
    shape: tuple[int, ...] = ()


class Recording(TorchDispatchMode):
    """All calls of one run, and the spans of modules."""

    def __init__(self, on_meta: bool, weights: set[int]) -> None:
        super().__init__()
        self.on_meta, self._weights = on_meta, weights
        self.steps: list[Step] = []
        self.spans: list[Span] = []
        self._made: dict[int, int] = {}
        self._alive: list[Tensor] = []  # ids stay unique only while their tensors live

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = meta.tensors_among((*args, *kwargs.values()))
        if self.on_meta:
            args, kwargs = meta.to_meta(args, kwargs, lambda tensor: tensor.to("meta"))
            out = meta.call(func, args, kwargs)
        else:
            out = func(*args, **kwargs)
        reads: list[int | str] = [self._made.get(id(t), "-" if id(t) in self._weights else "+") for t in given]
        made = meta.tensors_among([out])
        for tensor in made:
            self._made[id(tensor)] = len(self.steps)
            self._alive.append(tensor)
        self.steps.append(Step(func._schema.name, reads, tuple(made[0].shape) if made else ()))
        return out

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Inside, every call of a module is a span."""
        running: list[Span] = []
        names = {module: name for name, module in model.named_modules()}

        def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            span = Span(module, names[module], len(self.steps))
            span.given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            span.given_by = self._made.get(id(span.given)) if span.given is not None else None
            running.append(span)
            self.spans.append(span)

        def leave(module: nn.Module, args: tuple, kwargs: dict[str, Any], returned: Any) -> None:
            while running:
                span = running.pop()
                if span.module is module:
                    span.stop, span.outputs, span.returned = len(self.steps), tensors_in(returned), returned
                    span.made_by = self._made.get(id(span.outputs[0])) if span.outputs else None
                    parts = returned if isinstance(returned, tuple) else tuple(span.outputs)
                    self._see_rest(span, parts, {**dict(enumerate(args)), **kwargs})
                    return

        handles = []
        for module in names:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see_rest(self, span: Span, parts: tuple, arguments: Mapping[int | str, Any]) -> None:
        """Note what a module returns behind its first tensor."""
        held = {id(value): key for key, value in arguments.items() if value is not None}
        span.passed = tuple((n, held[id(value)]) for n, value in enumerate(parts) if n and id(value) in held)
        places = {0, *(place for place, _ in span.passed)}
        rest = [tensor for n, value in enumerate(parts) if n not in places for tensor in tensors_in(value)]
        span.others = [self._made.get(id(tensor)) for tensor in rest]

    @functools.cached_property
    def last_read(self) -> dict[int | str, int]:
        """By call, the last one that reads what it made."""
        return {read: number for number, step in enumerate(self.steps) for read in step.reads}


def record(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Recording:
    """Run a model once in eval mode, on meta if it can be, and leave no trace in it."""
    insides = Insides(model)
    with untouched(model), plain_kernels():
        model.eval()
        for on_meta in (True, False):
            example = Example.of(args, kwargs, on_meta)
            tensors = example.stand_ins(model)
            found = Recording(on_meta, {id(t) for t in tensors.values()})
            try:
                with found.watching(model), insides.swapped(tensors), torch.enable_grad(), found:
                    model(*example.args, **example.kwargs)
                return found
            except Exception:
                if not on_meta:
                    raise
    raise AssertionError

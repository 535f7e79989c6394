"""In which order a model's modules run and its tensors are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

NEVER = 2**62


@dataclass
class Visit:
    """What one module did in a forward pass.

    Attributes:
        first: when it was first called; a count of events.
        times: how often it was called.
        calls: ATen calls made while it ran; a module that made none hands on what it is given.
        output: the shape of what it returned last, or of the first tensor in that.
    """

    first: int = NEVER
    times: int = 0
    calls: int = 0
    output: tuple[int, ...] | None = None


@dataclass
class Order:
    """What was seen in one forward pass. What was never reached has no visit."""

    visits: dict[nn.Module, Visit] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)  # tensor name -> when it was first read

    def visit(self, module: nn.Module) -> Visit:
        """What a module did."""
        return self.visits.get(module) or Visit()

    def read(self, name: str) -> int:
        """When a tensor was first read."""
        return self.reads.get(name, NEVER)


def order_of(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Order:
    """Watch one forward pass in eval mode, without arithmetic where the model's code allows that.

    The model is left as it was. Where its code fails, what was seen until then counts.
    """
    order = Order()
    tensors = [*model.parameters(), *model.buffers()]
    for on_meta in (True, False):
        if not on_meta and any(t.is_meta for t in tensors):
            break
        order = Order()
        try:
            watch = _Watch(model, order, on_meta)
            with _as_before(model), torch.no_grad(), watch.of_modules(), watch:
                model.eval()(*_placed(args, on_meta), **_placed(kwargs, on_meta))
            break
        except Exception:  # the analysis has run already: this is about the order alone
            continue
    return order


def _placed(inputs: Any, on_meta: bool) -> Any:
    return pytree.tree_map(lambda v: v.to("meta") if on_meta and isinstance(v, Tensor) else v, inputs)


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Afterwards the model has its attributes again, its modes among them."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


class _Watch(TorchDispatchMode):
    """Notes modules by hooks, and reads of tensors by the calls that are made."""

    def __init__(self, model: nn.Module, order: Order, on_meta: bool) -> None:
        super().__init__()
        self.order, self.on_meta = order, on_meta
        named = [*model.named_parameters(), *model.named_buffers()]
        self.names = {id(tensor): name for name, tensor in named}
        self.stack: list[Visit] = []
        self.events = 0

    @contextmanager
    def of_modules(self) -> Iterator[None]:
        """Inside, modules are noted as they are called and return."""
        enter = global_hooks.register_module_forward_pre_hook(lambda module, _: self._enter(module))
        leave = global_hooks.register_module_forward_hook(lambda _, __, out: self._leave(out))
        try:
            yield
        finally:
            enter.remove()
            leave.remove()

    def _enter(self, module: nn.Module) -> None:
        self.events += 1
        visit = self.order.visits.setdefault(module, Visit(first=self.events))
        visit.times += 1
        self.stack.append(visit)

    def _leave(self, out: Any) -> None:
        leaves = pytree.tree_leaves(dict(out) if isinstance(out, Mapping) else out)
        shape = next((tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)), None)
        self.stack.pop().output = shape

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        self.events += 1
        for visit in self.stack:
            visit.calls += 1
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) in self.names:
                self.order.reads.setdefault(self.names[id(leaf)], self.events)
        if self.on_meta:
            args, kwargs = _on_meta(args), _on_meta(kwargs)
        return func(*args, **kwargs)


def _on_meta(values: Any) -> Any:
    """Arguments of a call: what the model's code makes or keeps is real, but its shape is enough."""
    return pytree.tree_map(
        lambda v: v.to("meta") if isinstance(v, Tensor) else torch.device("meta") if isinstance(v, torch.device) else v,
        values,
    )

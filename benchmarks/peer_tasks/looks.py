"""What is looked at, of any library alike."""

from __future__ import annotations

import ast
import inspect
import textwrap
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Shapes = Mapping[str, torch.Size]


def cpu_seconds(function: Callable[[], Any]) -> float:
    """The CPU time of one call: with a single thread it is that of the clock, but for what else the machine does."""
    start = time.process_time()
    function()
    return time.process_time() - start


def lines(*parts: Callable[..., Any]) -> int:
    """Lines of code of functions and classes: without their heads, docstrings, imports, and blank lines."""
    return sum(_lines(textwrap.dedent(inspect.getsource(part))) for part in parts)


def _lines(source: str) -> int:
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    imports = {at for part in ast.walk(node) if isinstance(part, ast.Import | ast.ImportFrom) for at in _span(part)}
    written = source.splitlines()
    return sum(bool(written[at - 1].strip()) for part in body for at in _span(part) if at not in imports)


def _span(node: ast.stmt) -> range:
    """The numbers of a statement's lines."""
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def shapes(model: nn.Module) -> Shapes:
    """Of all parameters, by name."""
    return {name: p.shape for name, p in model.named_parameters()}


def mark(model: nn.Module, optimizer: Optimizer) -> None:
    """Let each parameter's momentum be the parameter itself, so that one sees whether they stay together."""
    for p in model.parameters():
        optimizer.state[p]["momentum_buffer"] = p.detach().clone()


def held(model: nn.Module, optimizer: Optimizer) -> int:
    """How many of the model's parameters an optimizer works on."""
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return sum(id(p) in known for p in model.parameters())


def carried(model: nn.Module, optimizer: Optimizer, before: Shapes) -> int:
    """How many parameters' momentum, marked before, is still that of their elements that were there."""
    return sum(_still(p, optimizer.state.get(p, {}), before[name]) for name, p in model.named_parameters())


def _still(p: nn.Parameter, state: Mapping[str, Any], old: torch.Size) -> bool:
    momentum = state.get("momentum_buffer")
    if momentum is None or momentum.shape != p.shape:
        return False
    here = tuple(slice(min(sizes)) for sizes in zip(p.shape, old, strict=True))  # new units come last
    return torch.equal(momentum[here], p.detach()[here])


def moved(model: nn.Module, optimizer: Optimizer, loss: Callable[[], Tensor]) -> int:
    """How many parameters the next step changes."""
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    return sum(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What a model that is in train mode puts out in either mode; it stays as it is."""
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = {"train": model(x)}
    for name, buffer in model.named_buffers():
        buffer.copy_(statistics[name])
    model.eval()
    found["eval"] = model(x)
    model.train()
    return found


def size(model: nn.Module) -> int:
    """Numbers in the parameters."""
    return sum(p.numel() for p in model.parameters())

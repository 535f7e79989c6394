"""Sparse weights as torch runs them: where that is faster, by measuring."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .masks import set_mask
from .starts import relative_distance
from .structure.running import untouched
from .surgery import given_to

#: A form is taken if it needs at most this part of the dense time.
WORTH = 0.9
_REPEATS = 7


@dataclass(frozen=True)
class Converted:
    """What became of one linear layer.

    Attributes:
        name: Of the layer.
        sparsity: The fraction of its weights that are zero.
        form: "csr", "2:4", or "dense" where it stayed as it was.
        times_dense: How long the sparse form takes on the example, relative to the dense one; None if there is none.
        reason: Why it stayed dense.
    """

    name: str
    sparsity: float
    form: str
    times_dense: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        taken = "" if self.times_dense is None else f", {self.times_dense:.2f} of the dense time"
        return f"{self.name}: {self.sparsity:.0%} sparse, {self.form}{taken}{f': {self.reason}' if self.reason else ''}"


@torch.no_grad()
def to_sparse(model: nn.Module, x: Any) -> list[Converted]:
    """Give linear layers sparse weights where torch runs them faster on this example, in place, for inference.

    On CPUs that is compressed sparse rows, which pay off from 80 to 98 % of zeros on, the larger the layer and the
    smaller the batch the sooner; on GPUs semi-structured sparsity, for 2 of every 4 weights in half precision. Each
    layer is measured on what it is given; convolutions have no sparse form in torch.

    Args:
        model: In which weights are zero, masked or not; its weights can't be trained afterwards.
        x: Its input, or a tuple of positional inputs, as large as those to come.

    Returns:
        What became of each linear layer.
    """
    given: dict[nn.Module, Tensor] = {}

    def run() -> None:
        with untouched(model), torch.no_grad():
            model.eval()(*x if isinstance(x, tuple) else (x,))

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any], returned: Tensor) -> None:
        given.setdefault(module, given_to(args, kwargs))

    linear = [m for m in model.modules() if type(m) is nn.Linear and isinstance(m._parameters.get("weight"), Tensor)]
    handles = [module.register_forward_hook(keep, with_kwargs=True) for module in linear]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in model.named_modules()}
    return [_converted(names[module], module, data, run) for module, data in given.items()]


def _converted(name: str, module: Any, data: Tensor, run: Callable[[], object]) -> Converted:
    weight = module.weight.detach()
    sparsity = float((weight == 0).float().mean())
    if not sparsity:
        return Converted(name, sparsity, "dense", reason="none of its weights are zero")
    form, make = ("2:4", _semi_structured) if weight.is_cuda else ("csr", _compressed_rows)
    try:
        sparse = make(weight)
        expected = F.linear(data, weight, module.bias)
        near = 1e-2 if weight.dtype in (torch.float16, torch.bfloat16) else 1e-4
        if relative_distance(F.linear(data, sparse, module.bias), expected) > near:
            return Converted(name, sparsity, "dense", reason=f"torch computes something else with {form}")
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return Converted(name, sparsity, "dense", reason=f"torch has no {form} for it: {str(error).splitlines()[0]}")
    ratio = _ratio(lambda: F.linear(data, sparse, module.bias), lambda: F.linear(data, weight, module.bias))
    if ratio > WORTH:
        return Converted(name, sparsity, "dense", ratio, f"{form} isn't faster here")
    dense, module.weight = module.weight, nn.Parameter(sparse, requires_grad=False)
    try:
        run()  # torch's own fast paths read weights past the layer
    except (RuntimeError, NotImplementedError) as error:
        module.weight = dense
        why = str(error).splitlines()[0]
        return Converted(name, sparsity, "dense", ratio, f"the model doesn't run with {form} there: {why}")
    set_mask(module, "weight", None)
    return Converted(name, sparsity, form, ratio)


def _compressed_rows(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is in beta
        return weight.to_sparse_csr()


def _semi_structured(weight: Tensor) -> Tensor:
    groups = (weight.reshape(-1, 4) != 0).sum(1) if weight.shape[1] % 4 == 0 else None
    if groups is None or bool((groups > 2).any()):
        raise ValueError("more than 2 of 4 weights are on")
    return torch.sparse.to_sparse_semi_structured(weight)


def _ratio(one: Callable[[], Tensor], other: Callable[[], Tensor]) -> float:
    """How long one takes relative to the other, in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(_REPEATS + 1):
        for function, taken in zip((one, other), times, strict=True):
            started = time.perf_counter()
            result = function()
            if result.is_cuda:
                torch.cuda.synchronize(result.device)
            if number:  # the first time warms up
                taken.append(time.perf_counter() - started)
    return statistics.median(times[0]) / statistics.median(times[1])

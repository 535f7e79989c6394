"""What the loss would change by if a layer were left out, its input taking its output's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..agreement import averaged_number
from ..structure import Layer
from ..surgery import first_of, given_to, with_first
from . import computed, looking


def first_order(layers: Sequence[Layer], loss: Callable[[], Tensor], batches: int = 1) -> dict[Layer, float]:
    """The loss's derivative by a gate on each layer, ``x + a·(f(x) − x)``, from a = 1 to 0: ``⟨∂L/∂f(x), x − f(x)⟩``.

    Args:
        layers: Of one structure; each keeps the shape of what it is given.
        loss: Returns a differentiable scalar; called once for each batch.
        batches: How many.

    Raises:
        ValueError: The loss is no finite differentiable scalar.
    """
    total = dict.fromkeys(layers, 0.0)
    model = layers[0].structure.model
    with looking(model) as restore:
        for _ in range(batches):
            seen: dict[Layer, tuple[Tensor, Tensor]] = {}
            with ExitStack() as stack:
                for layer in layers:
                    stack.callback(layer.module.register_forward_hook(_watching(seen, layer), with_kwargs=True).remove)
                value = computed(loss)
            reached = {layer: pair for layer, pair in seen.items() if pair[1].requires_grad}
            found = torch.autograd.grad(value, [made for _, made in reached.values()], allow_unused=True)
            restore()
            for (layer, (given, made)), gradient in zip(reached.items(), found, strict=True):
                if gradient is not None:
                    total[layer] += float((gradient * (given - made.detach())).sum()) / batches
    return {layer: averaged_number(slope) for layer, slope in total.items()}


def exact(layers: Sequence[Layer], loss: Callable[[], Tensor], batches: int = 1) -> dict[Layer, float]:
    """The loss with each layer left out, less the loss with all; a loss that draws batches adds their differences."""
    model = layers[0].structure.model
    with looking(model) as restore:

        def mean() -> float:
            values = []
            for _ in range(batches):
                values.append(float(computed(loss).detach()))
                restore()
            return sum(values) / batches

        base, found = mean(), {}
        for layer in layers:
            handle = layer.module.register_forward_hook(_skipping, with_kwargs=True)
            try:
                found[layer] = mean() - base
            finally:
                handle.remove()
    return {layer: averaged_number(change) for layer, change in found.items()}


def _watching(seen: dict[Layer, tuple[Tensor, Tensor]], layer: Layer) -> Callable[..., Any]:
    def watch(module: nn.Module, args: tuple, kwargs: dict[str, Any], returned: Any) -> Any:
        made = first_of(returned)
        seen[layer] = given_to(args, kwargs).detach().clone(), made
        return with_first(returned, made.clone())  # what follows may work in place

    return watch


def _skipping(module: nn.Module, args: tuple, kwargs: dict[str, Any], returned: Any) -> Any:
    return with_first(returned, given_to(args, kwargs).clone())

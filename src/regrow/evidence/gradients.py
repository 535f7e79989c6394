"""The gradient of the loss for whole tensors, over a few batches, that leaves no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..agreement import averaged
from ..errors import NotPermissible
from . import computed, looking


@contextlib.contextmanager
def learning(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, all of these have gradients, frozen ones too: what a unit is worth doesn't depend on what learns."""
    frozen = [tensor for tensor in tensors if not tensor.requires_grad]
    for tensor in frozen:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)


def gradients(
    model: nn.Module, tensors: Sequence[Tensor], loss: Callable[[], Tensor], batches: int = 1
) -> dict[Tensor, Tensor]:
    """The mean gradient of a loss for each tensor; zero where it doesn't reach.

    Args:
        model: That the loss is computed with; it stays as it is, buffers and ``.grad`` included.
        tensors: Parameters of it.
        loss: Returns a differentiable scalar; called once for each batch.
        batches: How many.

    Raises:
        NotPermissible: A tensor is frozen.
        ValueError: The loss is no finite differentiable scalar, or a gradient isn't finite.
    """
    for name, parameter in model.named_parameters():
        if any(parameter is tensor for tensor in tensors) and not parameter.requires_grad:
            raise NotPermissible(f"{name} is frozen and has no gradient; set its requires_grad, or leave it out.")
    total: dict[Tensor, Tensor] = {}
    with looking(model) as restore:
        for _ in range(batches):
            found = torch.autograd.grad(computed(loss), list(tensors), allow_unused=True)
            restore()
            for tensor, gradient in zip(tensors, found, strict=True):
                gradient = torch.zeros_like(tensor) if gradient is None else gradient.detach()
                total[tensor] = total[tensor].add_(gradient) if tensor in total else gradient
    for gradient in total.values():
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError("the gradients of these weights are not finite; lower the loss's scale.")
    return {tensor: averaged(gradient / batches) for tensor, gradient in total.items()}

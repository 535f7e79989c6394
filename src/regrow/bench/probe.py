"""Looking at a network without moving it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from .measures import Classification, Measure

Batches = Iterable[tuple[Tensor, Tensor]]
CLASSES = Classification()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, measure: Measure = CLASSES) -> tuple[float, float]:
    """Mean loss and score over batches of inputs and targets, in the present mode."""
    loss, score, count = 0.0, 0.0, 0
    for inputs, targets in batches:
        outputs = model(inputs)
        loss += measure.loss(outputs, targets).item() * len(targets)
        score += measure.score(outputs, targets) * len(targets)
        count += len(targets)
    return loss / count, score / count


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode; each module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def training_unmoved(model: nn.Module) -> Iterator[None]:
    """In train mode with dropout off; buffers (running statistics), modes and random states are restored."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with evaluating(model), torch.random.fork_rng(devices):
        model.train()
        for module in model.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def both_losses(model: nn.Module, batches: Batches, measure: Measure = CLASSES) -> tuple[float, float]:
    """The loss in train mode (batch statistics) and in eval mode; the network stays as it is."""
    batches = list(batches)
    with training_unmoved(model):
        train_mode, _ = evaluate(model, batches, measure)
    with evaluating(model):
        eval_mode, _ = evaluate(model, batches, measure)
    return train_mode, eval_mode

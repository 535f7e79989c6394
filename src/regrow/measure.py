"""Parameters and FLOPs of a model."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from .structure.example import named_tensors
from .structure.running import Insides, untouched


def parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones counted once.

    >>> parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    """FLOPs of one forward pass on an input, batch included: 2 × multiply-adds of convolutions and products.

    Runs on the meta device in eval mode: nothing is computed, and the model is left as it was.

    >>> flops(nn.Linear(3, 2), torch.zeros(5, 3))
    60
    """

    def on_meta(value: Any) -> Any:
        return value.detach().to("meta") if isinstance(value, Tensor) else value

    tensors = {t: on_meta(t) for t in named_tensors(model).values()}
    args, kwargs = pytree.tree_map(on_meta, args), pytree.tree_map(on_meta, kwargs)
    with untouched(model), torch.no_grad(), Insides(model).swapped(tensors), FlopCounterMode(display=False) as counter:
        model.eval()
        model(*args, **kwargs)
    return counter.get_total_flops()


def latency(model: nn.Module, *args: Any, repeats: int = 15, **kwargs: Any) -> float:
    """Seconds that a forward pass on an input takes in eval mode, where the model is: the median of some passes.

    Args:
        repeats: Passes that count, after two that don't.
    """
    times = []
    device = next((t.device for t in named_tensors(model).values()), torch.device("cpu"))
    with untouched(model), torch.no_grad():
        model.eval()
        for number in range(2 + repeats):
            started = time.perf_counter()
            model(*args, **kwargs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number > 1:
                times.append(time.perf_counter() - started)
    return statistics.median(times)

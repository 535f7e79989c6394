"""Biases and running statistics follow pruning: what layers get on average, and how much it varies, without the units.

The model runs on each batch as it is, and again with the pruned units silent. A bias that their readers have takes the
difference of the means; a norm's running mean and variance move by as much as those of its input do. In eval mode the
network is then to its running statistics what it was before, and the loss changes by no more than in train mode.

Biases: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..evidence import computed, looking
from ..evidence.twice import Shifts, called_again
from ..structure import Axis, Structure
from ..structure.example import named_tensors


def recalibrated(
    structure: Structure,
    removed: Mapping[Axis, Sequence[int]],
    biases: Collection[str],
    loss: Callable[[], Tensor],
    batches: int,
) -> dict[str, Tensor]:
    """Those biases and all running statistics as they will be, by name.

    Args:
        structure: Of the model, which the loss calls.
        removed: The units that will go.
        biases: Names of the biases that take what the units send.
        loss: Called once for each batch.
        batches: How many.

    Raises:
        TypeError, ValueError: The loss is no finite differentiable scalar, or there is no batch left.
    """
    model = structure.model
    silent = _silenced(removed)
    moments = Shifts(named_tensors(model), biases, silent)
    with looking(model) as restore, called_again(model, silent, moments):
        for _ in range(batches):
            with moments:
                computed(loss)
            restore()
    return moments.moved()


@torch.no_grad()
def _silenced(removed: Mapping[Axis, Sequence[int]]) -> dict[str, Tensor]:
    """The tensors in which the units are zero, by name."""
    silent: dict[str, Tensor] = {}
    for axis, units in removed.items():
        for entry in axis.silencing:
            if isinstance(entry.tensor, nn.Parameter):
                before = silent.get(entry.name, entry.tensor.detach())
                silent[entry.name] = before.index_fill(entry.dim, entry.indices(units), 0.0)
    return silent

"""How long the weights of new units are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..evidence.sides import Side

#: Weights that are so much shorter than the others are of channels that have hardly begun to learn.
_SHORT = 0.1


def mean_norm(old: Tensor) -> float:
    """The mean length of the old units' vectors; where there is none, that of torch's default initialisation."""
    exact = torch.promote_types(torch.float32, old.dtype)
    length = float(old.to(exact).norm(dim=1).mean())
    # Uniform on ±1/√fan_in, as nn.Linear and the convolutions draw: each entry deviates by 1/√(3·fan_in).
    return length if length > 0 and math.isfinite(length) else 1 / math.sqrt(3)


def scaled(vectors: Tensor, length: float) -> Tensor:
    """The same directions, all of one length; zero stays zero."""
    norms = vectors.norm(dim=1, keepdim=True)
    return vectors * (length / norms.clamp(min=torch.finfo(vectors.dtype).tiny))


def lengths_read(outgoing: Side) -> Tensor:
    """How long the old units' weights are along each outgoing weight, shape ``(width,)``, relative to the median.

    One, but where they are much shorter: a norm behind a channel with short weights makes all that reaches it louder.
    """
    exact = torch.promote_types(torch.float32, outgoing.entries[0].tensor.dtype)
    lengths = outgoing.old().to(exact).norm(dim=0)
    relative = lengths / lengths.median().clamp(min=torch.finfo(exact).tiny)
    return torch.where(relative < _SHORT, relative, 1.0)

"""How long the weights of new units are."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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

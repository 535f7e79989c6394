"""The single weights of a model's tensors: what may be on or off by a mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..masks import alive_indices, mask_of, normed_dim, place_of, stored
from ..patterns import means
from .axis import holder
from .roles import roles
from .trace import Trace

if TYPE_CHECKING:
    from . import Structure


@dataclass(eq=False)
class Weights:
    """All weights of one parameter that data are multiplied by.

    Args:
        name: Of the parameter.
        owner, attribute: Where it is, or is parametrised.
        inner: The dimensions along which it reads data, as 1 for a linear layer.
    """

    name: str
    owner: nn.Module = field(repr=False)
    attribute: str = field(repr=False)
    inner: tuple[int, ...] = (1,)
    structure: Structure = field(init=False, repr=False)
    kind = "weight"

    @property
    def tensor(self) -> nn.Parameter:
        """The parameter as it is now."""
        found = stored(self.owner, self.attribute)
        assert found is not None
        return found

    @property
    def mask(self) -> Tensor:
        """True where a weight is on, in the parameter's shape; a copy."""
        known = mask_of(self.owner, self.attribute)
        return torch.ones_like(self.tensor, dtype=torch.bool) if known is None else known.clone()

    @property
    def size(self) -> int:
        """How many weights there are, on or off."""
        return self.tensor.numel()

    @property
    def alive(self) -> int:
        """How many weights are on."""
        return self.size if mask_of(self.owner, self.attribute) is None else len(self.indices)

    @property
    def indices(self) -> Tensor:
        """The flat indices of the weights that are on, in order."""
        return alive_indices(self.owner, self.attribute)

    @property
    def sparsity(self) -> float:
        """The fraction that is off."""
        return 1 - self.alive / self.size

    @property
    def normed(self) -> int | None:
        """The dimension along which a parametrisation divides rows by their norms, so that none may be all zero."""
        return normed_dim(self.owner, self.attribute)

    def is_called(self, pattern: str) -> bool:
        """Whether a pattern means this parameter, or the module that it belongs to."""
        return means(pattern, self.name) or means(pattern, holder(self.name))

    def __str__(self) -> str:
        return f"{self.name}: {self.alive:,} of {self.size:,} weights"


def find_weights(model: nn.Module, trace: Trace) -> tuple[Weights, ...]:
    """The parameters of two dimensions or more that calls multiply data by, in execution order."""
    parameters = dict(model.named_parameters())
    found = roles(trace, parameters)
    inner: dict[str, list[int]] = {}
    for source in trace.sources:
        if found.get(source.start) in ("in", "tied"):
            inner.setdefault(source.tensor, []).append(source.dim)
    names = [name for name in trace.flops.per_element if name in parameters and parameters[name].ndim > 1]
    names.sort(key=lambda name: trace.order.get(name, 0))
    return tuple(Weights(name, *place_of(model, name), tuple(inner.get(name, (1,)))) for name in names)

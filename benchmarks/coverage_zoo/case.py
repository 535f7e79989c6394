"""One model of the zoo with its example, and how it is run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from regrow.structure.outputs import outputs_of

SEED = 0


@dataclass(frozen=True)
class Case:
    """A model and what it is run on.

    Attributes:
        ragged: The first size of its outputs comes from the values, as the number of detected objects does.
    """

    model: nn.Module
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    ragged: bool = False

    @property
    def params(self) -> int:
        """Parameters of the model, shared ones once."""
        return sum(p.numel() for p in self.model.parameters())

    def single(self) -> Case:
        """The same model with the first example of the batch."""

        def first(value: Any) -> Any:
            return value[:1] if isinstance(value, (Tensor, list)) else value

        args, kwargs = pytree.tree_map(first, (self.args, self.kwargs), is_leaf=lambda value: isinstance(value, list))
        return Case(self.model, args, kwargs, self.ragged)

    def evaluate_in_double(self) -> list[Tensor]:
        """The outputs in eval mode, in double precision; then the model is in single precision again."""

        def double(value: Any) -> Any:
            return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

        args, kwargs = pytree.tree_map(double, (self.args, self.kwargs))
        self.model.double()
        try:
            return Case(self.model, args, kwargs, self.ragged).evaluate()
        finally:
            self.model.float()

    def run(self) -> list[Tensor]:
        """The floating point outputs in the model's mode; the same random draws every time."""
        torch.manual_seed(SEED)
        args, kwargs = copy.deepcopy((self.args, self.kwargs))  # detection models write to their inputs
        return [t for t in outputs_of(self.model, self.model(*args, **kwargs)) if t.is_floating_point()]

    @torch.no_grad()
    def evaluate(self) -> list[Tensor]:
        """The outputs in eval mode."""
        self.model.eval()
        return self.run()

    def with_gradient(self) -> set[str]:
        """Train mode, forward and backward: the names of the parameters that receive a finite gradient."""
        self.model.train()
        self.model.zero_grad()
        loss = torch.stack([out.double().square().sum() for out in self.run() if out.requires_grad]).sum()
        loss.backward()
        got = {n for n, p in self.model.named_parameters() if p.grad is not None and bool(p.grad.isfinite().all())}
        self.model.zero_grad()
        return got


#: Builds a model of the zoo, with the random numbers of the current seed.
Build = Callable[[], Case]


def built(build: Build, seed: int = SEED) -> Case:
    """A fresh case; the same seed gives the same weights."""
    torch.manual_seed(seed)
    case = build()
    case.model.eval()
    return case

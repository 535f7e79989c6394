"""GradMax-Optim: the same aim as GradMax, reached by ascent instead of a decomposition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..evidence import Growth
from ..method import register
from ..rows import expanded
from ..structure import Entry
from .forms import silent, swapped
from .gradmax import GradMax, leading
from .scaling import mean_norm
from .silent import outgoing_gradients

#: A norm to be made large, and its gradient.
Objective = Callable[[Tensor], tuple[float, Tensor]]


@register
@dataclass(frozen=True)
class GradMaxOptim(GradMax):
    """The largest gradient for new units, by ascent from random ones.

    The objective is the norm of the gradient of the side that is zero, over orthogonal weights on the other side: where
    only their lengths are held, all units end as copies of the best one. After each step along the gradient the
    weights are made orthonormal again by their polar factor, the nearest such matrix; a step that gains nothing is
    halved. Without batch norm between, the gradient is W_out·Mᵀ, and the ascent ends at GradMax's closed form. Under
    batch norm, with ``"swap"``, it is ∂L/∂W_out of units that send nothing, through the norm and the activation as they
    are, for which there is no closed form; orthogonal are the incoming weights as the inputs' covariance measures them.
    Only what the two layers saw on the last batch is needed: the function doesn't change.

    Args:
        batch_norm, scale, beyond_rank: As for :class:`regrow.GradMax`.
        steps: How many steps of ascent there are.

    Raises:
        ValueError: An option is none of what is said above.

    Evci et al., "GradMax: Growing Neural Networks using Gradient Information" (ICLR 2022), who take Adam with steps of
    0.001 and hold lengths only; at these settings 100 steps gain half a percent, and many more end in copies.
    """

    name: ClassVar[str] = "gradmax-optim"
    steps: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps is a positive integer, not {self.steps!r}.")

    def _units(self, growth: Growth, num: int, generator: torch.Generator) -> dict[Entry, Tensor]:
        num = len(leading(growth.matrix, num, growth.axis, self.beyond_rank)[1])
        if growth.normalised and self.batch_norm == "swap":
            return self._through_everything(growth, num, growth.moments.whitener(), 1.0, generator)
        start = _drawn(num, growth.outgoing.width, growth.matrix, generator)
        matrix, reach = self._within_reach(growth)
        found = ascend(lambda v: _linear(v, matrix), start, self.steps)
        units = silent(growth, found * reach, self.scale, new_norms=self.batch_norm == "naive")
        if units is None:
            same = torch.eye(growth.incoming.width).to(growth.matrix)
            return self._through_everything(growth, num, same, self.scale, generator)
        return units

    def _through_everything(
        self, growth: Growth, num: int, whitener: Tensor, scale: float, generator: torch.Generator
    ) -> dict[Entry, Tensor]:
        """Units with zero outgoing weights, by ascent over ``directions`` of incoming weights directions·whitener."""
        base, length = expanded(growth.base, num), scale * mean_norm(growth.incoming.old())

        def objective(directions: Tensor) -> tuple[float, Tensor]:
            directions = directions.detach().requires_grad_()
            with torch.enable_grad():
                vectors = directions @ whitener
                vectors = vectors * (length / vectors.norm(dim=1, keepdim=True))
                units = base | growth.incoming.rows(vectors)
                norm = outgoing_gradients(growth.passage, growth.outgoing, units).norm()
                (gradient,) = torch.autograd.grad(norm, directions)
            return float(norm.detach()), gradient

        start = _drawn(num, growth.incoming.width, growth.matrix, generator)
        return swapped(growth, ascend(objective, start, self.steps) @ whitener, scale)


def ascend(objective: Objective, start: Tensor, steps: int) -> Tensor:
    """Orthonormal rows with a large objective, by ascent along its gradient."""
    rows = polar(start)
    (value, gradient), size = objective(rows), 4.0
    for _ in range(steps):
        length = float(gradient.norm())
        if length == 0:
            break
        moved = polar(rows + gradient * (size * float(rows.norm()) / length))
        there, gradient_there = objective(moved)
        if there >= value:
            rows, value, gradient, size = moved, there, gradient_there, size * 1.5
        else:
            size /= 2
    return rows


def polar(rows: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows."""
    left, _, right = torch.linalg.svd(rows, full_matrices=False)
    return left @ right


def _linear(rows: Tensor, matrix: Tensor) -> tuple[float, Tensor]:
    """‖rows·Mᵀ‖ and its gradient."""
    product = rows @ matrix.T
    norm = product.norm()
    return float(norm), (product @ matrix) / norm.clamp(min=torch.finfo(norm.dtype).tiny)


def _drawn(num: int, width: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn((num, width), generator=generator, device=generator.device).to(like)

"""The best split of each unit of an axis: along the eigenvector of its splitting matrix's smallest eigenvalue."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..agreement import averaged, averaged_number
from ..errors import NotPermissible
from ..evidence import Passage
from ..evidence.growth import check_passage, check_sides
from ..evidence.passage import Slot, Step
from ..evidence.sides import Side
from ..rows import rows_of, take
from ..structure import Axis, Entry
from .net2wider import check_can_be_shared
from .scaling import mean_norm
from .silent import followed

if TYPE_CHECKING:
    from .splitting import Splitting

_aten = torch.ops.aten


class Splits:
    """Gathers the best split of each unit of an axis. Batches are kept as they were recorded until all were seen.

    Args:
        axis: Whose units.
        config: The method.
        generator: Where the vectors come from that Lanczos' method begins with.

    Attributes:
        values: The smallest eigenvalue of each unit's splitting matrix, shape ``(units,)``.
        directions: Its eigenvectors, of length 1, shape ``(units, weights and shifts)``.
        epsilon: How far the halves move along them.
    """

    values: Tensor
    directions: Tensor

    def __init__(self, axis: Axis, config: Splitting, generator: torch.Generator) -> None:
        check_sides(axis)
        check_can_be_shared(axis)
        self.axis, self.config, self.generator = axis, config, generator
        self.passages: list[Passage] = []

    def add(self, passage: Passage) -> None:
        """See one batch."""
        if not self.passages:
            check_passage(passage)
            passage.check_units_apart()
            self.side = Side.of([*passage.sources, *(e for e in passage.read if e.role == "shift")], self.axis.size)
            self.old = {e: rows_of(e, e.tensor.detach(), self.axis.size) for e in passage.read}
            exact = torch.promote_types(torch.float32, passage.readers[0].tensor.dtype)
            self.weights = self.side.vectors(self.old).to(exact)
            self.epsilon = self.config.epsilon * mean_norm(self.weights)
        self.passages.append(passage)
        try:
            if passage.custom:
                raise RuntimeError("the model defines derivatives by itself")
            self._gradient(passage)
        except RuntimeError as error:
            raise NotPermissible(
                f"the units of {self.axis.name} have no splitting matrix, as something can't be differentiated twice "
                f"({error}); leave that axis out (protect=), or grow it by Firefly."
            ) from error

    def agree(self) -> None:
        """Find the eigenvectors; S is the mean over batches and processes."""
        graphs = [self._gradient(passage) for passage in self.passages]

        def product(vectors: Tensor) -> Tensor:
            found = torch.zeros_like(vectors)
            for weights, gradient in graphs:
                if gradient.requires_grad:
                    (own,) = torch.autograd.grad(gradient, weights, vectors, retain_graph=True, allow_unused=True)
                    found += 0.0 if own is None else own / len(graphs)
            return averaged(found)

        drawn = torch.randn(self.weights.shape, generator=self.generator, device=self.generator.device)
        self.values, self.directions = smallest(product, drawn.to(self.weights), self.config.steps)

    def _gradient(self, passage: Passage) -> tuple[Tensor, Tensor]:
        """What makes the units, and the gain's gradient there, differentiable."""
        weights = self.weights.clone().requires_grad_()
        smooth = smoothed(passage, self.config.smoothing)
        with torch.enable_grad():
            gain = smooth.gain(self.old | self.side.rows(weights))
            (gradient,) = torch.autograd.grad(gain, weights, create_graph=True)
            if gradient.requires_grad:  # whether that can be differentiated again
                torch.autograd.grad(gradient, weights, self.weights, retain_graph=True, allow_unused=True)
        return weights, gradient

    def falls(self) -> Tensor:
        """By how much each split lowers the loss, to second order; zero where none does. Shape ``(units,)``."""
        noise = torch.finfo(self.values.dtype).eps ** 0.5 * self.values.abs().max()
        return torch.where(self.values < -noise, -self.values * self.epsilon**2 / 2, 0.0)

    def halves(self, chosen: Sequence[int]) -> tuple[dict[Entry, Tensor], dict[Entry, Tensor]]:
        """Rows of one half of each of these splits, and of all old units, of which some are the other half."""
        step = self.epsilon * self.directions
        moved = (self.old | self.side.rows(self.weights + sign * step) for sign in (1, -1))
        plus, minus = (followed(self.passages[-1], units, self.old) for units in moved)
        old = {}
        for entry, rows in self.old.items():
            if entry.role == "in":
                plus[entry] = rows / 2
            else:
                old[entry] = rows.clone()
                old[entry][chosen] = minus[entry][chosen].to(rows)
        return take(plus, chosen), old


def smallest(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The smallest eigenvalues of symmetric matrices and their eigenvectors, by Lanczos' method for all at once.

    Args:
        product: Multiplies each matrix with a vector, the rows of a tensor.
        start: The vectors to begin with, shape ``(matrices, width)``.
        steps: How many products are formed, at most ``width``.
    """
    basis, rows = torch.nn.functional.normalize(start, dim=1)[:, None], []
    for step in range(min(steps, start.shape[1])):
        found = product(basis[:, step])
        rows.append(torch.einsum("uw,ujw->uj", found, basis))
        size = found.norm(dim=1, keepdim=True)
        for _ in range(2):  # once is not enough where little is left
            found = found - torch.einsum("uj,ujw->uw", torch.einsum("uw,ujw->uj", found, basis), basis)
        left = found.norm(dim=1, keepdim=True)
        new = torch.where(left > 1e3 * torch.finfo(found.dtype).eps * size, found / left, 0.0)
        basis = torch.cat([basis, new[:, None]], 1)
    small = torch.stack([torch.nn.functional.pad(row, (0, len(rows) - row.shape[1])) for row in rows], 1)
    values, vectors = torch.linalg.eigh(small)  # from the lower triangle
    found = torch.einsum("uj,ujw->uw", vectors[:, :, 0], basis[:, : len(rows)])
    return values[:, 0], torch.nn.functional.normalize(found, dim=1)


def smoothed(passage: Passage, width: float) -> Passage:
    """The passage with calls that can be differentiated twice in the place of piecewise linear ones.

    Args:
        passage: As it was recorded.
        width: How wide the softplus in the place of a ReLU is, relative to what reaches it; 0: it stays a ReLU.
    """
    bends = [number for number, step in enumerate(passage.steps) if step.op in _BENDS and width]
    run = list(passage.steps)
    for number in reversed(bends):
        run.insert(number, Step(_aten.clone.default, run[number].args[:1], {}, (-1 - number,)))
    with torch.no_grad():
        reached = replace(passage, steps=run, ends={-1 - number: torch.zeros(()) for number in bends}).outputs({})
    squares = {-1 - slot: averaged_number(float(values.float().square().mean())) for slot, values in reached.items()}
    sizes = {number: math.sqrt(square) for number, square in squares.items()}
    steps: list[Step] = []
    for number, step in enumerate(passage.steps):
        size, free = sizes.get(number, 0.0), -1 - 2 * number
        steps += _bent(step, width * size, free) if size else _hard(step, free) if step.op in _HARD else [step]
    return replace(passage, steps=steps)


_BENDS = (_aten.relu.default, _aten.relu_.default, _aten.leaky_relu.default, _aten.leaky_relu_.default)
_HARD = (_aten.hardsigmoid.default, _aten.hardsigmoid_.default, _aten.hardswish.default, _aten.hardswish_.default)


def _bent(step: Step, width: float, free: int) -> list[Step]:
    """A softplus in the place of a ReLU, and of its part in a leaky one; two slots are free."""
    given = step.args[0]
    if step.op in _BENDS[:2]:
        return [Step(_aten.softplus.default, (given, 1 / width), {}, step.outputs)]
    slope = step.args[1] if len(step.args) > 1 else 0.01
    return [
        Step(_aten.softplus.default, (given, 1 / width), {}, (free,)),
        Step(_aten.mul.Scalar, (given, slope), {}, (free - 1,)),
        Step(_aten.add.Tensor, (Slot(free - 1), Slot(free)), {"alpha": 1 - slope}, step.outputs),
    ]


def _hard(step: Step, free: int) -> list[Step]:
    """A hard sigmoid, relu6(x + 3)/6, or x times that: torch has no second derivative of its own calls for them."""
    swish = step.op in _HARD[2:]
    steps = [
        Step(_aten.add.Scalar, (step.args[0], 3.0), {}, (free,)),
        Step(_aten.clamp.default, (Slot(free), 0.0, 6.0), {}, (free - 1,)),
        Step(_aten.mul.Scalar, (Slot(free - 1), 1 / 6), {}, (free,) if swish else step.outputs),
    ]
    return [*steps, Step(_aten.mul.Tensor, (step.args[0], Slot(free)), {}, step.outputs)] if swish else steps

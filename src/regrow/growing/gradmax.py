"""GradMax: new units that send nothing yet, and get the largest gradient that units of their size can get."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import NotPermissible
from ..evidence import Growth, Needs
from ..method import Fresh, register
from ..rows import expanded, joined, laid_out, number_of, row_shape
from ..structure import Axis, Entry
from .random import Random
from .scaling import mean_norm, scaled
from .silent import awake, calibrated, without_outgoing

Form = Literal["swap", "epsilon", "naive"]


@register
@dataclass(frozen=True)
class GradMax:
    """The largest gradient for new units, by a singular value decomposition of the growth matrix.

    M is the gradient of the loss with respect to a zero linear map from what the incoming weights see to what the
    outgoing weights feed (:class:`regrow.evidence.Growth`). Without batch norm in between, the units' incoming weights
    are zero, and the outgoing ones the right singular vectors of M, all of the same length c: then
    ∂L/∂W_in = W_out·Mᵀ has the norm c·√Σσ², the largest that orthogonal outgoing weights can give. An activation
    whose derivative at zero is zero, as ReLU's is in torch, would keep such units dead: a bias that is nothing beside
    any other number, but positive, wakes them; where there is no bias the roles are swapped as below.

    Under batch norm such units would have a gradient that is 1/√ε times too large, and jump to unit variance in one
    step. There the form is chosen by ``batch_norm``:

    - ``"swap"``: the roles are swapped. The outgoing weights are zero, so nothing changes in either mode. The incoming
      ones are C^(−½)u, with C the covariance of what they see, u the left singular vectors of C^(−½)·M of the centred
      inputs, the sign of the larger ∂L/∂W_out, and the length that old units have; the norm's running statistics are
      those of the units.
    - ``"naive"``: the paper's form all the same.

    Args:
        batch_norm: The form for units that batch norm follows.
        scale: A factor on the new units' length, relative to the mean of the old units' weights on that side. Under
            batch norm the swapped form has the old units' length: it decides nothing but the step size.
        beyond_rank: What happens where more units are asked for than the growth matrix has rank, as before a head with
            few classes: "error", or "random": the rest read at random and send nothing yet.

    Evci et al., "GradMax: Growing Neural Networks using Gradient Information" (ICLR 2022).
    """

    name: ClassVar[str] = "gradmax"
    batch_norm: Form = "swap"
    scale: float = 0.5
    beyond_rank: Literal["error", "random"] = "error"

    def __post_init__(self) -> None:
        if self.batch_norm not in ("swap", "epsilon", "naive"):
            raise ValueError(f"batch_norm is 'swap', 'epsilon' or 'naive', not {self.batch_norm!r}.")
        if self.beyond_rank not in ("error", "random"):
            raise ValueError(f"beyond_rank is 'error' or 'random', not {self.beyond_rank!r}.")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale is a positive number, not {self.scale!r}.")

    @property
    def needs(self) -> Needs:
        """The growth matrix, and for swapped roles the covariance of the inputs."""
        naive = self.batch_norm == "naive"
        return {"growth": lambda axis: Growth(axis, centre=not naive, whiten=self.batch_norm == "swap")}

    def fresh(self, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Fresh:
        """The values of ``num`` new units.

        Raises:
            NotPermissible: The growth matrix has a lower rank than ``num``.
        """
        growth: Growth = seen["growth"]
        swapped = growth.normalised and self.batch_norm == "swap"
        units = self._swapped(growth, num) if swapped else self._silent(growth, num)
        found = number_of(units) if units else 0
        if found < num:
            rest = Random().rows(axis, num - found, generator)
            units = joined(units, rest) if units else rest
        return laid_out(axis, units)

    def _silent(self, growth: Growth, num: int) -> dict[Entry, Tensor]:
        """The paper's form, if its units get a gradient."""
        _, _, right = leading(growth.matrix, num, growth.axis, self.beyond_rank)
        length = self.scale * mean_norm(growth.outgoing.old())
        units = expanded(growth.base, len(right)) | growth.outgoing.rows(length * right)
        if self.batch_norm == "naive":
            units |= _as_made(growth.axis, len(right))
        woken = awake(growth.passage, growth.incoming, growth.outgoing, units) if len(right) else {}
        return self._swapped(growth, num) if woken is None else woken

    def _swapped(self, growth: Growth, num: int) -> dict[Entry, Tensor]:
        """Incoming weights from the left singular vectors, outgoing ones zero."""
        whitener = growth.moments.whitener() if growth.normalised and self.batch_norm == "swap" else None
        matrix = growth.matrix if whitener is None else whitener @ growth.matrix
        left, _, _ = leading(matrix, num, growth.axis, self.beyond_rank)
        if not len(left):
            return {}
        directions = left if whitener is None else left @ whitener
        vectors = scaled(directions, mean_norm(growth.incoming.old()) * (1.0 if growth.normalised else self.scale))
        base = expanded(growth.base, len(left))
        both = [base | growth.incoming.rows(sign * vectors) for sign in (1.0, -1.0)]
        plus, minus = (without_outgoing(growth.passage, growth.outgoing, each).norm(dim=1) for each in both)
        signs = torch.where(minus > plus, -1.0, 1.0).to(vectors)
        return calibrated(growth.passage, base | growth.incoming.rows(signs[:, None] * vectors))


def _as_made(axis: Axis, num: int) -> dict[Entry, Tensor]:
    """Scales and running statistics as a new norm has them, which is what the paper's code leaves them at."""
    as_made = {"scale": 1.0, "mean": 0.0, "var": 1.0}
    return {e: torch.full((num, *row_shape(e, axis.size)), as_made[e.role]) for e in axis.with_role(*as_made)}


def leading(matrix: Tensor, num: int, axis: Axis, beyond_rank: str = "error") -> tuple[Tensor, Tensor, Tensor]:
    """The ``num`` leading singular triplets: left vectors as rows, values, right vectors as rows.

    Raises:
        NotPermissible: There are fewer, and that is an error.
    """
    if min(matrix.shape) > _SMALL and 4 * num < min(matrix.shape):
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(matrix, num + 32, niter=6)
        right = right.T
    else:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > values[0] * max(matrix.shape) * torch.finfo(matrix.dtype).eps).sum())
    if num > rank and beyond_rank == "error":
        raise NotPermissible(
            f"asked for {num} new units in {axis.name}; the growth matrix there has rank {rank}, so ask for at most "
            f"{rank}, take more batches, or let the others be random with beyond_rank='random'."
        )
    count = min(num, rank)
    return left[:, :count].T, values[:count], right[:count]


#: Matrices up to this size are decomposed as a whole.
_SMALL = 1024

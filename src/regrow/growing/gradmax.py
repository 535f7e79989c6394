"""GradMax: new units that send nothing yet, and get the largest gradient that units of their size can get."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import NotPermissible
from ..evidence import Growth, Needs
from ..method import Grown, register
from ..structure import Axis, Entry
from .forms import BeyondRank, Form, check_choice, epsilon_factors, filled_up, silent, swapped, with_better_sign
from .scaling import lengths_read


@register
@dataclass(frozen=True)
class GradMax:
    """The largest gradient for new units, by a singular value decomposition of the growth matrix.

    M is the gradient of the loss with respect to a zero linear map from what the incoming weights see to what the
    outgoing weights feed (:class:`regrow.evidence.Growth`). Without batch norm in between, the units' incoming weights
    are zero, and the outgoing ones the right singular vectors of M, all of the same length c: then
    ∂L/∂W_in = W_out·Mᵀ has the norm c·√Σσ², the largest that orthogonal outgoing weights can give. An activation
    whose derivative at zero is zero, as ReLU's is in torch, would keep such units dead: a bias that is nothing beside
    any other number, but positive, wakes them. Where there is no bias, or where the activation of zero isn't zero, the
    roles are swapped as below, without whitening.

    Under batch norm such units would have a gradient that is 1/√ε times too large, and jump to unit variance in one
    step. There the form is chosen by ``batch_norm``:

    - ``"swap"``: the roles are swapped. The outgoing weights are zero, so nothing changes in either mode. The incoming
      ones are C^(−½)u, with C the covariance of what they see, u the left singular vectors of C^(−½)·M of the centred
      inputs, the sign of the larger ∂L/∂W_out, and the length that old units have; the norm's running statistics are
      those of the units.
    - ``"epsilon"``: the paper's form, with M of the centred inputs, and a norm whose ε is 1 for the new channels. A
      norm has one ε for all; the same comes of a factor ε on the gradient of the new rows, for good (√ε on their
      updates under optimizers like Adam). It needs the optimizer. Such channels have weights √ε times as long as
      others', and what reaches them in later growths is measured by that.
    - ``"naive"``: the paper's form all the same.

    Units of a residual stream are made by several layers and read by several; M then goes from all that makes them to
    all that reads them. What a gate is multiplied with keeps a typical unit's gate. Units that one weight both makes
    and reads are refused.

    Args:
        batch_norm: The form for units that batch norm follows.
        scale: A factor on the new units' length, relative to the mean of the old units' weights on that side. Under
            batch norm the swapped form has the old units' length: it decides nothing but the step size.
        beyond_rank: What happens where more units are asked for than the growth matrix has rank, as before a head with
            few classes: "error", or "random": the rest read at random and send nothing yet.

    Raises:
        ValueError: An option is none of what is said above.

    Evci et al., "GradMax: Growing Neural Networks using Gradient Information" (ICLR 2022).
    """

    name: ClassVar[str] = "gradmax"
    batch_norm: Form = "swap"
    scale: float = 0.5
    beyond_rank: BeyondRank = "error"

    def __post_init__(self) -> None:
        check_choice("batch_norm", self.batch_norm, Form)
        check_choice("beyond_rank", self.beyond_rank, BeyondRank)
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale is a positive number, not {self.scale!r}.")

    @property
    def needs(self) -> Needs:
        """The growth matrix, and for swapped roles the covariance of the inputs."""
        naive, swap = self.batch_norm == "naive", self.batch_norm == "swap"
        return {"growth": lambda axis, _: Growth(axis, centre=not naive, whiten=swap)}

    def fresh(self, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Grown:
        """The values of ``num`` new units.

        Raises:
            NotPermissible: The growth matrix has a lower rank than ``num``.
        """
        growth: Growth = seen["growth"]
        values = filled_up(axis, self._units(growth, num, generator), num, generator)
        return Grown(values, gradient_factors=epsilon_factors(growth) if self.batch_norm == "epsilon" else {})

    def _units(self, growth: Growth, num: int, generator: torch.Generator) -> dict[Entry, Tensor]:
        """Rows of ``num`` new units, or of as many as the growth matrix has rank if the others may be random."""
        if growth.normalised and self.batch_norm == "swap":
            return listening(growth, num, self.beyond_rank, 1.0)
        matrix, reach = self._within_reach(growth)
        left, _, right = leading(matrix, num, growth.axis, self.beyond_rank)
        units = silent(growth, right * reach, self.scale, new_norms=self.batch_norm == "naive")
        return swapped(growth, with_better_sign(growth, left), self.scale) if units is None else units

    def _within_reach(self, growth: Growth) -> tuple[Tensor, Tensor | float]:
        """The growth matrix by how far new units may reach along each outgoing weight, and how far that is."""
        if self.batch_norm != "epsilon":
            return growth.matrix, 1.0
        reach = lengths_read(growth.outgoing)
        return growth.matrix * reach, reach


def listening(growth: Growth, num: int, beyond_rank: BeyondRank, scale: float) -> dict[Entry, Tensor]:
    """Rows of ``num`` units with swapped roles: they send nothing yet, and what they would send gets most gradient.

    Args:
        growth: With the covariance of what units see, where they are normalised.
        num: How many; fewer where the growth matrix has a lower rank and ``beyond_rank`` is "random".
        beyond_rank: As for :class:`GradMax`.
        scale: How long the incoming weights are, relative to the old units'.

    Raises:
        NotPermissible: The growth matrix has a lower rank than ``num``, and that is an error; or it is zero.
    """
    if not (growth.whiten and growth.normalised):
        left, _, _ = leading(growth.matrix, num, growth.axis, beyond_rank)
        return swapped(growth, with_better_sign(growth, left), scale)
    whitener = growth.moments.whitener()
    left, _, _ = leading(whitener @ growth.matrix, num, growth.axis, beyond_rank)
    return swapped(growth, with_better_sign(growth, left @ whitener), scale)


def leading(matrix: Tensor, num: int, axis: Axis, beyond_rank: BeyondRank) -> tuple[Tensor, Tensor, Tensor]:
    """The ``num`` leading singular triplets: left vectors as rows, values, right vectors as rows.

    Raises:
        NotPermissible: There are fewer, and that is an error; or there is none.
    """
    smaller = min(matrix.shape)
    if smaller > _LARGE and 4 * num < smaller:
        left, values, right = _by_sampling(matrix, num)
    elif smaller > _SMALL:
        left, values, right = _by_products(matrix, min(num, smaller))
    else:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > values[0] * max(matrix.shape) * torch.finfo(matrix.dtype).eps).sum())
    if rank == 0 or (num > rank and beyond_rank == "error"):
        raise NotPermissible(
            f"asked for {num} new units in {axis.name}; the growth matrix there has rank {rank}, so ask for at most "
            f"{rank}, take more batches, or let the others be random with beyond_rank='random'."
        )
    count = min(num, rank)
    return left[:, :count].T, values[:count], right[:count]


def _by_products(matrix: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets from the eigenvectors of M·Mᵀ, in double precision: a tenth of the work."""
    if matrix.shape[0] > matrix.shape[1]:
        right, values, left = _by_products(matrix.T, num)
        return left.T, values, right.T
    exact = matrix.double()
    squares, vectors = torch.linalg.eigh(exact @ exact.T)
    values, left = squares.flip(0)[:num].clamp(min=0).sqrt(), vectors.flip(1)[:, :num]
    right = left.T @ exact / values[:, None].clamp(min=torch.finfo(torch.float64).tiny)
    return left.to(matrix), values.to(matrix), right.to(matrix)


def _by_sampling(matrix: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets of a matrix that is too large for all of them, by subspace iteration."""
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, num + 32, niter=6)
    return left, values, right.T


#: Matrices up to the first size are decomposed as they are, up to the second by their products.
_SMALL, _LARGE = 128, 1024

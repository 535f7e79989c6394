"""Mean and covariance of what the weights that make units see: patches of images, rows of features."""

from __future__ import annotations

import torch
from torch import Tensor

from ..agreement import averaged
from ..rows import Rows
from ..structure import Entry
from .pairs import Pairs
from .passage import Passage
from .sides import Side


class Moments:
    """Gathers first and second moments batch by batch.

    Where several weights make the units, what each of them sees is taken as uncorrelated with the rest.

    Args:
        side: The weights that make units.

    Attributes:
        sums, products: Σx and Σx·xᵀ of what they see, shapes ``(width,)`` and ``(width, width)``.
        counts: How often each entry of x was seen, shape ``(width,)``.
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        like = side.entries[0].tensor
        exact = torch.promote_types(torch.float32, like.dtype)
        self.sums = torch.zeros(side.width, dtype=exact, device=like.device)
        self.counts = torch.zeros_like(self.sums)
        self.products = torch.zeros(side.width, side.width, dtype=exact, device=like.device)

    def add(self, passage: Passage, base: Rows, pairs: Pairs | None = None) -> None:
        """See one batch.

        Args:
            passage: As it was recorded.
            base: Rows of one unit for each of the axis's, for all entries but the sides'.
            pairs: What the passage is made of, if that is known.
        """
        products = pairs.products() if pairs is not None else None
        if pairs is not None and products is not None:
            sums, count = pairs.sums()
            self.sums += sums
            self.counts += count
            self.products += products
            return
        start = 0
        for entry, width in zip(self.side.entries, self.side.widths, strict=True):
            part = slice(start, start + width)
            sums, products, count = moments(passage, entry, base)
            self.sums[part] += sums
            self.products[part, part] += products
            self.counts[part] += count
            start += width

    def agree(self) -> None:
        """Average sums over processes."""
        self.sums, self.products, self.counts = map(averaged, (self.sums, self.products, self.counts))

    @property
    def mean(self) -> Tensor:
        """The mean of what is seen, shape ``(width,)``."""
        return self.sums / self.counts

    @property
    def covariance(self) -> Tensor:
        """Its covariance, shape ``(width, width)``."""
        parts = [mean.outer(mean) for mean in self.mean.split(self.side.widths)]
        return self.products / self.counts[:, None] - torch.block_diag(*parts)

    def whitener(self, ridge: float = 1e-3) -> Tensor:
        """W with W·C·Wᵀ = 1, the inverse of C's Cholesky factor: what is seen has no preferred direction after it.

        Args:
            ridge: Keeps directions in which hardly anything varies from being blown up; relative to the mean variance.
        """
        return inverse_factor(self.covariance, ridge).to(self.products)


def inverse_factor(matrix: Tensor, ridge: float) -> Tensor:
    """W with W·(A + ridge·mean of A's diagonal)·Wᵀ = 1, for a symmetric A that isn't negative, in double precision.

    The ridge becomes larger where rounding has made A indefinite by more than that.
    """
    matrix = matrix.double()
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    mean = matrix.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    factor, failed = torch.linalg.cholesky_ex(matrix + ridge * mean * identity)
    while bool(failed):
        ridge *= 10
        factor, failed = torch.linalg.cholesky_ex(matrix + ridge * mean * identity)
    return torch.linalg.solve_triangular(factor, identity, upper=False)


def moments(passage: Passage, entry: Entry, base: Rows) -> tuple[Tensor, Tensor, int]:
    """Σx, Σx·xᵀ and the number of x that one of the sources sees on one batch.

    Whatever the linear call is: what it makes of a unit with weights w is w·x, so the gradient of ½Σ(w·x)² is Σx·xᵀ w.
    """
    size = passage.axis.size
    side = Side.of([entry], size)
    exact = torch.promote_types(torch.float32, entry.tensor.dtype)
    zeros = torch.zeros(size, side.width, dtype=exact, device=entry.tensor.device)
    columns = []
    for start in range(0, side.width, size):
        count = min(size, side.width - start)
        weights = zeros.clone()
        weights[torch.arange(count), torch.arange(start, start + count)] = 1.0
        columns.append(_response(passage, side, base, weights, lambda made: made.square().sum() / 2)[:count])
    sums = _response(passage, side, base, zeros.clone(), torch.sum)[0]
    made = passage.made_of(entry, {**base, **side.rows(zeros)})
    number = sum(t.numel() for t in made) // entry.tensor.shape[entry.dim]
    return sums, torch.cat(columns), number


def _response(passage: Passage, side: Side, base: Rows, weights: Tensor, of: object) -> Tensor:
    weights = weights.requires_grad_()
    with torch.enable_grad():
        made = passage.made_of(side.entries[0], {**base, **side.rows(weights)})
        exact = [t.to(weights.dtype) for t in made]
        (found,) = torch.autograd.grad(sum(of(t) for t in exact), weights)  # type: ignore[operator]
    return found

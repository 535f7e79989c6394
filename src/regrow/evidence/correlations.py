"""How much of the gradients features explain, and how much more others would: sums over two halves of the examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..agreement import averaged

#: By how much the damping of what the present units explain may be raised.
_FACTORS = (1.0, 10.0, 1e2, 1e6)


@dataclass(frozen=True)
class Correlations:
    """Sums over the positions of two halves of the examples: those that are learned from, and those that judge.

    Attributes:
        products: Σ h·hᵀ, shape ``(2, features, features)``.
        crossed: Σ g·hᵀ, shape ``(2, 1 + drawn, outputs, features)``: with the gradients of the same examples, and with
            those of others, which tell what is found by chance.
        outputs: Σ g·gᵀ, shape ``(2, outputs, outputs)``.
    """

    products: Tensor
    crossed: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, features: Tensor, gradients: Tensor) -> Correlations:
        """Every second example judges.

        Args:
            features: Shape ``(examples, positions, features)``.
            gradients: Shape ``(1 + drawn, examples, positions, outputs)``.
        """
        halves = [(features[i::2].flatten(0, 1), gradients[:, i::2].flatten(1, 2)) for i in (0, 1)]
        return cls(
            torch.stack([h.T @ h for h, _ in halves]),
            torch.stack([g.mT @ h for h, g in halves]),
            torch.stack([g[0].T @ g[0] for _, g in halves]),
        )

    def __add__(self, other: Correlations) -> Correlations:
        return Correlations(self.products + other.products, self.crossed + other.crossed, self.outputs + other.outputs)

    def agree(self) -> Correlations:
        """Their means over processes."""
        return Correlations(averaged(self.products), averaged(self.crossed), averaged(self.outputs))

    def alike(self) -> Correlations:
        """All examples are learned from, and all of them judge."""
        sums = (each.sum(0, keepdim=True).expand_as(each) for each in (self.products, self.crossed, self.outputs))
        return Correlations(*sums)


@dataclass(frozen=True)
class Unexplained:
    """What is left of features and of gradients once some of the features have explained what they can.

    Attributes:
        products, crossed: As of :class:`Correlations`, of what is left.
        ridge: What the square of each feature is damped by, shape ``(2, features)``.
        metric: S⁻¹, shape ``(outputs, outputs)``.
        bound: How much there is to explain: at most the number of outputs.
    """

    products: Tensor
    crossed: Tensor
    ridge: Tensor
    metric: Tensor
    bound: float

    @classmethod
    def of(cls, seen: Correlations, damping: float) -> Unexplained:
        """Nothing is explained yet.

        Args:
            seen: Of the features.
            damping: Relative to each feature's mean square, so that new features change nothing for old ones, and for S
                to its mean eigenvalue.
        """
        squares = seen.products.diagonal(dim1=1, dim2=2)
        ridge = torch.where(squares > 0, damping * squares, 1.0)
        return cls(seen.products, seen.crossed, ridge, *_metric(seen.outputs, damping))

    def prediction(self, block: slice, factor: float = 1.0) -> Tensor:
        """D of a block of features, damped by so much more: shape ``(1 + drawn, outputs, features)``."""
        damped = self.products[0, block, block] + factor * self.ridge[0, block].diag()
        crossed = self.crossed[0, ..., block]
        return _solved(damped, crossed.flatten(0, 1)).view_as(crossed)

    def gain(self, block: slice, factor: float = 1.0) -> float:
        """How much a block of features explains of what is left."""
        alone = replace(self, crossed=self.crossed[:, :1])
        prediction = alone.prediction(block, factor)
        return float(self._gain(prediction, alone.crossed[1, ..., block], self.products[1, block, block]))

    def gains(self, width: int) -> Tensor:
        """How much each block of so many features explains: shape ``(1 + drawn, blocks)``."""
        products = self.products.unflatten(2, (-1, width)).unflatten(1, (-1, width)).diagonal(dim1=1, dim2=3)
        products = products.movedim(-1, 1)
        damped = products[0] + self.ridge[0].unflatten(0, (-1, width)).diag_embed()
        crossed = self.crossed.unflatten(3, (-1, width)).transpose(2, 3)
        return self._gain(_solved(damped, crossed[0]), crossed[1], products[1])

    def _gain(self, prediction: Tensor, crossed: Tensor, products: Tensor) -> Tensor:
        """2·tr(S⁻¹·G·Dᵀ) − tr(S⁻¹·D·A·Dᵀ)."""
        return ((self.metric @ prediction) * (2 * crossed - prediction @ products)).sum((-2, -1))

    def factor(self, block: slice) -> float:
        """By how much more a block is to be damped for it to explain as much as it can of what judges."""
        return max(_FACTORS, key=lambda factor: self.gain(block, factor))

    def without(self, block: slice, factor: float = 1.0) -> Unexplained:
        """What is left of the other features, and of the gradients, once a block has explained what it can."""
        own, rest = block, _rest_of(block, self.ridge)
        among, between = self.products[:, own][..., own], self.products[:, own][..., rest]
        # What features have in common can be learned from all examples: the gradients have no part in it.
        shared = _solved(among.sum(0) + self.ridge[:, own].sum(0).diag(), between.sum(0).T)
        left = between - among @ shared.T
        prediction = self.prediction(block, factor)
        return replace(
            self,
            products=self.products[:, rest][..., rest] - shared @ between - (shared @ left).mT,
            crossed=self.crossed[..., rest] - self.crossed[..., own] @ shared.T - prediction @ left[:, None],
            ridge=self.ridge[:, rest],
        )


def _rest_of(block: slice, like: Tensor) -> Any:
    """Where the other features are, along the last dimension."""
    if block.start == 0:
        return slice(block.stop, None)
    index = torch.arange(like.shape[-1], device=like.device)
    return torch.cat([index[: block.start], index[block.stop :]])


def _solved(products: Tensor, crossed: Tensor) -> Tensor:
    """crossed·products⁻¹, for symmetric products."""
    return torch.linalg.solve(products, crossed.mT).mT


def _metric(outputs: Tensor, damping: float) -> tuple[Tensor, float]:
    """S⁻¹ of all examples, and its trace with S; so long that its trace with the judges' S is the same."""
    total = outputs.sum(0)
    mean = total.diagonal().mean()
    if not float(mean) > 0:
        return torch.zeros_like(total), 0.0
    inverse = torch.linalg.inv(total + damping * mean * torch.eye(len(total)).to(total))
    bound, judged = (float((inverse * each).sum()) for each in (total, outputs[1]))
    return inverse * (bound / judged if judged > 0 else 0.0), bound

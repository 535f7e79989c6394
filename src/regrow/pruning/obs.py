"""Optimal Brain Surgeon for units: those go whose work others can take over, and these take it over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..carry import kept_masks
from ..evidence import Needs
from ..evidence.sight import exact
from ..method import register
from ..rows import rows_of, with_rows
from ..structure import Axis
from .features import Features, Place


@register
@dataclass(frozen=True)
class OBS:
    """What readers lose for good without a unit: the least-squares error of their outputs where others stand in for it.

    Readers put out ``W·h`` of the units' features h, with ``H = E[h·hᵀ]`` the Hessian of their error. Closing the gate
    of a unit, whose features are b, costs ``tr(W_b·[(H⁻¹)_bb]⁻¹·W_bᵀ)`` where all other outgoing weights move by the
    best ``−W_b·[(H⁻¹)_bb]⁻¹·(H⁻¹)_b·``. Units go one after the other, the cheapest first, each when what went before is
    made up for; so costs add up to the error of all that have gone. That sum is a unit's score, as a share of what the
    readers put out: ``rg.Threshold(0.01)`` takes of each axis what can go until a hundredth is lost.

    :meth:`compensate` solves for the others' outgoing weights, and the biases beside them, once it is known what goes.
    Several axes are made up for as if the others stayed. Readers are convolutions and products with matrices.

    Args:
        ridge: Positive; keeps corrections small that few positions or units that are alike leave open. Relative to the
            mean of H's diagonal.

    Raises:
        ValueError: ridge isn't positive.

    Hassibi & Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (NeurIPS 1992); of units by
    what the next layer puts out: Luo et al., "ThiNet" (ICCV 2017), He et al., "Channel Pruning for Accelerating Very
    Deep Neural Networks" (ICCV 2017).
    """

    name: ClassVar[str] = "obs"
    leaves_out: ClassVar[bool] = True
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ridge) and self.ridge > 0):
            raise ValueError(f"ridge is a positive number, not {self.ridge!r}.")

    @property
    def needs(self) -> Needs:
        """The products of what readers get."""
        return {"features": lambda axis, _: Features(axis)}

    def score(self, axis: Axis, seen: Mapping[str, Any]) -> Tensor:
        """The share of what readers put out that is lost with a unit and all before it, shape ``(axis.size,)``."""
        parts = [(_weights(place, axis.size), h) for place, h in seen["features"].products.items()]
        energy = torch.stack([(w * (h[: len(w), : len(w)] @ w)).sum() for w, h in parts]).sum()
        left = [(w, torch.cholesky_inverse(torch.linalg.cholesky(self._damped(h)))) for w, h in parts]
        lost, costs, gone = energy.new_zeros(axis.size), energy.new_zeros(()), energy.new_zeros(axis.size).bool()
        for _ in range(axis.size):
            each = torch.stack([_costs(w, inverse, axis.size) for w, inverse in left]).sum(0)
            unit = int(each.masked_fill(gone, math.inf).argmin())
            gone[unit], costs = True, costs + each[unit].clamp(min=0)
            lost[unit] = costs
            for w, inverse in left:
                _take_out(w, inverse, unit, len(w) // axis.size)
        return lost / energy.clamp(min=torch.finfo(energy.dtype).tiny)

    @torch.no_grad()
    def compensate(self, removed: Mapping[Axis, Sequence[int]], seen: Mapping[Axis, Any]) -> dict[str, Tensor]:
        """What reads pruned units as it will be, weights and biases by name, in their shapes before the edit.

        Args:
            removed: The units that will go.
            seen: What was seen of each axis.
        """
        model = next(iter(removed)).structure.model
        tensors, masks, changed = dict(model.named_parameters()), kept_masks(model), dict[str, Tensor]()
        for axis, units in removed.items():
            for place, h in seen[axis]["features"].products.items():
                (entry, start, stop, bias), weights = place, _weights(place, axis.size)
                away = torch.zeros(axis.size, dtype=torch.bool).index_fill(0, torch.as_tensor(units), True)
                away = away.repeat_interleave(len(weights) // axis.size).to(h.device)
                kept, moved = torch.ones(len(h), dtype=torch.bool, device=h.device), h.new_zeros(len(h), stop - start)
                kept[: len(weights)] = ~away
                sent = h[:, : len(weights)][:, away] @ weights[away]
                moved[kept] = torch.linalg.solve(self._damped(h)[kept][:, kept], sent[kept])
                before = changed.get(entry.name, entry.tensor.detach())
                rows = rows_of(entry, before, axis.size).clone()
                here = rows[:, :, start:stop]
                by_tap = moved[: len(weights)].reshape(*here.shape[:2], -1, stop - start).transpose(2, 3)
                here += by_tap.reshape(here.shape).to(here)
                after = with_rows(entry, before, rows)
                mask = masks.get(entry.tensor)  # single weights that are off stay so
                changed[entry.name] = after * mask[0][mask[1]] if mask and mask[1] in mask[0] else after
                if bias:
                    changed[bias] = changed.get(bias, tensors[bias].detach()).clone()
                    changed[bias][start:stop] += moved[-1].to(changed[bias])
        return changed

    def _damped(self, h: Tensor) -> Tensor:
        mean = h.diagonal().mean().clamp(min=1e-30)
        return h + self.ridge * mean * torch.eye(len(h), dtype=h.dtype, device=h.device)


def _weights(place: Place, size: int) -> Tensor:
    """Outgoing weights in the order of the features, shape ``(features, outputs)``."""
    rows = rows_of(place[0], place[0].tensor.detach(), size).flatten(0, 1)[:, place[1] : place[2]]
    return exact(rows.flatten(2).transpose(1, 2).flatten(0, 1) if rows.ndim > 2 else rows).clone()


def _costs(weights: Tensor, inverse: Tensor, size: int) -> Tensor:
    """What each unit costs where the rest makes up for it, shape ``(size,)``."""
    width, length = len(weights) // size, len(weights)
    blocks = inverse[:length, :length].reshape(size, width, size, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    own = weights.reshape(size, width, -1)
    return (own * torch.linalg.solve(blocks, own)).sum((1, 2))


def _take_out(weights: Tensor, inverse: Tensor, unit: int, width: int) -> None:
    """Let the rest make up for a unit, in place; its own block becomes the identity."""
    own = slice(unit * width, (unit + 1) * width)
    across = torch.linalg.solve(inverse[own, own], inverse[own])
    weights -= across[:, : len(weights)].T @ weights[own].clone()
    inverse -= inverse[:, own].clone() @ across
    weights[own], inverse[own], inverse[:, own] = 0.0, 0.0, 0.0
    inverse[own, own] = torch.eye(width, dtype=inverse.dtype, device=inverse.device)

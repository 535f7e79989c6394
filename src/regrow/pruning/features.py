"""What the readers of an axis's units get of them, as sums of products: what least squares needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..agreement import averaged
from ..errors import NotPermissible
from ..evidence import Passage
from ..evidence.pairs import LINEAR
from ..evidence.passage import Constant
from ..evidence.readings import Reading, readings_of, tapped
from ..evidence.sight import exact
from ..structure import Axis
from .fisher import check_read

#: A reader's weight, where the outputs of one of its groups begin and end, and the name of the bias that it adds.
Place = tuple[Any, int, int, str]


class Features:
    """Gathers ``Σ h·hᵀ`` of the features h that an axis's readers get, and of a one behind them where a bias is added.

    Attributes:
        products: For each reader, or group of one, shape ``(features, features)``.

    Raises:
        NotPermissible: No weight reads the units, or one that makes them.
    """

    def __init__(self, axis: Axis) -> None:
        check_read(axis)
        self.axis = axis
        self.products: dict[Place, Tensor] = {}

    @torch.no_grad()
    def add(self, passage: Passage) -> None:
        """See one batch.

        Raises:
            NotPermissible: Something else reads the units than convolutions or products with matrices, of two examples
                or more, or it reads too many features.
        """
        try:
            readings = readings_of(passage)
        except NotPermissible:
            raise self._refused("what reads them is no plain convolution, and no product with a matrix") from None
        names = {t.data_ptr(): name for name, t in self.axis.structure.model.named_parameters()}
        given = tapped(passage, readings).outputs({})
        for reading in readings:
            if len(reading.own) * reading.taps > _MOST:
                raise self._refused(f"their readers get more than {_MOST} features")
            bias = _bias(passage, reading, names)
            place = reading.entry, *reading.outputs.indices(1 << 62)[:2], bias
            products = _products(reading, given[reading.end], bool(bias))
            self.products[place] = self.products.get(place, 0) + products

    def _refused(self, why: str) -> NotPermissible:
        return NotPermissible(
            f"others can't make up for units of {self.axis.name}: {why}; leave that axis out (protect=), or prune it "
            "by Taylor."
        )

    def agree(self) -> None:
        """Average over processes."""
        self.products = {place: averaged(products) for place, products in self.products.items()}


#: At most so many features are solved for; so many numbers are looked at in one piece; and so many positions for each
#: feature are enough, or so many numbers where there are few features.
_MOST, _PIECE, _ENOUGH, _FEWEST = 2**13, 2**24, 20, 2**22


def _bias(passage: Passage, reading: Reading, names: Mapping[int, str]) -> str:
    """The name of the bias that a reader adds; none if it adds no parameter."""
    step = next(step for step in passage.steps if reading.end in step.outputs)
    at = LINEAR[step.op][2]
    bias = step.args[at] if reading.biased and at is not None else None
    return names.get(bias.tensor.data_ptr(), "") if isinstance(bias, Constant) else ""


def _products(reading: Reading, given: Tensor, biased: bool) -> Tensor:
    """Σ h·hᵀ over a batch, or from as many of its examples as tell enough."""
    first = reading.features(given[:1])
    length, positions = first.shape[2] + biased, first.shape[1]
    wanted = min(len(given), math.ceil(max(_ENOUGH * length, _FEWEST / length) / positions))
    some = torch.linspace(0, len(given) - 1, wanted, device=given.device).long()
    total: Any = 0.0
    for piece in some.split(max(1, _PIECE // (positions * length))):
        h = exact(reading.features(given[piece])).flatten(0, 1)
        h = torch.cat([h, torch.ones_like(h[:, :1])], 1) if biased else h
        total = total + h.T @ h
    return total * (len(given) / len(some))

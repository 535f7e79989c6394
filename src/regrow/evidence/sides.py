"""One side of an axis as plain vectors: all that makes a unit, or all that reads it, as one row for each unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rows import Rows, row_shape, rows_of
from ..structure import Entry


@dataclass(frozen=True)
class Side:
    """Entries of an axis whose rows, flattened and joined, are vectors.

    Args:
        entries: In order.
        size: The axis's number of units.
    """

    entries: tuple[Entry, ...]
    size: int

    @classmethod
    def of(cls, entries: Sequence[Entry], size: int) -> Side:
        return cls(tuple(entries), size)

    @property
    def widths(self) -> list[int]:
        """How long the part of each entry is."""
        return [math.prod(row_shape(entry, self.size)) for entry in self.entries]

    @property
    def width(self) -> int:
        """How long the vectors are."""
        return sum(self.widths)

    def rows(self, vectors: Tensor) -> dict[Entry, Tensor]:
        """Vectors, shape ``(units, width)``, as rows of the entries."""
        parts = vectors.split(self.widths, dim=1)
        return {
            entry: part.reshape(len(vectors), *row_shape(entry, self.size))
            for entry, part in zip(self.entries, parts, strict=True)
        }

    def vectors(self, rows: Rows) -> Tensor:
        """The inverse of :meth:`rows`."""
        return torch.cat([rows[entry].flatten(1) for entry in self.entries], 1)

    def old(self) -> Tensor:
        """The vectors of the axis's units as they are now, shape ``(size, width)``."""
        return self.vectors({e: rows_of(e, e.tensor.detach(), self.size) for e in self.entries})

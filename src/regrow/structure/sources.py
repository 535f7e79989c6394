"""The dimensions of parameters, buffers and inputs, in the order of their labels."""

from __future__ import annotations

import bisect

import numpy as np

from .arrays import distinct
from .labels import FIXED, Source


class Sources(list[Source]):
    """Finds the dimensions that labels are of."""

    _starts = np.zeros(0, np.int64)

    def of(self, labels: np.ndarray) -> Source | None:
        """The dimension whose own labels these are, if they are any's."""
        first = int(labels.flat[0])
        index = bisect.bisect_right(self, first, key=lambda source: source.start) - 1
        if index >= 0 and first < self[index].start + self[index].size:
            return self[index]
        return None

    def beneath(self, bases: np.ndarray) -> list[Source]:
        """The dimensions that have any of these labels, which are of tensors; see :meth:`.Relations.bases`."""
        return [self[number] for number in distinct(self.numbers(bases[bases > FIXED]))]

    def numbers(self, bases: np.ndarray) -> np.ndarray:
        """The number of the dimension of each label."""
        if len(self._starts) != len(self):
            self._starts = np.fromiter((source.start for source in self), np.int64, len(self))
        return np.searchsorted(self._starts, bases, side="right") - 1

"""Growth matrices of two convolutions with nothing but pointwise maps between, from correlations over offsets.

Tap a of the first convolution reads the image at s₁q + d₁a − p₁ for the hidden position q, and tap b of the second
reads the hidden position q = s₂t + d₂b − p₂ for its output t. Together they read the image at
s₁s₂t + (s₁d₂b + d₁a) − (s₁p₂ + p₁): a convolution with one larger kernel, whose weight gradient has one entry for each
offset s₁d₂b + d₁a instead of one for each pair of taps. It also counts hidden positions that don't exist, in the
padding of the second convolution; these strips along the borders are taken off again, dimension by dimension:
∏(1 − outside) = Σ ± ∏ outside over all sets of dimensions. No patch matrix is ever made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """How a convolution reads along one dimension."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def positions(self, length: int) -> int:
        """How many outputs it has over a dimension of that length."""
        return (length + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1


@dataclass(frozen=True)
class _Both:
    """Two convolutions after each other along one dimension, over an image of ``length``."""

    first: Window
    second: Window
    length: int

    @property
    def hidden(self) -> int:
        return self.first.positions(self.length)

    @property
    def outputs(self) -> int:
        return self.second.positions(self.hidden)

    @property
    def stride(self) -> int:
        return self.first.stride * self.second.stride

    @property
    def padding(self) -> int:
        return self.first.stride * self.second.padding + self.first.padding

    @property
    def dilation(self) -> int:
        """The largest step that all offsets are multiples of."""
        steps = [s for s, w in ((self._by_a, self.first), (self._by_b, self.second)) if w.kernel > 1]
        return math.gcd(*steps) or 1

    @property
    def _by_a(self) -> int:
        return self.first.dilation

    @property
    def _by_b(self) -> int:
        return self.first.stride * self.second.dilation

    @property
    def kernel(self) -> int:
        """How many offsets there are, in steps of the dilation."""
        return (self._by_a * (self.first.kernel - 1) + self._by_b * (self.second.kernel - 1)) // self.dilation + 1

    @cached_property
    def offsets(self) -> Tensor:
        """The offset of each pair of taps, shape (first kernel, second kernel)."""
        a, b = torch.arange(self.first.kernel), torch.arange(self.second.kernel)
        return (self._by_a * a[:, None] + self._by_b * b) // self.dilation

    def outside(self, tap: int) -> list[int]:
        """The outputs for which a tap of the second convolution reads a hidden position that doesn't exist."""
        positions = torch.arange(self.outputs) * self.second.stride + self.second.dilation * tap - self.second.padding
        return ((positions < 0) | (positions >= self.hidden)).nonzero().flatten().tolist()

    def read(self, outputs: Sequence[int], tap: int) -> Tensor:
        """The image positions read for these outputs through each tap of the first: (first kernel, outputs)."""
        shifts = torch.arange(self.first.kernel) * self._by_a + self._by_b * tap - self.padding
        return shifts[:, None] + self.stride * torch.tensor(outputs)


def correlate(x: Tensor, g: Tensor, first: Sequence[Window], second: Sequence[Window]) -> Tensor:
    """Σ over positions of what the first convolution reads times what ``g`` sends back through the second.

    Args:
        x: The image, shape (batch, channels, …).
        g: At the second convolution's output, shape (batch, outputs, …).
        first, second: How they read, along each dimension.

    Returns:
        Shape (channels, \\*first kernel, outputs, \\*second kernel).
    """
    dims = [_Both(*pair) for pair in zip(first, second, x.shape[2:], strict=True)]
    n = len(dims)
    taps = [(w.first.kernel, w.second.kernel) for w in dims]
    total = _by_taps(_weights(x, g, dims, range(n)), dims, range(n))
    for number in range(1, n + 1):
        for strips in itertools.combinations(range(n), number):
            outside = [[(b, t) for b in range(taps[j][1]) if (t := dims[j].outside(b))] for j in strips]
            for choice in itertools.product(*outside):
                _take_off(total, x, g, dims, dict(zip(strips, choice, strict=True)))
    order = [1, *range(2, 2 + 2 * n, 2), 0, *range(3, 3 + 2 * n, 2)]
    return total.permute(order)


def _weights(x: Tensor, g: Tensor, dims: Sequence[_Both], along: Sequence[int]) -> Tensor:
    """The weight gradient of the joint convolution along some dimensions, and of one tap along the others."""
    stride, padding, dilation, kernel = ([] for _ in range(4))
    for j, both in enumerate(dims):
        window = (both.stride, both.padding, both.dilation, both.kernel) if j in along else (1, 0, 1, 1)
        for values, value in zip((stride, padding, dilation, kernel), window, strict=True):
            values.append(value)
    weight = x.new_empty((g.shape[1], x.shape[1], *kernel))
    mask = [False, True, False]
    zeros = [0] * len(dims)
    call = torch.ops.aten.convolution_backward.default
    return call(g, x, weight, None, stride, padding, dilation, False, zeros, 1, mask)[1]


def _by_taps(weights: Tensor, dims: Sequence[_Both], along: Sequence[int]) -> Tensor:
    """Offsets as pairs of taps: (outputs, channels, …) with two dimensions in place of one."""
    for j in reversed(along):
        offsets = dims[j].offsets.to(weights.device)
        weights = weights.index_select(2 + j, offsets.flatten()).unflatten(2 + j, offsets.shape)
    return weights


def _take_off(
    total: Tensor, x: Tensor, g: Tensor, dims: Sequence[_Both], strips: dict[int, tuple[int, list[int]]]
) -> None:
    """Take off, or add again, what one set of strips contributes: dimension -> (second tap, outputs outside)."""
    n, channels = len(dims), x.shape[1]
    for j, (tap, outputs) in strips.items():
        positions = dims[j].read(outputs, tap)
        inside = (positions >= 0) & (positions < dims[j].length)
        at = positions.clamp(0, dims[j].length - 1).flatten().to(x.device)
        taken = x.index_select(2 + j, at)
        shape = [-1 if d == 2 + j else 1 for d in range(taken.ndim)]
        taken = taken * inside.flatten().to(taken).reshape(shape)
        # The first convolution's taps become channels, behind those that have been made so before.
        x = taken.unflatten(2 + j, positions.shape).movedim(2 + j, 2).flatten(1, 2)
        g = g.index_select(2 + j, torch.tensor(outputs, device=g.device))
    rest = [j for j in range(n) if j not in strips]
    found = _weights(x, g, dims, rest)
    found = found.squeeze([2 + j for j in strips])
    found = _by_taps(found, [dims[j] for j in rest], range(len(rest)))
    found = found.unflatten(1, (channels, *(dims[j].first.kernel for j in strips)))
    sign = -1.0 if len(strips) % 2 else 1.0
    # total: (outputs, channels, a_1, b_1, …, a_n, b_n); at the strips' taps b the dimension is gone.
    where = [slice(None), slice(None)]
    for j in range(n):
        where += [slice(None), strips[j][0] if j in strips else slice(None)]
    # found: (outputs, channels, a of strips, (a, b) of the rest) -> in the order of the dimensions
    source, order, behind = 2, [0, 1], 2 + len(strips)
    for j in range(n):
        if j in strips:
            order.append(source)
            source += 1
        else:
            order += [behind, behind + 1]
            behind += 2
    total[tuple(where)] += sign * found.permute(order)

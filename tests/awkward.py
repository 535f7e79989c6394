"""Nets that tempt an analysis into a set of units that runs, and is wrong.

Each maps ``(batch, 6)`` to ``(batch, 5)``. Most go through a hidden width of 8 and move the hidden features about
in a way that depends on their number or their order; the others use weights or sizes in unusual ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Body = Callable[[Tensor], Tensor]


class Awkward(nn.Module):
    """``last(body(first(x)))``."""

    def __init__(self, body: Body, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.body = body
        self.last = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x)))


def literal_slice(h: Tensor) -> Tensor:
    return torch.cat([h[:, :3], torch.tanh(h)[:, 3:]], 1)


def literal_part(h: Tensor) -> Tensor:
    return h[:, 2:5]


def literal_view(h: Tensor) -> Tensor:
    return h.view(-1, 8)


def literal_heads(h: Tensor) -> Tensor:
    return h.view(-1, 2, 4).sum(1)


def shaped_heads(h: Tensor) -> Tensor:
    return h.view(len(h), 2, -1).sum(1)


def empty_rest(h: Tensor) -> Tensor:
    parts = h.view(len(h), 2, -1)
    width = parts.shape[-1]
    return torch.cat([torch.tanh(parts[..., :width]), parts[..., width:]], -1).flatten(1)


def decided_by_size(h: Tensor) -> Tensor:
    """One decision follows values, the other the width."""
    half = int((torch.tensor(float(h.shape[1])) / 2).item())
    return h[:, :half] * h[:, half:] if h.sum() < 1e9 else h[:, half:]


def shaped_features(h: Tensor) -> Tensor:
    return h.view(len(h), -1, 2).sum(2)


def written_in_parts(h: Tensor) -> Tensor:
    both = h.new_zeros(2 * len(h), h.shape[1])
    both[: len(h)].copy_(h)
    both[len(h) :].copy_(torch.tanh(h))
    return both[: len(h)] + both[len(h) :]


def written_beside_numbers(h: Tensor) -> Tensor:
    both = h.new_zeros(2 * len(h), h.shape[1])
    both[: len(h)].copy_(h)
    both[len(h) :].copy_(torch.arange(h.shape[1]).to(h))
    return both[: len(h)] + both[len(h) :]


def flip(h: Tensor) -> Tensor:
    return h + torch.tanh(h).flip(1)


def roll(h: Tensor) -> Tensor:
    return h * torch.sigmoid(h).roll(1, 1)


def permuted(h: Tensor) -> Tensor:
    return torch.tanh(h)[:, [3, 1, 0, 2, 7, 5, 4, 6]]


def every_other(h: Tensor) -> Tensor:
    return torch.tanh(h)[:, ::2]


def chunked_gate(h: Tensor) -> Tensor:
    value, gate = h.chunk(2, 1)
    return value * torch.sigmoid(gate)


def repeated(h: Tensor) -> Tensor:
    return torch.tanh(h).repeat(1, 2)


def doubled(h: Tensor) -> Tensor:
    return torch.cat([torch.relu(h), torch.relu(-h)], 1)


def selected(h: Tensor) -> Tensor:
    return h * h[:, 0:1]


def outer(h: Tensor) -> Tensor:
    return (h[:, :, None] * h[:, None, :]).flatten(1)


def shuffled(h: Tensor) -> Tensor:
    return torch.tanh(h).view(len(h), 2, -1).transpose(1, 2).flatten(1)


def sorted_features(h: Tensor) -> Tensor:
    return h.sort(1).values


def accumulated(h: Tensor) -> Tensor:
    return h.cumsum(1)


def softmax(h: Tensor) -> Tensor:
    return h.softmax(1)


def averaged(h: Tensor) -> Tensor:
    return h - h.mean(1, keepdim=True)


def normalised(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[1:])


def divided_by_width(h: Tensor) -> Tensor:
    return h / h.shape[1]


def shifted(h: Tensor) -> Tensor:
    return torch.cos(h)


def multiplied(h: Tensor) -> Tensor:
    return h * h.prod(1, keepdim=True)


def summed_ones(h: Tensor) -> Tensor:
    """The width reaches the output as the value of a tensor."""
    return h * torch.ones(h.shape[1], dtype=h.dtype).sum()


def joined_and_cut(h: Tensor) -> Tensor:
    """All labels are still there, in order, but the cut would move when units go."""
    return torch.cat([h, torch.tanh(h)], 1)[:, :12]


def largest(h: Tensor) -> Tensor:
    return h + (-h.abs()).amax(1, keepdim=True)


def constant(h: Tensor) -> Tensor:
    return h * torch.arange(1.0, 9.0, dtype=h.dtype)


def counted(h: Tensor) -> Tensor:
    return h * torch.arange(1.0, h.shape[1] + 1, dtype=h.dtype)


def padded(h: Tensor) -> Tensor:
    return F.pad(h, (1, 1))


def in_place_part(h: Tensor) -> Tensor:
    h = torch.tanh(h)
    h[:, :4] *= 2
    return h


def detour(h: Tensor) -> Tensor:
    return torch.as_tensor(h.detach().numpy()) if h.device.type != "meta" else h


def item(h: Tensor) -> Tensor:
    return h * h.detach()[0, 0].item()


WIDTHS = {
    "literal_part": 3,
    "literal_heads": 4,
    "shaped_heads": 4,
    "decided_by_size": 4,
    "shaped_features": 4,
    "every_other": 4,
    "chunked_gate": 4,
    "repeated": 16,
    "doubled": 16,
    "outer": 64,
    "padded": 10,
    "joined_and_cut": 12,
}
BODIES: dict[str, Body] = {
    body.__name__: body
    for body in (
        literal_slice, literal_part, literal_view, literal_heads, shaped_heads, shaped_features, flip, roll,
        permuted, every_other, chunked_gate, repeated, doubled, selected, outer, shuffled, sorted_features,
        accumulated, softmax, averaged, normalised, divided_by_width, shifted, multiplied, largest, constant,
        counted, padded, in_place_part, detour, item, joined_and_cut, summed_ones, written_in_parts,
        written_beside_numbers, decided_by_size, empty_rest,
    )
}  # fmt: skip
INEXACT = frozenset({"softmax", "averaged", "normalised", "divided_by_width", "multiplied", "largest", "summed_ones"})


class LowRank(nn.Module):
    """A weight that is a product of two: its inner width is read by no data."""

    def __init__(self) -> None:
        super().__init__()
        self.tall, self.wide = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4, 6))
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(F.linear(x, self.tall @ self.wide)))


class ScaledByWidth(nn.Module):
    """An output multiplied by a size that the layer keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)) * self.first.out_features**-0.5


class CentredWeight(nn.Module):
    """A weight from which the mean over its inputs is taken: a column of zeros is no silent unit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = nn.Linear(6, 8), nn.Parameter(torch.randn(7, 8))
        self.last = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(self.first(x), self.weight - self.weight.mean(1, keepdim=True)))


class GroupedTransposed(nn.Module):
    """A transposed convolution in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 8, 3), nn.Conv1d(12, 5, 5)
        self.up = nn.ConvTranspose1d(8, 12, 2, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.up(self.first(x[:, None])))).mean(2)


class Attention(nn.Module):
    """torch's own attention, which keeps its sizes as integers and checks them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, 8), nn.Linear(8, 5)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x[:, :, None])
        return self.last(self.attention(h, h, h, need_weights=False)[0]).mean(1)


class Recurrent(nn.Module):
    """Gates packed into one weight, and a hidden size kept as an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(1, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x[:, :, None])[0][:, -1])


class WeightNorm(nn.Module):
    """A weight computed from its direction and its length."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


class Chosen(nn.Module):
    """Rows chosen by what they hold; the classes of all that are left make one list, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.boxes, self.last = nn.Linear(6, 8), nn.Linear(8, 5 * 4), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        boxes = self.boxes(h).view(-1, 5, 4)
        listed = boxes[boxes.sum((1, 2)) > 0].reshape(-1, 4)
        return self.last(h) + listed.view(-1, 5, 4).sum((0, 2))


NETS: dict[str, Callable[[], nn.Module]] = {
    net.__name__: net
    for net in (
        LowRank, ScaledByWidth, CentredWeight, GroupedTransposed, Attention, Recurrent, WeightNorm, Chosen,
    )
}  # fmt: skip
NAMES = (*BODIES, *NETS)


def build(name: str) -> Any:
    """The awkward net of that name, in float64, with seeded values."""
    torch.manual_seed(0)
    net = NETS[name]() if name in NETS else Awkward(BODIES[name], WIDTHS.get(name, 8))
    return net.double()


def example() -> Tensor:
    """As many rows as hidden features, so that a literal reshape swallows a missing feature without a word."""
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

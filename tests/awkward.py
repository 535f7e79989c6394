"""Nets that tempt an analysis into a set of units that runs, and is wrong.

Each maps ``(batch, 6)`` through a hidden width of 8 to ``(batch, 5)``, moving the hidden features about
in a way that depends on their number or their order.
"""

from __future__ import annotations

from collections.abc import Callable

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


def shaped_features(h: Tensor) -> Tensor:
    return h.view(len(h), -1, 2).sum(2)


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
    "shaped_features": 4,
    "every_other": 4,
    "chunked_gate": 4,
    "repeated": 16,
    "doubled": 16,
    "outer": 64,
    "padded": 10,
}
BODIES: dict[str, Body] = {
    body.__name__: body
    for body in (
        literal_slice, literal_part, literal_view, literal_heads, shaped_heads, shaped_features, flip, roll, permuted,
        every_other, chunked_gate, repeated, doubled, selected, outer, shuffled, sorted_features, accumulated, softmax,
        averaged, normalised, divided_by_width, shifted, multiplied, largest, constant, counted, padded, in_place_part,
        detour, item,
    )
}  # fmt: skip
INEXACT = frozenset({"softmax", "averaged", "normalised", "divided_by_width", "multiplied", "largest"})


def build(name: str) -> Awkward:
    """The awkward net with the body ``name``, in float64, with seeded values."""
    torch.manual_seed(0)
    return Awkward(BODIES[name], WIDTHS.get(name, 8)).double()


def example() -> Tensor:
    """As many rows as hidden features, so that a literal reshape swallows a missing feature without a word."""
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

"""Data movement: shuffles, windows, repeats, splits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Between
from .convolution import stack
from .family import Family, images, tokens, vectors


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class ShuffleUnit(nn.Module):
    """As in ShuffleNet: half of the channels pass, and both halves are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4))

    def forward(self, x: Tensor) -> Tensor:
        passed, changed = x.chunk(2, 1)
        x = torch.cat([passed, self.branch(changed)], 1)
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class GroupedShuffle(nn.Module):
    """Grouped convolutions with a shuffle between, so that groups talk to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.shuffle = nn.Conv2d(8, 12, 1, groups=2), nn.ChannelShuffle(2)
        self.other = nn.Conv2d(12, 8, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.shuffle(F.relu(self.one(x))))


class Windows(nn.Module):
    """As in Swin: windows of a shifted grid, attention with position biases in each."""

    def __init__(self, shift: int = 1) -> None:
        super().__init__()
        self.shift, self.heads, self.norm = shift, 2, nn.LayerNorm(12)
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.table = nn.Parameter(torch.randn(9, 2))
        self.register_buffer("index", torch.randint(0, 9, (16,)), persistent=False)
        self.index: Tensor

    def attention(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].view(n, n, -1).permute(2, 0, 1)
        weights = (q * (c // self.heads) ** -0.5) @ k.mT + bias
        return self.proj((weights.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        y = self.norm(x).roll((-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        y = self.attention(y).view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return x + y.roll((self.shift, self.shift), (1, 2))


class Merging(nn.Module):
    """Neighbouring patches become one with four times the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(32), nn.Linear(32, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class PatchesToTokens(nn.Module):
    """As in a vision transformer: patches, a class token, positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 17, 8))
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head((x + self.mix(x))[:, 0])


class Unequal(nn.Module):
    """One layer, split into parts of different widths that go different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [6, 4, 2]
        self.inner = nn.Linear(12, 12)
        self.one, self.two, self.three = nn.Linear(6, 12), nn.Linear(4, 12), nn.Linear(2, 12)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.inner(x).split(self.sizes, -1)
        return self.one(a.relu()) + self.two(b.tanh()) + self.three(c)


def grid() -> tuple[Tensor, ...]:
    return (torch.randn(2, 4, 4, 6),)


def applied(function: Callable[[Tensor], Tensor], ins: int = 8, outs: int = 8) -> Callable[[], nn.Module]:
    return lambda: Between(Applied(function), ins, outs=outs)


FIRST = "first | neuron 8 | | first.{weight,bias} last.weight:1"

FAMILIES = [
    Family(
        "pixel_shuffle",
        lambda: stack(nn.PixelShuffle(2), outs=2),
        images(),
        """
        0 | neuron 2 | | 0.{weight,bias} 3.weight:1
    """,
    ),
    Family(
        "pixel_unshuffle",
        lambda: stack(nn.PixelUnshuffle(2), outs=32),
        images(),
        """
        0 | neuron 8 | | 0.{weight,bias} 3.weight:1
    """,
    ),
    Family(
        "channel_shuffle",
        lambda: stack(nn.ChannelShuffle(2)),
        images(),
        """
        1.groups | head 2   | group | 0.{weight,bias} 3.weight:1
        0        | neuron 4 |       | 0.{weight,bias} 3.weight:1
    """,
    ),
    # The halves of the stream have equal sizes, so one channel of each goes.
    Family(
        "shuffle_unit",
        lambda: stack(ShuffleUnit()),
        images(),
        """
        0 | neuron 4 | | 0.{weight,bias} 1.branch.{0,2}.{weight,bias} 1.branch.0.weight:1 3.weight:1
    """,
    ),
    Family(
        "shuffle_units",
        lambda: stack(ShuffleUnit(), ShuffleUnit()),
        images(),
        """
        0 | neuron 2 | | 0.{weight,bias} {1,2}.branch.{0,2}.{weight,bias} {1,2}.branch.0.weight:1 4.weight:1
    """,
    ),
    Family(
        "grouped_shuffle",
        lambda: stack(GroupedShuffle()),
        images(),
        """
        1.one.groups   | head 2   | group | 0.{weight,bias} 1.one.{weight,bias} 1.other.weight:1
        0              | neuron 4 |       | 0.{weight,bias} 1.one.weight:1
        1.one          | neuron 3 |       | 1.one.{weight,bias} 1.other.weight:1
        1.other.groups | head 2   | group | 1.{one,other}.{weight,bias} 3.weight:1
        1.other        | neuron 4 |       | 1.other.{weight,bias} 3.weight:1
    """,
    ),
    Family("flip", applied(lambda h: h.tanh().flip(-1)), vectors(), FIRST),
    # A unit and its mirror image; a new pair would be in the middle.
    Family(
        "flip_residual",
        applied(lambda h: h + h.tanh().flip(-1)),
        vectors(),
        """
        first | neuron 4 | stream | first.{weight,bias} last.weight:1
    """,
    ),
    # Three places of eight aren't three of seven.
    Family("roll", applied(lambda h: h.tanh().roll(3, -1)), vectors(), ""),
    Family("roll_tokens", applied(lambda h: h + h.tanh().roll(1, 1)), tokens(), FIRST),
    # The code divides the stream by the heads, so that neither moves alone.
    Family(
        "windows",
        lambda: Between(Windows()),
        grid,
        """
        body.heads    | head 2    | stream inexact |
            first.{weight,bias} body.{norm,qkv,proj}.{weight,bias} body.{qkv,proj}.weight:1 body.table:1 last.weight:1
        body.features | feature 6 | stream inexact |
            first.{weight,bias} body.{norm,qkv,proj}.{weight,bias} body.{qkv,proj}.weight:1 last.weight:1
    """,
    ),
    Family(
        "merging",
        lambda: Between(Merging(), 8, outs=12),
        grid,
        """
        first          | neuron 8  | inexact | first.{weight,bias} body.norm.{weight,bias} body.reduction.weight:1
        body.reduction | neuron 12 |         | body.reduction.weight last.weight:1
    """,
    ),
    Family(
        "patches",
        PatchesToTokens,
        images(),
        """
        patches | neuron 8 | stream | {patches,mix}.{weight,bias} {token,positions}:2 {mix,head}.weight:1
    """,
    ),
    Family("repeat", applied(lambda h: h.tanh().repeat(1, 3), outs=24), vectors(), FIRST),
    Family("repeat_interleave", applied(lambda h: h.tanh().repeat_interleave(3, 1), outs=24), vectors(), FIRST),
    Family("stack", applied(lambda h: torch.stack([h, h.tanh()], -1).flatten(1), outs=16), vectors(), FIRST),
    Family("stack_front", applied(lambda h: torch.stack([h, h.tanh()], 1).flatten(1), outs=16), vectors(), FIRST),
    Family(
        "tile_pairs",
        applied(lambda h: h.unflatten(-1, (-1, 2)).tile(1, 2, 1).flatten(1), outs=16),
        vectors(),
        """
        first | neuron 4 | | first.{weight,bias} last.weight:1
    """,
    ),
    Family(
        "unequal",
        lambda: Between(Unequal()),
        tokens(),
        """
        first                  | neuron 12 |        | first.{weight,bias} body.inner.weight:1
        body.inner.weight[0]#0 | neuron 6  |        | body.inner.{weight,bias} body.one.weight:1
        body.inner.weight[0]#1 | neuron 4  |        | body.inner.{weight,bias} body.two.weight:1
        body.inner.weight[0]#2 | neuron 2  |        | body.inner.{weight,bias} body.three.weight:1
        body.one               | neuron 12 | stream | body.{one,two,three}.{weight,bias} last.weight:1
    """,
    ),
]

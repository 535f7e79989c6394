"""Weights that are shared, tied, used without a module, or made by the network itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .family import Family, images, tokens, vectors


class Twice(nn.Module):
    """One module called twice, and its parameter under a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.alias, self.copied = nn.Linear(8, 7), nn.Linear(8, 7, bias=False)
        self.block = nn.Sequential(self.alias, nn.Linear(7, 8))
        self.copied.weight = self.alias.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.block(x)
        x = x + self.block(x.tanh())
        return self.last(x) + self.copied(x).mean()


class Bare(nn.Module):
    """Nothing but parameters and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(8, 6), torch.randn(8, 10), torch.randn(4, 10)])
        self.named = nn.ParameterDict({"scale": torch.randn(8), "shift": torch.randn(10)})

    def forward(self, x: Tensor) -> Tensor:
        h = F.layer_norm(x, (6,)) @ self.weights[0].T
        h = torch.addmm(self.named["shift"], (h * self.named["scale"]).relu(), self.weights[1])
        return F.linear(h.tanh(), self.weights[2])


class Called(nn.Module):
    """A layer called with weights that are computed from its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        self.scale = nn.Parameter(torch.rand(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        weights = dict(self.net.named_parameters())
        return functional_call(self.net, weights | {"0.weight": weights["0.weight"] * self.scale}, (x,))


class LowRank(nn.Module):
    """A frozen weight and a product of two narrow ones beside it."""

    def __init__(self, merged: bool) -> None:
        super().__init__()
        self.merged = merged
        self.first, self.base, self.last = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 4)
        self.down, self.up = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(7, 3))
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        if self.merged:
            return self.last(F.linear(x, self.base.weight + 0.5 * (self.up @ self.down), self.base.bias).tanh())
        return self.last((self.base(x) + 0.5 * (x @ self.down.T @ self.up.T)).tanh())


class Hyper(nn.Module):
    """A small network that makes the weights of another, for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.code, self.last = nn.Linear(6, 8), nn.Linear(6, 5), nn.Linear(7, 4)
        self.make = nn.Linear(5, 7 * 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        weight = self.make(self.code(x).relu()).view(len(x), -1, h.shape[-1])
        return self.last(torch.bmm(weight, h[..., None])[..., 0].relu())


class HyperShared(nn.Module):
    """A weight made from an embedding of its rows and one of its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(7, 4)
        self.rows, self.columns = nn.Parameter(torch.randn(7, 3)), nn.Parameter(torch.randn(8, 3))
        self.make = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make(self.rows) @ self.columns.T
        return self.last(F.linear(self.first(x), weight).relu())


class Modulated(nn.Module):
    """As in StyleGAN: the weight is scaled by a style and brought to length one, for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.style = nn.Conv2d(3, 8, 1), nn.Linear(3, 8)
        self.weight, self.last = nn.Parameter(torch.randn(7, 8, 3, 3)), nn.Conv2d(7, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, h = len(x), self.first(x)
        style = self.style(x.mean((2, 3)))
        weight = self.weight[None] * style[:, None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        h = h.reshape(1, -1, *h.shape[2:])
        h = F.conv2d(h, weight.flatten(0, 1), padding=1, groups=b)
        return self.last(h.view(b, -1, *h.shape[2:]))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.both, self.last = (
            nn.Linear(6, 8),
            nn.Linear(6, 5),
            nn.Bilinear(8, 5, 7),
            nn.Linear(7, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.both(self.one(x), self.other(x)).relu())


class Products(nn.Module):
    """Two towers whose outputs are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (self.one(x) * self.other(x.flip(0))).sum(-1)


class Similarity(nn.Module):
    """As in CLIP: both sides are brought to length one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.scale = nn.Linear(6, 8), nn.Linear(6, 8), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.exp() * F.normalize(self.one(x), dim=-1) @ F.normalize(self.other(x), dim=-1).T


class Einsums(nn.Module):
    """Three operands at once, letters as numbers, and an ellipsis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(*shape)) for shape in ((6, 8), (8, 7), (7, 4)))
        self.d = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("...i,ij,j->...j", x, self.a, self.d).relu()
        h = torch.einsum(h, [0, 1, 2], self.b, [2, 3], [0, 1, 3])
        return torch.einsum("bnk,kl->bnl", h.tanh(), self.c)


class Diagonal(nn.Module):
    """An einsum that reads the diagonal of a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.square, self.last = nn.Linear(6, 8), nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.einsum("bk,kk->bk", self.first(x), self.square))


FAMILIES = [
    Family(
        "twice",
        Twice,
        vectors(),
        """
        first | neuron 8 | stream  | first.{weight,bias} alias.weight:1 block.1.{weight,bias} last.weight:1
        alias | neuron 7 | inexact | alias.{weight,bias} block.1.weight:1
    """,
    ),
    Family(
        "bare",
        Bare,
        vectors(),
        """
        weights.0 | neuron 8  | | weights.{0,1} named.scale
        weights.1 | neuron 10 | | named.shift weights.{1,2}:1
    """,
    ),
    Family("called", Called, vectors(), "net.0 | neuron 8 | | scale net.0.{weight,bias} net.2.weight:1"),
    Family(
        "low_rank",
        lambda: LowRank(False),
        vectors(),
        """
        first | neuron 8 |        | first.{weight,bias} base.weight:1 down:1
        base  | neuron 7 | stream | base.{weight,bias} up last.weight:1
        down  | neuron 3 |        | down up:1
    """,
    ),
    Family(
        "low_rank_merged",
        lambda: LowRank(True),
        vectors(),
        """
        first | neuron 8 | | first.{weight,bias} base.weight:1 down:1
        base  | neuron 7 | | base.{weight,bias} up last.weight:1
        down  | neuron 3 | | down up:1
    """,
    ),
    Family(
        "hyper",
        Hyper,
        vectors(),
        """
        first | neuron 8 | | {first,make}.{weight,bias}
        code  | neuron 5 | | code.{weight,bias} make.weight:1
        make  | neuron 7 | | make.{weight,bias} last.weight:1
    """,
    ),
    Family(
        "hyper_shared",
        HyperShared,
        vectors(),
        """
        make    | neuron 3 | | make.weight:1 rows:1
        rows    | neuron 7 | | rows last.weight:1
        columns | neuron 3 | | make.{weight,bias} columns:1
        first   | neuron 8 | | columns first.{weight,bias}
    """,
    ),
    Family(
        "modulated",
        Modulated,
        images(3, 5),
        """
        first  | neuron 8 | | {first,style}.{weight,bias} weight:1
        weight | neuron 7 | | weight last.weight:1
    """,
    ),
    Family(
        "bilinear",
        Bilinear,
        vectors(),
        """
        one   | neuron 8 | | one.{weight,bias} both.weight:1
        other | neuron 5 | | other.{weight,bias} both.weight:2
        both  | neuron 7 | | both.{weight,bias} last.weight:1
    """,
    ),
    Family("products", Products, vectors(), "one | neuron 8 | | {one,other}.{weight,bias}"),
    Family("similarity", Similarity, vectors(), "one | neuron 8 | | {one,other}.{weight,bias}"),
    Family(
        "einsums",
        Einsums,
        tokens(),
        """
        a | neuron 8 | | a:1 {d,b}
        b | neuron 7 | | b:1 c
    """,
    ),
    Family("diagonal", Diagonal, vectors(), "first | neuron 8 | | first.{weight,bias} square square:1 last.weight:1"),
]

"""Parts of well-known architectures that don't belong to one family."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Between
from .convolution import stack
from .family import Family, images, tokens, vectors
from .movement import applied


class FiLM(nn.Module):
    """A scale and a shift that another input makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.condition, self.last = nn.Linear(6, 8), nn.Linear(6, 16), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.condition(x.flip(0)).chunk(2, 1)
        return self.last(self.first(x) * (1 + scale) + shift)


class AdaptiveNorm(nn.Module):
    """As in DiT: a norm without parameters, modulated by six parts of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.condition, self.mix, self.last = (nn.Linear(*s) for s in ((6, 8), (6, 48), (8, 8), (8, 4)))
        self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 8)
        self.norm = nn.LayerNorm(8, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f = self.condition(x.tanh()).chunk(6, -1)
        h = self.first(x)
        h = h + c * self.mix(self.norm(h) * (1 + a) + b)
        h = h + f * self.down(F.gelu(self.up(self.norm(h) * (1 + d) + e)))
        return self.last(h)


class CosineHead(nn.Module):
    """As in ArcFace: features and classes of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.classes = nn.Linear(6, 8), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return 8 * F.normalize(self.first(x)) @ F.normalize(self.classes).T


class Divided(nn.Module):
    """A weight divided by the lengths of its rows, in front of the hidden layer or behind it."""

    def __init__(self, behind: bool) -> None:
        super().__init__()
        self.behind, self.first, self.last = behind, nn.Linear(6, 8, bias=False), nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.first.weight, self.last.weight
        if self.behind:
            other = other / other.norm(dim=1, keepdim=True)
        else:
            one = one / one.norm(dim=1, keepdim=True)
        return F.linear(F.linear(x, one).tanh(), other)


class ConvolutionalLSTM(nn.Module):
    """Gates from a convolution of input and state together; the first state is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.gates, self.last = 8, nn.Conv2d(11, 32, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), self.width, *x.shape[2:])
        for _ in range(2):
            i, f, o, g = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.last(h)


def generator() -> nn.Module:
    """As in a GAN: a vector becomes an image whose channels a module keeps as a number."""
    up = nn.ConvTranspose2d(8, 5, 2, 2)
    return nn.Sequential(
        nn.Linear(6, 32), nn.Unflatten(1, (8, 2, 2)), nn.BatchNorm2d(8), nn.ReLU(), up, nn.Tanh(), nn.Conv2d(5, 3, 1)
    )


class UNet(nn.Module):
    """What went down comes up, beside what stayed."""

    def __init__(self) -> None:
        super().__init__()
        self.stay, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, 2, 1)
        self.up, self.last = nn.ConvTranspose2d(6, 7, 2, 2), nn.Conv2d(15, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        stays = self.stay(x).relu()
        return self.last(torch.cat([stays, self.up(self.down(stays).relu())], 1))


class TalkingHeads(nn.Module):
    """Heads that a layer mixes, each with a temperature."""

    def __init__(self, heads: int, talking: bool = True) -> None:
        super().__init__()
        self.heads, self.temperature = heads, nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.talk = nn.Linear(12, 36), nn.Linear(heads, heads) if talking else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.talk((q @ k.mT * self.temperature).movedim(1, -1)).movedim(-1, 1)
        return (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)


class LinearBias(nn.Module):
    """As in ALiBi: a slope for each head, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv = 4, nn.Linear(12, 36)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, 5.0))
        self.slopes: Tensor

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        bias = self.slopes[:, None, None] * (places[None] - places[:, None])
        return (q @ k.mT + bias).softmax(-1).matmul(v).transpose(1, 2).flatten(2)


class Quantised(nn.Module):
    """As in VQ-VAE: each row is replaced by the nearest entry of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.table, self.last = nn.Linear(6, 8), nn.Embedding(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        nearest = (h[:, None] - self.table.weight[None]).square().sum(-1).argmin(1)
        return self.last(h + (self.table(nearest) - h).detach())


class ForceField(nn.Module):
    """Puts out the gradient of an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.energy = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            energy = self.energy(self.first(x).tanh()).sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]


class Centred(nn.Module):
    """Features less their running mean, which the code keeps in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("centre", torch.zeros(8))
        self.centre: Tensor

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * h.detach().mean(0)
        return self.last(h - self.centre)


class KernelAndMatrix(nn.Module):
    """One weight as the kernel of a convolution, and as a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.both, self.last = nn.Conv2d(3, 8, 1), nn.Linear(8, 7), nn.Conv2d(7, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        one = F.conv2d(h, self.both.weight[:, :, None, None], self.both.bias)
        return self.last(one.relu() + self.both(h.movedim(1, -1)).movedim(-1, 1))


def pairs(h: Tensor) -> Tensor:
    """As in capsules: neighbours are scaled by their length."""
    found = h.view(len(h), -1, 2)
    return (found / (1 + found.square().sum(-1, keepdim=True))).flatten(1)


def scaled_by_tensor(h: Tensor) -> Tensor:
    return h / torch.sqrt(torch.tensor(h.shape[1], dtype=h.dtype))


def shuffled_groups() -> nn.Module:
    return stack(nn.PixelShuffle(2), nn.Conv2d(4, 8, 1, groups=2), ins=16)


TALKING = """
    first      | neuron 12 | | first.{weight,bias} body.qkv.weight:1
    body.heads | head 4    | | body.qkv.{weight,bias} body.temperature body.talk.{weight,weight:1,bias} last.weight:1
    body.features | feature 3 | | body.qkv.{weight,bias} last.weight:1
"""
ONE = "first | neuron 8 | {} | first.{{weight,bias}} last.weight:1"

FAMILIES = [
    Family("film", FiLM, vectors(), "condition | neuron 8 | stream | {first,condition}.{weight,bias} last.weight:1"),
    Family(
        "adaptive_norm",
        AdaptiveNorm,
        vectors(),
        """
        condition | neuron 8 | stream inexact |
            {condition,first,mix,down}.{weight,bias} {mix,up,last}.weight:1
        up        | neuron 10 | | up.{weight,bias} down.weight:1
    """,
    ),
    Family("cosine_head", CosineHead, vectors(), "first | neuron 8 | | first.{weight,bias} classes:1"),
    Family("rows_divided", lambda: Divided(False), vectors(), "first | neuron 8 | | first.weight last.weight:1"),
    Family("columns_divided", lambda: Divided(True), vectors(), "first | neuron 8 | | first.weight last.weight:1"),
    Family(
        "convolutional_lstm",
        ConvolutionalLSTM,
        images(),
        """
        gates | neuron 8 | stream | gates.{weight,weight:1,bias} last.weight:1
    """,
    ),
    Family(
        "generator",
        generator,
        vectors(),
        """
        0 | neuron 8 | | 0.{weight,bias} 2.* 4.weight
        4 | neuron 5 | | 4.bias {4,6}.weight:1
    """,
    ),
    Family(
        "unet",
        UNet,
        images(),
        """
        stay | neuron 8 | | stay.{weight,bias} {down,last}.weight:1
        down | neuron 6 | | down.{weight,bias} up.weight
        up   | neuron 7 | | up.bias {up,last}.weight:1
    """,
    ),
    Family("talking_heads", lambda: Between(TalkingHeads(4)), tokens(), TALKING),
    Family(
        "three_heads",
        lambda: Between(TalkingHeads(3, talking=False)),
        tokens(),
        """
        first         | neuron 12 | | first.{weight,bias} body.qkv.weight:1
        body.heads    | head 3    | | body.qkv.{weight,bias} body.temperature last.weight:1
        body.features | feature 4 | | body.qkv.{weight,bias} last.weight:1
    """,
    ),
    Family(
        "linear_bias",
        lambda: Between(LinearBias()),
        tokens(),
        """
        first         | neuron 12 |        | first.{weight,bias} body.qkv.weight:1
        body.heads    | head 4    | stream | body.qkv.{weight,bias} body.slopes last.weight:1
        body.features | feature 3 |        | body.qkv.{weight,bias} last.weight:1
    """,
    ),
    Family(
        "quantised",
        Quantised,
        vectors(),
        """
        first | neuron 8 | embedding stream | first.{weight,bias} table.weight:1 last.weight:1
    """,
    ),
    Family("force_field", ForceField, vectors(), "first | neuron 8 | | first.{weight,bias} energy.weight:1"),
    Family("centred", Centred, vectors(), "first | neuron 8 | | first.{weight,bias} centre last.weight:1"),
    Family(
        "kernel_and_matrix",
        KernelAndMatrix,
        images(),
        """
        first | neuron 8 | | first.{weight,bias} both.weight:1
        both  | neuron 7 | | both.{weight,bias} last.weight:1
    """,
    ),
    Family("pairs", applied(pairs), vectors(), ONE.format("").replace("8", "4")),
    Family("tensor_scale", applied(scaled_by_tensor), vectors(), ONE.format("inexact")),
    Family(
        "shuffled_groups",
        shuffled_groups,
        images(),
        """
        2.groups | head 2   | group | 0.{weight,bias} 2.{weight,bias} 4.weight:1
        0        | neuron 2 |       | 0.{weight,bias} 2.weight:1
        2        | neuron 4 |       | 2.{weight,bias} 4.weight:1
    """,
    ),
]

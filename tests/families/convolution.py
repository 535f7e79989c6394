"""Convolutions of all kinds, pooling and gates over channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .family import Family, images


def stack(*body: nn.Module, ins: int = 8, outs: int = 8, dims: int = 2) -> nn.Module:
    """A convolution, what is tested, and a convolution."""
    conv: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return nn.Sequential(conv(3, ins, 3, padding=1), *body, nn.ReLU(), conv(outs, 4, 1))


class GroupsFromShapes(nn.Module):
    """Channels over the weight's columns are the groups."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1, groups=x.shape[1] // self.weight.shape[1])


class SqueezeExcite(nn.Module):
    """Channels that gate each other, through a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm, self.up = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.norm(self.down(x.mean((2, 3), keepdim=True))))).sigmoid()


class EfficientChannelAttention(nn.Module):
    """Channels as the places of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]


class Pooled(nn.Module):
    """All kinds of pooling and resizing side by side."""

    def forward(self, x: Tensor) -> Tensor:
        small = F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 4) + F.adaptive_max_pool2d(x, 4)
        small = small + F.lp_pool2d(x, 2, 2) + F.max_pool2d(x, 3, 2, 1, return_indices=True)[0]
        grown = [F.interpolate(small, scale_factor=2, mode=mode) for mode in ("nearest", "bilinear", "bicubic")]
        return F.pad(sum(grown, x), (1, 1, 1, 1), "reflect")


class Unfolded(nn.Module):
    """A convolution as a product with unfolded windows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 72))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ F.unfold(x, 3, padding=1)).unflatten(2, x.shape[2:])


class TwoPlaces(nn.Module):
    """A convolution over a merged batch of views, and a pooling over the views."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        views = torch.stack([x, x.flip(3)], 1).flatten(0, 1)
        return self.conv(views).unflatten(0, (-1, 2)).amax(1)


def volumes() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 5, 6, 7),)


def circular() -> nn.Module:
    return nn.Conv1d(8, 6, 3, padding=1, padding_mode="circular")


def signals() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 9),)


FAMILIES = [
    Family(
        "grouped",
        lambda: stack(nn.Conv2d(8, 12, 3, groups=4), outs=12),
        images(),
        """
        1.groups | head 4   | group | {0,1}.{weight,bias} 3.weight:1
        0        | neuron 2 |       | 0.{weight,bias} 1.weight:1
        1        | neuron 3 |       | 1.{weight,bias} 3.weight:1
    """,
    ),
    Family(
        "grouped_from_shapes",
        lambda: stack(GroupsFromShapes(), outs=12),
        images(),
        """
        1.groups | head 4   | group | 0.{weight,bias} 1.weight 3.weight:1
        0        | neuron 2 |       | 0.{weight,bias} 1.weight:1
        1        | neuron 3 |       | 1.weight 3.weight:1
    """,
    ),
    Family(
        "depthwise",
        lambda: stack(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)),
        images(),
        """
        0 | neuron 8 | | {0,1}.{weight,bias} 2.* 4.weight:1
    """,
    ),
    Family(
        "depthwise_multiplied",
        lambda: stack(nn.Conv2d(8, 16, 3, groups=8), outs=16),
        images(),
        """
        0 | neuron 8 | | {0,1}.{weight,bias} 3.weight:1
        1 | neuron 2 | | 1.{weight,bias} 3.weight:1
    """,
    ),
    Family(
        "grouped_twice",
        lambda: stack(nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 8, 3, groups=4)),
        images(),
        """
        1.groups | head 2   | group | {0,1,2}.{weight,bias} 4.weight:1
        0        | neuron 4 |       | 0.{weight,bias} 1.weight:1
        1        | neuron 3 |       | 1.{weight,bias} 2.weight:1
        2.groups | head 2   | group | {1,2}.{weight,bias} 4.weight:1
        2        | neuron 2 |       | 2.{weight,bias} 4.weight:1
    """,
    ),
    Family(
        "transposed",
        lambda: stack(nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6), outs=6),
        images(),
        """
        0 | neuron 8 | | 0.{weight,bias} 1.weight
        1 | neuron 6 | | 1.bias {1,4}.weight:1 2.*
    """,
    ),
    Family(
        "transposed_grouped",
        lambda: stack(nn.ConvTranspose2d(8, 12, 2, 2, groups=4), outs=12),
        images(),
        """
        1.groups | head 4   | group | {0,1}.{weight,bias} 3.weight:1
        0        | neuron 2 |       | 0.{weight,bias} 1.weight
        1        | neuron 3 |       | 1.bias {1,3}.weight:1
    """,
    ),
    Family(
        "one",
        lambda: stack(nn.Conv1d(8, 6, 3, dilation=2), nn.BatchNorm1d(6), outs=6, dims=1),
        signals,
        """
        0 | neuron 8 | | 0.{weight,bias} 1.weight:1
        1 | neuron 6 | | 1.{weight,bias} 2.* 4.weight:1
    """,
    ),
    Family(
        "one_circular",
        lambda: stack(circular(), outs=6, dims=1),
        signals,
        """
        0 | neuron 8 | | 0.{weight,bias} 1.weight:1
        1 | neuron 6 | | 1.{weight,bias} 3.weight:1
    """,
    ),
    Family(
        "three",
        lambda: stack(nn.Conv3d(8, 6, 3), nn.BatchNorm3d(6), nn.MaxPool3d(2), outs=6, dims=3),
        volumes,
        """
        0 | neuron 8 | | 0.{weight,bias} 1.weight:1
        1 | neuron 6 | | 1.{weight,bias} 2.* 5.weight:1
    """,
    ),
    Family(
        "squeeze_excite",
        lambda: stack(SqueezeExcite()),
        images(),
        """
        0      | neuron 8 | | 0.{weight,bias} 1.down.weight:1 1.up.{weight,bias} 3.weight:1
        1.down | neuron 6 | | 1.down.{weight,bias} 1.norm.* 1.up.weight:1
    """,
    ),
    # Channels are the places of a convolution, and neighbours: none may leave.
    Family("channel_attention", lambda: stack(EfficientChannelAttention()), images(), ""),
    Family("local_response", lambda: stack(nn.LocalResponseNorm(3)), images(), ""),
    Family("pooled", lambda: stack(Pooled()), images(), "0 | neuron 8 | | 0.{weight,bias} 3.weight:1"),
    Family(
        "unfolded",
        lambda: stack(Unfolded(), outs=6),
        images(),
        """
        0 | neuron 8 | | 0.{weight,bias} 1.weight:1
        1 | neuron 6 | | 1.weight 3.weight:1
    """,
    ),
    Family(
        "views",
        lambda: stack(TwoPlaces(), outs=6),
        images(),
        """
        0      | neuron 8 | | 0.{weight,bias} 1.conv.weight:1
        1.conv | neuron 6 | | 1.conv.{weight,bias} 3.weight:1
    """,
    ),
    Family("prelu", lambda: stack(nn.PReLU(8)), images(), "0 | neuron 8 | | 0.{weight,bias} 1.weight 3.weight:1"),
]

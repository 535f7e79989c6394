"""Normalisations of data and of weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import stack
from .family import Family, images, tokens


class ChannelsLast(nn.Module):
    """As in ConvNeXt: a norm over the last dimension, and a scale of the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 20), nn.Linear(20, 8)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class RMSNormByHand(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class GroupNormByHand(nn.Module):
    """Groups are a dimension of their own while they are normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.weight = 4, nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = x.view(b, self.groups, -1)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True) + 1e-5).sqrt()
        return y.view(b, c, h, w) * self.weight[:, None, None]


class StandardisedWeight(nn.Conv2d):
    """Each filter has mean zero and variance one."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(input, w, self.bias, padding=1)


def tracked_instance_norm() -> nn.Module:
    return nn.InstanceNorm2d(8, affine=True, track_running_stats=True)


def between(body: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 8), body(8), nn.Linear(8, 4))


FAMILIES = [
    Family(
        "group_norm",
        lambda: stack(nn.GroupNorm(4, 8)),
        images(),
        """
        1.groups | head 4   | group   | {0,1}.{weight,bias} 3.weight:1
        0        | neuron 2 | inexact | {0,1}.{weight,bias} 3.weight:1
    """,
    ),
    Family(
        "group_norm_one",
        lambda: stack(nn.GroupNorm(1, 8)),
        images(),
        """
        0 | neuron 8 | inexact | {0,1}.{weight,bias} 3.weight:1
    """,
    ),
    Family(
        "group_norm_each",
        lambda: stack(nn.GroupNorm(8, 8)),
        images(),
        """
        0 | neuron 8 | | {0,1}.{weight,bias} 3.weight:1
    """,
    ),
    Family(
        "group_norm_by_hand",
        lambda: stack(GroupNormByHand()),
        images(),
        """
        0.weight[0]#0 | neuron 4 |         | 0.{weight,bias} 1.weight 3.weight:1
        0.weight[0]#1 | neuron 2 | inexact | 0.{weight,bias} 1.weight 3.weight:1
    """,
    ),
    Family(
        "instance_norm",
        lambda: stack(nn.InstanceNorm2d(8)),
        images(),
        """
        0 | neuron 8 | | 0.{weight,bias} 3.weight:1
    """,
    ),
    Family(
        "instance_norm_affine",
        lambda: stack(tracked_instance_norm()),
        images(),
        """
        0 | neuron 8 | | 0.{weight,bias} 1.* 3.weight:1
    """,
    ),
    Family(
        "batch_norm_bare",
        lambda: stack(nn.BatchNorm2d(8, affine=False)),
        images(),
        """
        0 | neuron 8 | | 0.{weight,bias} 1.{running_mean,running_var} 3.weight:1
    """,
    ),
    Family(
        "batch_norm_forgetful",
        lambda: stack(nn.BatchNorm2d(8, track_running_stats=False)),
        images(),
        """
        0 | neuron 8 | | {0,1}.{weight,bias} 3.weight:1
    """,
    ),
    Family("layer_norm", between(nn.LayerNorm), tokens(), "0 | neuron 8 | inexact | {0,1}.{weight,bias} 2.weight:1"),
    Family("rms_norm", between(nn.RMSNorm), tokens(), "0 | neuron 8 | inexact | 0.{weight,bias} 1.weight 2.weight:1"),
    Family(
        "rms_norm_by_hand",
        between(RMSNormByHand),
        tokens(),
        """
        0 | neuron 8 | inexact | 0.{weight,bias} 1.weight 2.weight:1
    """,
    ),
    Family(
        "channels_last",
        lambda: stack(ChannelsLast()),
        images(),
        """
        0    | neuron 8  | stream inexact |
            0.{weight,bias} 1.{depthwise,norm,down}.{weight,bias} 1.up.weight:1 1.scale 3.weight:1
        1.up | neuron 20 |                | 1.up.{weight,bias} 1.down.weight:1
    """,
    ),
    Family(
        "standardised",
        lambda: stack(StandardisedWeight(8, 6, 3), outs=6),
        images(),
        """
        0 | neuron 8 | inexact | 0.{weight,bias} 1.weight:1
        1 | neuron 6 |         | 1.{weight,bias} 3.weight:1
    """,
    ),
]

"""New modules that a model grows: identities to follow a layer, and branches beside one that are zero at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .errors import NotPermissible

#: Kinds of branches beside a module: "same" is a copy of the module itself.
Kind = Literal["same", "1x1", "3x3", "depthwise", "pool"]
#: What may follow one: a layer whose kernel is the identity, or one on a branch of its own.
Follower = Literal["identity", "residual"]

#: Activations by the operator that a model calls, for new layers to have the model's own.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "hardtanh": nn.ReLU6, "gelu": nn.GELU, "silu": nn.SiLU, "leaky_relu": nn.LeakyReLU,
    "hardswish": nn.Hardswish, "elu": nn.ELU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
}  # fmt: skip


#: Modules by the number of dimensions that they go over.
_CONVOLUTIONS: Any = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS: Any = (nn.Identity, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLS: Any = (nn.Identity, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@dataclass(frozen=True)
class Branch:
    """A module to build.

    Args:
        kind: Of a branch, or of a layer that follows.
        ins, outs: Channels that it reads and makes.
        spatial: How many dimensions lie behind the channels, as two in images; where none do, channels are the last.
        stride: Of a branch beside a module that makes images smaller.
        activation: By its operator's name.
        norm: Whether a batch norm follows an identity.
    """

    kind: Kind | Follower
    ins: int
    outs: int
    spatial: int
    stride: int = 1
    activation: str = "relu"
    norm: bool = False

    def build(self) -> Built:
        """The module; its values come from torch's random state, but for those that make it zero or the identity."""
        if not self.spatial and self.kind in ("3x3", "depthwise", "pool"):
            raise NotPermissible(f"a branch {self.kind!r} is for images; choose '1x1' or 'same' here.")
        if not 0 <= self.spatial < len(_CONVOLUTIONS):
            raise NotPermissible(f"there are no convolutions over {self.spatial} dimensions.")
        return Built(self)


class Built(nn.Module):
    """What a :class:`Branch` describes."""

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        self.adds = branch.kind == "residual"
        self.layers = nn.Sequential(*_LAYERS[branch.kind](branch))

    @torch.no_grad()
    def calibrate(self, data: Tensor) -> None:
        """Give a norm at the end the statistics of what it gets of these data, and the scales that undo it."""
        *inner, last = self.layers
        if not isinstance(last, _NORMS[1:]):
            return
        for layer in inner:
            data = layer(data)
        variance, mean = torch.var_mean(data.transpose(0, 1).flatten(1), 1, correction=0)
        last.running_mean.copy_(mean)  # type: ignore[union-attr]
        last.running_var.copy_(variance)  # type: ignore[union-attr]
        last.weight.copy_((variance + last.eps).sqrt())
        last.bias.copy_(mean)

    def forward(self, x: Tensor) -> Tensor:
        """What the branch makes of ``x``."""
        made = self.layers(x)
        return x + made if self.adds else made


def _reading(branch: Branch, kernel: int, stride: int = 1) -> nn.Module:
    if branch.spatial:
        return _CONVOLUTIONS[branch.spatial](branch.ins, branch.outs, kernel, stride, padding=kernel // 2)
    return nn.Linear(branch.ins, branch.outs)


@torch.no_grad()
def _zero(module: Any) -> nn.Module:
    module.weight.zero_()
    module.bias.zero_()
    return module


@torch.no_grad()
def _eye(module: Any) -> nn.Module:
    """Give a layer with as many outputs as inputs the identity for a kernel."""
    _zero(module)
    places = range(module.weight.shape[0])
    centre = tuple(size // 2 for size in module.weight.shape[2:])
    for place in places:
        module.weight[(place, place, *centre)] = 1.0
    return module


def _activation(branch: Branch) -> nn.Module:
    return ACTIVATIONS[branch.activation]()


def _identity(branch: Branch) -> list[nn.Module]:
    norm = [_NORMS[branch.spatial](branch.outs)] if branch.norm and branch.spatial else []
    return [_activation(branch), _eye(_reading(branch, 3)), *norm]


def _depthwise(branch: Branch) -> list[nn.Module]:
    convolution = _CONVOLUTIONS[branch.spatial]
    inner = convolution(branch.ins, branch.ins, 3, branch.stride, 1, groups=branch.ins, bias=False)
    return [inner, _zero(_reading(branch, 1))]


_LAYERS = {
    "1x1": lambda b: [_zero(_reading(b, 1, b.stride))],
    "3x3": lambda b: [_zero(_reading(b, 3, b.stride))],
    "depthwise": _depthwise,
    "pool": lambda b: [_POOLS[b.spatial](3, b.stride, 1, count_include_pad=False), _zero(_reading(b, 1))],
    "identity": _identity,
    "residual": lambda b: [_reading(b, 3), _activation(b), _zero(_reading(b, 3))],
}

KINDS = get_args(Kind)

"""Networks as they were published, to compare with the numbers that were published for them.

Widths that methods were published to change are scaled by a fraction; the others, such as the streams of residual
networks, follow the width alone.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .errors import require
from .models import RESNET_WIDTHS, VGG11_WIDTHS, ResNet, convolution, mlp, norm, scaled

VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG16_HIDDEN = 512
#: The convolutions of VGG11 at which a new stage begins.
VGG11_STAGES = {1, 2, 4, 6}
#: How much MobileNetV2's blocks expand their channels, but the first, which doesn't.
EXPANSION = 6
#: Channels, blocks and the first stride of MobileNetV2's stages, without the first.
MOBILENET_STAGES = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


def vgg11_gradmax(widths: Sequence[int], channels: int, classes: int, batch_norm: bool = False) -> nn.Sequential:
    """The VGG11 of GradMax (Evci et al. 2022): a stride of 2 in place of pooling, no biases, no linear layer.

    A ninth convolution makes the classes, of what is then a single pixel. Where it is normalised, that comes after
    the activation. Padding is the same on both sides, where TensorFlow's is on the right and below.

    Args:
        widths: channels of the eight hidden convolutions.
    """
    layers: list[nn.Module] = []
    for index, (before, width) in enumerate(itertools.pairwise((channels, *widths))):
        layers += [_from_inputs(before, width, stride=2 if index in VGG11_STAGES else 1), nn.ReLU()]
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
    parts: dict[str, nn.Module] = {
        "features": nn.Sequential(*layers),
        "classifier": _from_inputs(widths[-1], classes, stride=2),
        "flatten": nn.Flatten(),
    }
    return nn.Sequential(OrderedDict(parts))


def _from_inputs(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution whose weights start at He's initialisation by what comes in (fan in), as Keras's HeNormal does."""
    layer = convolution(inputs, outputs, size, stride)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


class PreactivationBlock(nn.Module):
    """Normalise, activate, convolve; twice. The sum with what came in is left as it is."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _from_inputs(inputs, inner, stride=stride)
        self.norm2 = norm(inner, batch_norm)
        self.conv2 = _from_inputs(inner, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _from_inputs(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Images, of half the size where there is a stride."""
        y = self.conv1(F.relu(self.norm1(x)))
        return self.conv2(F.relu(self.norm2(y))) + self.shortcut(x)


class WideResNet(nn.Module):
    """WRN-28 (Zagoruyko & Komodakis 2016) as GradMax has it: shortcuts take what came in before it is normalised.

    Args:
        widths: of the stages; `RESNET_WIDTHS` times k make WRN-28-k.
        inner: channels between the two convolutions of a block, by stage.
        batch_norm: whether there is a normalisation there too; GradMax grows without. What blocks begin with is
            always normalised.
        blocks: in each stage; 4 make 28 layers.
    """

    def __init__(
        self,
        widths: Sequence[int],
        inner: Sequence[int],
        channels: int,
        classes: int,
        batch_norm: bool = False,
        blocks: int = 4,
    ) -> None:
        super().__init__()
        before = min(RESNET_WIDTHS[0], widths[0])
        self.conv = _from_inputs(channels, before)
        self.blocks = nn.Sequential()
        for stage, (width, inside) in enumerate(zip(widths, inner, strict=True)):
            for number in range(blocks):
                stride = 2 if stage and not number else 1
                self.blocks.append(PreactivationBlock(before, inside, width, stride, batch_norm))
                before = width
        self.norm, self.classifier = nn.BatchNorm2d(before), nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu(self.norm(self.blocks(self.conv(x))))
        return self.classifier(x.mean((2, 3)))


def vgg16(factor: float, channels: int, classes: int, batch_norm: bool = True) -> nn.Sequential:
    """The VGG16 of polarization pruning (Zhuang et al. 2020): four poolings, a mean, and one hidden linear layer.

    Args:
        factor: times the published widths.
    """
    layers: list[nn.Module] = []
    for stage in VGG16_STAGES:
        for width in scaled(stage, factor):
            layers += [convolution(channels, width, bias=not batch_norm), norm(width, batch_norm), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers[-1] = nn.AvgPool2d(2)
    parts: dict[str, nn.Module] = {
        "features": nn.Sequential(*layers),
        "flatten": nn.Flatten(),
        "classifier": mlp(channels, scaled([VGG16_HIDDEN], factor), classes, batch_norm),
    }
    return nn.Sequential(OrderedDict(parts))


def build_vgg11_gradmax(dataset: Any, width: float, fraction: float, batch_norm: bool) -> nn.Module:
    """All hidden channels are scaled, as GradMax does."""
    return vgg11_gradmax(scaled(VGG11_WIDTHS, width * fraction), dataset.channels, dataset.classes, batch_norm)


def build_wrn28(dataset: Any, width: float, fraction: float, batch_norm: bool) -> nn.Module:
    """WRN-28-`width`, of whose blocks the inner channels are scaled by the fraction, as GradMax does."""
    widths = scaled(RESNET_WIDTHS, width)
    inner = scaled(RESNET_WIDTHS, width * fraction)
    return WideResNet(widths, inner, dataset.channels, dataset.classes, batch_norm)


def build_vgg16(dataset: Any, width: float, fraction: float, batch_norm: bool) -> nn.Module:
    """All hidden channels and units are scaled."""
    return vgg16(width * fraction, dataset.channels, dataset.classes, batch_norm)


def build_resnet56(dataset: Any, width: float, fraction: float, batch_norm: bool) -> nn.Module:
    """With shortcuts that are padded; the fraction scales the inner channels of blocks."""
    widths, inner = (scaled(RESNET_WIDTHS, factor) for factor in (width, width * fraction))
    return ResNet(widths, inner, 9, dataset.channels, dataset.classes, batch_norm, padded=True)


def build_mobilenet(dataset: Any, width: float, fraction: float, batch_norm: bool) -> nn.Module:
    """torchvision's MobileNetV2, always normalised; the fraction scales what its blocks expand to."""
    mobilenet = require("torchvision.models.mobilenetv2", "bench")
    # An expansion of exactly 1 has no layer for it there, so it is moved by a little; one unit is the least.
    expansion = max(EXPANSION * fraction, 1 / 8)
    expansion = math.nextafter(1, 2) if expansion == 1 else expansion
    stages = [[expansion, *stage] for stage in MOBILENET_STAGES]
    return mobilenet.MobileNetV2(
        num_classes=dataset.classes, width_mult=width, inverted_residual_setting=[[1, 16, 1, 1], *stages]
    )

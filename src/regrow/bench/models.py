"""The networks of the tasks."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

VGG11_WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
POOL_AFTER = {0, 1, 3, 5, 7}


def scaled(widths: Sequence[int], factor: float) -> tuple[int, ...]:
    """Widths times a factor, rounded, at least 1.

    >>> scaled((64, 128, 3), 0.25)
    (16, 32, 1)
    """
    return tuple(max(1, round(width * factor)) for width in widths)


def vgg11(widths: Sequence[int], channels: int, classes: int, batch_norm: bool = True) -> nn.Sequential:
    """VGG11 for 32x32 images: eight convolutions in five stages that halve the image, and one linear layer.

    Convolutions start at He's initialisation (fan out), which also trains without batch normalisation.

    Args:
        widths: channels of the eight convolutions; `VGG11_WIDTHS` is the published network.
        channels: of the images.
        batch_norm: whether each convolution is followed by a batch normalisation (and then has no bias).

    Raises:
        ValueError: not eight widths.
    """
    if len(widths) != len(VGG11_WIDTHS):
        raise ValueError(f"VGG11 has {len(VGG11_WIDTHS)} convolutions, but {len(widths)} widths were given")
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        convolution = nn.Conv2d(channels, width, 3, padding=1, bias=not batch_norm)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers.append(convolution)
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU())
        if index in POOL_AFTER:
            layers.append(nn.MaxPool2d(2))
        channels = width
    parts: dict[str, nn.Module] = {
        "features": nn.Sequential(*layers),
        "flatten": nn.Flatten(),
        "classifier": nn.Linear(channels, classes),
    }
    return nn.Sequential(OrderedDict(parts))

"""The networks of the tasks; those of published set-ups have a file of their own, `published`."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VGG11_WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
POOL_AFTER = {0, 1, 3, 5, 7}
RESNET_WIDTHS = (16, 32, 64)


def scaled(widths: Sequence[int], factor: float) -> tuple[int, ...]:
    """Widths times a factor, rounded, at least 1.

    >>> scaled((64, 128, 3), 0.25)
    (16, 32, 1)
    """
    return tuple(max(1, round(width * factor)) for width in widths)


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size of images, or divides it by the stride.

    Its weights start at He's initialisation (fan out), which also trains without batch normalisation.
    """
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=bias)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def norm(width: int, batch_norm: bool) -> nn.Module:
    """A batch normalisation of images, or nothing."""
    return nn.BatchNorm2d(width) if batch_norm else nn.Identity()


def vgg11(widths: Sequence[int], channels: int, classes: int, batch_norm: bool = True) -> nn.Sequential:
    """VGG11 for 32x32 images: eight convolutions in five stages that halve the image, and one linear layer.

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
        layers.append(convolution(channels, width, bias=not batch_norm))
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


def mlp(
    inputs: int,
    widths: Sequence[int],
    outputs: int,
    batch_norm: bool = False,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Hidden layers of the given widths, and a linear one.

    Args:
        batch_norm: whether each hidden layer is normalised before its activation (and then has no bias).
    """
    layers: dict[str, nn.Module] = {}
    sizes = (inputs, *widths)
    for number, (before, width) in enumerate(itertools.pairwise(sizes), 1):
        layers[f"hidden{number}"] = nn.Linear(before, width, bias=not batch_norm)
        if batch_norm:
            layers[f"norm{number}"] = nn.BatchNorm1d(width)
        layers[f"activation{number}"] = activation()
    layers["output"] = nn.Linear(sizes[-1], outputs)
    return nn.Sequential(OrderedDict(layers))


class Padded(nn.Module):
    """A shortcut without weights: every other pixel, and channels of zeros on both sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Images of half the size."""
        more = self.channels - x.shape[1]
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more // 2, more - more // 2))


class ResidualBlock(nn.Module):
    """Two convolutions, added to what came in."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, batch_norm: bool, padded: bool) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, inner, stride=stride, bias=not batch_norm)
        self.norm1 = norm(inner, batch_norm)
        self.conv2 = convolution(inner, outputs, bias=not batch_norm)
        self.norm2 = norm(outputs, batch_norm)
        if stride == 1:
            self.shortcut: nn.Module = nn.Identity()
        elif padded:
            self.shortcut = Padded(outputs)
        else:
            projection = convolution(inputs, outputs, 1, stride, bias=not batch_norm)
            self.shortcut = nn.Sequential(projection, norm(outputs, batch_norm))

    def forward(self, x: Tensor) -> Tensor:
        """Images, of half the size where there is a stride."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """He et al.'s residual network for 32x32 images: 6 x `blocks` + 2 layers in three stages.

    Without batch normalisation, the convolution that a block ends with starts smaller by the root of the number of
    blocks, so that their sum keeps its size.

    Args:
        widths: channels of the stages; `RESNET_WIDTHS` is the published network.
        inner: channels between the two convolutions of a block, by stage.
        blocks: in each stage.
        channels: of the images.
        batch_norm: whether each convolution is followed by a batch normalisation (and then has no bias).
        padded: whether shortcuts between stages are padded with zeros (option A, as published), which ties the
            stages' channels together; else they are convolutions of 1x1 (option B).
    """

    def __init__(
        self,
        widths: Sequence[int],
        inner: Sequence[int],
        blocks: int,
        channels: int,
        classes: int,
        batch_norm: bool = True,
        padded: bool = False,
    ) -> None:
        super().__init__()
        self.conv = convolution(channels, widths[0], bias=not batch_norm)
        self.norm = norm(widths[0], batch_norm)
        self.blocks = nn.Sequential()
        before = widths[0]
        for stage, (width, inside) in enumerate(zip(widths, inner, strict=True)):
            for number in range(blocks):
                stride = 2 if stage and not number else 1
                block = ResidualBlock(before, inside, width, stride, batch_norm, padded)
                if not batch_norm:
                    with torch.no_grad():
                        block.conv2.weight /= math.sqrt(blocks * len(widths))
                self.blocks.append(block)
                before = width
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.blocks(F.relu(self.norm(self.conv(x))))
        return self.classifier(x.mean((2, 3)))


class Attention(nn.Module):
    """Causal self-attention, written out; how wide a head is, the shapes of its layers say."""

    def __init__(self, width: int, heads: int, inside: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, heads * inside) for _ in range(3))
        self.out = nn.Linear(heads * inside, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, positions, width) to the same."""
        batch, positions, _ = x.shape
        query, key, value = (
            layer(x).view(batch, positions, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        likeness = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        future = torch.ones(positions, positions, dtype=torch.bool, device=x.device).triu(1)
        seen = likeness.masked_fill(future, -torch.inf).softmax(-1) @ value
        return self.out(seen.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and two linear layers, each on a normalised copy of the stream that it adds to."""

    def __init__(self, width: int, heads: int, inside: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, inside)
        self.hidden, self.activation, self.contract = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, positions, width) to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.contract(self.activation(self.hidden(self.norm2(x))))


class GPT(nn.Module):
    """A transformer that tells what comes next: (batch, positions) of int64 to (batch, positions, symbols).

    Args:
        symbols: how many different ones there are.
        positions: at most so many.
        width: of the stream.
        heads: of each layer, each `inside` wide.
        hidden: units of each feed-forward part.
        layers: how many.
    """

    def __init__(
        self, symbols: int, positions: int, width: int, heads: int, inside: int, hidden: int, layers: int
    ) -> None:
        super().__init__()
        self.symbol, self.position = nn.Embedding(symbols, width), nn.Embedding(positions, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, inside, hidden) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next symbol at each position."""
        stream = self.symbol(x) + self.position(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(stream)))

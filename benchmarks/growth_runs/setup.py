"""What is trained on what: a VGG11 of a quarter of its widths and images of CIFAR-10, the same for all runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regrow.bench.data import load_cifar10
from regrow.bench.models import VGG11_WIDTHS, scaled, vgg11

#: Normalisation of CIFAR-10's pixels.
_MEAN, _DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Setup:
    """Sizes and lengths.

    Args:
        data: Folder with CIFAR-10 as parquet files.
        images: How many of its training images are used.
        epochs: How long all runs train.
        events: How often a network grows, from 10 % to half of the training.
        width: Of the full network, relative to the published one.
        start: Of the networks that grow, relative to the full one.
    """

    data: Path
    images: int = 8_000
    epochs: int = 10
    events: int = 6
    width: float = 0.25
    start: float = 0.25
    batch: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    probe: int = 512
    method_batches: int = 4

    @property
    def plain(self) -> dict[str, Any]:
        """What tells one setup from another, as JSON has it."""
        return {key: value for key, value in asdict(self).items() if key != "data"}

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.epochs * (self.images // self.batch)

    @property
    def growth_steps(self) -> list[int]:
        """After which the network grows."""
        first, last = 0.1 * self.steps, 0.5 * self.steps
        return [round(first + (last - first) * i / max(1, self.events - 1)) for i in range(self.events)]

    def widths(self, full: bool) -> tuple[int, ...]:
        """Channels of the eight convolutions."""
        widths = scaled(VGG11_WIDTHS, self.width)
        return widths if full else scaled(widths, self.start)

    def network(self, order: str, full: bool) -> nn.Module:
        """A fresh network.

        Args:
            order: "conv-norm-relu" or "conv-relu-norm".
            full: Whether it has its full widths already.
        """
        network = vgg11(self.widths(full), 3, 10)
        if order == "conv-relu-norm":
            features = network.get_submodule("features")
            assert isinstance(features, nn.Sequential)
            layers = list(features)
            for i, layer in enumerate(layers):
                if isinstance(layer, nn.BatchNorm2d):
                    features[i], features[i + 1] = layers[i + 1], layer
        return network.to(memory_format=torch.channels_last)  # a quarter faster on CPUs

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Training images and labels, test images and labels, as the network takes them."""
        dataset = load_cifar10(self.data, self.images)
        mean, deviation = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
        found = []
        for split in (dataset.train, dataset.test):
            found += [(split.pixels[: self.images].float() / 255 - mean) / deviation, split.labels[: self.images]]
        return found[0], found[1], found[2], found[3]

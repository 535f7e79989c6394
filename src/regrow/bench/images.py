"""Labelled images in memory, and minibatches of them that depend on nothing but a seed and a step."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Images:
    """Images and their classes.

    Attributes:
        pixels: uint8, shape (examples, channels, height, width).
        labels: int64, shape (examples,).
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, limit: int | None) -> "Images":
        """The first `limit` examples, or all."""
        return Images(self.pixels[:limit], self.labels[:limit])

    def to(self, device: torch.device) -> "Images":
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training and test images, normalised by the training images' mean and deviation per channel."""

    train: Images
    test: Images
    classes: int
    mean: Tensor = field(init=False)
    std: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # Counting is exact in any order, so the statistics are the same with any number of threads.
        channels = self.train.pixels.cpu().transpose(0, 1).flatten(1)
        counts = torch.stack([channel.bincount(minlength=256) for channel in channels]).double()
        share, level = counts / channels.shape[1], torch.arange(256, dtype=torch.float64)
        mean = share @ level
        deviation = (share @ level.square() - mean.square()).clamp_min(1).sqrt()
        for name, value in (("mean", mean), ("std", deviation)):
            object.__setattr__(self, name, value.float().view(-1, 1, 1).to(self.train.pixels.device))

    @property
    def channels(self) -> int:
        return self.train.pixels.shape[1]

    def to(self, device: torch.device) -> "Dataset":
        """The same data set on a device; its statistics are worked out anew, to the same values."""
        return Dataset(self.train.to(device), self.test.to(device), self.classes)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels as a network takes them: float32, mean 0, deviation 1, channels last in memory (faster)."""
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def evaluation(self, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of `images` in order, without augmentation."""
        for start in range(0, len(images), EVALUATION_BATCH):
            chosen = slice(start, start + EVALUATION_BATCH)
            yield self.normalise(images.pixels[chosen]), images.labels[chosen]


@dataclass(frozen=True)
class Minibatches:
    """The training minibatches: the one of step k is a pure function of the seed and k.

    So an interrupted run has no data order to restore. Each epoch is a new permutation; what does not
    fill a batch at its end is left out (batch normalisation dislikes a batch of one).

    Attributes:
        size: examples a batch.
        padding: pixels of black border for the random crop; 0 for none.
        flip: whether to mirror half of the images.
    """

    dataset: Dataset
    size: int
    seed: int
    padding: int = 0
    flip: bool = False

    @property
    def per_epoch(self) -> int:
        return len(self.dataset.train) // self.size

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Normalised images and labels of a step, counted from 1."""
        epoch, index = divmod(step - 1, self.per_epoch)
        train = self.dataset.train
        order = _order(len(train), self.seed, epoch)
        chosen = order[index * self.size : (index + 1) * self.size].to(train.labels.device)
        pixels = augment(train.pixels[chosen], self.padding, self.flip, generator(self.seed, "augmentation", step))
        return self.dataset.normalise(pixels), train.labels[chosen]


@functools.lru_cache(maxsize=1)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "order", epoch))


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one use; generators for different uses, indices or seeds are independent."""
    entropy = np.random.SeedSequence([seed, int.from_bytes(purpose.encode()), index])
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)


def augment(pixels: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Cut each image out of itself with a black border, at a random place, and mirror half of them.

    Args:
        pixels: shape (examples, channels, height, width).
        padding: width of the border; the cut moves by up to that much each way.

    Returns:
        A tensor of the same shape.
    """
    count, _, height, width = pixels.shape
    rows = torch.arange(height).expand(count, -1)
    columns = torch.arange(width).expand(count, -1)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    if padding:
        pixels = F.pad(pixels, [padding] * 4)
        rows = rows + torch.randint(2 * padding + 1, (count, 1), generator=generator)
        columns = columns + torch.randint(2 * padding + 1, (count, 1), generator=generator)
    device = pixels.device
    example = torch.arange(count, device=device)[:, None, None]
    cut = pixels.movedim(1, -1)[example, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
    return cut.movedim(-1, 1)

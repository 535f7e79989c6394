"""Labelled images in memory, and minibatches of any data set that depend on nothing but a seed and a step."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .arrays import Data
from .measures import Classification, Measure

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

    def last(self, number: int) -> "Images":
        """The last `number` examples."""
        return Images(self.pixels[len(self) - number :], self.labels[len(self) - number :])

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

    @property
    def measure(self) -> Measure:
        """What outputs are worth."""
        return Classification()

    def with_parts(self, train: Images, test: Images) -> "Dataset":
        """The same with other examples."""
        return Dataset(train, test, self.classes)

    def to(self, device: torch.device) -> "Dataset":
        """The same data set on a device; its statistics are worked out anew, to the same values."""
        return self.with_parts(self.train.to(device), self.test.to(device))

    def minibatch(self, chosen: Tensor, padding: int, flip: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Some training examples, augmented and normalised."""
        chosen = chosen.to(self.train.labels.device)
        pixels = augment(self.train.pixels[chosen], padding, flip, generator)
        return self.normalise(pixels), self.train.labels[chosen]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels as a network takes them: float32, mean 0, deviation 1, channels last in memory (faster)."""
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def evaluation(self, examples: Images) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images in order, without augmentation."""
        for start in range(0, len(examples), EVALUATION_BATCH):
            chosen = slice(start, start + EVALUATION_BATCH)
            yield self.normalise(examples.pixels[chosen]), examples.labels[chosen]


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

    dataset: Data
    size: int
    seed: int
    padding: int = 0
    flip: bool = False

    @property
    def per_epoch(self) -> int:
        return len(self.dataset.train) // self.size

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, counted from 1."""
        epoch, index = divmod(step - 1, self.per_epoch)
        order = _order(len(self.dataset.train), self.seed, epoch)
        chosen = order[index * self.size : (index + 1) * self.size]
        return self.dataset.minibatch(chosen, self.padding, self.flip, generator(self.seed, "augmentation", step))


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

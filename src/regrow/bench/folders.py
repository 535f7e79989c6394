"""Images in folders, one for each class, too many to be held in memory: decoded when they are asked for."""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import CLASSES
from .errors import InputError, require
from .images import generator
from .measures import Measure

SPLITS = ("train", "val")
SIDE = 224
#: What is cut out of the middle for evaluation, as a part of the shorter side.
MIDDLE = 224 / 256
EVALUATION_BATCH = 250
#: Of ImageNet's training images, as all who publish on it take them.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: A random cut has a part of the area and a ratio of width to height within these; so often it is tried.
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Files:
    """Files with an image each, and their classes.

    Attributes:
        paths: where they are.
        labels: int64, shape (examples,).
    """

    paths: Sequence[str]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, limit: int | None) -> "Files":
        """The first `limit` files, or all."""
        return Files(self.paths[:limit], self.labels[:limit])

    def last(self, number: int) -> "Files":
        """The last `number` files."""
        return Files(self.paths[len(self) - number :], self.labels[len(self) - number :])


@dataclass(frozen=True)
class ImageFolders:
    """Training and test images of 224x224, decoded by several threads, and put on a device.

    Attributes:
        classes: how many.
        device: where minibatches go.
    """

    train: Files
    test: Files
    classes: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @property
    def channels(self) -> int:
        return 3

    @property
    def measure(self) -> Measure:
        """What outputs are worth."""
        return CLASSES

    def with_parts(self, train: Files, test: Files) -> "ImageFolders":
        """The same with other examples."""
        return replace(self, train=train, test=test)

    def to(self, device: torch.device) -> "ImageFolders":
        """The same, whose minibatches go to a device; files stay where they are."""
        return replace(self, device=device)

    def minibatch(self, chosen: Tensor, padding: int, flip: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Some training examples, each a random cut at a random size (whatever the padding), half of them mirrored."""
        draws = torch.rand(len(chosen), TRIES, 4, generator=generator, dtype=torch.float64)
        mirrored = torch.rand(len(chosen), generator=generator) < 0.5 * flip
        paths = [self.train.paths[index] for index in chosen.tolist()]
        cuts = [functools.partial(random_cut, draw=draw) for draw in draws.tolist()]
        return self._decoded(paths, cuts, mirrored.tolist()), self.train.labels[chosen].to(self.device)

    def evaluation(self, examples: Files) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images in order, the middle of each."""
        for start in range(0, len(examples), EVALUATION_BATCH):
            chosen = slice(start, start + EVALUATION_BATCH)
            paths = examples.paths[chosen]
            pixels = self._decoded(paths, [middle] * len(paths), [False] * len(paths))
            yield pixels, examples.labels[chosen].to(self.device)

    def _decoded(
        self, paths: Sequence[str], cuts: Sequence[Callable[[int, int], Box]], mirrored: Sequence[bool]
    ) -> Tensor:
        """Normalised pixels of cuts of images, channels last in memory."""
        images = list(_threads().map(_decode, paths, cuts, mirrored))
        pixels = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2)
        mean, deviation = (255 * torch.tensor(value, device=self.device).view(-1, 1, 1) for value in (MEAN, DEVIATION))
        return ((pixels - mean) / deviation).contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=2)
def load_image_folders(folder: Path | None) -> ImageFolders:
    """Images in `train/CLASS/` and `val/CLASS/`, as torchvision's ImageFolder has them; only their names are read.

    Their order is random and fixed, so that any prefix is a fair subset.

    Args:
        folder: with `train` and `val`.

    Raises:
        InputError: the folder or a part of it is missing or empty, or the two have other classes.
    """
    if folder is None:
        raise InputError("images are read from a folder with train/CLASS/ and val/CLASS/; name it with --data")
    datasets = require("torchvision.datasets", "bench")
    found: list[Any] = []
    for split in SPLITS:
        if not (folder / split).is_dir():
            raise InputError(f"--data {folder} has no folder {split}; it needs train/CLASS/ and val/CLASS/")
        try:
            found.append(datasets.ImageFolder(str(folder / split)))
        except (OSError, RuntimeError) as error:
            raise InputError(f"--data {folder / split} holds no images by class: {error}") from error
    train, test = found
    if train.classes != test.classes:
        other = min(set(train.classes) ^ set(test.classes))
        raise InputError(f"--data {folder}: the class {other} is in only one of train and val")
    return ImageFolders(_files(train.samples), _files(test.samples), len(train.classes))


def _files(samples: Sequence[tuple[str, int]]) -> Files:
    order = torch.randperm(len(samples), generator=generator(0, "files")).tolist()
    labels = torch.tensor([samples[index][1] for index in order], dtype=torch.int64)
    return Files([samples[index][0] for index in order], labels)


def middle(width: int, height: int) -> Box:
    """The square in the middle of an image.

    >>> middle(512, 256)
    (144.0, 16.0, 368.0, 240.0)
    """
    side = min(width, height) * MIDDLE
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_cut(width: int, height: int, draw: Sequence[Sequence[float]]) -> Box:
    """The first of some random cuts that fits into an image; where none does, the middle.

    Args:
        draw: for each try, numbers from 0 to 1 for its area, ratio and place.
    """
    for area, ratio, x, y in draw:
        size = width * height * (AREA[0] + (AREA[1] - AREA[0]) * area)
        log_ratio = math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * ratio
        wide, high = math.sqrt(size * math.exp(log_ratio)), math.sqrt(size / math.exp(log_ratio))
        if wide <= width and high <= height:
            left, top = (width - wide) * x, (height - high) * y
            return left, top, left + wide, top + high
    return middle(width, height)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(32, os.cpu_count() or 1), "images")


def _decode(path: str, cut: Callable[[int, int], Box], mirrored: bool) -> np.ndarray:
    """The cut of an image as uint8 of shape (side, side, 3)."""
    pillow = require("PIL.Image", "bench")
    try:
        with pillow.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path} cannot be decoded: {error}") from error
    pixels = np.asarray(image.resize((SIDE, SIDE), pillow.Resampling.BILINEAR, box=cut(*image.size)))
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels

"""Where the tasks' images come from that are held in memory."""

import functools
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import InputError, require
from .images import Dataset, Images

DIGITS_TEST_SHARE = 0.2
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets of 32x32 images.

    Attributes:
        name: for people.
        classes: how many.
        label: the column of parquet files that has them.
        folder: where torchvision keeps it.
        reader: torchvision's class that reads it.
    """

    name: str
    classes: int
    label: str
    folder: str
    reader: str


CIFAR10 = Cifar("CIFAR-10", 10, "label", "cifar-10-batches-py", "CIFAR10")
CIFAR100 = Cifar("CIFAR-100", 100, "fine_label", "cifar-100-python", "CIFAR100")


@functools.cache
def load_digits(side: int = 32) -> Dataset:
    """scikit-learn's 1,797 scans of handwritten digits, enlarged from 8x8 to `side`x`side`, one channel.

    The split is fixed, whatever the seed of a run: 80 % to train and 20 % to test, alike in their classes,
    in an order that makes any prefix a fair subset.
    """
    datasets = require("sklearn.datasets", "bench")
    selection = require("sklearn.model_selection", "bench")
    digits = datasets.load_digits()
    train, test = selection.train_test_split(
        np.arange(len(digits.target)), test_size=DIGITS_TEST_SHARE, stratify=digits.target, random_state=0
    )
    scans = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    pixels = F.interpolate(scans, size=(side, side), mode="bilinear", align_corners=False).round().byte()
    labels = torch.from_numpy(digits.target).long()
    return Dataset(Images(pixels[train], labels[train]), Images(pixels[test], labels[test]), classes=10)


def load_cifar10(folder: Path | None, limit: int | None = None) -> Dataset:
    """CIFAR-10 from a folder, or fetched by torchvision to a cache where no folder is given.

    Args:
        folder: parquet files in the layout of the Hugging Face data set `cifar10` (`train*.parquet` and
            `test*.parquet`, here or below, columns `img` and `label`), or torchvision's folder.
        limit: how many training images to decode; all by default.

    Raises:
        InputError: the folder is missing, empty or damaged, or nothing can be fetched.
    """
    return _load_cifar(CIFAR10, folder, limit)


def load_cifar100(folder: Path | None, limit: int | None = None) -> Dataset:
    """CIFAR-100 with its 100 fine classes, as :func:`load_cifar10` does; the column of labels is `fine_label`.

    Raises:
        InputError: the folder is missing, empty or damaged, or nothing can be fetched.
    """
    return _load_cifar(CIFAR100, folder, limit)


def _load_cifar(kind: Cifar, folder: Path | None, limit: int | None) -> Dataset:
    if folder is None:
        return _from_torchvision(kind, _cache(), download=True)
    if not folder.is_dir():
        raise InputError(f"--data {folder} is not a folder; name one with {kind.name} as parquet files")
    if list(folder.rglob("*.parquet")):
        train, test = (_from_parquet(kind, folder, split, limit if split == "train" else None) for split in SPLITS)
        return Dataset(train, test, kind.classes)
    root = folder.parent if folder.name == kind.folder else folder
    if (root / kind.folder).is_dir():
        return _from_torchvision(kind, root, download=False)
    raise InputError(
        f"--data {folder} holds no {kind.name}: it needs train*.parquet and test*.parquet, or {kind.folder}/"
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regrow"


def _from_torchvision(kind: Cifar, root: Path, download: bool) -> Dataset:
    """What torchvision keeps; torchvision compares the checksums before it opens a file."""
    reader = getattr(require("torchvision.datasets", "bench"), kind.reader)
    try:
        splits = [reader(str(root), train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        if download:
            raise InputError(
                f"{kind.name} could not be fetched ({error}); name a folder that has it with --data"
            ) from error
        raise InputError(f"--data {root / kind.folder} is damaged: {error}") from error
    train, test = (
        Images(
            torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(split.targets, dtype=torch.int64),
        )
        for split in splits
    )
    return Dataset(train, test, kind.classes)


@functools.lru_cache(maxsize=4)
def _from_parquet(kind: Cifar, folder: Path, split: str, limit: int | None) -> Images:
    """The first `limit` images of a split, decoded; its files are taken in the order of their names."""
    parquet = require("pyarrow.parquet", "bench")
    arrow = require("pyarrow", "bench")
    files = sorted(folder.rglob(f"{split}*.parquet"))
    if not files:
        raise InputError(f"--data {folder} has no {split}*.parquet; it needs train*.parquet and test*.parquet")
    encoded: list[bytes] = []
    labels: list[int] = []
    for file in files:
        try:
            table = parquet.read_table(file, columns=["img", kind.label])
            encoded += [image["bytes"] for image in table["img"].to_pylist()]
            labels += table[kind.label].to_pylist()
        except (arrow.ArrowException, OSError, KeyError, TypeError) as error:
            raise InputError(f"{file} is damaged or has another layout: {_first_line(error)}") from error
        if limit is not None and len(labels) >= limit:
            break
    if not labels:
        raise InputError(f"--data {folder} has no image in its {split}*.parquet")
    wrong = [label for label in labels if not isinstance(label, int) or not 0 <= label < kind.classes]
    if wrong:
        raise InputError(
            f"--data {folder}: {split} has the label {wrong[0]}; {kind.name}'s are 0 to {kind.classes - 1}"
        )
    return Images(_decode(encoded[:limit], folder), torch.tensor(labels[:limit], dtype=torch.int64))


def _decode(encoded: Sequence[bytes], folder: Path) -> Tensor:
    """Decode JPEG or PNG files of 32x32 RGB into uint8 of shape (images, 3, 32, 32)."""
    pillow = require("PIL.Image", "bench")
    pixels = np.empty((len(encoded), 32, 32, 3), dtype=np.uint8)
    for index, file in enumerate(encoded):
        try:
            image = pillow.open(io.BytesIO(file)).convert("RGB")
        except (OSError, TypeError) as error:
            raise InputError(f"--data {folder}: image {index} cannot be decoded: {_first_line(error)}") from error
        if image.size != (32, 32):
            raise InputError(f"--data {folder}: image {index} is of size {image.size}, CIFAR's are (32, 32)")
        pixels[index] = image
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

"""Where the tasks' images come from."""

import functools
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import InputError, require
from .images import Dataset, Images

DIGITS_TEST_SHARE = 0.2
SPLITS = ("train", "test")
TORCHVISION_FOLDER = "cifar-10-batches-py"


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
    if folder is None:
        return _from_torchvision(_cache(), download=True)
    if not folder.is_dir():
        raise InputError(f"--data {folder} is not a folder; name one with CIFAR-10 as parquet files")
    if list(folder.rglob("*.parquet")):
        train, test = (_from_parquet(folder, split, limit if split == "train" else None) for split in SPLITS)
        return Dataset(train, test, classes=10)
    root = folder.parent if folder.name == TORCHVISION_FOLDER else folder
    if (root / TORCHVISION_FOLDER).is_dir():
        return _from_torchvision(root, download=False)
    raise InputError(
        f"--data {folder} holds no CIFAR-10: it needs train*.parquet and test*.parquet, or {TORCHVISION_FOLDER}/"
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regrow"


def _from_torchvision(root: Path, download: bool) -> Dataset:
    """CIFAR-10 as torchvision keeps it; torchvision compares the checksums before it opens a file."""
    datasets = require("torchvision.datasets", "bench")
    try:
        splits = [datasets.CIFAR10(str(root), train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        if download:
            raise InputError(
                f"CIFAR-10 could not be fetched ({error}); name a folder that has it with --data"
            ) from error
        raise InputError(f"--data {root / TORCHVISION_FOLDER} is damaged: {error}") from error
    train, test = (
        Images(
            torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(split.targets, dtype=torch.int64),
        )
        for split in splits
    )
    return Dataset(train, test, classes=10)


@functools.lru_cache(maxsize=4)
def _from_parquet(folder: Path, split: str, limit: int | None) -> Images:
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
            table = parquet.read_table(file, columns=["img", "label"])
            encoded += [image["bytes"] for image in table["img"].to_pylist()]
            labels += table["label"].to_pylist()
        except (arrow.ArrowException, OSError, KeyError, TypeError) as error:
            raise InputError(f"{file} is damaged or has another layout: {_first_line(error)}") from error
        if limit is not None and len(labels) >= limit:
            break
    if not labels:
        raise InputError(f"--data {folder} has no image in its {split}*.parquet")
    wrong = [label for label in labels if not isinstance(label, int) or not 0 <= label < 10]
    if wrong:
        raise InputError(f"--data {folder}: {split} has the label {wrong[0]}; CIFAR-10's are 0 to 9")
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
            raise InputError(f"--data {folder}: image {index} is of size {image.size}, CIFAR-10's are (32, 32)")
        pixels[index] = image
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

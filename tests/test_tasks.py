"""The tasks, their data and their networks; and data folders that are missing, empty or damaged."""

import io
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from regrow.bench.data import load_cifar10, load_digits
from regrow.bench.errors import InputError
from regrow.bench.images import Minibatches, augment, generator
from regrow.bench.models import VGG11_WIDTHS, vgg11
from regrow.bench.tasks import Task, get_task, list_tasks, register_task


def images(count: int, side: int = 32) -> torch.Tensor:
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator(0, "images"))


def png(image: torch.Tensor) -> bytes:
    """Encoded without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def write_split(folder: Path, split: str, count: int, side: int = 32) -> torch.Tensor:
    """A parquet file in the layout of the Hugging Face data set; PNG, so that the pixels come back."""
    pixels = images(count, side)
    encoded = [{"bytes": png(image), "path": ""} for image in pixels]
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"img": encoded, "label": [index % 10 for index in range(count)]})
    pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return pixels


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    write_split(tmp_path / "data", "train", 30)
    write_split(tmp_path / "data", "test", 20)
    return tmp_path / "data"


def test_digits_are_split_alike_in_classes_and_without_overlap() -> None:
    digits = load_digits()
    assert digits.train.pixels.shape == (1437, 1, 32, 32)
    assert digits.test.pixels.shape == (360, 1, 32, 32)
    share = digits.test.labels.bincount() / (digits.test.labels.bincount() + digits.train.labels.bincount())
    assert (share - 0.2).abs().max() < 0.01
    seen = {image.numpy().tobytes() for image in digits.train.pixels}
    assert not any(image.numpy().tobytes() in seen for image in digits.test.pixels)


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    digits = load_digits()
    pixels = digits.normalise(digits.train.pixels)
    assert abs(pixels.mean().item()) < 1e-4
    assert abs(pixels.std().item() - 1) < 1e-3


def test_parquet_folder_gives_the_pixels_and_labels_in_it(parquet: Path) -> None:
    dataset = load_cifar10(parquet)
    assert torch.equal(dataset.train.pixels, images(30))
    assert dataset.test.labels.tolist() == [index % 10 for index in range(20)]
    assert len(load_cifar10(parquet, limit=7).train) == 7


@pytest.mark.parametrize("inside", [False, True])
def test_torchvision_folder_or_the_one_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    for name in [f"data_batch_{part}" for part in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [3, 4]}))
    dataset = load_cifar10(folder if inside else tmp_path)
    assert dataset.train.labels.tolist() == [3, 4] * 5
    assert torch.equal(dataset.test.pixels.flatten(1), torch.from_numpy(rows))


def test_missing_empty_and_damaged_data_folders_are_one_clear_line(parquet: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        load_cifar10(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no CIFAR-10"):
        load_cifar10(tmp_path / "empty")
    test = parquet / "test-00000-of-00001.parquet"
    test.write_bytes(test.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"test-00000-of-00001.parquet is damaged"):
        load_cifar10(parquet)
    test.unlink()
    with pytest.raises(InputError, match=r"has no test\*.parquet"):
        load_cifar10(parquet)


def test_parquet_with_other_content_is_one_clear_line(tmp_path: Path) -> None:
    def folder(name: str, **columns: list[Any]) -> Path:
        path = tmp_path / name
        path.mkdir()
        pq.write_table(pa.table(columns), path / "train.parquet")
        return path

    image = {"bytes": b"no image", "path": ""}
    for path, message in (
        (folder("columns", label=[0]), "damaged or has another layout"),
        (folder("image", img=[image], label=[0]), "image 0 cannot be decoded"),
        (folder("label", img=[image], label=[10]), "has the label 10"),
        (folder("none", img=[image][:0], label=[][:0]), "has no image|another layout"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_cifar10(path)
        assert "\n" not in str(caught.value)
    write_split(tmp_path / "large", "train", 2, side=40)
    with pytest.raises(InputError, match=r"of size \(40, 40\)"):
        load_cifar10(tmp_path / "large")


def test_damaged_torchvision_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(InputError, match="cifar-10-batches-py is damaged"):
        load_cifar10(tmp_path)


def test_without_network_the_message_names_the_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match="--data"):
        load_cifar10(None)


def test_a_minibatch_is_a_function_of_seed_and_step() -> None:
    batches = Minibatches(load_digits(), size=50, seed=1, padding=2, flip=True)
    assert batches.per_epoch == 28
    first, labels = batches.at(30)
    batches.at(3)
    again, _ = batches.at(30)
    assert torch.equal(first, again)
    assert first.shape == (50, 1, 32, 32) and labels.shape == (50,)
    other, _ = Minibatches(load_digits(), size=50, seed=2, padding=2, flip=True).at(30)
    assert not torch.equal(first, other)


def test_an_epoch_shows_no_image_twice() -> None:
    digits = load_digits()
    batches = Minibatches(digits, size=100, seed=0)
    shown = torch.cat([batches.at(step)[0] for step in range(1, batches.per_epoch + 1)])
    assert len(shown.flatten(1).unique(dim=0)) == len(shown) == 1400


def test_augmentation_cuts_each_image_out_of_itself() -> None:
    pixels = images(40)
    assert torch.equal(augment(pixels, 0, False, generator(0, "a")), pixels)
    cut = augment(pixels, 2, True, generator(0, "a"))
    padded = nn.functional.pad(pixels, [2] * 4)
    for image, source in zip(cut, padded, strict=True):
        windows = source.unfold(1, 32, 1).unfold(2, 32, 1).flatten(1, 2).movedim(1, 0)
        assert any(torch.equal(image, window) or torch.equal(image, window.flip(2)) for window in windows)


def test_vgg11_for_32x32_images() -> None:
    network = vgg11(VGG11_WIDTHS, 3, 10)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == list(VGG11_WIDTHS)
    assert sum(parameter.numel() for parameter in network.parameters()) == 9_228_362
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    plain = vgg11(VGG11_WIDTHS, 3, 10, batch_norm=False)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    with pytest.raises(ValueError, match="8 convolutions"):
        vgg11([1, 2], 3, 10)


@pytest.mark.parametrize("name", list_tasks())
def test_every_task_builds_fractions_of_its_full_widths(name: str) -> None:
    task = get_task(name)
    full, quarter = (task.build(load_digits(), task.width, fraction, True) for fraction in (1.0, 0.25))
    widths = [
        [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
        for network in (full, quarter)
    ]
    assert widths[0] == [4 * width for width in widths[1]]


def test_unknown_task_and_taken_name_are_said() -> None:
    with pytest.raises(InputError, match=r"unknown task digits \(did you mean .*known: cifar10/vgg11"):
        get_task("digits")
    with pytest.raises(ValueError, match="registered already"):

        @register_task("digits/vgg11")
        def another() -> Task:
            raise NotImplementedError


def test_digits_take_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out --data"):
        get_task("digits/vgg11").load(tmp_path, None)

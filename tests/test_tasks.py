"""The tasks and their data; and data folders that are missing, empty or damaged."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import regrow as rg
from regrow.bench.arrays import Arrays
from regrow.bench.data import load_cifar10, load_cifar100, load_digits
from regrow.bench.errors import InputError
from regrow.bench.folders import MEAN, ImageFolders, load_image_folders, random_cut
from regrow.bench.images import Minibatches, augment, generator
from regrow.bench.models import mlp
from regrow.bench.options import Options
from regrow.bench.registry import TIERS
from regrow.bench.run import run
from regrow.bench.tables import TEACHER_WIDTH, load_clusters, load_digit_vectors, load_spirals, load_teacher, teacher
from regrow.bench.tasks import Task, get_task, list_tasks, register_task
from regrow.bench.texts import load_text


def images(count: int, side: int = 32) -> torch.Tensor:
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator(0, "images"))


def png(image: torch.Tensor) -> bytes:
    """Encoded without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def write_split(folder: Path, split: str, count: int, side: int = 32, label: str = "label") -> torch.Tensor:
    """A parquet file in the layout of the Hugging Face data set; PNG, so that the pixels come back."""
    pixels = images(count, side)
    encoded = [{"bytes": png(image), "path": ""} for image in pixels]
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"img": encoded, label: [index % 10 for index in range(count)]})
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


def test_parquet_of_cifar100_has_fine_labels(tmp_path: Path, parquet: Path) -> None:
    for split in ("train", "test"):
        write_split(tmp_path / "hundred", split, 20, label="fine_label")
    dataset = load_cifar100(tmp_path / "hundred")
    assert dataset.classes == 100 and torch.equal(dataset.train.pixels, images(20))
    assert dataset.train.labels.tolist() == [index % 10 for index in range(20)]
    with pytest.raises(InputError, match="has another layout"):
        load_cifar100(parquet)
    with pytest.raises(InputError, match=r"holds no CIFAR-100: it needs .* cifar-100-python/$"):
        load_cifar100(Path(__file__).parent)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", [10, 100])
def test_torchvision_folder_or_the_one_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool, kind: int
) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    folder = tmp_path / ("cifar-10-batches-py" if kind == 10 else "cifar-100-python")
    folder.mkdir()
    rows = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    for name in [f"data_batch_{part}" for part in range(1, 6)] + ["test_batch", "train", "test"]:
        content = {"data": rows, "labels": [3, 4]} if "batch" in name else {"data": rows, "fine_labels": [3, 99]}
        (folder / name).write_bytes(pickle.dumps(content))
    dataset = (load_cifar10 if kind == 10 else load_cifar100)(folder if inside else tmp_path)
    assert dataset.train.labels.tolist() == ([3, 4] * 5 if kind == 10 else [3, 99])
    assert dataset.classes == kind
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


TABLES: dict[str, Callable[[], Arrays]] = {
    "digits/mlp": load_digit_vectors,
    "teacher/mlp": load_teacher,
    "spirals/mlp": load_spirals,
    "tabular/mlp": load_clusters,
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_standardised_the_same_each_time_and_cached(name: str) -> None:
    load: Any = TABLES[name]
    one, again = load(), load.__wrapped__()
    assert load() is one and get_task(name).load(None, None) is one
    for rows, others in ((one.train, again.train), (one.test, again.test)):
        assert torch.equal(rows.inputs, others.inputs) and torch.equal(rows.targets, others.targets)
    assert one.train.inputs.dtype == torch.float32
    assert abs(one.train.inputs.mean()) < 0.02 and abs(one.train.inputs.std() - 1) < 0.02
    assert one.test.inputs.abs().max() < 10


@pytest.mark.parametrize("name", TABLES)
def test_no_row_is_in_train_and_in_test(name: str) -> None:
    table = TABLES[name]()
    seen = {row.numpy().tobytes() for row in table.train.inputs}
    assert len(seen) > 0.99 * len(table.train)
    assert not any(row.numpy().tobytes() in seen for row in table.test.inputs)


@pytest.mark.parametrize(
    "name, sizes",
    [("digits/mlp", (1437, 360, 64, 10)), ("spirals/mlp", (2000, 1000, 2, 2)), ("tabular/mlp", (16_000, 4000, 40, 5))],
)
def test_classes_of_tables_are_as_many_in_any_prefix(name: str, sizes: tuple[int, ...]) -> None:
    table, (train, test, columns, classes) = TABLES[name](), sizes
    assert table.train.inputs.shape == (train, columns) and table.test.inputs.shape == (test, columns)
    for targets in (table.train.targets, table.test.targets, table.train.first(200).targets):
        share = targets.bincount(minlength=classes) / len(targets)
        assert len(share) == classes and (share - 1 / classes).abs().max() < 0.08


def test_digit_vectors_are_the_images_of_the_other_task() -> None:
    vectors, scans = load_digit_vectors(), load_digits()
    assert torch.equal(vectors.train.targets, scans.train.labels)
    assert torch.equal(vectors.test.targets, scans.test.labels)
    pixels = nn.functional.interpolate(vectors.test.inputs.view(-1, 1, 8, 8), size=(32, 32), mode="bilinear")
    whole = torch.stack([pixels.flatten(), scans.test.pixels.float().flatten()])
    assert torch.corrcoef(whole)[0, 1] > 0.999


def test_the_teachers_units_say_all_about_the_targets_and_each_of_them_is_needed() -> None:
    data, (incoming, bias, _) = load_teacher(), teacher(12, 4)
    assert data.train.targets.shape == (4000, 4) and len(bias) == TEACHER_WIDTH == 16
    assert (data.train.targets.std(0) - 1).abs().max() < 1e-5
    targets = data.train.targets.double()

    def unexplained(units: list[int]) -> float:
        """What least squares on some units of the teacher leave of the targets' variance."""
        seen = torch.tanh(data.train.inputs.double() @ incoming[units].T + bias[units])
        seen = torch.cat([seen, torch.ones(len(seen), 1)], 1)
        return (targets - seen @ torch.linalg.lstsq(seen, targets).solution).square().mean().item()

    units = list(range(TEACHER_WIDTH))
    assert unexplained(units) < 1e-10
    assert all(unexplained(units[:left_out] + units[left_out + 1 :]) > 0.01 for left_out in units)


def test_a_student_that_is_too_narrow_does_not_learn_all() -> None:
    data, task, steps = load_teacher(), get_task("teacher/mlp"), 1200
    batches, scores = Minibatches(data, 50, seed=0), []
    for width in (TEACHER_WIDTH // 2, 2 * TEACHER_WIDTH):
        student = mlp(12, (width,), 4, activation=nn.Tanh)
        optimizer = torch.optim.SGD(student.parameters(), task.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(1, steps + 1):
            inputs, targets = batches.at(step)
            data.measure.loss(student(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        with torch.no_grad():
            scores.append(data.measure.score(student(data.test.inputs), data.test.targets))
    assert scores[0] < 0.92 and scores[1] > 0.98


WORDS = "the cat sat on a mat, and the dog lay on the rug by the door; "


def write_text(folder: Path, characters: int = 3000) -> Path:
    draw = torch.randint(len(WORDS), (characters,), generator=generator(0, "text")).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "input.txt").write_text("".join(WORDS[index] for index in draw))
    return folder


def test_a_text_is_cut_into_windows_that_tell_the_next_character(tmp_path: Path) -> None:
    text = (write_text(tmp_path) / "input.txt").read_text()
    data = load_text(tmp_path)
    assert data.characters == "".join(sorted(set(text)))

    def read(symbols: Tensor) -> str:
        return "".join(data.characters[symbol] for symbol in symbols.flatten())

    # The first nine tenths make 42 windows of 64 and what is left out; the last tenth makes four.
    assert data.train.inputs.shape == (42, 64) and data.test.inputs.shape == (4, 64)
    assert text.startswith(read(data.train.inputs)) and text[1:].startswith(read(data.train.targets))
    assert text[2700:].startswith(read(data.test.inputs)) and text[2701:].startswith(read(data.test.targets))
    less: Any = data.with_parts(data.train.first(1), data.test).to(torch.device("cpu"))
    assert less.characters == data.characters and len(less.train) == 1


def test_missing_short_and_foreign_texts_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name it with --data"):
        get_task("tinyshakespeare/gpt").load(None, None)
    with pytest.raises(InputError, match=r"input.txt cannot be read"):
        load_text(tmp_path)
    write_text(tmp_path / "short", 640)
    with pytest.raises(InputError, match="too short"):
        load_text(tmp_path / "short")
    (tmp_path / "input.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"input.txt cannot be read") as caught:
        load_text(tmp_path)
    assert "\n" not in str(caught.value)


def write_folders(folder: Path, splits: dict[str, int], side: tuple[int, int] = (60, 40)) -> Path:
    """JPEGs of three classes, as many of each; the colours of a file tell its class and number."""
    for split, count in splits.items():
        for number in range(3 * count):
            path = folder / split / "abc"[number % 3] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = (80 * (number % 3), 20 * (number // 3), 128 if split == "val" else 0)
            Image.new("RGB", side, colour).save(path, quality=95)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> ImageFolders:
    return load_image_folders(write_folders(tmp_path / "images", {"train": 5, "val": 2}))


def test_images_in_folders_are_read_when_they_are_asked_for(folders: ImageFolders) -> None:
    assert (len(folders.train), len(folders.test), folders.classes, folders.channels) == (15, 6, 3, 3)
    ((pixels, labels),) = folders.evaluation(folders.test)
    assert pixels.shape == (6, 3, 224, 224) and pixels.dtype == torch.float32
    levels = 255 * (pixels * torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1))
    assert (levels[:, 0].mean((1, 2)) - 80 * labels).abs().max() < 3
    assert (levels[:, 2].mean((1, 2)) - 128).abs().max() < 3
    assert [Path(path).parent.name for path in folders.test.paths] == ["abc"[label] for label in labels]
    Path(folders.train.paths[3]).unlink()
    folders.minibatch(torch.tensor([0, 1, 2]), 0, True, generator(0, "a"))
    with pytest.raises(InputError, match=r"\.jpg cannot be decoded"):
        folders.minibatch(torch.tensor([3]), 0, True, generator(0, "a"))


def test_images_in_folders_are_cut_as_the_seed_says(tmp_path: Path) -> None:
    pixels = np.arange(50, dtype=np.uint8)[None, :, None] * np.array([5, 0, 0]) + np.zeros((40, 1, 1))
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for name in "xy":
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / split / "a" / f"{name}.png")
    data = load_image_folders(tmp_path)
    batches = Minibatches(data, 2, seed=3, flip=True)
    one, labels = batches.at(1)
    again, _ = batches.at(1)
    assert torch.equal(one, again) and labels.tolist() == [0, 0]
    assert not torch.equal(one[0], one[1])  # two files with the same content, cut differently
    cuts = torch.cat([batches.at(step)[0] for step in range(1, 5)])[:, 0]
    mirrored = (cuts[:, :, -1] < cuts[:, :, 0]).all(1)
    assert 0 < mirrored.sum() < len(cuts)
    still = Minibatches(data, 2, seed=3).at(1)[0]
    assert (still[:, 0, :, -1] > still[:, 0, :, 0]).all()


def test_a_random_cut_lies_in_the_image() -> None:
    draws = torch.rand(200, 10, 4, generator=generator(0, "cuts")).tolist()
    for width, height in ((50, 40), (30, 90)):
        for draw in draws:
            left, top, right, bottom = random_cut(width, height, draw)
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert random_cut(1000, 10, [[1.0, 0.5, 0.5, 0.5]]) == (495.625, 0.625, 504.375, 9.375)  # none fits


def test_missing_folders_of_images_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name it with --data"):
        get_task("imagenet/mobilenet").load(None, None)
    with pytest.raises(InputError, match="has no folder train"):
        load_image_folders(tmp_path)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    with pytest.raises(InputError, match="holds no images by class"):
        load_image_folders(tmp_path)
    write_folders(tmp_path, {"train": 1})
    (tmp_path / "val" / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "a" / "0.png")
    with pytest.raises(InputError, match="the class b is in only one of train and val") as caught:
        load_image_folders(tmp_path)
    assert "\n" not in str(caught.value)


def data_of(task: Task, folder: Path) -> Path | None:
    """A few examples in the layout that a task reads."""
    place = folder / (task.reads or "none")
    if not task.reads:
        return None
    if task.reads == "tinyshakespeare":
        return write_text(place, 8000)
    if task.reads == "imagenet":
        return write_folders(place, {"train": 24, "val": 4})
    for split, count in (("train", 64), ("test", 30)):
        write_split(place, split, count, label="label" if task.reads == "cifar10" else "fine_label")
    return place


@pytest.mark.parametrize("name", list_tasks())
def test_every_task_is_described(name: str) -> None:
    task = get_task(name)
    assert task.tier in TIERS and name in list_tasks(task.tier)
    assert task.reads in ("", name.partition("/")[0])
    assert task.epochs > 0 and task.batch_size > 0 and task.lr > 0


def test_the_tiers_hold_all_tasks() -> None:
    assert sorted(name for tier in TIERS for name in list_tasks(tier)) == list_tasks()


def stand_in(task: Task, folder: Path) -> tuple[Any, Tensor]:
    """Something to build a task's network for, and an example of what it takes."""
    if not task.reads or task.reads == "tinyshakespeare":
        data = task.load(data_of(task, folder), None)
        return data, next(iter(data.evaluation(data.train.first(2))))[0]
    side = 64 if task.reads == "imagenet" else 32
    return SimpleNamespace(channels=3, classes=10), torch.randn(2, 3, side, side)


@pytest.mark.parametrize("name", list_tasks())
def test_every_task_builds_fractions_of_the_widths_that_change(name: str, tmp_path: Path) -> None:
    task = get_task(name)
    data, example = stand_in(task, tmp_path)
    full, quarter = (rg.analyze(task.build(data, task.width, part, True), example) for part in (1.0, 0.25))
    sizes = {axis.name: axis.size for axis in full.axes}
    changing = [axis for axis in quarter.select(task.where) if axis.size != sizes[axis.name]]
    assert changing and all(sizes[axis.name] == 4 * axis.size for axis in changing)
    assert all(axis.growable and axis.prunable and axis.exact for axis in changing)
    assert [axis.name for axis in quarter.axes] == list(sizes)  # the same network, but for its sizes
    others = [axis for axis in quarter.axes if axis not in changing]
    assert all(axis.size == sizes[axis.name] for axis in others)
    assert not quarter.unknown


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("name", list_tasks("gpu"))
def test_published_tasks_have_growable_axes_at_a_tenth_too(name: str, batch_norm: bool, tmp_path: Path) -> None:
    task = get_task(name)
    data, example = stand_in(task, tmp_path)
    network = task.build(data, 0.1, 1.0, batch_norm)
    assert network(example).shape == (2, 10)
    assert any(axis.growable and axis.prunable for axis in rg.analyze(network, example).select(task.where))


@pytest.mark.parametrize("name", [*list_tasks("smoke"), *list_tasks("cpu")])
def test_small_tasks_shrink_and_grow_while_they_train(name: str, tmp_path: Path) -> None:
    task = get_task(name)
    options = Options(
        name,
        setting="constant",
        data=data_of(task, tmp_path),
        out=tmp_path / "run",
        where=task.where,
        width=task.width if task.tier == "smoke" else 0.25,
        limit=64,
        batch_size=32,
        epochs=1,
        events=1,
        first=0.5,
        last=0.5,
    )
    events = [json.loads(line) for line in (run(options) / "events.jsonl").read_text().splitlines()]
    pruned, grown = (event for event in events if event["event"] == "edit")
    assert (pruned["kind"], pruned["method"], grown["kind"], grown["method"]) == ("prune", "l1", "grow", "random")
    assert all(before > after for before, after in pruned["sizes"].values())
    assert grown["loss_eval_mode"][1] == pytest.approx(grown["loss_eval_mode"][0], rel=1e-5)
    assert events[0]["widths"] == events[-1]["widths"]


def test_unknown_task_and_taken_name_are_said() -> None:
    with pytest.raises(InputError, match=r"unknown task digits \(did you mean .*known: cifar10/resnet20"):
        get_task("digits")
    with pytest.raises(ValueError, match="registered already"):

        @register_task("digits/vgg11")
        def another() -> Task:
            raise NotImplementedError


@pytest.mark.parametrize("name", ["digits/vgg11", *TABLES])
def test_made_data_take_no_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out --data"):
        get_task(name).load(tmp_path, None)

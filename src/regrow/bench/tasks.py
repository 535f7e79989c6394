"""The table of tasks: a data set, a network and the options that suit both.

A task is one function that returns a `Task`, registered under its name:

    @register_task("digits/mlp")
    def digits_mlp() -> Task: ...

There are three tiers, with no difference in code: `smoke` takes seconds; `cpu` takes minutes on two cores, on CIFAR-10
with fewer images, epochs or channels than all; `gpu` is what was published.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from .arrays import Data
from .data import load_cifar10, load_cifar100, load_digits
from .errors import InputError
from .folders import load_image_folders
from .images import Dataset
from .models import GPT, RESNET_WIDTHS, VGG11_WIDTHS, ResNet, mlp, scaled, vgg11
from .published import build_mobilenet, build_resnet56, build_vgg11_gradmax, build_vgg16, build_wrn28
from .registry import Task, get_task, list_tasks, register_task, unknown
from .tables import TEACHER_WIDTH, load_clusters, load_digit_vectors, load_spirals, load_teacher
from .texts import POSITIONS, Text, load_text

__all__ = ["Task", "get_task", "list_tasks", "register_task", "unknown"]


def _unread(load: Callable[[], Data]) -> Callable[[Path | None, int | None], Data]:
    """How a task loads what is in no folder."""

    def refuse_folder(folder: Path | None, limit: int | None) -> Data:
        if folder is not None:
            raise InputError("the data of this task are read from no folder; leave out --data")
        return load()

    return refuse_folder


def _vgg11(dataset: Dataset, width: float, fraction: float, batch_norm: bool) -> nn.Module:
    widths = scaled(scaled(VGG11_WIDTHS, width), fraction)
    return vgg11(widths, dataset.channels, dataset.classes, batch_norm)


def _resnet20(dataset: Dataset, width: float, fraction: float, batch_norm: bool) -> nn.Module:
    widths = scaled(RESNET_WIDTHS, width * fraction)
    return ResNet(widths, widths, 3, dataset.channels, dataset.classes, batch_norm)


def _gpt(dataset: Text, width: float, fraction: float, batch_norm: bool) -> nn.Module:
    stream, heads = scaled([128, 8], width)
    (hidden,) = scaled([512], width * fraction)
    return GPT(len(dataset.characters), POSITIONS, stream, heads, 16, hidden, layers=2)


def _mlp(inputs: int, hidden: int, classes: int) -> Callable[[Any, float, float, bool], nn.Module]:
    """How a task builds two hidden layers."""

    def build(dataset: Data, width: float, fraction: float, batch_norm: bool) -> nn.Module:
        return mlp(inputs, scaled((hidden, hidden), width * fraction), classes, batch_norm)

    return build


def _student(dataset: Data, width: float, fraction: float, batch_norm: bool) -> nn.Module:
    inputs, outputs = dataset.train.inputs.shape[1], dataset.train.targets.shape[1]
    return mlp(inputs, scaled([TEACHER_WIDTH], width * fraction), outputs, activation=nn.Tanh)


@register_task("digits/vgg11")
def digits_vgg11() -> Task:
    """Handwritten digits that scikit-learn ships, and a VGG11 of a quarter of its widths: a CPU will do."""
    return Task(
        tier="cpu",
        load=_unread(load_digits),
        build=_vgg11,
        width=0.25,
        epochs=20,
        batch_size=64,
        lr=0.05,
        padding=2,
        threads=1,  # two threads gain little on networks this small, and lose much on a busy machine
    )


@register_task("digits/mlp")
def digits_mlp() -> Task:
    """The same digits as vectors of 64 pixels, and two hidden layers of 64 units."""
    return Task(
        tier="smoke",
        load=_unread(load_digit_vectors),
        build=_mlp(64, 64, 10),
        epochs=20,
        batch_size=64,
        lr=0.05,
        plain_lr=0.05,
        threads=1,
    )


@register_task("teacher/mlp")
def teacher_mlp() -> Task:
    """A regression whose best width is known: 16 tanh units in one hidden layer made the targets, without noise.

    A student of 16 units can be right (R² = 1), a narrower one can't. The full one has 32: by the usual fractions
    growing passes 16 on its way from 8 to 32, and shrinking ends there. It is never normalised: the option
    `batch_norm` is ignored.
    """
    return Task(
        tier="smoke",
        load=_unread(load_teacher),
        build=_student,
        width=2.0,
        epochs=30,
        batch_size=50,
        lr=0.2,
        plain_lr=0.2,
        threads=1,
    )


@register_task("spirals/mlp")
def spirals_mlp() -> Task:
    """Two spirals that wind around each other in the plane, and two hidden layers of 32 units."""
    return Task(
        tier="smoke",
        load=_unread(load_spirals),
        build=_mlp(2, 32, 2),
        epochs=40,
        batch_size=50,
        lr=0.1,
        plain_lr=0.1,
        threads=1,
    )


@register_task("tabular/mlp")
def tabular_mlp() -> Task:
    """A table of 20,000 rows and 40 columns, and two hidden layers of 128 units.

    It is made by scikit-learn, as the tables that come with it have fewer than 2,000 rows.
    """
    return Task(
        tier="cpu",
        load=_unread(load_clusters),
        build=_mlp(40, 128, 5),
        epochs=30,
        batch_size=128,
        lr=0.1,
        plain_lr=0.05,
        threads=1,
    )


@register_task("tinyshakespeare/gpt")
def tinyshakespeare_gpt() -> Task:
    """Plays by Shakespeare, 64 characters at a time, and a decoder of two layers that tells the next one.

    Each layer has 8 heads of 16 on a stream of 128, which stay, and 512 hidden units, which change. The score is the
    share of characters that are told rightly, over all positions. It has layer normalisation: the option
    `batch_norm` is ignored.
    """
    return Task(
        tier="cpu",
        load=lambda folder, limit: load_text(folder),
        build=_gpt,
        epochs=6,
        batch_size=32,
        lr=0.2,
        plain_lr=0.2,
        where="*.hidden",
        threads=1,
        reads="tinyshakespeare",
    )


def _cifar(load: Callable[[Path | None, int | None], Data], reads: str, **more: Any) -> Task:
    """A task on one of the two data sets of 32x32 images, mirrored and moved by up to 4 pixels."""
    usual: dict[str, Any] = {"epochs": 200, "batch_size": 128, "lr": 0.1, "padding": 4}
    return Task(load=load, reads=reads, flip=True, **(usual | more))


@register_task("cifar10/vgg11")
def cifar10_vgg11() -> Task:
    """CIFAR-10 and the VGG11 for 32x32 images at its published widths."""
    return _cifar(load_cifar10, "cifar10", tier="cpu", build=_vgg11, epochs=100, lr=0.05)


@register_task("cifar10/resnet20")
def cifar10_resnet20() -> Task:
    """CIFAR-10 and a ResNet-20 of half its widths, the published one by `--width 1 --epochs 200`.

    Its shortcuts between stages are convolutions of 1x1, so that all widths may change.
    """
    return _cifar(load_cifar10, "cifar10", tier="cpu", build=_resnet20, width=0.5, epochs=10)


def _gradmax(load: Callable[[Path | None, int | None], Data], reads: str, **more: Any) -> Task:
    """GradMax's augmentation moves images by 2 pixels; it grows without normalisation, which lr is for."""
    return _cifar(load, reads, tier="gpu", padding=2, **more)


@register_task("cifar10/vgg11-gradmax")
def cifar10_vgg11_gradmax() -> Task:
    """The VGG11 of GradMax: 587,952 parameters at a quarter of its widths, 9,263,808 at all.

    Published without batch norm and weight decay, grown from a quarter in 12 events: `--no-batch-norm
    --weight-decay 0 --events 12 --first 0.128 --last 0.481`.
    """
    return _gradmax(load_cifar10, "cifar10", build=build_vgg11_gradmax, lr=0.05, plain_lr=0.05)


@register_task("cifar100/vgg11-gradmax")
def cifar100_vgg11_gradmax() -> Task:
    """As `cifar10/vgg11-gradmax`, for 100 classes."""
    return _gradmax(load_cifar100, "cifar100", build=build_vgg11_gradmax, lr=0.05, plain_lr=0.05)


@register_task("cifar10/wrn28")
def cifar10_wrn28() -> Task:
    """The WRN-28-1 of GradMax, of whose blocks the inner channels grow from a quarter to all; `--width 4` is WRN-28-4.

    Published with `--no-batch-norm` (there is none within a block then, but one before each) and
    `--weight-decay 4e-4`.
    """
    return _gradmax(load_cifar10, "cifar10", build=build_wrn28, plain_lr=0.1, where="*.conv1")


@register_task("cifar100/wrn28")
def cifar100_wrn28() -> Task:
    """As `cifar10/wrn28`, for 100 classes."""
    return _gradmax(load_cifar100, "cifar100", build=build_wrn28, plain_lr=0.1, where="*.conv1")


@register_task("cifar10/vgg16")
def cifar10_vgg16() -> Task:
    """The VGG16 of polarization pruning: 313,463,808 multiply-adds. Published with `--weight-decay 5e-4`."""
    return _cifar(load_cifar10, "cifar10", tier="gpu", build=build_vgg16, batch_size=64)


@register_task("cifar10/resnet56")
def cifar10_resnet56() -> Task:
    """The ResNet-56 of polarization pruning: 125,485,696 multiply-adds. Published with `--weight-decay 5e-4`.

    Shortcuts between stages are padded with zeros, so the stages' channels stay, and those within blocks change.
    """
    return _cifar(load_cifar10, "cifar10", tier="gpu", build=build_resnet56, batch_size=64, where="*.conv1")


@register_task("imagenet/mobilenet")
def imagenet_mobilenet() -> Task:
    """ImageNet, or other images of 224x224 in folders, and MobileNetV2, of which the expanded channels change.

    Images are read when they are asked for, cut at random whatever the padding. MobileNetV2 is always normalised:
    the option `batch_norm` is ignored. Usually trained with `--weight-decay 4e-5`.
    """
    return Task(
        tier="gpu",
        load=lambda folder, limit: load_image_folders(folder),
        build=build_mobilenet,
        epochs=150,
        batch_size=256,
        lr=0.05,
        plain_lr=0.05,
        where="*.conv.0.0",
        flip=True,
        reads="imagenet",
    )

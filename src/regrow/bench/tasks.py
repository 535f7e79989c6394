"""The table of tasks: a data set, a network and the options that suit both.

A task is one function that returns a `Task`, registered under its name:

    @register_task("digits/mlp")
    def digits_mlp() -> Task: ...
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .arrays import Data
from .data import load_cifar10, load_digits
from .errors import InputError
from .images import Dataset
from .models import VGG11_WIDTHS, scaled, vgg11


@dataclass(frozen=True)
class Task:
    """What to train on what.

    Attributes:
        load: `load(folder, limit)` gives the data set; `limit` may be ignored, for it is applied later too.
        build: `build(dataset, width, fraction, batch_norm)` gives a fresh network at `fraction` of its full
            widths, which are `width` times the published ones.
        width: the usual multiplier of the widths.
        epochs: the usual length of training.
        batch_size: examples a step.
        lr: peak learning rate with batch normalisation; without it a tenth is the default.
        padding: pixels of border for the random crop.
        flip: whether mirrored images are as good.
        threads: CPU threads; 0 leaves the choice to torch.
        reads: the name of the folder that its data are in, where it reads one.
    """

    load: Callable[[Path | None, int | None], Data]
    build: Callable[[Any, float, float, bool], nn.Module]
    width: float
    epochs: int
    batch_size: int
    lr: float
    padding: int
    flip: bool
    threads: int
    reads: str = ""


_TASKS: dict[str, Callable[[], Task]] = {}


def register_task(name: str) -> Callable[[Callable[[], Task]], Callable[[], Task]]:
    """Register a function without arguments that returns the task `name`."""

    def register(function: Callable[[], Task]) -> Callable[[], Task]:
        if name in _TASKS:
            raise ValueError(f"a task named {name} is registered already; choose another name")
        _TASKS[name] = function
        return function

    return register


def list_tasks() -> list[str]:
    """Names of the tasks, sorted.

    >>> list_tasks()
    ['cifar10/vgg11', 'digits/vgg11']
    """
    return sorted(_TASKS)


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        InputError: there is none; the message names those that are.
    """
    if name not in _TASKS:
        raise InputError(unknown("task", name, list_tasks()))
    return _TASKS[name]()


def unknown(what: str, name: str, known: list[str]) -> str:
    """One sentence for a name that is not in a table.

    >>> unknown("task", "digit/vgg11", ["cifar10/vgg11", "digits/vgg11"])
    'unknown task digit/vgg11 (did you mean digits/vgg11?); known: cifar10/vgg11, digits/vgg11'
    """
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown {what} {name}{hint}; known: {', '.join(known)}"


def _vgg11(dataset: Dataset, width: float, fraction: float, batch_norm: bool) -> nn.Module:
    widths = scaled(scaled(VGG11_WIDTHS, width), fraction)
    return vgg11(widths, dataset.channels, dataset.classes, batch_norm)


def _digits(folder: Path | None, limit: int | None) -> Dataset:
    if folder is not None:
        raise InputError("digits come with scikit-learn and are read from no folder; leave out --data")
    return load_digits()


@register_task("digits/vgg11")
def digits_vgg11() -> Task:
    """Handwritten digits that scikit-learn ships, and a VGG11 of a quarter of its widths: a CPU will do."""
    return Task(
        load=_digits,
        build=_vgg11,
        width=0.25,
        epochs=20,
        batch_size=64,
        lr=0.05,
        padding=2,
        flip=False,
        threads=1,  # two threads gain little on networks this small, and lose much on a busy machine
    )


@register_task("cifar10/vgg11")
def cifar10_vgg11() -> Task:
    """CIFAR-10 and the VGG11 for 32x32 images at its published widths."""
    return Task(
        load=load_cifar10,
        build=_vgg11,
        width=1.0,
        epochs=100,
        batch_size=128,
        lr=0.05,
        padding=4,
        flip=True,
        threads=0,
        reads="cifar10",
    )

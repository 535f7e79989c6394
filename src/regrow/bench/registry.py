"""What a task is, and the table that each is registered in under its name."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .arrays import Data
from .errors import InputError

TIERS = ("smoke", "cpu", "gpu")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to train on what.

    Attributes:
        tier: one of `TIERS`.
        load: `load(folder, limit)` gives the data set; `limit` may be ignored, for it is applied later too.
        build: `build(dataset, width, fraction, batch_norm)` gives a fresh network at `fraction` of its full
            widths, which are `width` times the published ones; where only some are meant to change, the fraction
            is of those.
        width: the usual multiplier of the widths.
        epochs: the usual length of training.
        batch_size: examples a step.
        lr: peak learning rate with batch normalisation, or whatever the network has in place of it.
        plain_lr: peak learning rate with the option `batch_norm` off; None for a tenth of the other.
        where: which axes are meant to change, by a pattern on their names.
        padding: pixels of border for the random crop.
        flip: whether mirrored images are as good.
        threads: CPU threads; 0 leaves the choice to torch.
        reads: the name of the folder that its data are in, where it reads one.
    """

    tier: str
    load: Callable[[Path | None, int | None], Data]
    build: Callable[[Any, float, float, bool], nn.Module]
    width: float = 1.0
    epochs: int
    batch_size: int
    lr: float
    plain_lr: float | None = None
    where: str = "*"
    padding: int = 0
    flip: bool = False
    threads: int = 0
    reads: str = ""


_TASKS: dict[str, Callable[[], Task]] = {}


def register_task(name: str) -> Callable[[Callable[[], Task]], Callable[[], Task]]:
    """Register a function without arguments that returns the task `name`.

    Raises:
        ValueError: there is one of that name.
    """

    def register(function: Callable[[], Task]) -> Callable[[], Task]:
        if name in _TASKS:
            raise ValueError(f"a task named {name} is registered already; choose another name")
        _TASKS[name] = function
        return function

    return register


def list_tasks(tier: str | None = None) -> list[str]:
    """Names of the tasks, or of those of a tier, sorted.

    >>> from regrow.bench.tasks import list_tasks
    >>> list_tasks("smoke")
    ['digits/mlp', 'spirals/mlp', 'teacher/mlp']
    >>> list_tasks("cpu")
    ['cifar10/resnet20', 'cifar10/vgg11', 'digits/vgg11', 'tabular/mlp', 'tinyshakespeare/gpt']
    >>> len(list_tasks())
    15
    """
    return sorted(name for name, task in _TASKS.items() if tier is None or task().tier == tier)


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

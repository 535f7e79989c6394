"""The options of a run, their documented defaults, and every check that needs no training."""

import importlib
import json
import platform
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import regrow as rg

from .errors import InputError
from .tasks import get_task, unknown

T = TypeVar("T")

SETTINGS = ("static", "grow", "shrink", "constant")
RANKINGS = ("layer", "global")
SIZES = ("start", "end")
ORDERS = ("prune-grow", "grow-prune", "alternate")
SCHEDULES = ("fixed", "own")
LR_FACTOR_WITHOUT_BATCH_NORM = 0.1

# What a method must have to be used in one way or the other.
METHOD_PARTS = {"grow": "fresh", "prune": "score"}

# What each setting starts from and ends at, as fractions of the full widths; static has one of the two.
FRACTIONS = {"static": (0.25, 1.0), "grow": (0.25, 1.0), "shrink": (1.0, 0.5), "constant": (1.0, 1.0)}


@dataclass(frozen=True)
class Options:
    """Options of a run. What is None takes the task's or the setting's default."""

    task: str
    """What to train, such as digits/vgg11; an unknown name lists all."""
    setting: str = "static"
    """static, grow, shrink or constant (prunes, then grows as many units, at each event)."""
    grow: str = "random"
    """Growing method, optionally with its options: random, random:scale=0.5."""
    prune: str = "l1"
    """Pruning method, optionally with its options: l1, l1:strength=1e-3 (the strength of its penalty)."""
    seed: int = 0
    """One seed gives one sequence of numbers."""
    out: Path | None = None
    """Run folder; by default runs/TASK-SETTING-seedN."""
    data: Path | None = None
    """Folder with the data set, where the task reads one."""
    limit: int | None = None
    """Train on this many images only (the first ones, a fair subset)."""
    width: float | None = None
    """Multiplier of the published widths; this makes the full widths. By default the task's."""
    batch_norm: bool = True
    """Batch normalisation after each convolution."""
    epochs: int | None = None
    """Passes over the training images; by default the task's."""
    batch_size: int | None = None
    """Images a step; by default the task's."""
    lr: float | None = None
    """Peak learning rate; it falls along a cosine to 0; by default the task's, a tenth without batch norm."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay of SGD."""
    size: str = "end"
    """Size of the static baseline: start or end, of the fractions below."""
    start_fraction: float | None = None
    """Widths at the start, of the full ones. By default grow and static 0.25, shrink and constant 1."""
    end_fraction: float | None = None
    """Widths at the end, of the full ones. By default static, grow and constant 1, shrink 0.5."""
    where: str | None = None
    """Which axes change, by a pattern on their names; the others stay as they start. By default the task's."""
    events: int = 5
    """Number of structural events."""
    first: float = 0.1
    """When the first event comes, as a fraction of the training."""
    last: float = 0.6
    """When the last event comes, as a fraction of the training."""
    pace: float = 1.0
    """How events are spaced: 1 evenly; below 1 the first lie farther apart than the last, above 1 closer together."""
    exchange: float = 0.1
    """Setting constant: fraction of each axis that an event prunes and grows again (at least one unit)."""
    order: str = "prune-grow"
    """Setting constant: prune-grow, grow-prune (each event does both at once), or alternate (grows half-way to the
    next event, or at `last` where there is one event)."""
    schedule: str = "fixed"
    """fixed: events at fixed times, of fixed amounts. own: the method decides, until the sizes of the setting are
    reached."""
    budget: float | None = None
    """Train until so much is spent of the FLOPs that `epochs` passes cost at the largest size, statistics that methods
    gather included; the learning rate and the events then follow what is spent. By default `epochs` passes."""
    validation: int = 0
    """Hold out so many images, those behind the training images, and measure on them instead of the test images."""
    evaluations: int = 12
    """With a budget: how often loss and accuracy are measured, evenly spaced."""
    ranking: str = "layer"
    """layer: each axis loses its share. global: the least important of all axes go, as many in total."""
    threads: int | None = None
    """CPU threads; 0 leaves the choice to torch. By default the task's."""
    device: str = "auto"
    """auto (CUDA where there is a device, else cpu), cpu, cuda, cuda:1, ..."""
    checkpoint_every: int = 100
    """Steps between checkpoints: at most so many are done again after an interruption."""
    log_every: int = 10
    """Steps between records of the minibatch loss."""

    def settled(self) -> "Settled":
        """These options with every default filled in, checked.

        Raises:
            InputError: an option that cannot be.
        """
        task = get_task(self.task)
        _check_names(self)
        start, end = FRACTIONS[self.setting]
        if self.setting == "constant":
            end = _or(self.start_fraction, end)  # wherever a constant size starts, it ends there
        plain_lr = _or(task.plain_lr, task.lr * LR_FACTOR_WITHOUT_BATCH_NORM)
        filled: dict[str, Any] = {
            "width": _or(self.width, task.width),
            "epochs": _or(self.epochs, task.epochs),
            "batch_size": _or(self.batch_size, task.batch_size),
            "lr": _or(self.lr, task.lr if self.batch_norm else plain_lr),
            "where": _or(self.where, task.where),
            "start_fraction": _or(self.start_fraction, start),
            "end_fraction": _or(self.end_fraction, end),
            "threads": _or(self.threads, task.threads),
            "device": _device(self.device),
            "data": None if self.data is None else self.data.expanduser().resolve(),
            "out": self.out or Path("runs") / f"{self.task.replace('/', '-')}-{self.setting}-seed{self.seed}",
        }
        settled = Settled(**({field.name: getattr(self, field.name) for field in fields(self)} | filled))
        _check_numbers(settled)
        return settled


@dataclass(frozen=True, kw_only=True)
class Settled(Options):
    """Options of which none is left to a default."""

    out: Path
    width: float
    epochs: int
    batch_size: int
    lr: float
    start_fraction: float
    end_fraction: float
    threads: int
    where: str

    @property
    def built_fraction(self) -> float:
        """The fraction of the full widths at which the network is built."""
        at_end = self.setting == "static" and self.size == "end"
        return self.end_fraction if at_end else self.start_fraction

    def config(self) -> dict[str, Any]:
        """What `config.json` holds: all that it takes to do the run again, wherever it is put."""
        config = asdict(self)
        del config["out"]
        versions = {
            "regrow": rg.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        return {**config, "data": None if self.data is None else str(self.data), "versions": versions}


def make_method(text: str, kind: str) -> Any:
    """A method from its name and options, `NAME` or `NAME:option=value,option=value`.

    Args:
        kind: `"grow"` or `"prune"`, what it is to do; anything else for any method.

    Somebody else's is `PACKAGE.MODULE:CLASS`, or `PACKAGE.MODULE:CLASS:option=value,…`.

    Raises:
        InputError: no such method, or no such option of it.
    """
    name, _, listed = text.partition(":")
    if "." in name:
        name, listed = _imported(name, listed, text, kind)
    known = rg.list_methods(METHOD_PARTS.get(kind))
    if name not in known:
        raise InputError(unknown(f"method for --{kind}:", name, known))
    pairs = [item.partition("=") for item in listed.split(",") if item]
    try:
        return rg.create_method(name, **{key: _value(value) for key, _, value in pairs})
    except (TypeError, ValueError) as error:
        raise InputError(f"--{kind} {text}: {error}") from error


def _imported(module: str, rest: str, text: str, kind: str) -> tuple[str, str]:
    """The name of a method that a module of somebody else's defines, registered, and what follows its class."""
    attribute, _, listed = rest.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
        return rg.register(cls).name, listed
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"--{kind} {text}: {error}") from error


def _value(text: str) -> Any:
    """A number, truth value, ... as JSON writes it; anything else is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _device(name: str) -> str:
    """The device meant, checked to be there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name}; use auto, cpu, cuda or cuda:1") from None
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name} is not supported; use auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"device {name} was asked for, but {count} CUDA devices are here; use --device cpu")
    return name


def _check_names(options: Options) -> None:
    """Every option that is one of a few words."""
    for what, value, known in (
        ("setting", options.setting, SETTINGS),
        ("ranking", options.ranking, RANKINGS),
        ("size", options.size, SIZES),
        ("order", options.order, ORDERS),
        ("schedule", options.schedule, SCHEDULES),
    ):
        if value not in known:
            raise InputError(unknown(what, value, list(known)))
    make_method(options.grow, "grow")
    make_method(options.prune, "prune")


def _check_numbers(options: Settled) -> None:
    """Every option that is a number within bounds."""
    positive = ("epochs", "batch_size", "events", "checkpoint_every", "log_every", "evaluations")
    for name in (*positive, "width", "lr", "limit", "budget", "pace"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} is {value}, but must be more than 0")
    for name in ("seed", "threads", "momentum", "weight_decay", "validation"):
        if not getattr(options, name) >= 0:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}, but must be at least 0")
    if options.seed >= 2**63:
        raise InputError(f"--seed is {options.seed}, but must be below 2**63")
    for name in ("start_fraction", "end_fraction"):
        if not 0 < getattr(options, name) <= 1:
            raise InputError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}, but must be above 0 and at most 1"
            )
    if not 0 < options.first <= options.last < 1:
        raise InputError(f"--first is {options.first} and --last {options.last}, but 0 < first <= last < 1 must hold")
    if not 0 < options.exchange < 1:
        raise InputError(
            f"--exchange {options.exchange} asks for more units than there are to spare: "
            "at least one of each axis stays, so it must be more than 0 and less than 1"
        )
    _check_direction(options)


def _check_direction(options: Settled) -> None:
    """Whether start and end lie as the setting says."""
    start, end = options.start_fraction, options.end_fraction
    wrong = {
        "grow": start >= end and "grow must end larger than it starts",
        "shrink": start <= end and "shrink must end smaller than it starts",
        "constant": start != end and "constant must end as it starts",
    }.get(options.setting)
    if wrong:
        raise InputError(f"{wrong}, but --start-fraction is {start} and --end-fraction {end}")

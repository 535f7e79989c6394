"""What is measured of networks that grew."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import interleaved, paired_ratio, summary
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Optimizer

import regrow as rg

from .growing import (
    LR,
    MOMENTUM,
    WAYS,
    Batches,
    GromoConvnet,
    convnet,
    gromo_grows,
    gromo_perceptron,
    gromo_tries,
    perceptron,
    regrow_grows,
)
from .looks import Shapes, carried, cpu_seconds, held, lines, mark, outputs, shapes
from .saving import regrow_saves

Row = dict[str, Any]

UNITS, BATCH, PROBE = 8, 128, 512
#: Steps before a growth, and behind it until the loss is looked at.
BEFORE, BEHIND = 40, 40
#: The line search is for ways that move the output.
SEARCHED = ("TINY",)
#: regrow's methods, by the names of GroMo's ways.
METHODS: Mapping[str, Any] = {"GradMax": rg.GradMax(), "TINY": rg.TINY()}
#: A unit has come to life if its gradient is at least so large beside the mean of the old units'.
ALIVE = 1e-8


@dataclass(frozen=True)
class Case:
    """A network that grows.

    Args:
        name: What it is called.
        plain: Makes it.
        gromos: Makes it in GroMo's classes.
        layers, gromo_layers: Of the plain model and of GroMo's, the layer that gets units and the one that reads them.
        batches: That a growth looks at.
        flat: Whether it is given rows of pixels.
        model_lines: Of the code that makes the model, plain and in GroMo's classes.
        ways, methods: GroMo's and regrow's that are measured of it.
    """

    name: str
    plain: Callable[[], nn.Module]
    gromos: Callable[[], Any]
    layers: Callable[[Any], tuple[Any, Any]]
    gromo_layers: Callable[[Any], tuple[Any, Any]]
    batches: int
    flat: bool
    model_lines: tuple[int, int]
    ways: tuple[str, ...] = tuple(WAYS)
    methods: tuple[str, ...] = tuple(METHODS)


def _convolutions(activation: type[nn.Module], **measured: tuple[str, ...]) -> Case:
    return Case(
        f"two convolutions, batch norm, {activation.__name__}",
        lambda: convnet(activation),
        lambda: GromoConvnet(activation),
        lambda model: (model[0], model[3]),
        lambda model: (model.first, model.second),
        batches=8,
        flat=False,
        model_lines=(lines(convnet), lines(GromoConvnet)),
        **measured,
    )


CASES: tuple[Case, ...] = (
    Case(
        "perceptron, GELU",
        perceptron,
        gromo_perceptron,
        lambda model: (model[0], model[2]),
        lambda model: (model.layers[0], model.layers[1]),
        batches=64,
        flat=True,
        model_lines=(lines(perceptron), lines(gromo_perceptron)),
        ways=("GradMax", "TINY"),
    ),
    _convolutions(nn.ReLU),
    _convolutions(nn.GELU, ways=("GradMax",), methods=("GradMax",)),
)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits of 16 × 16 pixels, and what they are."""
    found: Any = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    return F.interpolate(images, (16, 16)), torch.tensor(found.target)


class Training:
    """A network in the middle of its training on digits.

    Args:
        case: Which network.
        gromos: Whether in GroMo's classes.
        seed: Of weights and batches.
        steps: That it has made.
    """

    def __init__(self, case: Case, gromos: bool, seed: int = 0, steps: int = BEFORE) -> None:
        self.case, self.gromos = case, gromos
        self.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.model: Any = case.gromos() if gromos else case.plain()
        self.optimizer: Optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM)
        self.probe = self.draw(PROBE)
        self.train(steps)

    @property
    def layers(self) -> tuple[Any, Any]:
        """The layer that gets units, and the one that reads them."""
        return (self.case.gromo_layers if self.gromos else self.case.layers)(self.model)

    def draw(self, size: int = BATCH) -> tuple[Tensor, Tensor]:
        """A batch."""
        images, labels = digits()
        chosen = torch.randperm(len(images), generator=self.generator)[:size]
        return images[chosen].flatten(1) if self.case.flat else images[chosen], labels[chosen]

    def look_at(self) -> Batches:
        """What a growth looks at."""
        return [self.draw() for _ in range(self.case.batches)]

    def train(self, steps: int) -> None:
        """Some steps."""
        for _ in range(steps):
            x, y = self.draw()
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()

    def grow(self, way: str, batches: Batches) -> None:
        """Grow, and go on with the optimizer that the library leaves one with."""
        if self.gromos:
            options = WAYS[way]
            self.optimizer = gromo_grows(self.model, self.layers[1], UNITS, batches, way in SEARCHED, **options)
        else:
            regrow_grows(self.model, "0", UNITS, batches, METHODS[way], self.optimizer)

    def pass_over(self, batches: Batches) -> None:
        """Forward and backward, and nothing else."""
        for x, y in batches:
            F.cross_entropy(self.model(x), y).backward()
        self.model.zero_grad()

    def loss(self) -> float:
        """On the probe, in train mode."""
        return float(F.cross_entropy(outputs(self.model, self.probe[0])["train"], self.probe[1]))


def growing_seconds(case: Case, gromos: bool, way: str) -> float:
    """CPU time of a growth; the training before doesn't count."""
    training = Training(case, gromos, steps=2)
    batches = training.look_at()
    return cpu_seconds(lambda: training.grow(way, batches))


def pass_seconds(case: Case) -> float:
    """CPU time of forward and backward passes on the same batches."""
    training = Training(case, False, steps=2)
    batches = training.look_at()
    return cpu_seconds(lambda: training.pass_over(batches))


def facts(case: Case, gromos: bool, way: str, seed: int, steps: int = BEFORE) -> Row:
    """What a growth changes, how the new units learn, and whether training goes on."""
    training = Training(case, gromos, seed, steps)
    model, old = training.model, training.optimizer
    width = len(training.layers[0].weight)
    put_out, before, loss = outputs(model, training.probe[0]), shapes(model), training.loss()
    training.grow(way, training.look_at())
    ratio, alive = _gradients(training, width)
    found: Row = {
        "units": len(training.layers[0].weight) - width,
        "alive": alive,
        "gradients": ratio,
        "change": _changes(put_out, outputs(model, training.probe[0])),
        "old_optimizer_holds": held(model, old),
        "parameters": len(before),
        "loss_before": loss,
    }
    training.train(BEHIND)
    return found | {"loss_behind": training.loss()}


def passed_on(case: Case, gromos: bool, way: str, steps: int = BEFORE) -> Row:
    """Of how many parameters the optimizer goes on with the momentum that they had, and how the model is saved."""
    training = Training(case, gromos, steps=steps)
    before: Shapes = shapes(training.model)
    mark(training.model, training.optimizer)
    training.grow(way, training.look_at())
    went_on = carried(training.model, training.optimizer, before)
    return {"held": held(training.model, training.optimizer), "carried": went_on, "saved": saved(training)}


def saved(training: Training) -> str:
    """How a grown model can be saved and loaded: "shapes", "pickle" or "no"."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            again = (_pickled if training.gromos else _by_shapes)(training, Path(folder))
        except AttributeError:  # the unpickled layers lack a method
            return "no"
    with torch.no_grad():
        assert torch.equal(again.eval()(training.probe[0]), training.model.eval()(training.probe[0]))
    return "pickle" if training.gromos else "shapes"


def _pickled(training: Training, folder: Path) -> Any:
    torch.save(training.model, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=False)


def _by_shapes(training: Training, folder: Path) -> Any:
    return regrow_saves(training.model, training.case.plain(), folder)


def _changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """By mode, the largest change of what is put out, relative to the largest that was."""
    return {mode: float((after[mode] - old).abs().max() / old.abs().max()) for mode, old in before.items()}


def _gradients(training: Training, old: int) -> tuple[float, int]:
    """The mean gradient of new units over that of old ones, both sides of a unit together; and how many have one."""
    x, y = training.probe
    statistics_before = {name: buffer.clone() for name, buffer in training.model.named_buffers()}
    training.model.zero_grad()
    F.cross_entropy(training.model(x), y).backward()
    grown, reader = training.layers
    sides = grown.weight.grad.flatten(1), reader.weight.grad.transpose(0, 1).flatten(1)
    norms = torch.cat(sides, 1).norm(dim=1)
    training.model.zero_grad()
    for name, buffer in training.model.named_buffers():
        buffer.copy_(statistics_before[name])
    usual = norms[:old].mean()
    return float(norms[old:].mean() / usual), int((norms[old:] > ALIVE * usual).sum())


def code(case: Case, gromos: bool, way: str) -> Row:
    """Lines of code."""
    plain, theirs = case.model_lines
    if not gromos:
        return {"model_lines": plain, "lines": lines(regrow_grows)}
    return {"model_lines": theirs, "lines": lines(gromo_grows, *([gromo_tries] if way in SEARCHED else []))}


def growing_rows(case: Case, repeats: int, seeds: int) -> list[Row]:
    """A row for each library and way, of medians over seeds, and the largest changes.

    Args:
        case: The network.
        repeats: Of the times.
        seeds: Networks that are grown.
    """
    entered = [("GroMo", way) for way in case.ways] + [("regrow", way) for way in case.methods]
    runs = {f"{name} {way}": (lambda n=name, w=way: growing_seconds(case, n == "GroMo", w)) for name, way in entered}
    times = interleaved({"pass": lambda: pass_seconds(case), **runs}, repeats, warmup=1)
    rows = []
    for library, way in entered:
        gromos, taken = library == "GroMo", times[f"{library} {way}"]
        row: Row = {"task": case.name, "library": library, "way": way, **code(case, gromos, way), **summary(taken)}
        row["passes"] = paired_ratio(taken, times["pass"])
        row |= _over_seeds([facts(case, gromos, way, seed) for seed in range(seeds)]) | passed_on(case, gromos, way)
        row |= {"asked": UNITS, "seeds": seeds, "behind": BEHIND}
        row["loss_behind_ungrown"] = statistics.median(_ungrown(case, gromos, seed) for seed in range(seeds))
        row["setup"] = f"{case.batches} batches of {BATCH}"
        rows.append(row | {"met": gromos or good(row)})
    return rows


def _ungrown(case: Case, anew: bool, seed: int) -> float:
    """The loss of the same training without a growth, with a new optimizer where the library needs one."""
    training = Training(case, False, seed)
    training.look_at()
    if anew:
        training.optimizer = torch.optim.SGD(training.model.parameters(), lr=LR, momentum=MOMENTUM)
    training.train(BEHIND)
    return training.loss()


def _over_seeds(found: list[Row]) -> Row:
    """The largest change, the fewest units that live, and medians of all else."""
    row: Row = {key: statistics.median(one[key] for one in found) for key in found[0] if key != "change"}
    changes = {f"change_{mode}": max(one["change"][mode] for one in found) for mode in ("train", "eval")}
    return row | changes | {"alive": min(one["alive"] for one in found)}


def good(row: Row) -> bool:
    """Whether nothing was moved, all units live, training goes on with all momentum, and no pickle is needed."""
    unmoved = max(row["change_train"], row["change_eval"]) <= 1e-5 and row["saved"] == "shapes"
    return unmoved and row["alive"] == UNITS and row["held"] == row["carried"] == row["parameters"]

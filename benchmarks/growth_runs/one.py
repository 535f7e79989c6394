"""One run: training, growth, and what happens around each growth."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regrow as rg
from regrow.bench.probe import both_losses, evaluate, evaluating
from regrow.rows import rows_of

from .setup import Setup

#: Steps after a growth at which the losses are compared with a twin that didn't grow.
LOOK_AT = (1, 2, 3, 5, 10, 20)

#: The ε of the networks' norms.
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Config:
    """A run's method, network and seed.

    Args:
        name: What it is called, such as "gradmax, swap"; "small" and "full" don't grow.
        order: Of convolution, norm and activation.
        seed: Of the weights, the order of the images, and the method.
        method: Configuration as :func:`regrow.create_method` takes it; None to stay as it is.
    """

    name: str
    order: str
    seed: int
    method: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        return f"{self.order}__{self.name}__{self.seed}".replace(" ", "_").replace(",", "")


class _Run:
    def __init__(self, setup: Setup, config: Config) -> None:
        self.setup, self.config = setup, config
        torch.manual_seed(config.seed)
        self.model = setup.network(config.order, full=config.name == "full")
        self.x, self.y, *self.test = setup.load()
        order = torch.Generator().manual_seed(100 + config.seed)
        self.batches = self._batches(order)
        self.evidence = self._batches(torch.Generator().manual_seed(200 + config.seed))
        self.probe = [(self.x[: setup.probe], self.y[: setup.probe])]
        self.optimizer = self._optimizer(self.model)
        self.structure = rg.analyze(self.model, self.x[:2])
        self.generator = torch.Generator().manual_seed(300 + config.seed)
        self.seconds_growing = 0.0

    def _batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.setup.batch
        while True:
            order = torch.randperm(len(self.x), generator=generator)
            for start in range(0, len(order) - size + 1, size):
                index = order[start : start + size]
                yield self.x[index], self.y[index]

    def whole(self) -> dict[str, Any]:
        began = time.perf_counter()
        due = self.setup.growth_steps if self.config.method is not None else []
        stairs = self._stairs()
        events = []
        step, diverged = 0, False
        while step < self.setup.steps and not diverged:
            if step in due:
                gains = {name: stair[due.index(step)] for name, stair in stairs.items()}
                events.append(self._grow(step, gains))
                step += LOOK_AT[-1]
            else:
                self._train(step, self.model, self.optimizer, next(self.batches))
                step += 1
            diverged = not all(bool(p.isfinite().all()) for p in self.model.parameters())
        with evaluating(self.model):
            train_loss, train_accuracy = evaluate(self.model, self._parts(self.x, self.y))
            test_loss, test_accuracy = evaluate(self.model, self._parts(*self.test))
        return {
            **asdict(self.config),
            "sizes": [axis.size for axis in self.structure.axes],
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "seconds": time.perf_counter() - began,
            "seconds_growing": self.seconds_growing,
            "events": events,
            "diverged": diverged,
        }

    def _parts(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(x.split(1000), y.split(1000), strict=True)

    def _stairs(self) -> dict[str, list[int]]:
        """How many units each axis gains at each event."""
        number, found = self.setup.events, {}
        for axis, end in zip(self.structure.axes, self.setup.widths(full=True), strict=True):
            sizes = [axis.size + round((end - axis.size) * i / number) for i in range(number + 1)]
            found[axis.name] = [b - a for a, b in pairwise(sizes)]
        return found

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        given = self.setup
        return torch.optim.SGD(model.parameters(), given.lr, given.momentum, weight_decay=given.weight_decay)

    def _train(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.setup.lr * (1 + math.cos(math.pi * step / self.setup.steps)) / 2
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    def _loss(self) -> Tensor:
        x, y = next(self.evidence)
        return F.cross_entropy(self.model(x), y)

    def _grow(self, step: int, gains: dict[str, int]) -> dict[str, Any]:
        """Grow, and train on beside a twin that doesn't, looking at both."""
        twin = copy.deepcopy(self.model)
        other = torch.optim.SGD(
            twin.parameters(), self.setup.lr, self.setup.momentum, weight_decay=self.setup.weight_decay
        )
        other.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        before = both_losses(self.model, self.probe)
        began = time.perf_counter()
        assert self.config.method is not None
        edit = rg.grow_(
            self.structure,
            {name: gain for name, gain in gains.items() if gain},
            rg.create_method(**self.config.method),
            optimizer=self.optimizer,
            generator=self.generator,
            loss=self._loss,
            batches=self.setup.method_batches,
        )
        self.seconds_growing += time.perf_counter() - began
        watched: dict[str, Any] = {
            "step": step,
            "before": before,
            "at": both_losses(self.model, self.probe),
            "after": {},
            "twin": {},
        }
        new = {name: units for name, units in edit.units("new").items()}
        directions: dict[str, Tensor] = {}
        for i in range(1, LOOK_AT[-1] + 1):
            batch = next(self.batches)
            self._train(step + i - 1, self.model, self.optimizer, batch)
            self._train(step + i - 1, twin, other, batch)
            if i == 1:
                watched["gradient_ratio"] = self._gradient_ratios(new)
                directions = self._directions(new)
            if i in LOOK_AT:
                watched["after"][i] = both_losses(self.model, self.probe)
                watched["twin"][i] = both_losses(twin, self.probe)
        turned = self._directions(new)
        angles = [_angle(directions[name], turned[name]) for name in new]
        watched["rotation_degrees"] = sum(angles) / len(angles)
        return watched

    def _gradient_ratios(self, new: dict[str, list[int]]) -> list[float]:
        """For each axis the mean gradient norm of new units over that of old ones, both sides of a unit together.

        Where gradients are scaled as if a norm's ε were 1, with respect to weights that are measured by that: W/√ε.
        """
        learning_as_if = self.config.method is not None and self.config.method.get("batch_norm") == "epsilon"
        found = []
        for name, units in new.items():
            axis = self.structure[name]
            rows = []
            for entry in axis.with_role("out", "in"):
                gradient = entry.tensor.grad
                assert gradient is not None
                rows.append(rows_of(entry, gradient, axis.size).flatten(1))
                if learning_as_if and entry.role == "out":
                    rows[-1][units] /= NORM_EPSILON**0.5
            norms = torch.cat(rows, 1).norm(dim=1)
            is_new = torch.zeros(axis.size, dtype=torch.bool)
            is_new[units] = True
            found.append(float(norms[is_new].mean() / norms[~is_new].mean()))
        return found

    def _directions(self, new: dict[str, list[int]]) -> dict[str, Tensor]:
        found = {}
        for name, units in new.items():
            axis = self.structure[name]
            (entry,) = axis.with_role("out")
            found[name] = rows_of(entry, entry.tensor.detach(), axis.size)[units].flatten(1).clone()
        return found


def _angle(one: Tensor, other: Tensor) -> float:
    """The mean angle between rows, in degrees."""
    cosines = F.cosine_similarity(one, other, dim=1).clamp(-1, 1)
    return float(cosines.arccos().rad2deg().mean())


def run(setup: Setup, config: Config) -> dict[str, Any]:
    """Train one network to the end; everything that was seen, as plain values."""
    torch.set_num_threads(1)
    return _Run(setup, config).whole()

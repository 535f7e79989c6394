"""What a run asks of a data set, and data sets of plain vectors or sequences in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .measures import Classification, Measure, Regression

EVALUATION_BATCH = 1000
CLASSES = Classification()


class Data(Protocol):
    """What a run asks of a data set, whatever its examples are."""

    @property
    def train(self) -> Any: ...

    @property
    def test(self) -> Any: ...

    @property
    def measure(self) -> Measure: ...

    def with_parts(self, train: Any, test: Any) -> "Data":
        """The same with other examples."""
        ...

    def to(self, device: torch.device) -> "Data":
        """The same on a device."""
        ...

    def minibatch(self, chosen: Tensor, padding: int, flip: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some training examples, augmented where that is meant."""
        ...

    def evaluation(self, examples: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of examples in order, as a network takes them."""
        ...


@dataclass(frozen=True)
class Rows:
    """Inputs and targets, an example in each row.

    Attributes:
        inputs: shape (examples, ...), as a network takes them.
        targets: shape (examples, ...).
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def first(self, limit: int | None) -> "Rows":
        """The first `limit` examples, or all."""
        return Rows(self.inputs[:limit], self.targets[:limit])

    def last(self, number: int) -> "Rows":
        """The last `number` examples."""
        return Rows(self.inputs[len(self) - number :], self.targets[len(self) - number :])

    def to(self, device: torch.device) -> "Rows":
        return Rows(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Arrays:
    """Training and test examples; nothing is done to them on their way into a network."""

    train: Rows
    test: Rows
    measure: Measure = CLASSES

    def with_parts(self, train: Rows, test: Rows) -> "Arrays":
        """The same with other examples."""
        return Arrays(train, test, self.measure)

    def to(self, device: torch.device) -> "Arrays":
        """The same data set on a device."""
        return self.with_parts(self.train.to(device), self.test.to(device))

    def minibatch(self, chosen: Tensor, padding: int, flip: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Some training examples; vectors are never augmented."""
        chosen = chosen.to(self.train.inputs.device)
        return self.train.inputs[chosen], self.train.targets[chosen]

    def evaluation(self, examples: Rows) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of examples in order."""
        for start in range(0, len(examples), EVALUATION_BATCH):
            chosen = slice(start, start + EVALUATION_BATCH)
            yield examples.inputs[chosen], examples.targets[chosen]


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both by the training examples' mean and deviation per column, as float32."""
    mean, deviation = train.mean(0), train.std(0).clamp(min=1e-12)
    return ((train - mean) / deviation).float(), ((test - mean) / deviation).float()


def regression(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Arrays:
    """A regression with standardised inputs and targets."""
    (inputs, test_inputs) = standardised(train[0], test[0])
    (targets, test_targets) = standardised(train[1], test[1])
    return Arrays(Rows(inputs, targets), Rows(test_inputs, test_targets), Regression())

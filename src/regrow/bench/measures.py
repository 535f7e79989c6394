"""What a network's outputs are worth: the loss that is trained on, and the score that is told."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor
from torch.nn import functional as F


class Measure(Protocol):
    """A loss and a score of outputs beside their targets."""

    score_name: ClassVar[str]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss, a scalar."""
        ...

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The mean score: more is better, 1 is the best."""
        ...


@dataclass(frozen=True)
class Classification:
    """Cross-entropy and accuracy; outputs of shape (..., classes), targets (...) of int64."""

    score_name: ClassVar[str] = "accuracy"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The share of right answers."""
        return (outputs.argmax(-1) == targets).double().mean().item()


@dataclass(frozen=True)
class Regression:
    """Mean squared error and R²; outputs and targets of one shape, the targets with variance 1."""

    score_name: ClassVar[str] = "R²"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """1 − mean squared error: the share of the variance that is explained."""
        return 1.0 - F.mse_loss(outputs, targets).item()

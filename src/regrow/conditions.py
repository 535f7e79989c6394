"""What a plan may wait for: conditions on the loss, on sizes, and on whatever else a training loop reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Condition(Protocol):
    """A frozen dataclass that tells, once in each step, whether it holds."""

    def holds(self, seen: Mapping[str, float], memory: dict[str, Any]) -> bool:
        """Whether it holds at a step.

        Args:
            seen: What there is to see then: "step", "params", "flops", and what the loop reports, as "loss".
            memory: What this condition noted at earlier steps; plain values, which are saved with the run.
        """
        ...


def seen_value(name: str, seen: Mapping[str, float]) -> float:
    """A value that a condition looks at.

    Raises:
        ValueError: It isn't there.
    """
    if name not in seen:
        raise ValueError(
            f"the plan looks at {name!r}, which isn't reported: pass it to the Shaper, as step({name}=…); there are "
            f"{', '.join(sorted(seen))}."
        )
    return float(seen[name])


@dataclass(frozen=True)
class Plateau:
    """Something has stopped falling: its mean over some steps isn't lower than over those before.

    Args:
        patience: How many steps a mean is over.
        threshold: By how much lower is lower, as a fraction of the earlier mean.
        of: What is looked at, as the loop reports it.

    Raises:
        ValueError: An option is none of what is said above.

    >>> plateau, memory = Plateau(patience=2, threshold=0.1), {}
    >>> [plateau.holds({"loss": loss}, memory) for loss in (4.0, 4.0, 2.0, 2.0, 1.9, 1.9)]
    [False, False, False, False, False, True]
    """

    patience: int = 100
    threshold: float = 0.01
    of: str = "loss"

    def __post_init__(self) -> None:
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(f"patience is a whole number of steps from 1 on, not {self.patience!r}.")
        if not (math.isfinite(self.threshold) and 0 <= self.threshold < 1):
            raise ValueError(f"threshold is a fraction from 0 to below 1, not {self.threshold!r}.")

    def holds(self, seen: Mapping[str, float], memory: dict[str, Any]) -> bool:
        """At the end of each stretch of so many steps: whether it was no lower than the one before."""
        memory["sum"] = memory.get("sum", 0.0) + seen_value(self.of, seen)
        memory["number"] = memory.get("number", 0) + 1
        if memory["number"] < self.patience:
            return False
        mean, before = memory["sum"] / self.patience, memory.get("before")
        memory.update(sum=0.0, number=0, before=mean)
        return before is not None and not mean < before - self.threshold * abs(before)


@dataclass(frozen=True)
class Below:
    """Something is below a value: "loss", "params", "flops", or what else the loop reports."""

    of: str
    value: float

    def holds(self, seen: Mapping[str, float], memory: dict[str, Any]) -> bool:
        """Whether it is."""
        return seen_value(self.of, seen) < self.value


@dataclass(frozen=True)
class Above:
    """Something is above a value: "accuracy", "params", "flops", or what else the loop reports."""

    of: str
    value: float

    def holds(self, seen: Mapping[str, float], memory: dict[str, Any]) -> bool:
        """Whether it is."""
        return seen_value(self.of, seen) > self.value

"""Cells: one arm on one task with one seed, as a run that is told from all others by a key."""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .options import Options, Settled
from .suites import PROTOCOL, Arm, Suite

#: What doesn't move a number, or only its last digits.
FREE = {"out", "data", "threads", "device", "checkpoint_every", "log_every"}


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        task: its name.
        arm: what is compared.
        seed: of the run.
        fixed: what the task fixes, as (name, value) pairs.
        held_out: whether it is measured on held-out training examples; else on the test set.
    """

    task: str
    arm: Arm
    seed: int
    fixed: tuple[tuple[str, Any], ...]
    held_out: bool = True

    def options(self, out: Path | None = None, data: Path | None = None) -> Settled:
        """The options of the run, settled.

        Raises:
            InputError: they can't be.
        """
        given = dict(self.fixed) | dict(self.arm.options)
        if not self.held_out:
            given["validation"] = 0
        options = Options(self.task, setting=self.arm.setting, seed=self.seed, out=out, data=data, **given)
        return options.settled()

    @functools.cached_property
    def key(self) -> str:
        """Tells it from all others of this version of the protocol: its name and a digest of all that matters.

        What is as by default isn't in it, so that an option that comes later doesn't make all that was done undone.
        """
        settled = self.options()
        values = {field.name: (getattr(settled, field.name), field.default) for field in fields(Options)}
        plain = {name: value for name, (value, usual) in values.items() if name not in FREE and value != usual}
        text = json.dumps({"protocol": PROTOCOL, "held_out": self.held_out, **plain}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.task} | {self.arm.name} | seed {self.seed} | {digest}"


def cells_of(
    suite: Suite, seeds: Sequence[int] | None = None, arms: Sequence[str] = (), held_out: bool = True
) -> Iterator[Cell]:
    """The cells of a suite, seed by seed, so that early results compare all arms.

    Args:
        seeds: by default the suite's.
        arms: names of those that are run; by default all.
        held_out: as for :class:`Cell`.
    """
    for seed in suite.seeds if seeds is None else seeds:
        for task, fixed in suite.tasks.items():
            for arm in suite.arms:
                if not arms or arm.name in arms:
                    yield Cell(task, arm, seed, tuple(fixed.items()), held_out)

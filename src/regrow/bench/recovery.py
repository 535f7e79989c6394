"""How long the training loss takes to be again what it was before an edit, and what edits cost."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

WINDOW = 10


class Recovery:
    """Tells when the mean minibatch loss over the last steps is no higher than before an edit.

    >>> recovery = Recovery()
    >>> for step in range(1, 11): _ = recovery.after_step(step, 1.0)
    >>> recovery.edited(10)
    >>> [recovery.after_step(step, 2.0 if step < 14 else 0.5) for step in range(11, 24)][-4:]
    [(10, 10), None, None, None]
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.open: tuple[int, float] | None = None  # the step of the edit, and the mean loss before

    def edited(self, step: int) -> None:
        """An edit was made at a step; of several within a window the first counts."""
        if self.open is None and self.losses:
            self.open = step, sum(self.losses) / len(self.losses)

    def after_step(self, step: int, loss: float) -> tuple[int, int] | None:
        """Note a loss; the step of an edit and how many steps recovery took, where it is complete."""
        self.losses = [*self.losses[1 - WINDOW :], loss]
        if self.open is None or step - self.open[0] < WINDOW:
            return None
        edit, before = self.open
        if sum(self.losses) / len(self.losses) > before:
            return None
        self.open = None
        return edit, step - edit

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"losses": list(self.losses), "open": self.open}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.losses, self.open = list(state["losses"]), state["open"]


class Meter:
    """Counts the FLOPs of all that runs while it is on, and the seconds."""

    def __init__(self) -> None:
        self.flops, self.seconds = 0, 0.0

    def __enter__(self) -> "Meter":
        self._counter = FlopCounterMode(display=False)
        self._counter.__enter__()
        self._began = time.monotonic()
        return self

    def __exit__(self, *error: Any) -> None:
        self.seconds += time.monotonic() - self._began
        self._counter.__exit__(*error)
        self.flops += self._counter.get_total_flops()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing is counted."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"flops": self.flops, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.flops, self.seconds = state["flops"], state["seconds"]

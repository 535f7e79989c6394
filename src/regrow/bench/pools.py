"""Where the cells of a grid are done: a process for each on this machine."""

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .cells import Cell
from .results import Result, Store
from .worker import UNUSABLE, to_json


@dataclass(frozen=True)
class Finished:
    """What became of a cell.

    Attributes:
        cell: which.
        result: of the run, None if it failed.
        reason: why it failed.
        final: whether it would fail again.
    """

    cell: Cell
    result: Result | None
    reason: str = ""
    final: bool = False


class Pool(Protocol):
    """Does cells side by side."""

    @property
    def has_room(self) -> bool:
        """Whether another cell can be started."""
        ...

    @property
    def busy(self) -> bool:
        """Whether any cell is being done."""
        ...

    def start(self, cell: Cell, data: Path | None) -> None:
        """Begin a cell, or go on with it."""
        ...

    def finished(self) -> list[Finished]:
        """The cells that came to an end since the last call; waits a moment if there is none."""
        ...

    def clear(self, cell: Cell) -> None:
        """Forget what a cell left beside its result, which is kept elsewhere now."""
        ...

    def stop(self) -> None:
        """End what is being done; it goes on from its checkpoint when it is started again."""
        ...


class Processes:
    """Cells in processes of their own.

    Args:
        store: in whose folder they work.
        number: how many side by side.
    """

    def __init__(self, store: Store, number: int) -> None:
        self.store, self.number = store, number
        self._running: list[tuple[Cell, subprocess.Popen]] = []

    @property
    def has_room(self) -> bool:
        return len(self._running) < self.number

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def start(self, cell: Cell, data: Path | None) -> None:
        folder = self.store.work(cell.key)
        folder.parent.mkdir(exist_ok=True)
        self._beside(cell, ".json").write_text(to_json(cell, data))
        files = [self._beside(cell, ".json"), folder, self._beside(cell, ".result")]
        with self._beside(cell, ".log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "regrow.bench.worker", *files], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self._running.append((cell, process))

    def _beside(self, cell: Cell, suffix: str) -> Path:
        folder = self.store.work(cell.key)
        return folder.with_name(folder.name + suffix)

    def finished(self) -> list[Finished]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._running[0][1].wait(WAIT)
        ended = [(cell, process) for cell, process in self._running if process.poll() is not None]
        self._running = [pair for pair in self._running if pair not in ended]
        return [self._came_to(cell, process.returncode) for cell, process in ended]

    def _came_to(self, cell: Cell, status: int) -> Finished:
        path = self._beside(cell, ".result")
        if status == 0 and path.is_file():
            return Finished(cell, json.loads(path.read_text()))
        lines = self._beside(cell, ".log").read_text(errors="replace").strip().splitlines()
        said = lines[-1] if lines else "nothing was said"
        return Finished(cell, None, f"exit status {status}; {said}", status == UNUSABLE)

    def clear(self, cell: Cell) -> None:
        shutil.rmtree(self.store.work(cell.key), ignore_errors=True)
        for suffix in (".json", ".result", ".log"):
            self._beside(cell, suffix).unlink(missing_ok=True)

    def stop(self) -> None:
        for _, process in self._running:
            process.terminate()
        for _, process in self._running:
            process.wait()


WAIT = 0.2  # seconds

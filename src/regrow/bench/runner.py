"""The runner: does the cells of a grid that aren't in its store yet, side by side, each in a process of its own."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .cells import Cell
from .errors import InputError
from .results import Result, Store
from .tasks import get_task
from .worker import UNUSABLE, to_json

logger = logging.getLogger(__name__)

ATTEMPTS = 2
WAIT = 0.1  # seconds between two looks at the processes


@dataclass
class Outcome:
    """What a runner came to: keys of cells that were done now, that failed, and tasks that were left out."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def run_cells(cells: Sequence[Cell], store: Store, data: Path | None = None, jobs: int | None = None) -> Outcome:
    """Do what is missing.

    A run that was killed goes on from its last checkpoint; one that fails is tried once more, and again at the next
    call. A task whose data can't be read is left out, and named.

    Args:
        cells: those that are wanted.
        store: where results are kept.
        data: a folder with the data sets, each in a folder of its own name, or that of the only one.
        jobs: runs side by side; by default as many as there are cores for.

    Raises:
        InputError: another runner is at work on the store.
    """
    outcome = Outcome()
    with store.held():
        known = store.results()
        missing = [cell for key, cell in {cell.key: cell for cell in cells}.items() if key not in known]
        folders = _data_folders(missing, data, outcome)
        missing = [cell for cell in missing if cell.task in folders]
        jobs = jobs or max(1, (os.cpu_count() or 1) // max(1, min((c.options().threads for c in missing), default=1)))
        with _shown(len(missing)) as show:
            _run_side_by_side(missing, store, folders, jobs, outcome, show)
    return outcome


def _run_side_by_side(
    cells: Sequence[Cell],
    store: Store,
    folders: dict[str, Path | None],
    jobs: int,
    outcome: Outcome,
    show: Callable[[str], None],
) -> None:
    waiting = [(cell, 1) for cell in cells]
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell, attempt = waiting.pop(0)
                running.append(_Running.of(cell, attempt, store, folders[cell.task]))
            time.sleep(WAIT)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                result, reason = each.result()
                if result is not None:
                    store.add(result)
                    each.clear()
                    outcome.done.append(each.cell.key)
                    show(each.cell.key)
                elif each.process.returncode != UNUSABLE and each.attempt < ATTEMPTS:
                    waiting.append((each.cell, each.attempt + 1))
                else:
                    store.add_failure(each.cell.key, reason)
                    outcome.failed[each.cell.key] = reason
                    show(f"{each.cell.key} failed: {reason}")
    finally:
        for each in running:  # only where this is interrupted
            each.process.terminate()
            each.process.wait()


@dataclass
class _Running:
    cell: Cell
    attempt: int
    folder: Path
    process: subprocess.Popen

    @classmethod
    def of(cls, cell: Cell, attempt: int, store: Store, data: Path | None) -> "_Running":
        folder = store.work(cell.key)
        folder.parent.mkdir(exist_ok=True)
        order = folder.with_name(folder.name + ".json")
        order.write_text(to_json(cell, data))
        command = [
            sys.executable,
            "-m",
            "regrow.bench.worker",
            order,
            folder,
            folder.with_name(folder.name + ".result"),
        ]
        with folder.with_name(folder.name + ".log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        return cls(cell, attempt, folder, process)

    def _beside(self, suffix: str) -> Path:
        return self.folder.with_name(self.folder.name + suffix)

    def result(self) -> tuple[Result | None, str]:
        """What was done, or the last that was said."""
        path = self._beside(".result")
        if self.process.returncode == 0 and path.is_file():
            return json.loads(path.read_text()), ""
        lines = self._beside(".log").read_text(errors="replace").strip().splitlines()
        return None, f"exit status {self.process.returncode}; {lines[-1] if lines else 'nothing was said'}"

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for suffix in (".json", ".result", ".log"):
            self._beside(suffix).unlink(missing_ok=True)


def _data_folders(cells: Sequence[Cell], data: Path | None, outcome: Outcome) -> dict[str, Path | None]:
    """Where the data of each task are; those that can't be read are noted."""
    folders: dict[str, Path | None] = {}
    for name in dict.fromkeys(cell.task for cell in cells):
        task = get_task(name)
        folder = None if data is None or not task.reads else data / task.reads if (data / task.reads).is_dir() else data
        try:
            task.load(folder, 100)
            folders[name] = folder
        except InputError as error:
            outcome.skipped[name] = str(error)
            logger.warning("%s is left out: %s", name, error)
    return folders


@contextlib.contextmanager
def _shown(number: int) -> Iterator[Callable[[str], None]]:
    """A bar with the time that is left, where somebody looks on; else a line for each run."""
    console, began, done = Console(stderr=True), time.monotonic(), [0]
    columns = (
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=number)

        def show(text: str) -> None:
            done[0] += 1
            progress.update(bar, advance=1, description=text)
            if not console.is_terminal:
                left = (time.monotonic() - began) / done[0] * (number - done[0])
                logger.info("%d of %d, about %d minutes left: %s", done[0], number, round(left / 60), text)

        yield show

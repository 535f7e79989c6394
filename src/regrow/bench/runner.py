"""The runner: does the cells of a grid that aren't in its store yet, side by side, each in a process of its own."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .cells import Cell
from .errors import InputError
from .pools import Pool, Processes
from .ray_pool import RayPool
from .results import Store
from .tasks import get_task

logger = logging.getLogger(__name__)

ATTEMPTS = 2


@dataclass
class Outcome:
    """What a runner came to: keys of cells that were done now, that failed, and tasks that were left out."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def run_cells(
    cells: Sequence[Cell], store: Store, data: Path | None = None, jobs: int | None = None, ray: str | None = None
) -> Outcome:
    """Do what is missing.

    A run that was killed goes on from its last checkpoint; one that fails is tried once more, and again at the next
    call. A task whose data can't be read is left out, and named.

    Args:
        cells: those that are wanted.
        store: where results are kept.
        data: a folder with the data sets, each in a folder of its own name, or that of the only one.
        jobs: runs side by side; by default as many as there are cores for.
        ray: address of a Ray cluster that does them instead of this machine.

    Raises:
        InputError: another runner is at work on the store, or there is no such cluster.
    """
    outcome = Outcome()
    with store.held():
        known = store.results()
        missing = [cell for key, cell in {cell.key: cell for cell in cells}.items() if key not in known]
        folders = _data_folders(missing, data, outcome)
        missing = [cell for cell in missing if cell.task in folders]
        threads = max(1, min((cell.options().threads for cell in missing), default=1))
        number = jobs or max(1, (os.cpu_count() or 1) // threads)
        pool: Pool = Processes(store, number) if ray is None else RayPool(ray)
        try:
            with _shown(len(missing)) as show:
                _run_all([(cell, folders[cell.task]) for cell in missing], store, pool, outcome, show)
        finally:
            pool.stop()
    return outcome


def _run_all(
    orders: Sequence[tuple[Cell, Path | None]],
    store: Store,
    pool: Pool,
    outcome: Outcome,
    show: Callable[[str], None],
) -> None:
    """Start cells where there is room, and keep what they come to."""
    waiting, data = [cell for cell, _ in orders], {cell.key: folder for cell, folder in orders}
    attempts: dict[str, int] = {}
    while waiting or pool.busy:
        while waiting and pool.has_room:
            cell = waiting.pop(0)
            attempts[cell.key] = attempts.get(cell.key, 0) + 1
            pool.start(cell, data[cell.key])
        for ended in pool.finished():
            key = ended.cell.key
            if ended.result is not None:
                store.add(ended.result)
                pool.clear(ended.cell)
                outcome.done.append(key)
                show(key)
            elif not ended.final and attempts[key] < ATTEMPTS:
                waiting.append(ended.cell)
            else:
                store.add_failure(key, ended.reason)
                outcome.failed[key] = ended.reason
                show(f"{key} failed: {ended.reason}")


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

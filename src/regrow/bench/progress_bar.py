"""How far a run is, where somebody looks on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(title: str, done: float) -> Iterator[Any]:
    """A progress bar on standard error, where that is a terminal; gives `show(progress, loss)`."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=1000, completed=round(1000 * done), loss="")
        yield lambda part, loss: progress.update(bar, completed=1000 * part, loss=f"loss {loss:.4f}")

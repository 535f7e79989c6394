"""Runs that are done once: each is kept as a line of a file that is committed; a later call does what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

from growth_runs.summary import finite
from rich.progress import Progress


class Config(Protocol):
    """What tells a run from others."""

    @property
    def key(self) -> str: ...


class Setup(Protocol):
    """What all runs share."""

    @property
    def plain(self) -> dict[str, Any]: ...


def kept(store: Path, setup: Setup) -> dict[str, dict[str, Any]]:
    """Key -> run, of those of this setup."""
    runs = [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []
    return {run["key"]: run for run in runs if run["setup"] == setup.plain}


def do_missing(
    store: Path, setup: Setup, wanted: Sequence[Any], run: Callable[[Any, Any], dict[str, Any]], jobs: int
) -> None:
    """Do the runs that aren't in the store yet, some side by side, and keep each as soon as it is done."""
    known = kept(store, setup)
    missing = [config for config in wanted if config.key not in known]
    # A process for each run: what torch's kernels keep for the many sizes of one run isn't given back.
    pool = ProcessPoolExecutor(jobs, max_tasks_per_child=1)
    with pool, Progress() as progress:
        bar = progress.add_task("runs", total=len(missing))
        running = {pool.submit(run, setup, config): config for config in missing}
        for done in as_completed(running):
            if done.exception() is None:
                _keep(store, setup, running[done], done.result())
            else:  # the others go on
                progress.console.print(f"{running[done].key} failed: {done.exception()!r}")
            progress.advance(bar)


def _keep(store: Path, setup: Setup, config: Config, result: dict[str, Any]) -> None:
    before = store.read_text() if store.exists() else ""
    partial = store.with_suffix(".part")  # so that a kill leaves no half line
    partial.write_text(before + json.dumps(finite({"key": config.key, "setup": setup.plain, **result})) + "\n")
    partial.replace(store)

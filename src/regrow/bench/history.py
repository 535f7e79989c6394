"""Read what a run left in its folder, also when the run is unfinished, empty or damaged."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError

CONFIG_FILE = "config.json"
EVENTS_FILE = "events.jsonl"

Event = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """The sizes of a network from one step on.

    Attributes:
        step: optimizer steps done when the network took this shape.
        widths: units of each axis, in execution order.
        parameters: number of parameters.
        flops: FLOPs per example.
    """

    step: int
    widths: dict[str, int]
    parameters: float | None
    flops: float | None


@dataclass(frozen=True)
class History:
    """One run: its configuration, its events in order, and what could not be read.

    Attributes:
        folder: where the run was read from.
        config: the options of the run; empty if they could not be read.
        events: the readable events, in the order in which they were written.
        problems: what is wrong with the files, one sentence each.
    """

    folder: Path
    config: dict[str, Any]
    events: tuple[Event, ...]
    problems: tuple[str, ...]

    def of(self, *kinds: str) -> list[Event]:
        """The events of the given kinds, in order."""
        return [event for event in self.events if event["event"] in kinds]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.of("end"))

    @property
    def last_step(self) -> int:
        """The last step that any event speaks of; 0 for an empty run."""
        return self.events[-1]["step"] if self.events else 0

    @property
    def total_steps(self) -> int | None:
        """The steps that the run was to make, if its start was recorded."""
        starts = self.of("start")
        total = number(starts[-1].get("steps")) if starts else None
        return None if total is None else int(total)

    def shapes(self) -> list[Shape]:
        """The shapes that the network had, each from its first step on; without repeats."""
        shapes: list[Shape] = []
        widths: dict[str, int] = {}
        for event in self.of("start", "edit", "metrics", "end"):
            widths = widths | _widths(event)
            parameters, flops = last_number(event.get("parameters")), last_number(event.get("flops"))
            if widths and (not shapes or shapes[-1].widths != widths):
                shapes.append(Shape(event["step"], widths, parameters, flops))
        return shapes


def number(value: object) -> float | None:
    """`value` if it is a finite number, else None: what comes from a file may be anything.

    >>> number(3), number("3"), number(float("nan"))
    (3, None, None)
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def pair(value: object) -> tuple[float | None, float | None]:
    """`[before, after]` as two finite numbers, None in place of whatever is not one."""
    before, after = value if isinstance(value, list) and len(value) == 2 else (None, None)
    return number(before), number(after)


def last_number(value: object) -> float | None:
    """The number itself, or the second one of `[before, after]`."""
    return pair(value)[1] if isinstance(value, list) else number(value)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders among and below `folders`, each once, in the given order.

    Raises:
        InputError: no folder is given, or one neither is nor contains a run.
    """
    if not folders:
        raise InputError("no run folder was given; name at least one, such as runs/")
    runs: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; give a run folder or a folder that contains runs")
        found = [folder] if _is_run(folder) else sorted(filter(_is_run, _folders_below(folder)))
        if not found:
            raise InputError(
                f"{folder} neither is nor contains a run: a run folder has a file {EVENTS_FILE}, "
                f"or a {CONFIG_FILE} that names its task"
            )
        runs |= {run.resolve(): run for run in found if run.resolve() not in runs}
    return list(runs.values())


def read_run(folder: Path) -> History:
    """Read a run folder; damage is noted in `History.problems`, never raised."""
    problems: list[str] = []
    config = _read_config(folder)
    if config is None:
        problems.append(f"{CONFIG_FILE} is missing or damaged.")
    path = folder / EVENTS_FILE
    lines = path.read_bytes().splitlines() if path.is_file() else []
    events: list[Event] = []
    for index, line in enumerate(lines, start=1):
        event = _parse(line)
        if event is None:
            where = "The last line" if index == len(lines) else f"Line {index}"
            problems.append(f"{where} of {EVENTS_FILE} is damaged and was left out.")
        else:
            events.append(event)
    if not events:
        problems.append("Nothing was recorded yet.")
    return History(folder, config or {}, tuple(events), tuple(problems))


def _parse(line: bytes) -> Event | None:
    """One line of the events file, or None where it is no event."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    valid = isinstance(event, dict) and isinstance(event.get("event"), str) and type(event.get("step")) is int
    return event if valid else None


def _widths(event: Event) -> dict[str, int]:
    """The widths that an event states: all of them, or those that an edit changed."""
    stated = event.get("widths") if event["event"] != "edit" else event.get("sizes")
    if not isinstance(stated, dict):
        return {}
    sizes = {name: last_number(size) for name, size in stated.items()}
    return {name: int(size) for name, size in sizes.items() if size is not None}


def _read_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of a run, or None where there is none that can be read."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _is_run(folder: Path) -> bool:
    """Events make a run; a configuration alone does if it names a task, as other tools' do not."""
    return (folder / EVENTS_FILE).is_file() or "task" in (_read_config(folder) or {})


def _folders_below(folder: Path) -> set[Path]:
    return {path.parent for name in (EVENTS_FILE, CONFIG_FILE) for path in folder.rglob(name)}

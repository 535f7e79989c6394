"""What a page about a store is about: its arms and boards, in which damage is mended or told."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import human
from .comparison import Row, leaderboard
from .history import Event, number, pair, read_run
from .options import SETTINGS
from .report import MODES, NUM_COLOURS
from .results import FAILURES_FILE, WORK_FOLDER, Result, Store
from .series import METRICS

SPLITS = {True: "held-out examples", False: "the test set"}
NUM_STYLES = 3  # solid, dashed and dotted lines, for more arms than there are colours
#: What is told of the end of a run.
END = (*METRICS, "parameters", "flops", "training_flops", "edit_flops", "seconds", "edit_seconds")


@dataclass(frozen=True)
class Arm:
    """An arm on a task.

    Attributes:
        held_out, task, name, setting: as in its results.
        colour, style: of its lines.
        runs: places of its results in :class:`Content`.
    """

    held_out: bool
    task: str
    name: str
    setting: str
    colour: int
    style: int
    runs: list[int] = field(default_factory=list)

    @property
    def short(self) -> str:
        """Its name beside those of its setting."""
        return self.name.removeprefix(f"{self.setting}: ")


@dataclass(frozen=True)
class Line:
    """A line of a leaderboard: an arm over all of its seeds, or with one.

    Attributes:
        arm: its place in :class:`Content`.
        seed: the only one; None for all.
        row: what is told.
        runs: (seed, place in :class:`Content`) of each run.
        missing: seeds that other arms have.
    """

    arm: int
    seed: int | None
    row: Row
    runs: list[tuple[int, int]]
    missing: list[int]


@dataclass(frozen=True)
class Board:
    """The leaderboard of a task and setting, the best arm first."""

    held_out: bool
    task: str
    setting: str
    lines: list[Line]

    @property
    def rows(self) -> list[Row]:
        """Those of arms over all seeds."""
        return [line.row for line in self.lines if line.seed is None]

    @property
    def edited(self) -> bool:
        """Whether any of its networks was."""
        return any(run.edits for row in self.rows for run in row.runs)


@dataclass(frozen=True)
class Content:
    """What the page shows.

    Attributes:
        results: all of the store's, in the order in which they came.
        arms: those that are ranked.
        boards: their leaderboards.
        others: (run, state) of whatever isn't ranked.
    """

    results: list[Result]
    arms: list[Arm]
    boards: list[Board]
    others: list[tuple[str, str]]

    def all(self, name: str) -> list[Any]:
        """The values of an entry of the results."""
        return list(dict.fromkeys(result[name] for result in self.results))


def content_of(store: Store) -> Content:
    results = [_sound(result) for result in store.results().values()]
    others = [*_failures(store, results), *_running(store, results)]
    latest: dict[tuple[bool, str, str, int], int] = {}
    for place, result in enumerate(results):
        which = result["held_out"], result["task"], result["arm"], result["seed"]
        if not _is_whole(result["events"][-1:]):
            others.append((result["key"], "left out: its end has no score or no cost"))
            continue
        if which in latest:
            others.append((results[latest[which]]["key"], "left out: a newer one has other options and the same names"))
        latest[which] = place
    arms = _arms(results, sorted(latest.values()))
    boards = [board for held_out in SPLITS for board in _boards(held_out, results, arms)]
    return Content(results, arms, boards, others)


def _sound(result: Result) -> Result:
    """A result of which everything is of the type that it should be; what is no number is None. The end comes last."""
    config, environment, events = (result.get(key) for key in ("config", "environment", "events"))
    config = config if isinstance(config, dict) else {}
    sound = [_sound_event(event) for event in (events if isinstance(events, list) else []) if _is_event(event)]
    sound = [event for event in sound if event["event"] != "end"] + [e for e in sound if e["event"] == "end"][-1:]
    return {
        **{key: str(result.get(key, human.MISSING)) for key in ("key", "task", "arm")},
        "against": str(result.get("against") or ""),
        "held_out": bool(result.get("held_out", True)),
        "seed": seed if type(seed := result.get("seed")) is int else 0,
        "config": {**config, "setting": str(config.get("setting", human.MISSING))},
        "environment": environment if isinstance(environment, dict) else {},
        "events": sound,
    }


def _is_event(event: object) -> bool:
    if not isinstance(event, dict) or not isinstance(event.get("event"), str) or type(event.get("step")) is not int:
        return False
    return event["event"] != "recovered" or number(event.get("steps")) is not None


def _sound_event(event: Event) -> Event:
    if event["event"] == "edit":
        return event | {key: list(pair(event.get(key))) for key in MODES.values()}
    return event | {key: number(event.get(key)) for key in END} if event["event"] in ("metrics", "end") else event


def _is_whole(events: Sequence[Event]) -> bool:
    """Whether these end a run that can be ranked."""
    return any(
        e["event"] == "end" and e["test_accuracy"] is not None and (e["training_flops"] or 0) > 0 for e in events
    )


def _ranked(result: Result) -> Result:
    """A result without the points of its curve that have no score or no cost."""
    return result | {
        "events": [
            event
            for event in result["events"]
            if event["event"] != "metrics" or None not in (event["test_accuracy"], event["training_flops"])
        ]
    }


def _arms(results: Sequence[Result], ranked: Iterable[int]) -> list[Arm]:
    """The arms in the order in which they came, so that a growing store keeps its colours."""
    arms: dict[tuple[bool, str, str], Arm] = {}
    for place in ranked:
        held_out, task, name = (results[place][key] for key in ("held_out", "task", "arm"))
        if (held_out, task, name) not in arms:
            setting = results[place]["config"]["setting"]
            on_board = [(arm.held_out, arm.task, arm.setting) for arm in arms.values()].count((held_out, task, setting))
            style, colour = divmod(on_board, NUM_COLOURS - 1)
            arms[held_out, task, name] = Arm(held_out, task, name, setting, 1 + colour, style % NUM_STYLES)
        arms[held_out, task, name].runs.append(place)
    return list(arms.values())


def _boards(held_out: bool, results: Sequence[Result], arms: Sequence[Arm]) -> list[Board]:
    """The leaderboards of one split, over all seeds and with each."""
    boards: dict[tuple[str, str], list[Line]] = {}
    known = {(arm.task, arm.name): index for index, arm in enumerate(arms) if arm.held_out == held_out}
    ranked = [_ranked(results[run]) for index in known.values() for run in arms[index].runs]
    seeds = sorted({result["seed"] for result in ranked})
    for seed in (None, *(seeds if len(seeds) > 1 else ())):
        for row in leaderboard([result for result in ranked if seed in (None, result["seed"])]):
            index = known[row.task, row.arm]
            runs = sorted((results[run]["seed"], run) for run in arms[index].runs)
            others = {result["seed"] for result in ranked if result["task"] == row.task}
            line = Line(
                index,
                seed,
                row,
                [run for run in runs if seed in (None, run[0])],
                sorted(others - set(row.seeds)) if seed is None else [],
            )
            boards.setdefault((row.task, arms[index].setting), []).append(line)
    order = {setting: place for place, setting in enumerate(SETTINGS)}
    keys = sorted(boards, key=lambda key: (key[0], order.get(key[1], len(order)), key[1]))
    return [Board(held_out, *key, boards[key]) for key in keys]


def _failures(store: Store, results: Sequence[Result]) -> list[tuple[str, str]]:
    """Runs that failed, and haven't been done since, with the last reason."""
    failures: dict[str, str] = {}
    path = store.path / FAILURES_FILE
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            failure = json.loads(line)
            failures[str(failure["key"])] = f"failed: {failure['reason']}"
    done = {result["key"] for result in results}
    return [(key, reason) for key, reason in failures.items() if key not in done]


def _running(store: Store, results: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """Runs that were begun, by their orders; they may end while this looks on."""
    done = {store.work(result["key"]) for result in results}
    for order in sorted((store.path / WORK_FOLDER).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            cell, history = json.loads(order.read_bytes()), read_run(order.with_suffix(""))
            if order.with_suffix("") not in done:
                progress = [number(event.get("progress")) for event in history.of("metrics")]
                part = human.percent(progress[-1] if progress else None)
                name = f"{cell['task']} | {cell['arm']['name']} | seed {cell['seed']}"
                yield name, f"not finished: {part} at step {history.last_step:,}"

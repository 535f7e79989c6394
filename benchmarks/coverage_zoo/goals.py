"""What was to be reached, and what was."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .rows import Row
from .vision import is_classification

#: Fewer models than these of a library would be no coverage.
LEAST_TIMM, LEAST_HF = 120, 30
FASTER, FORWARDS, SECONDS = 5.0, 6.0, 4.0

#: Group -> the part of it that is to be handled; None where the result is only told.
GROUPS: dict[str, float | None] = {
    "torchvision, classification": 1.0,
    "torchvision, other": None,
    "timm": 0.97,
    "Hugging Face": 0.95,
}


def group_of(name: str) -> str:
    """The group that a model is counted in."""
    library = name.partition("/")[0]
    if library == "torchvision":
        return "torchvision, classification" if is_classification(name) else "torchvision, other"
    return {"timm": "timm", "hf": "Hugging Face"}[library]


def goals(rows: Sequence[Row], zoo: Iterable[str]) -> list[dict[str, Any]]:
    """One result for each goal: what was measured, the goal, and whether it is met.

    Args:
        rows: Those that were measured.
        zoo: The names of all models; what wasn't measured isn't handled.
    """
    names = list(zoo)
    found = [_covered(group, part, rows, names) for group, part in GROUPS.items()]
    found.append(_goal("silently wrong results", sum(bool(row["wrong"]) for row in rows), at_most=0))
    passes = _by_group(rows, lambda row: float(row["forwards"]))
    seconds = _by_group(rows, lambda row: float(row["analyze_s"]))
    faster = _by_group(rows, lambda row: float(row["peer_list_s"]) / float(row["analyze_s"]))
    if passes:
        what = "forward passes that an analysis takes, median"
        found.append(_goal(what, _median(passes), at_most=FORWARDS, by_group=_medians(passes)))
        slowest = max(max(times) for times in seconds.values())
        found.append(_goal("seconds that an analysis takes, largest", slowest, at_most=SECONDS))
    if faster:
        what = "times faster than Torch-Pruning to the list of what can go, median where it gets there"
        found.append(_goal(what, _median(faster), at_least=FASTER, by_group=_medians(faster)))
    steps = _by_group(rows, lambda row: float(row["peer_step_s"]) / float(row["analyze_s"]))
    if steps:
        what = "times faster than Torch-Pruning's set-up and step, which tell what goes, median where it gets there"
        found.append(_goal(what, _median(steps), by_group=_medians(steps)))
    return found


def _by_group(rows: Sequence[Row], value: Callable[[Row], float]) -> dict[str, list[float]]:
    """The values of the rows that have one."""
    found: dict[str, list[float]] = {}
    for row in rows:
        with contextlib.suppress(ValueError):  # an empty column
            found.setdefault(group_of(row["model"]), []).append(value(row))
    return {group: values for group, values in found.items() if values}


def _median(values: dict[str, list[float]]) -> float:
    return statistics.median(value for group in values.values() for value in group)


def _medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {group: statistics.median(numbers) for group, numbers in values.items()}


def _covered(group: str, part: float | None, rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    all_of_it = [name for name in names if group_of(name) == group]
    measured = [row for row in rows if group_of(row["model"]) == group]
    handled = sum(row["handled"] == "yes" for row in measured)
    enough = len(all_of_it) >= {"timm": LEAST_TIMM, "Hugging Face": LEAST_HF}.get(group, 1)
    return {
        "model": group,
        "measured": handled / max(1, len(all_of_it)),
        "goal": part,
        "met": part is None or (enough and handled >= part * len(all_of_it)),
        "shown": f"{handled} of {len(all_of_it)} handled",
        "models": len(all_of_it),
        "run": len(measured),
        "peer": sum(row["peer"] == "ok" for row in measured),
        "missed": {row["model"]: row["why"] for row in measured if row["handled"] != "yes"},
    }


def _goal(
    what: str, got: float, *, at_most: float | None = None, at_least: float | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "model": what,
        "measured": got,
        "goal": at_least if at_most is None else at_most,
        "met": (at_most is None or got <= at_most) and (at_least is None or got >= at_least),
        "shown": f"{got:.3g}",
        **more,
    }

"""What follows from the runs: for each form the jumps, gradients, rotations and the end."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .setup import Setup

#: Largest rise of the loss at a growth that counts as none, relative to the loss.
NO_JUMP = 0.01


def summarise(setup: Setup, runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Write one row for each form and order, and print them."""
    rows = []
    for order in dict.fromkeys(run["order"] for run in runs):
        here = [run for run in runs if run["order"] == order]
        ends = {
            name: {run["seed"]: run["train_loss"] for run in here if run["name"] == name} for name in ("small", "full")
        }
        for name in dict.fromkeys(run["name"] for run in here):
            rows.append(_row(order, name, [run for run in here if run["name"] == name], ends))
    question = "What does growth do under batch norm, to the loss at once and for good?"
    result = {"question": question, "setup": setup.plain, "rows": rows}
    path.write_text(json.dumps(finite(result), indent=2, allow_nan=False) + "\n")
    for row in rows:
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})


def finite(value: Any) -> Any:
    """The same with None for what isn't a finite number, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(order: str, name: str, runs: list[dict[str, Any]], ends: dict[str, dict[int, float]]) -> dict[str, Any]:
    events = [event for run in runs for event in run["events"]]
    row: dict[str, Any] = {
        "order": order,
        "form": name,
        "seeds": len(runs),
        "train_loss": statistics.mean(_number(run["train_loss"]) for run in runs),
        "test_accuracy": statistics.mean(run["test_accuracy"] for run in runs),
    }
    row["diverged"] = sum(run["diverged"] for run in runs)
    closed = [
        (ends["small"][run["seed"]] - _number(run["train_loss"]))
        / (ends["small"][run["seed"]] - ends["full"][run["seed"]])
        for run in runs
        if run["seed"] in ends["small"] and run["seed"] in ends["full"]
    ]
    if closed and events:
        row["gap_closed"] = statistics.mean(closed)
        row["gap_closed_least"] = min(closed)
    if events:
        for i, mode in enumerate(("train", "eval")):
            row[f"jump_{mode}_largest"] = max(_rise(e["before"], e["at"], e["before"], i) for e in events)
            row[f"behind_twin_{mode}_largest"] = max(_behind(e, i) for e in events)
        ratios = [_number(ratio) for event in events for ratio in event["gradient_ratio"]]
        row["gradient_ratio_median"] = statistics.median(ratios)
        row["gradient_ratio_least"], row["gradient_ratio_largest"] = min(ratios), max(ratios)
        row["rotation_degrees"] = statistics.mean(_number(e["rotation_degrees"]) for e in events)
        row["no_jump"] = max(row["jump_train_largest"], row["jump_eval_largest"]) <= NO_JUMP
    return row


def _behind(event: dict[str, Any], mode: int) -> float:
    """The largest amount by which the loss is above the twin's in the steps behind a growth, relative to before."""
    return max(_rise(event["twin"][at], event["after"][at], event["before"], mode) for at in event["after"])


def _rise(one: list[float | None], other: list[float | None], relative_to: list[float | None], mode: int) -> float:
    """By how much a loss is above another one; infinitely, where it isn't a number any more."""
    a, b, scale = one[mode], other[mode], relative_to[mode]
    return math.inf if a is None or b is None or scale is None else (b - a) / scale


def _number(value: float | None) -> float:
    return math.inf if value is None else value

"""The rows of the result: a CSV with one for each model, and what follows from them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .checks import Columns

COLUMNS = (
    *("model", "handled", "why", "params", "forward_s", "analyze_s", "forwards", "axes", "neurons", "heads"),
    *("features", "not_prunable", "not_growable", "inexact", "frozen", "unknown", "run", "analyze", "prune"),
    *("removed", "save", "grow", "added", "all_exact", "grow_change", "verify", "verified", "checks", "failures"),
    *("moved", "unmoved", "wrong", "ended", "peak_mib", "wall_s"),
    *("peer", "peer_list_s", "peer_setup_s", "peer_step_s", "peer_removed"),
)
#: What tells one structure from another.
COUNTED = ("axes", "neurons", "heads", "features", "not_prunable", "not_growable", "inexact", "frozen")
CHECKS = ("run", "analyze", "prune", "save", "grow", "verify")

#: Pruning half of every axis removes, and growing a quarter adds, at least these parts of the parameters.
LEAST_REMOVED, LEAST_ADDED = 0.4, 0.2

#: Models that these two don't apply to, with the reason.
EXCEPTIONS: dict[str, str] = {}

Row = dict[str, str]


def row_of(name: str, found: Columns) -> Row:
    """A complete row from what was found, as text."""
    numbers: dict[str, Any] = {"model": name, **found}
    if found.get("forward_s") and found.get("analyze_s"):
        numbers["forwards"] = found["analyze_s"] / found["forward_s"]
    numbers["wrong"] = _silently_wrong(found)
    numbers["why"] = _why_not(name, found)
    numbers["handled"] = not numbers["why"]
    return {column: text_of(numbers.get(column, "")) for column in COLUMNS}


def _silently_wrong(found: Columns) -> str:
    """A result that differs from what it is said to be, without an error."""
    if found.get("moved"):
        return "verify"
    suspects = {"grow": "but the output moved", "save": "output differs"}
    return next((name for name, text in suspects.items() if text in str(found.get(name, ""))), "")


def _why_not(name: str, found: Columns) -> str:
    """The first reason why a model isn't handled, or nothing."""
    for check in CHECKS:
        if found.get(check) != "ok":
            return f"{check}: {found.get(check) or found.get('ended') or 'did not run'}"
    if found["unmoved"]:
        return f"verify: {found['unmoved']} axes are called inexact, but nothing moved them"
    if name in EXCEPTIONS:
        return ""
    if found["removed"] < LEAST_REMOVED:
        return f"half of every axis is only {found['removed']:.0%} of the parameters"
    if found["added"] < LEAST_ADDED:
        return f"a quarter of every axis adds only {found['added']:.0%} of the parameters"
    return ""


def text_of(value: Any) -> str:
    """A value as it stands in the file."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", " ")


def timed_row(row: Row, found: Columns) -> tuple[Row, str]:
    """A row with new times, and how the structure differs from the row's, or "".

    A row of another structure stays as it is.
    """
    counted = [column for column in COUNTED if column in found and text_of(found[column]) != row[column]]
    if counted:
        return row, ", ".join(f"{column} {row[column]} -> {text_of(found[column])}" for column in counted)
    times = {column: text_of(value) for column, value in found.items() if column in COLUMNS}
    if found.get("forward_s") and found.get("analyze_s"):
        times["forwards"] = text_of(found["analyze_s"] / found["forward_s"])
    return {**row, **times}, "" if "analyze_s" in found else "no end"


def peer_columns(row: Row) -> Row:
    """What an earlier run found of the peer, which depends on the model alone."""
    return {column: text for column, text in row.items() if column.startswith("peer")}


def read(path: Path, columns: Sequence[str] = COLUMNS) -> dict[str, Row]:
    """The rows of a file by model; none if there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row["model"]: {column: row.get(column) or "" for column in columns} for row in csv.DictReader(file)}


def put(path: Path, rows: Iterable[Row], order: Iterable[str], columns: Sequence[str] = COLUMNS) -> None:
    """Add rows to a file, or replace them, in the given order of models; others leave."""
    known = read(path, columns) | {row["model"]: row for row in rows}
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(known[name] for name in order if name in known)
    os.replace(part, path)

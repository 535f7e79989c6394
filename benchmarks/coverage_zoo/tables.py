"""What the coverage result says, as tables for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .goals import SECONDS
from .rows import Row


def coverage_tables(result: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """The goals, the models that aren't handled, and those whose analysis takes longer than it should."""
    rows = list(rows)
    missed = [(row["model"], row["why"]) for row in rows if row["handled"] != "yes"]
    slow = sorted((row for row in rows if float(row["analyze_s"] or 0) > SECONDS), key=lambda row: row["model"])
    parts = [_table(("what", "goal", "measured", "Torch-Pruning"), map(_goal, result["rows"]))]
    if missed:
        parts.append("Not handled:\n\n" + _table(("model", "why"), missed))
    if slow:
        columns = ("model", "analysis, s", "forward pass, s", "in forward passes")
        cells = ((row["model"], row["analyze_s"], row["forward_s"], row["forwards"]) for row in slow)
        parts.append(f"Analyses that take longer than {SECONDS:.0f} s:\n\n" + _table(columns, cells))
    return "\n\n".join(parts)


def _goal(row: Mapping[str, Any]) -> tuple[str, ...]:
    goal, peer = row["goal"], row.get("peer")
    shown = "–" if goal is None else f"{goal:.0%} handled" if "models" in row else f"{goal:g}"
    met = "" if goal is None or row["met"] else " (missed)"
    return row["model"], shown, f"{row['shown']}{met}", "–" if peer is None else f"{peer} of {row['models']}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

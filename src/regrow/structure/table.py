"""The structure as a table for people."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from .axis import Axis, Entry, holder, read_as

if TYPE_CHECKING:
    from . import Structure

#: Of the table in characters, unless names are longer; and of what is remarked, which wraps.
WIDTH, REMARKS = 110, 26


def table(structure: Structure) -> str:
    """Axes with their sizes and what moves together; then what is frozen and why."""
    axes = Table("axis", "kind", "units", "moves together", "remarks", box=box.SIMPLE)
    axes.columns[2].justify = "right"
    for axis in structure.axes:
        axes.add_row(axis.name, axis.kind, f"{axis.size:,}", _together(axis), _remarks(axis))
    frozen = Table("frozen because it", "dimensions", box=box.SIMPLE)
    for reason, names in _frozen(structure).items():
        frozen.add_row(reason, _some(names))
    frozen.columns[1].overflow = "fold"
    out = io.StringIO()
    console = Console(file=out, width=_fitted(axes, roomy=3))
    console.print(axes, frozen, sep="")
    leaving = sum(bool(layer.prunable) for layer in structure.layers)
    console.print(f"layers: {len(structure.layers)}, of which {leaving} may leave")
    console.print(f"cells:  {_some([cell.name for cell in structure.cells], 8) or 'no block repeats'}")
    if structure.unknown:
        calls = ", ".join(f"{name} ({times}×)" for name, times in structure.unknown.items())
        console.print(f"No rule for: {calls}")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def _fitted(columns: Table, roomy: int) -> int:
    """The width of a table in which no name is cut off, as names are there to be looked up.

    The roomy column has what the others leave of the usual width.
    """
    cells = [[str(cell) for cell in (column.header, *column.cells)] for column in columns.columns]
    words = [max(len(word) for cell in column for word in cell.split()) for column in cells]
    whole = [max(map(len, column)) for column in cells]
    widths = [max(word, min(most, REMARKS)) for word, most in zip(words, whole, strict=True)]
    left = WIDTH - 1 - sum(width + 3 for width in widths) + widths[roomy]
    widths[roomy] = max(words[roomy], min(whole[roomy], left))
    for column, width in zip(columns.columns, widths, strict=True):
        column.width = width
    return max(WIDTH, 1 + sum(width + 3 for width in widths))


def _together(axis: Axis) -> str:
    made = dict.fromkeys(_owner(e) for e in axis.entries if e.role != "in")
    read = dict.fromkeys(map(_owner, axis.with_role("in")))
    return f"{_some(list(made))} → {_some(list(read)) or '–'}"


def _owner(entry: Entry) -> str:
    tensor = read_as(entry.name)
    return holder(tensor) or tensor


def _remarks(axis: Axis) -> str:
    verdicts = {"not prunable": axis.prunable, "not growable": axis.growable, "inexact": axis.exact}
    return "; ".join(f"{name}: {v.reason}" for name, v in verdicts.items() if not v)


def _frozen(structure: Structure) -> dict[str, list[str]]:
    by_reason: dict[str, list[str]] = {}
    for f in structure.frozen:
        by_reason.setdefault(f.reason, []).append(f"{f.name}[{f.dim}]")
    return by_reason


def _some(names: list[str], shown: int = 4) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")

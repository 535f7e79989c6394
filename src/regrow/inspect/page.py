"""One self-contained HTML file on which axes can be followed through a model."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bench import human
from ..bench.errors import InputError, require
from ..bench.store import write_atomically
from ..structure import Axis, Structure
from .order import order_of
from .subject import Subject
from .totals import Totals, covered_indices
from .tree import Cell, Integer, Numbering, Tree

TEMPLATES = files("regrow.inspect") / "templates"
SCRIPTS = ("page", "patterns", "network", "axes", "inspector", "main")


def write_page(subject: Subject, structure: Structure, output: Path) -> Path:
    """Write the page; it needs nothing else, not even a network.

    Returns:
        ``output``.

    Raises:
        InputError: jinja2 isn't installed, or ``output`` is a folder.
        OSError: it can't be written; a page that was there before is kept.
    """
    output = Path(output)
    if output.is_dir():
        raise InputError(f"{output} is a folder; name the file to write, such as {output / 'structure.html'}")
    page = _render(subject, structure)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page.encode())
    return output


def _render(subject: Subject, structure: Structure) -> str:
    jinja2 = require("jinja2", "inspect")
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": human.count, "plural": human.plural}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    numbering = number(structure)
    model = Tree(structure, order_of(subject.model, subject.args, subject.kwargs), numbering).row(
        structure.model, "model"
    )
    return environment.get_template("page.html.j2").render(
        # Files of this package are the only text that is not escaped.
        asset=lambda name: Markup(_asset(name)),
        scripts=SCRIPTS,
        subject=subject,
        totals=Totals.of(subject, structure),
        unknown=structure.unknown,
        model=model,
        hidden=sum(row.idle for row in model.walk()),
        data=page_data(subject, structure, numbering),
    )


def _asset(name: str) -> str:
    return TEMPLATES.joinpath(name).read_text(encoding="utf-8")


def number(structure: Structure) -> Numbering:
    """Give every dimension of every tensor a number, and every Python integer that follows an axis."""
    covered = covered_indices(structure)
    numbering = Numbering()
    for name, tensor in [*structure.model.named_parameters(), *structure.model.named_buffers()]:
        for dim, size in enumerate(tensor.shape):
            moving = int(torch.count_nonzero(covered[name, dim])) if (name, dim) in covered else 0
            state = "moves" if moving == size else "partly" if moving else "still"
            numbering.cells[name, dim] = Cell(len(numbering.cells), size, state)
    for count in (count for axis in structure.axes for count in axis.counts):
        key = count.key[0]
        label = key.rpartition(".")[2]
        numbering.integers.setdefault(key, Integer(len(numbering.integers), label, len(count.unit_of)))
    return numbering


def page_data(subject: Subject, structure: Structure, numbering: Numbering) -> dict[str, Any]:
    """What the page's scripts know, for JSON. Cells, integers, patterns and reasons are named by their numbers."""
    patterns, reasons = _Interned(), _Interned()
    axes = [_axis(axis, numbering, patterns, subject.samples or 1) for axis in structure.axes]
    frozen: dict[int, list[tuple[int, int]]] = {}
    for f in structure.frozen:
        frozen.setdefault(numbering.cells[f.name, f.dim].index, []).append((f.size, reasons.number(f.reason)))
    return {
        "axes": axes,
        "cells": [[name, dim, cell.size] for (name, dim), cell in numbering.cells.items()],
        "integers": [[key, integer.value] for key, integer in numbering.integers.items()],
        "frozen": list(frozen.items()),
        "patterns": [segments for segments, _ in patterns.values],
        "reasons": reasons.values,
        "per": Totals.of(subject, structure).per,
        "parameters": sum(p.numel() for p in structure.model.parameters()),
    }


def _axis(axis: Axis, numbering: Numbering, patterns: _Interned, samples: int) -> dict[str, Any]:
    def pattern(unit_of: torch.Tensor) -> int:
        return patterns.number((segments(unit_of), len(unit_of)))

    return {
        "name": axis.name,
        "kind": axis.kind,
        "tags": sorted(axis.tags),
        "size": axis.size,
        "params": axis.params,
        "flops": axis.flops / samples,
        "verdicts": {
            name: None if verdict else verdict.reason
            for name, verdict in (("prunable", axis.prunable), ("growable", axis.growable), ("exact", axis.exact))
        },
        "places": [[numbering.cells[e.name, e.dim].index, e.role, pattern(e.unit_of)] for e in axis.entries],
        "counts": [[numbering.integers[c.key[0]].index, pattern(c.unit_of)] for c in axis.counts],
    }


class _Interned:
    """Values by number; equal ones have the same."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        """The number of a value, a new one if it is new."""
        if value not in self._numbers:
            self._numbers[value] = len(self.values)
            self.values.append(value)
        return self._numbers[value]


def segments(unit_of: torch.Tensor) -> tuple[int, ...]:
    """Which indices belong to which unit, in short: start, length, first unit and indices a unit, of each stretch.

    Along a stretch the units follow each other, each for as many indices.

    >>> segments(torch.tensor([0, 0, 1, 1, -1, 0, 1, 2]))
    (0, 4, 0, 2, 5, 3, 0, 1)
    """
    values, lengths = (t.numpy() for t in torch.unique_consecutive(unit_of, return_counts=True))
    if not len(values):
        return ()
    goes_on = (values[1:] == values[:-1] + 1) & (lengths[1:] == lengths[:-1]) & (values[:-1] >= 0)
    firsts = np.append(0, np.flatnonzero(~goes_on) + 1)
    starts = np.append(0, np.cumsum(lengths))[firsts]
    table = np.stack([starts, np.add.reduceat(lengths, firsts), values[firsts], lengths[firsts]], axis=1)
    return tuple(table[values[firsts] >= 0].ravel().tolist())

"""The command: prints a structure, and writes its page."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..bench.errors import InputError
from ..structure import Structure
from .examine import examine
from .page import write_page
from .sources import builder
from .subject import Request
from .totals import Totals

NARROWEST = 40


def inspect(
    source: str,
    file: Path | None = None,
    html: Path | None = None,
    shape: str | None = None,
    image_size: int | None = None,
    width: int = 110,
) -> str:
    """Analyse a model; returns what the command prints.

    Args:
        source: ``timm/NAME``, ``torchvision/NAME``, ``hf-config`` or ``package.module:factory``.
        file: the config, for ``hf-config``.
        html: where to write a page about it.
        shape: of the example, as it is typed.
        image_size: height and width of the example.
        width: of the table, in characters.

    Raises:
        InputError: the model is unknown, can't be built or doesn't run, or an option can't be.
    """
    if width < NARROWEST:
        raise InputError(f"--width is {width}, but must be at least {NARROWEST}")
    subject, structure = examine(source, builder(source, file, Request.read(shape, image_size)))
    lines = [f"{subject.name} on {subject.shapes}", _table(structure, width), str(Totals.of(subject, structure))]
    if html is not None:
        lines.append(f"page: {write_page(subject, structure, html)}")
    return "\n\n".join(lines)


def _table(structure: Structure, width: int) -> str:
    """``str(structure)`` at a width of its own."""
    tables: Any = import_module("regrow.structure.table")
    tables.WIDTH, before = width, tables.WIDTH
    try:
        return str(structure)
    finally:
        tables.WIDTH = before

"""The baseline and the three settings on one task: trained side by side, in one table and one report."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table

from . import human
from .errors import InputError
from .history import Event, History, pair, read_run
from .options import SETTINGS, Options
from .run import run

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
WIDTH = 110
MODES = {"train mode": "loss_train_mode", "eval mode": "loss_eval_mode"}


def compare(options: Options, console: Console | None = None) -> Path:
    """Do the four runs, print their table, and write their report.

    Args:
        options: of all runs; their setting is overridden, and `out` is the folder of the run folders.
        console: where the table goes; standard output by default.

    Returns:
        The report.

    Raises:
        InputError: as `regrow.bench.run.run`.
    """
    # Here, for the report needs packages that no run does.
    from .report import write_report

    if options.setting != Options.setting:
        raise InputError(f"compare runs every setting; leave out --setting {options.setting}")
    console = console or wide_console()
    folder = options.out or Path("runs")
    stem = options.task.replace("/", "-")
    runs = [
        replace(options, setting=setting, out=folder / f"{stem}-{setting}-seed{options.seed}") for setting in SETTINGS
    ]
    for each in runs:
        each.settled()  # what cannot be is said before the first run, not after the third
    folders = []
    for number, each in enumerate(runs, start=1):
        logger.info("run %d of %d: %s", number, len(runs), each.setting)
        folders.append(run(each))
    console.print(summary([read_run(path) for path in folders]))
    return write_report(folders, folder / REPORT_FILE)


def wide_console() -> Console:
    """Standard output, wide enough for the tables where no terminal says how wide it is."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def summary(histories: Sequence[History]) -> RenderableType:
    """What finished runs reached, and what each structural step did to the loss."""
    changing = [history for history in histories if history.of("edit")]
    return Group(_results(histories), *([_steps(changing)] if changing else []))


def _results(histories: Sequence[History]) -> Table:
    table = Table(title="What the runs reached", box=box.SIMPLE_HEAD)
    table.add_column("setting")
    for heading in ("parameters", "FLOPs", "train loss", "test loss", "train acc.", "test acc.", "seconds"):
        table.add_column(heading, justify="right")
    for history in histories:
        start, end = history.of("start")[0], history.of("end")[0]
        table.add_row(
            history.config["setting"],
            _change(start["parameters"], end["parameters"]),
            _change(start["flops"], end["flops"]),
            f"{end['train_loss']:.4f}",
            f"{end['test_loss']:.4f}",
            f"{end['train_accuracy']:.1%}",
            f"{end['test_accuracy']:.1%}",
            f"{end['seconds']:.0f}",
        )
    return table


def _change(before: float, after: float) -> str:
    short = [human.count(value) for value in (before, after)]
    return short[0] if before == after else " → ".join(short)


def _steps(histories: Sequence[History]) -> Table:
    table = Table(title="The loss just before and after each structural step", box=box.SIMPLE_HEAD)
    for heading in ("setting", "step", "edit", "parameters", *MODES):
        table.add_column(heading, justify="left" if heading in ("setting", "edit") else "right")
    for history in histories:
        edits = history.of("edit")
        for edit in edits:
            table.add_row(
                history.config["setting"],
                str(edit["step"]),
                f"{edit['kind']} ({edit['method']})",
                _change(*edit["parameters"]),
                *(_jump(edit, key) for key in MODES.values()),
                end_section=edit is edits[-1],
            )
    return table


def _jump(edit: Event, key: str) -> str:
    before, after = pair(edit[key])
    if before is None or after is None:
        return human.MISSING
    return f"{before:.4f} → {after:.4f}"

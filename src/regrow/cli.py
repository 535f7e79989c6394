"""The command `regrow`."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table

import regrow as rg

from .bench.errors import InputError, require
from .bench.options import Options

INTERRUPTED = 130  # the shells' exit status of a command ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status. What a user did wrong is one line on standard error and status 1."""
    logging.basicConfig(format="regrow: %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        _dispatch(sys.argv[1:] if arguments is None else list(arguments))
    except (InputError, rg.NotPermissible) as error:
        print(f"regrow: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"regrow: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("regrow: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    return 0


def _dispatch(arguments: list[str]) -> None:
    tyro = require("tyro", "cli")
    flat = tyro.conf.arg(name="")

    def run(options: Annotated[Options, flat]) -> None:
        """Train a network while it grows, shrinks or holds its size; continues what was interrupted."""
        from .bench.compare import summary, wide_console
        from .bench.history import read_run
        from .bench.run import run as do

        folder = do(options)
        wide_console().print(summary([read_run(folder)]))
        print(f"run: {folder}")

    def compare(options: Annotated[Options, flat]) -> None:
        """Train the static baseline and the three settings; prints one table, writes one report."""
        from .bench.compare import compare as do

        print(f"report: {do(options)}")

    def report(
        runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")],
        output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html"),
    ) -> None:
        """Write one self-contained HTML file about runs, or about a store.

        Args:
            runs: Run folders, or folders that contain some; or the folder of one store.
            output: The file to write.
        """
        from .bench.results import STORE_FILE

        if len(runs) == 1 and (runs[0] / STORE_FILE).is_file():
            from .bench.board import write_board

            print(f"report: {write_board(runs[0], output)}")
        else:
            from .bench.report import write_report

            print(f"report: {write_report(runs, output)}")

    def bench(
        suite: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SUITE")],
        stores: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[STORE ...]")] = (),
        store: Path = Path("store"),
        data: Path | None = None,
        jobs: int | None = None,
        seeds: tuple[int, ...] = (),
        arms: tuple[str, ...] = (),
        confirm: bool = False,
        method: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        ray: str | None = None,
    ) -> None:
        """Do the runs of a suite that aren't in its store yet; ended at any moment, the same call goes on.

        Args:
            suite: smoke, tuning or poster; or merge, which brings the stores that are named together in --store.
            stores: For merge.
            store: Folder of the results.
            data: Folder with the data sets, each in a folder of its own name.
            jobs: Runs side by side; by default as many as there are cores for.
            seeds: By default the suite's.
            arms: Only these; by default all.
            confirm: Measure on the test set instead of held-out training examples, with fresh seeds.
            method: Somebody's method, PACKAGE.MODULE:CLASS, which gets arms of its own; may be given again.
            ray: Address of a Ray cluster that does the runs instead of this machine.
        """
        from .bench.command import bench as do
        from .bench.command import merged

        print(
            merged(stores, store)
            if suite == "merge"
            else do(suite, store, data, jobs, seeds, arms, confirm, method, ray)
        )

    def inspect(
        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
        file: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[FILE]")] = None,
        html: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
        input: str | None = None,
        image_size: int | None = None,
        width: int = 110,
    ) -> None:
        """Show what may grow and shrink in a model, as a table and as a page to follow axes on.

        Args:
            model: timm/NAME, torchvision/NAME, hf-config (then FILE), or package.module:factory (a function
                that returns a model, or a model and its example).
            file: config.json of a Hugging Face model, after hf-config.
            html: Write a self-contained page to this file.
            input: Shape of the example, batch first, such as 2,3,224,224; by default the model's own.
            image_size: Height and width of the example; models that depend on it are built for it.
            width: Characters in a line of the table.
        """
        from .inspect.command import inspect as do

        print(do(model, file, html, input, image_size, width))

    def methods() -> None:
        """List the methods with their options and defaults."""
        Console().print(_methods())

    tyro.extras.subcommand_cli_from_dict(
        {"run": run, "compare": compare, "report": report, "bench": bench, "inspect": inspect, "methods": methods},
        prog="regrow",
        description="Grow and prune PyTorch models while they train.",
        args=arguments,
        config=(tyro.conf.PositionalRequiredArgs, tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
    )


#: What a method can do -> the part of it that does.
_PARTS = {
    "grow": "fresh",
    "prune": "score",
    "both at once": "exchange",
    "grow weights": "score_absent",
    "prune weights": "score_weights",
    "grow layers and cells": "followers",
    "prune layers and cells": "score_layers",
}


def _methods() -> Table:
    table = Table("method", "what it does", "options and defaults", "")
    able: dict[str, list[str]] = {}
    for kind, part in _PARTS.items():
        for name in rg.list_methods(part):
            able.setdefault(name, []).append(kind)
    for name, kinds in able.items():
        method = rg.create_method(name)
        config = {key: value for key, value in rg.method_config(method).items() if key != "method"}
        options = ", ".join(f"{key}={value}" for key, value in config.items())
        table.add_row(name, ", ".join(kinds), options, (type(method).__doc__ or "").partition("\n")[0])
    return table


if __name__ == "__main__":
    sys.exit(main())

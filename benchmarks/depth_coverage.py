"""Of which models can layers and cells be removed, followed by others and grown beside, and does that do what it says?

Each model of the zoo runs in its own process with a time limit. Its row of ``results/depth_coverage.csv`` is written as
soon as it is done; a later call goes on where an earlier one stopped.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from typing import Any

from common import RESULTS, write
from coverage_zoo import zoo
from coverage_zoo.goals import GROUPS, group_of
from coverage_zoo.processes import measure
from coverage_zoo.rows import Row, put, read, text_of
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

FILE = RESULTS / "depth_coverage.csv"
CHECKS = ("find", "prune_layers", "grow_layers", "prune_cells", "grow_cells", "grow_beside", "save")
COUNTS = ("layers", "prunable_layers", "growable_layers", "cells", "prunable_cells", "growable_cells")
COLUMNS = ("model", "handled", "why", "params", *COUNTS, *CHECKS, "ended", "wall_s")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="models to run again, such as 'timm/swin*'")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for each model (default 300)")
    parser.add_argument("--summary", action="store_true", help="only what follows from the rows that there are")
    return parser.parse_args()


def row_of(name: str, found: dict[str, Any]) -> Row:
    """A model's row: it is handled when each check passed, and something of its depth can change."""
    failed = [f"{check}: {found.get(check) or found.get('ended')}" for check in CHECKS if found.get(check) != "ok"]
    if not failed and not any(found[count] for count in COUNTS if "able" in count):
        failed = ["nothing can be removed or grown"]
    numbers = {"model": name, **found, "why": failed[0] if failed else "", "handled": not failed}
    return {column: text_of(numbers.get(column, "")) for column in COLUMNS}


def goals(rows: list[Row], order: list[str]) -> list[dict[str, Any]]:
    """For each library how many models are handled, and of how many layers and cells can be removed and grown."""
    found = []
    for group in GROUPS:
        names = [name for name in order if group_of(name) == group]
        own = [row for row in rows if group_of(row["model"]) == group]
        handled = sum(row["handled"] == "yes" for row in own)
        found.append(
            {
                "model": group,
                "met": handled == len(own),
                "shown": f"{handled} of {len(own)} handled",
                "models": len(names),
                "run": len(own),
                "handled": handled,
                **{count: sum(int(row[count] or 0) > 0 for row in own) for count in COUNTS},
                "missed": {row["model"]: row["why"] for row in own if row["handled"] != "yes"},
            }
        )
    return found


def main() -> None:
    given = options()
    order = list(zoo())
    done = read(FILE, COLUMNS)
    names = [n for n in order if (any(fnmatchcase(n, p) for p in given.only) if given.only else n not in done)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        for name in progress.track([] if given.summary else names, description="models"):
            row = row_of(name, measure(name, given.limit, "depth"))
            put(FILE, [row], order, COLUMNS)
            progress.print(f"{name}: {row['why'] or 'handled'}", markup=False, highlight=False)
    write(
        "depth_coverage",
        "of which models layers and cells can be removed, followed by others and grown beside",
        "what the structure offers can be done, keeps the function where it grows, and is undone to the bit",
        goals(list(read(FILE, COLUMNS).values()), order),
    )


if __name__ == "__main__":
    main()

"""The same tasks in regrow, Torch-Pruning and GroMo: lines of code, CPU time, and what is left of the training.

``docs/peers.md`` shows the result and the code. The peers are those of the extra "peers".
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from common import write
from peer_tasks import attention_rows, growing_rows, page, resnet_rows
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Row = dict[str, Any]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="TASK", help="tasks to measure again; other rows stay")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each time (default 5)")
    parser.add_argument("--seeds", type=int, default=3, help="networks that are grown (default 3)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of CPU for a transformer (default 120)")
    parser.add_argument("--one", nargs=2, metavar=("TASK", "NUMBER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def tasks(given: argparse.Namespace) -> dict[str, Callable[[], list[Row]]]:
    """What there is to do: name -> its rows."""
    found: dict[str, Callable[[], list[Row]]] = {"resnet": lambda: resnet_rows.resnet_rows(given.repeats)}
    for task in attention_rows.CASES:
        found[task] = lambda task=task: attention_rows.attention_rows(__file__, task, given.repeats, given.limit)
    for case in growing_rows.CASES:
        found[case.name] = lambda case=case: growing_rows.growing_rows(case, given.repeats, given.seeds)
    return found


def measured(todo: Mapping[str, Callable[[], list[Row]]], rows: list[Row]) -> Iterator[list[Row]]:
    """All rows after each task, with what is being done told meanwhile."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(todo))
        for name, run in todo.items():
            progress.update(task, description=name)
            rows = [row for row in rows if row["task"] != name] + run()
            yield rows
            progress.advance(task)


def main() -> None:
    given = options()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peers'
    if given.one:
        print(json.dumps(attention_rows.one(given.one[0], int(given.one[1]), given.repeats, given.limit)))
        return
    todo = tasks(given)
    order = list(todo)
    kept = page.result()["rows"] if given.only else []
    for rows in measured({name: todo[name] for name in given.only or todo}, kept):
        write(
            "side_by_side",
            "the same tasks in regrow, Torch-Pruning and GroMo",
            "regrow: half of the FLOPs, all momentum carried, outputs unchanged by growing, saved without a pickle",
            sorted(rows, key=lambda row: order.index(row["task"])),
            packages=("torch", "torchvision", "transformers", "torch-pruning", "gromo", "regrow"),
        )


if __name__ == "__main__":
    main()

"""Which models does `regrow` handle, how long does finding their structure take, and how does Torch-Pruning do?

Each model runs in its own process with a time limit. Its row of ``results/coverage.csv`` is written as soon as it is
done; a later call goes on where an earlier one stopped.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase

from common import RESULTS, write
from coverage_zoo import zoo
from coverage_zoo.goals import goals
from coverage_zoo.processes import measure
from coverage_zoo.rows import peer_columns, put, read, row_of, timed_row
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

FILE = RESULTS / "coverage.csv"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="models to run again, such as 'timm/swin*'")
    parser.add_argument("--again", action="store_true", help="also models that have a row")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (default 1; more blur the times)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for each model (default 120)")
    parser.add_argument("--no-peer", action="store_true", help="without Torch-Pruning")
    parser.add_argument(
        "--times", action="store_true", help="only the times of models that are in the result; leave the machine alone"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the models and do nothing")
    parser.add_argument("--summary", action="store_true", help="only what follows from the rows that there are")
    return parser.parse_args()


def among(names: list[str], patterns: list[str]) -> list[str]:
    """The names that fit any of the patterns."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def chosen(names: list[str], given: argparse.Namespace) -> list[str]:
    """The models to run."""
    if given.only:
        return among(names, given.only)
    done = {} if given.again else read(FILE)
    return [name for name in names if name not in done]


def run(names: list[str], order: list[str], given: argparse.Namespace) -> None:
    """Measure these models; each row is written when it is there."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor(given.jobs) as pool:
        task = progress.add_task("models", total=len(names))
        waiting = {
            pool.submit(measure, name, given.limit, "alone" if given.no_peer else "peer"): name for name in names
        }
        try:
            for future in as_completed(waiting):
                row = row_of(waiting[future], future.result())
                if given.no_peer:
                    row |= peer_columns(read(FILE).get(row["model"], {}))
                put(FILE, [row], order)
                progress.print(f"{row['model']}: {row['why'] or 'handled'}", markup=False, highlight=False)
                progress.advance(task)
        finally:
            pool.shutdown(cancel_futures=True)  # after an interruption no other model is begun


def measure_times(names: list[str], order: list[str], given: argparse.Namespace) -> None:
    """Put new times into the rows of these models."""
    from coverage_zoo.times import times

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        for name in progress.track(names, description="models"):
            row = read(FILE)[name]
            new, differing = timed_row(row, times(row, given.limit))
            put(FILE, [new], order)
            if differing:
                progress.print(f"{name}: {differing}; run it again", markup=False, highlight=False)


def main() -> None:
    given = options()
    order = list(zoo())
    if given.times:
        names = [name for name in order if name in read(FILE)]
        measure_times(among(names, given.only) if given.only else names, order, given)
        given.summary = True
    names = chosen(order, given)
    if given.list:
        print("\n".join(names))
        return
    if not given.summary:
        run(names, order, given)
    write(
        "coverage",
        "which models are handled: analysed, pruned by half, grown by a quarter, verified, saved and loaded",
        "every goal by itself, on all models",
        goals(list(read(FILE).values()), order),
    )


if __name__ == "__main__":
    main()

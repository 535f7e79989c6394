"""What growth does under batch norm: naive and safe forms of four growers, on CIFAR-10 and a VGG11 of a quarter width.

A network starts at a quarter of its channels and grows to all of them between 10 % and half of its training. At each
growth the loss is looked at on fixed images, in train and in eval mode, before and right after, and in the 20 steps
behind, beside a twin that didn't grow. At the end the training loss, in eval mode over all training images, is compared
with that of networks that had the small and the full widths all along, for as many epochs.

Runs that have been done are kept in a folder and not done again.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from common import RESULTS
from growth_runs import Config, Setup, run
from growth_runs.summary import summarise
from rich.progress import Progress

ORDERS = ("conv-norm-relu", "conv-relu-norm")

#: Name -> the method's configuration; the naive forms are the papers' own.
FORMS: dict[str, dict[str, Any] | None] = {
    "small": None,
    "full": None,
    "random, safe": {"method": "random"},
    "random, naive": {"method": "random", "zero": "incoming", "distribution": "uniform", "scale": 0.5},
    "gradmax, swap": {"method": "gradmax", "beyond_rank": "random"},
    "gradmax, epsilon": {"method": "gradmax", "beyond_rank": "random", "batch_norm": "epsilon"},
    "gradmax, naive": {"method": "gradmax", "beyond_rank": "random", "batch_norm": "naive"},
    "gradmax-optim, swap": {"method": "gradmax-optim", "beyond_rank": "random"},
    "gradmax-optim, naive": {"method": "gradmax-optim", "beyond_rank": "random", "batch_norm": "naive"},
    "firefly, safe": {"method": "firefly"},
    "firefly, official": {"method": "firefly", "form": "official"},
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 as parquet files")
    parser.add_argument("--store", type=Path, default=Path("runs/batchnorm_growth"), help="where runs are kept")
    parser.add_argument("--images", type=int, default=Setup.images)
    parser.add_argument("--epochs", type=int, default=Setup.epochs)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--orders", nargs="+", default=ORDERS, choices=ORDERS)
    parser.add_argument("--only", nargs="+", default=list(FORMS), metavar="NAME", help="forms, such as 'gradmax, swap'")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each on one core")
    parser.add_argument("--summary", action="store_true", help="only what follows from the runs that there are")
    return parser.parse_args()


def _keep(setup: Setup, config: Config, folder: Path) -> None:
    result = run(setup, config)
    path = folder / f"{config.key}.json"
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result))
    partial.replace(path)


def main() -> None:
    """Do the runs that are missing, and summarise all."""
    given = _arguments()
    setup = Setup(given.data, given.images, given.epochs)
    folder = given.store / f"{setup.images}x{setup.epochs}"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [
        Config(name, order, seed, FORMS[name])
        for seed in range(given.seeds)
        for order in given.orders
        for name in given.only
    ]
    missing = [] if given.summary else [c for c in wanted if not (folder / f"{c.key}.json").exists()]
    # A process for each run: what torch's kernels keep for the many sizes of one run isn't given back.
    pool = ProcessPoolExecutor(given.jobs, max_tasks_per_child=1)
    with pool, Progress() as progress:
        bar = progress.add_task("runs", total=len(missing))
        for done in as_completed([pool.submit(_keep, setup, config, folder) for config in missing]):
            done.result()
            progress.advance(bar)
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    summarise(setup, runs, RESULTS / "batchnorm_growth.json")


if __name__ == "__main__":
    main()

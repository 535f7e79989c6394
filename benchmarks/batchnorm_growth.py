"""What growth does under batch norm: naive and safe forms of four growers, on CIFAR-10 and a VGG11 of a quarter width.

A network starts at a quarter of its channels and grows to all of them between 10 % and half of its training. At each
growth the loss is looked at on fixed images, in train and in eval mode, before and right after, and in the 20 steps
behind, beside a twin that didn't grow. At the end the training loss, in eval mode over all training images, is compared
with that of networks that had the small and the full widths all along, for as many epochs.

Runs that have been done are kept, a line each, in a file that is committed beside the results, and aren't done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import RESULTS
from growth_runs import Config, Setup, run
from growth_runs.summary import summarise
from runs import do_missing, kept

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
    parser.add_argument("--store", type=Path, default=RESULTS / "batchnorm_growth.jsonl", help="where runs are kept")
    parser.add_argument("--images", type=int, default=Setup.images)
    parser.add_argument("--epochs", type=int, default=Setup.epochs)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--orders", nargs="+", default=ORDERS, choices=ORDERS)
    parser.add_argument("--only", nargs="+", default=list(FORMS), metavar="NAME", help="forms, such as 'gradmax, swap'")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each on one core")
    parser.add_argument("--summary", action="store_true", help="only what follows from the runs that there are")
    return parser.parse_args()


def main() -> None:
    """Do the runs that are missing, and summarise all."""
    given = _arguments()
    setup = Setup(given.data, given.images, given.epochs)
    wanted = [
        Config(name, order, seed, FORMS[name])
        for seed in range(given.seeds)
        for order in given.orders
        for name in given.only
    ]
    do_missing(given.store, setup, [] if given.summary else wanted, run, given.jobs)
    place = {name: number for number, name in enumerate((*ORDERS, *FORMS))}
    runs = sorted(kept(given.store, setup).values(), key=lambda run: (place[run["order"]], place[run["name"]]))
    summarise(setup, runs, RESULTS / "batchnorm_growth.json")


if __name__ == "__main__":
    main()

"""A process of its own for one model: ``python -m coverage_zoo.child NAME LIMIT WHAT``, WHAT alone, peer or depth.

It writes a line of JSON whenever columns of the row are known, so that nothing is lost if it is ended.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import IO

import torch
from torch import nn

import regrow as rg

from . import zoo
from .checks import Checks, Columns, Wrong, reason
from .depth import DepthChecks

#: The column that says what the process is at; each stage has the whole time limit.
STAGE = "stage"


def main() -> None:
    name, limit, what = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    # Some models and peers print.
    report, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(1)
    go_first()
    build = zoo()[name]
    warm_up()
    started = time.perf_counter()
    _write(report, {STAGE: "regrow"})
    _regrow(DepthChecks(build) if what == "depth" else Checks(build), report)
    _write(report, {"wall_s": time.perf_counter() - started})
    if what == "peer":
        from .peer import peer_checks
        from .peer import warm_up as warm_peer_up

        warm_peer_up()
        _write(report, {STAGE: "peer"})
        _write(report, peer_checks(build, limit))
    _write(report, {STAGE: "done"})


def _regrow(checks: Checks | DepthChecks, report: IO[str]) -> None:
    for name, check in checks.all().items():
        try:
            found: Columns = {name: "ok", **check()}
        except Exception as error:
            traceback.print_exc()
            found = {name: reason(error), **(error.found if isinstance(error, Wrong) else {})}
        _write(report, {**found, "peak_mib": _peak_mib()})
        gc.collect()  # a structure and its axes know each other, and the model


def go_first() -> None:
    """If memory runs out, let it be this process that is ended, no other one of the machine."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


def warm_up() -> None:
    """torch imports its kernels for meta tensors when they are first used."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    rg.analyze(net, torch.zeros(2, 3, 8, 8))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def _write(report: IO[str], columns: Columns) -> None:
    report.write(json.dumps(columns) + "\n")
    report.flush()


if __name__ == "__main__":
    main()

"""What the benchmarks share: interleaved timing, and results with enough context to read them later."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def repeats(description: str, default: int) -> int:
    """The command line of a benchmark: ``--repeats`` and nothing else."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=default, help=f"measurements of each kind (default {default})")
    number = parser.parse_args().repeats
    if number < 1:
        parser.error("--repeats is at least 1")
    return number


def seconds(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(
    contestants: Mapping[str, Callable[[], float]], repeats: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Measure all contestants in turn, so that whatever else the machine does meets all of them alike.

    Args:
        contestants: Name -> a function that does the work once and returns the seconds it took.
        repeats: Rounds that count.
        warmup: Rounds before those.

    Returns:
        Name -> the seconds of each round; every second round runs in the opposite order.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warmup + repeats):
        order = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        for name in order:
            taken = contestants[name]()
            if number >= warmup:
                times[name].append(taken)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median and quartiles, in milliseconds."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {"median_ms": 1e3 * middle, "lower_quartile_ms": 1e3 * low, "upper_quartile_ms": 1e3 * high}


def paired_ratio(times: list[float], reference: list[float]) -> float:
    """The median, over the rounds, of one time over the other of the same round."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def write(
    name: str,
    question: str,
    goal: str,
    rows: list[dict[str, Any]],
    packages: Sequence[str] = ("torch", "torchvision", "numpy"),
) -> Path:
    """Write a result file with the versions of packages, print its rows, and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    result = {
        "question": question,
        "goal": goal,
        "met": all(row["met"] for row in rows),
        "rows": rows,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "load_average_at_the_end": os.getloadavg()[0],
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(
            ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
    print(f"{goal}: {'met' if result['met'] else 'NOT met'}; written to {path}")
    return path


def _processor() -> str:
    """The processor's name where Linux tells it, else what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

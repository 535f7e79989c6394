"""One cell, done by a process of its own: what torch keeps for the many sizes of one run goes with the process."""

import json
import logging
import math
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .cells import Cell
from .errors import InputError
from .history import read_run
from .results import Result
from .run import run
from .suites import PROTOCOL, Arm

UNUSABLE = 3  # the exit status where it would be the same again: options or data can't be used


def do(cell: Cell, folder: Path, data: Path | None) -> Result:
    """Do a cell, or what is left of it; its result as the store keeps it.

    Raises:
        InputError: it can't be run.
    """
    options = cell.options(folder, data)
    run(options)
    history = read_run(folder)
    config = {key: value for key, value in history.config.items() if key not in ("data", "versions")}
    return {
        "key": cell.key,
        "protocol": PROTOCOL,
        "task": cell.task,
        "arm": cell.arm.name,
        "against": cell.arm.against,
        "held_out": cell.held_out,
        "seed": cell.seed,
        "config": config,
        "environment": {**history.config["versions"], **environment(options.threads)},
        "events": [finite(event) for event in history.events if event["event"] != "batch"],
    }


def finite(value: Any) -> Any:
    """The value, with None for what JSON has no number for.

    >>> finite({"loss": [1.0, float("inf")]})
    {'loss': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite(held) for key, held in value.items()}
    if isinstance(value, list):
        return [finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment(threads: int = 0) -> dict[str, Any]:
    """What a run's numbers, or its seconds, may depend on.

    Args:
        threads: of the run; 0 for torch's own number.
    """
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def to_json(cell: Cell, data: Path | None) -> str:
    """A cell as another process reads it."""
    return json.dumps({**asdict(cell), "data": None if data is None else str(data)})


def from_json(text: str) -> tuple[Cell, Path | None]:
    """The cell, and where its data are."""
    held = json.loads(text)
    data, arm = held.pop("data"), Arm(**held.pop("arm"))
    cell = Cell(**held | {"arm": arm, "fixed": tuple((name, value) for name, value in held["fixed"])})
    return cell, None if data is None else Path(data)


def main(order: Path, folder: Path, result: Path) -> int:
    """Read an order, do it, write its result; the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    cell, data = from_json(order.read_text())
    try:
        done = do(cell, folder, data)
    except InputError as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(done))
    partial.replace(result)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))

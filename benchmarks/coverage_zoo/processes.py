"""Models in processes of their own, ended when a stage takes too long."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from .checks import Columns
from .child import STAGE

What = Literal["alone", "peer", "depth"]

#: Importing the libraries and building the model.
STARTING = "starting"
#: The peer ends itself after the limit; what can't be interrupted is ended so many seconds later.
GRACE = 5.0


def measure(name: str, limit: float, what: What) -> Columns:
    """The row of one model, as far as it got.

    Args:
        limit: Seconds for each stage: what `regrow` does, and what the peer does.
        what: Whether the peer is measured too, or layers and cells instead of axes.
    """
    row: Columns = {}
    stage = STARTING
    command = [sys.executable, "-m", "coverage_zoo.child", name, str(limit), what]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=Path(__file__).parent.parent,
            env=environment,
        )
        assert process.stdout is not None
        try:
            for columns in _lines(process.stdout, limit):
                stage = columns.pop(STAGE, stage)
                row |= columns
            ended = "" if stage == "done" else _ending(process, errors)
        except TimeoutError:
            ended = f"OutOfTime: more than {limit:.0f} s"
        finally:
            process.kill()
            process.wait()
    if ended:
        row["peer" if stage == "peer" else "ended"] = ended
    return row


def _lines(stream: IO[str], limit: float) -> Iterator[Columns]:
    """What a process writes.

    Raises:
        TimeoutError: A stage has taken longer than the limit.
    """
    waiting: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in stream:
            waiting.put(line)
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + limit + GRACE
    while True:
        try:
            line = waiting.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            return
        columns = json.loads(line)
        if STAGE in columns:
            deadline = time.monotonic() + limit + GRACE
        yield columns


def _ending(process: subprocess.Popen[str], errors: IO[str]) -> str:
    """Why a process ended before it was done."""
    code = process.wait()
    errors.seek(0)
    last = [line.strip() for line in errors.read().splitlines() if line.strip()][-1:]
    return " ".join([f"the process ended with {code}:", *last])

"""Times measured again, with nothing beside: each model in a process of its own, forked from one that has imported all.

What depends on the machine's load is measured here; what is handled is not asked again.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection

import torch

from . import zoo
from .case import built
from .checks import Columns, analyzed_twice, counts, forward_seconds
from .child import go_first, warm_up
from .peer import OutOfTime, peer_checks
from .peer import warm_up as warm_peer_up
from .rows import Row

#: Seconds after which a process is ended that can't end itself.
GRACE = 10.0


def times(row: Row, limit: float) -> Columns:
    """How long a forward pass, an analysis and the peer take now.

    Args:
        row: What is known of the model; a peer that failed by time isn't waited for again.
        limit: Seconds for each part.

    Returns:
        Times, and the numbers of axes that an analysis finds now; nothing if a process came to no end.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.preloaded"])
    receiving, sending = context.Pipe(duplex=False)
    with_peer = OutOfTime.__name__ not in row["peer"]
    process = context.Process(target=_measure, args=(sending, row["model"], limit, with_peer), daemon=True)
    process.start()
    sending.close()
    found: Columns = {}
    try:
        while receiving.poll(limit + GRACE):
            found |= receiving.recv()
    except EOFError:
        pass
    finally:
        process.kill()
        process.join()
    return found


def _measure(answer: Connection, name: str, limit: float, with_peer: bool) -> None:
    torch.set_num_threads(1)
    go_first()
    build = zoo()[name]
    case = built(build)
    answer.send({"forward_s": forward_seconds(case)})
    structure, seconds = analyzed_twice(case)
    answer.send({"analyze_s": seconds, **counts(structure)})
    del structure, case
    if with_peer:
        answer.send(peer_checks(build, limit))


def import_all() -> None:
    """What each process would otherwise do by itself."""
    zoo()
    warm_up()
    warm_peer_up()

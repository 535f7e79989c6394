"""Cells on a Ray cluster."""

import tempfile
from pathlib import Path
from typing import Any

from .cells import Cell
from .errors import InputError, require
from .pools import WAIT, Finished
from .results import Result
from .worker import do, from_json, to_json


class RayPool:
    """Cells as tasks of a Ray cluster, each with the CPUs that it has threads for.

    What a worker that is killed was at is begun again, by a worker on the same machine from the last checkpoint.

    Args:
        address: of the cluster, "auto" for the one of this machine, "local" for one that is begun here.

    Raises:
        InputError: there is no such cluster, or ray isn't installed.
    """

    def __init__(self, address: str) -> None:
        self.ray = require("ray", "ray")
        try:
            self.ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
        except Exception as error:  # what it raises depends on the release
            raise InputError(f"--ray {address} can't be reached: {error}") from error
        self.number = max(1, int(self.ray.cluster_resources().get("CPU", 1)))
        self._running: dict[Any, Cell] = {}

    @property
    def has_room(self) -> bool:
        return sum(max(1, cell.options().threads) for cell in self._running.values()) < self.number

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def start(self, cell: Cell, data: Path | None) -> None:
        task = self.ray.remote(num_cpus=max(1, cell.options().threads), max_retries=0, max_calls=1)(_do)
        self._running[task.remote(to_json(cell, data))] = cell

    def finished(self) -> list[Finished]:
        ready, _ = self.ray.wait(list(self._running), timeout=WAIT, num_returns=1)
        return [self._came_to(reference) for reference in ready]

    def _came_to(self, reference: Any) -> Finished:
        cell = self._running.pop(reference)
        try:
            return Finished(cell, self.ray.get(reference))
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause if hasattr(error, "cause") else error
            return Finished(cell, None, str(cause), isinstance(cause, InputError))
        except self.ray.exceptions.RayError as error:  # the worker or its machine died
            return Finished(cell, None, str(error).strip().partition("\n")[0])

    def clear(self, cell: Cell) -> None:
        """Workers clear up after themselves."""

    def stop(self) -> None:
        for reference in self._running:
            self.ray.cancel(reference, force=True)


def _do(order: str) -> Result:
    """Done by a worker."""
    cell, data = from_json(order)
    folder = Path(tempfile.gettempdir()) / f"regrow-{''.join(c if c.isalnum() else '-' for c in cell.key)}"
    result = do(cell, folder / "run", data)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return result

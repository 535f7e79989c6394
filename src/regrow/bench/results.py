"""The store of a grid: finished runs, a line each, in a file that only grows; safe to kill at any moment."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError
from .history import History
from .store import write_atomically
from .suites import PROTOCOL

RESULTS_FILE, FAILURES_FILE, STORE_FILE, WORK_FOLDER = "results.jsonl", "failures.jsonl", "store.json", "running"

Result = dict[str, Any]


class Store:
    """A folder with the results of runs.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        """Open a store, or make one.

        Raises:
            InputError: it is of another version of the protocol, or something else.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not (path / STORE_FILE).exists():
                foreign = [entry.name for entry in path.iterdir()]
                if foreign:
                    raise InputError(f"{path} holds no store but other files ({foreign[0]}); give an empty folder")
                write_atomically(path / STORE_FILE, json.dumps({"protocol": PROTOCOL}).encode() + b"\n")
            found = json.loads((path / STORE_FILE).read_bytes())["protocol"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} can't be used as a store: {error}") from error
        if found != PROTOCOL:
            raise InputError(
                f"{path} is a store of version {found} of the protocol, this is version {PROTOCOL}; give another folder"
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no other process runs cells into the store.

        Raises:
            InputError: another one does.
        """
        with (self.path / STORE_FILE).open("rb") as file:
            _lock(file.fileno(), self.path)
            yield

    def results(self) -> dict[str, Result]:
        """Key -> result; a line that was cut off is left out."""
        found = {}
        for line in _lines(self.path / RESULTS_FILE):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                result = json.loads(line)
                found.setdefault(result["key"], result)
        return found

    def add(self, result: Result) -> None:
        """Keep a finished run; it is on the disk when this returns."""
        _append(self.path / RESULTS_FILE, result)

    def add_failure(self, key: str, reason: str) -> None:
        """Note that a run failed."""
        _append(self.path / FAILURES_FILE, {"key": key, "reason": reason})

    def work(self, key: str) -> Path:
        """The folder in which a run works until it is done."""
        return self.path / WORK_FOLDER / "".join(c if c.isalnum() else "-" for c in key)


def merge(stores: Sequence[Path], into: Path) -> int:
    """Bring results of several stores together; of a run that is in more than one, the first counts.

    Returns:
        How many runs there are then.

    Raises:
        InputError: one is no store of this version.
    """
    target = Store(into)
    with target.held():
        known = target.results()
        for store in map(Store, stores):
            for key, result in store.results().items():
                if key not in known:
                    target.add(result)
                    known[key] = result
    return len(known)


def history_of(result: Result) -> History:
    """A result as the history of a run."""
    return History(Path(result["key"]), result["config"], tuple(result["events"]), ())


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.is_file() else []


def _append(path: Path, content: dict[str, Any]) -> None:
    """Add a line, behind a line break if the last one was cut off."""
    line = json.dumps(content, allow_nan=False).encode() + b"\n"
    with path.open("ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _lock(descriptor: int, path: Path) -> None:
    if os.name == "nt":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"another runner is at work on {path}; wait for it, or give another --store") from error

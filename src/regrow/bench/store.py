"""A run's folder: its configuration, its events and its checkpoints, safe against being killed at any moment.

What is on disk at any time is a configuration, a sequence of events, and at most two checkpoints, each with
the length that the events had when it was written. To resume is to load the newest good checkpoint and to
cut the events to that length. Files appear whole or not at all: they are written under a temporary
name, synchronised, and renamed. A checkpoint's name carries the checksum of what is in it.
"""

import hashlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .errors import InputError
from .history import CONFIG_FILE, EVENTS_FILE

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
CHECKPOINT = re.compile(r"checkpoint-(\d+)-([0-9a-f]{16})\.pt")
TEMPORARY = ".partial"
# What may differ between a run and its continuation without moving a number.
FREE_OPTIONS = {"checkpoint_every", "versions"}


class RunFolder:
    """The folder of one run, held by one process.

    Attributes:
        path: the folder.
        finished: whether the run came to its end before.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        """Take up the folder of a run, or make it.

        Raises:
            InputError: the folder belongs to something else, to another configuration or another process,
                or cannot be written.
        """
        self.path = path
        with self.writing("the run folder"):
            path.mkdir(parents=True, exist_ok=True)
            _claim(path, config)
            # Unbuffered: what failed to be written must not be tried again when the file is closed.
            self._events: FileIO = (path / EVENTS_FILE).open("ab", buffering=0)
        try:
            _lock(self._events, path)
        except InputError:
            self._events.close()
            raise
        self.finished = _last_event(path / EVENTS_FILE) == "end"
        for leftover in path.glob(f"*{TEMPORARY}"):
            leftover.unlink()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()

    def record(self, event: dict[str, Any]) -> None:
        """Append an event; it is with the operating system when this returns.

        Raises:
            InputError: it cannot be written.
        """
        with self.writing(EVENTS_FILE):
            line = json.dumps(event).encode() + b"\n"
            while line:
                line = line[self._events.write(line) :]

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint and drop all but the newest two.

        Args:
            state: what `torch.load(weights_only=True)` can read.

        Raises:
            InputError: it cannot be written; the older checkpoints are still there.
        """
        with self.writing("a checkpoint"):
            os.fsync(self._events.fileno())
            buffer = io.BytesIO()
            torch.save({"step": step, "events": self._events.tell(), "state": state}, buffer)
            data = buffer.getvalue()
            write_atomically(self.path / f"checkpoint-{step}-{_checksum(data)}.pt", data)
            for _, outdated in self._checkpoints()[KEPT_CHECKPOINTS:]:
                outdated.unlink()

    def resume(self) -> dict[str, Any] | None:
        """The state in the newest good checkpoint, with the events cut back to it; None to start over.

        A checkpoint that is truncated or damaged is named in a warning and removed.
        """
        checkpoint = next(filter(None, map(_read, (path for _, path in self._checkpoints()))), None)
        with self.writing(EVENTS_FILE):
            self._events.truncate(checkpoint["events"] if checkpoint else 0)
            self._events.seek(0, os.SEEK_END)
        if checkpoint is None:
            return None
        logger.info("continuing %s from step %d", self.path, checkpoint["step"])
        return checkpoint["state"]

    def _checkpoints(self) -> list[tuple[int, Path]]:
        """Steps and paths of the checkpoints, the newest first."""
        found = ((CHECKPOINT.fullmatch(path.name), path) for path in self.path.iterdir())
        return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """What is written within fails as one sentence.

        Raises:
            InputError: the disk is full, the folder cannot be written, ...
        """
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot write {what} in {self.path}: {reason}; "
                "what was written before is intact, and the same command continues from there"
            ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also when the machine stops."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _synchronise(path.parent)


def _synchronise(folder: Path) -> None:
    """Make a renaming in a folder durable, where the system can open folders."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _claim(path: Path, config: dict[str, Any]) -> None:
    """Write the configuration into an empty folder, or compare it with the one there."""
    file = path / CONFIG_FILE
    if not file.exists():
        foreign = [entry.name for entry in path.iterdir() if not entry.name.endswith(TEMPORARY)]
        if foreign:
            raise InputError(f"{path} holds no run but other files ({foreign[0]}); give an empty folder with --out")
        write_atomically(file, json.dumps(config, indent=2).encode() + b"\n")
        return
    try:
        found = json.loads(file.read_bytes())
        differing = sorted(key for key in config.keys() | found.keys() if found.get(key) != config.get(key))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file} is damaged: {error}; give another folder with --out") from error
    if "versions" in differing:
        logger.warning("%s was begun with other versions; its numbers may differ in the last digits", path)
    if differing := [key for key in differing if key not in FREE_OPTIONS]:
        said = ", ".join(f"{key} {found.get(key)} there and {config.get(key)} here" for key in differing)
        raise InputError(f"{path} belongs to another configuration ({said}); give another folder with --out")


def _lock(file: FileIO, path: Path) -> None:
    """Keep a second process out; the lock goes with the process, however it ends."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{path} is in use by another process; wait for it, or give another --out") from error


def _last_event(path: Path) -> str | None:
    """The kind of the last event, None where there is none or its line is not whole."""
    if not path.is_file():
        return None
    lines = path.read_bytes().splitlines()
    try:
        return json.loads(lines[-1])["event"]
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any] | None:
    """What a checkpoint holds; None, with a warning, if it is not what was written."""
    data = path.read_bytes()
    match = CHECKPOINT.fullmatch(path.name)
    if match and match[2] == _checksum(data):
        return torch.load(io.BytesIO(data), weights_only=True)
    logger.warning("checkpoint %s is damaged and left out; going on from what was written before it", path)
    path.unlink()
    return None

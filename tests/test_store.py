"""A run's folder under damage, foreign hands and full disks."""

import errno
import json
import logging
import os
from pathlib import Path

import pytest
import torch

from regrow.bench.errors import InputError
from regrow.bench.store import RunFolder, write_atomically

CONFIG = {"task": "t", "seed": 0, "checkpoint_every": 5, "versions": {"torch": "1"}}


def events(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "events.jsonl").read_text().splitlines()]


def begun(path: Path, *saved: int, until: int) -> Path:
    """A run that recorded steps up to `until` and was saved at some of them."""
    with RunFolder(path, CONFIG) as folder:
        for step in range(1, until + 1):
            folder.record({"event": "batch", "step": step})
            if step in saved:
                folder.save(step, {"value": torch.tensor(step)})
    return path


def resumed(path: Path) -> int | None:
    with RunFolder(path, CONFIG) as folder:
        state = folder.resume()
    return None if state is None else int(state["value"])


def checkpoints(path: Path) -> dict[int, Path]:
    return {int(file.name.split("-")[1]): file for file in path.glob("checkpoint-*")}


def test_resuming_cuts_the_events_to_the_checkpoint(tmp_path: Path) -> None:
    path = begun(tmp_path / "run", 2, 4, until=6)
    assert resumed(path) == 4
    assert events(path) == [1, 2, 3, 4]


def test_events_after_resuming_follow_those_before(tmp_path: Path) -> None:
    path = begun(tmp_path / "run", 2, until=4)
    with RunFolder(path, CONFIG) as folder:
        folder.resume()
        folder.record({"event": "batch", "step": 3})
        folder.save(3, {"value": torch.tensor(3)})
    assert events(path) == [1, 2, 3]
    assert resumed(path) == 3
    assert events(path) == [1, 2, 3]


def test_without_a_checkpoint_a_run_starts_over(tmp_path: Path) -> None:
    path = begun(tmp_path / "run", until=3)
    assert resumed(path) is None
    assert events(path) == []


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    assert set(checkpoints(begun(tmp_path / "run", 1, 2, 3, until=3))) == {2, 3}


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:-1] + b"x", lambda data: b""]
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    path = begun(tmp_path / "run", 2, 4, until=5)
    newest = checkpoints(path)[4]
    newest.write_bytes(damage(newest.read_bytes()))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert resumed(path) == 2
    assert "is damaged" in caplog.text
    assert events(path) == [1, 2]
    checkpoints(path)[2].write_bytes(b"")
    assert resumed(path) is None


def test_a_torn_last_line_is_cut(tmp_path: Path) -> None:
    path = begun(tmp_path / "run", 2, until=3)
    with (path / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "ba')
    assert resumed(path) == 2
    assert events(path) == [1, 2]


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    path = begun(tmp_path / "run", 2, until=2)
    (path / "checkpoint-4-0123456789abcdef.pt.partial").write_bytes(b"half")
    assert resumed(path) == 2
    assert not list(path.glob("*.partial"))


def test_a_finished_run_is_known_as_such(tmp_path: Path) -> None:
    path = begun(tmp_path / "run", until=1)
    with RunFolder(path, CONFIG) as folder:
        assert not folder.finished
        folder.record({"event": "end", "step": 1})
    with RunFolder(path, CONFIG) as folder:
        assert folder.finished


def test_another_configuration_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    path = begun(tmp_path / "run", 2, until=3)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(InputError, match="another configuration \\(seed 0 there and 1 here\\)"):
        RunFolder(path, CONFIG | {"seed": 1})
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_checkpoint_interval_and_versions_may_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = begun(tmp_path / "run", 2, until=2)
    with RunFolder(path, CONFIG | {"checkpoint_every": 7, "versions": {"torch": "2"}}) as folder:
        assert folder.resume() is not None
    assert "other versions" in caplog.text


def test_a_folder_of_other_files_and_a_damaged_configuration_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds no run but other files \(notes.txt\)"):
        RunFolder(tmp_path, CONFIG)
    path = begun(tmp_path / "run", until=1)
    for text in ("{", "[]"):
        (path / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config.json is damaged"):
            RunFolder(path, CONFIG)


def test_two_processes_cannot_hold_one_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", CONFIG), pytest.raises(InputError, match="in use by another process"):
        RunFolder(tmp_path / "run", CONFIG)


@pytest.mark.parametrize("place", ["/proc/run", "file/run"])
def test_an_unwritable_folder_is_one_clear_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write the run folder") as caught:
        RunFolder(tmp_path / place, CONFIG)
    assert "\n" not in str(caught.value)


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = begun(tmp_path / "run", 2, until=2)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunFolder(path, CONFIG) as folder:
        folder.resume()
        folder.record({"event": "batch", "step": 3})
        with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left on device"):
            patch.setattr(os, "fsync", full)
            folder.save(3, {"value": torch.tensor(3)})
    assert not list(path.glob("*.partial"))
    assert resumed(path) == 2
    assert events(path) == [1, 2]


def test_a_full_device_under_the_events_is_one_clear_line(tmp_path: Path) -> None:
    path = begun(tmp_path / "run", until=0)
    (path / "events.jsonl").unlink()
    (path / "events.jsonl").symlink_to("/dev/full")
    with RunFolder(path, CONFIG) as folder, pytest.raises(InputError, match="No space left on device"):
        folder.record({"event": "start", "step": 0})


def test_atomic_writing_replaces_whole_files(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"one")
    write_atomically(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]

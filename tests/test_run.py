"""Runs from beginning to end: what they leave, that they repeat, and that nothing ends them for good."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import regrow as rg
from regrow.bench.errors import InputError
from regrow.bench.options import Options
from regrow.bench.probe import both_losses, training_unmoved
from regrow.bench.run import run
from regrow.bench.store import RunFolder
from regrow.bench.tasks import get_task

TINY = Options("digits/vgg11", width=0.1, limit=96, batch_size=32, epochs=6, events=3, log_every=2)


def read(folder: Path) -> list[dict[str, Any]]:
    """The events of a run, without the one value that may differ between two runs."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [{key: value for key, value in event.items() if key not in ("seconds", "edit_seconds")} for event in events]


def of(kind: str, folder: Path) -> list[dict[str, Any]]:
    return [event for event in read(folder) if event["event"] == kind]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One finished run of each setting."""
    root = tmp_path_factory.mktemp("runs")
    return {
        setting: run(replace(TINY, setting=setting, out=root / setting))
        for setting in ("static", "grow", "shrink", "constant")
    }


def test_each_setting_ends_at_exactly_its_size(folders: dict[str, Path]) -> None:
    start, end = ({name: of(kind, folders[name])[0]["widths"] for name in folders} for kind in ("start", "end"))
    assert start["static"] == end["static"] == end["grow"] == start["shrink"] == start["constant"]
    assert start["constant"] == end["constant"]
    full = list(end["grow"].values())
    assert list(start["grow"].values()) == [max(1, round(width / 4)) for width in full]
    assert list(end["shrink"].values()) == [max(1, round(width / 2)) for width in full]


def test_every_structural_step_is_recorded_with_its_losses(folders: dict[str, Path]) -> None:
    kinds = {name: [event["kind"] for event in of("edit", folders[name])] for name in folders}
    assert kinds == {
        "static": [],
        "grow": ["grow"] * 3,
        "shrink": ["prune"] * 3,
        "constant": ["prune", "grow"] * 3,
    }
    for event in (event for folder in folders.values() for event in of("edit", folder)):
        assert event["method"] == ("random" if event["kind"] == "grow" else "l1")
        for key in ("loss_train_mode", "loss_eval_mode", "parameters", "flops"):
            before, after = event[key]
            assert before > 0 and after > 0
        direction = 1 if event["kind"] == "grow" else -1
        assert all(direction * (after - before) > 0 for before, after in event["sizes"].values())


def test_growing_does_not_move_the_loss(folders: dict[str, Path]) -> None:
    for event in of("edit", folders["grow"]):
        for key in ("loss_train_mode", "loss_eval_mode"):
            before, after = event[key]
            assert after == pytest.approx(before, rel=1e-5)


def test_what_a_run_leaves(folders: dict[str, Path]) -> None:
    folder = folders["shrink"]
    config = json.loads((folder / "config.json").read_text())
    assert config["task"] == "digits/vgg11" and config["setting"] == "shrink" and config["lr"] == 0.05
    assert set(config["versions"]) == {"regrow", "torch", "numpy", "python"}
    assert len(list(folder.glob("checkpoint-*.pt"))) == 1
    events = read(folder)
    assert [event["event"] for event in events[:1] + events[-1:]] == ["start", "end"]
    metrics = of("metrics", folder)
    assert [event["epoch"] for event in metrics] == [1, 2, 3, 4, 5, 6]
    assert {key: events[-1][key] for key in metrics[-1]} | {"event": "metrics"} == metrics[-1]
    assert [event["step"] for event in of("batch", folder)] == list(range(2, 19, 2))


def test_the_saved_network_is_the_one_that_was_measured(folders: dict[str, Path]) -> None:
    task = get_task("digits/vgg11")
    dataset = task.load(None, None)
    model = rg.load(folders["shrink"], task.build(dataset, 0.1, 1.0, True)).eval()
    with torch.no_grad():
        outputs = model(dataset.normalise(dataset.test.pixels))  # type: ignore[attr-defined]
    end = of("end", folders["shrink"])[0]
    assert rg.measure.parameters(model) == end["parameters"]
    # The run normalises by the training images that it used, so its pixels differ slightly from these.
    accuracy = (outputs.argmax(1) == dataset.test.labels).float().mean().item()
    assert accuracy == pytest.approx(end["test_accuracy"], abs=0.05)


def test_the_same_seed_gives_the_same_run_and_another_does_not(folders: dict[str, Path], tmp_path: Path) -> None:
    constant = replace(TINY, setting="constant")
    again = run(replace(constant, out=tmp_path / "again"))
    other = run(replace(constant, out=tmp_path / "other", seed=1))
    assert read(again) == read(folders["constant"])
    assert weights(again) == weights(folders["constant"])
    assert read(other) != read(again)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_run_leaves_the_callers_random_state_and_settings(folders: dict[str, Path], tmp_path: Path) -> None:
    before = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    run(replace(TINY, out=tmp_path, epochs=1))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())


def test_a_finished_run_is_left_as_it_is(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = folders["grow"]
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with caplog.at_level("INFO"):
        run(replace(TINY, setting="grow", out=folder))
    assert "is finished; nothing to do" in caplog.text
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_global_ranking_keeps_the_totals(folders: dict[str, Path], tmp_path: Path) -> None:
    for setting in ("shrink", "constant"):
        folder = run(replace(TINY, setting=setting, ranking="global", out=tmp_path / setting))
        by_layer, over_all = (of("end", path)[0]["widths"] for path in (folders[setting], folder))
        assert sum(over_all.values()) == sum(by_layer.values())
        assert over_all != by_layer


def test_without_batch_norm(tmp_path: Path) -> None:
    folder = run(replace(TINY, setting="constant", batch_norm=False, out=tmp_path))
    assert not any("running_mean" in name for name in load_file(folder / "model.safetensors"))


def test_only_the_axes_asked_for_change(folders: dict[str, Path], tmp_path: Path) -> None:
    first, *others = of("start", folders["grow"])[0]["widths"]
    folder = run(replace(TINY, setting="grow", where=first, out=tmp_path))
    start, end = (of(kind, folder)[0]["widths"] for kind in ("start", "end"))
    assert end[first] > start[first]
    assert all(end[name] == start[name] for name in others)


def test_divergence_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train with a lower --lr than 1e"):
        run(replace(TINY, lr=1e30, batch_norm=False, out=tmp_path))


def test_probing_moves_nothing() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))
    network[1].eval()
    batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes, random_state = [module.training for module in network.modules()], torch.get_rng_state()
    with training_unmoved(network):
        assert network[1].training and not network[2].training
    train_mode, eval_mode = both_losses(network, batches)
    assert train_mode != eval_mode
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_network_that_cannot_be_saved_costs_no_training(folders: dict[str, Path], tmp_path: Path) -> None:
    options = replace(TINY, setting="shrink", out=tmp_path / "run")
    obstacle = tmp_path / "run" / "model.safetensors"
    RunFolder(tmp_path / "run", options.settled().config()).__exit__()
    obstacle.mkdir()
    with pytest.raises(InputError, match="cannot write the trained network"):
        run(options)
    obstacle.rmdir()
    run(options)
    assert read(tmp_path / "run") == read(folders["shrink"])


# Forks once per attempt, so that torch is loaded once only; no thread is started before the fork. Every other
# attempt is killed some time after it has written something, so that the whole gets on; the rest at any time.
ATTEMPTS = """
import os, signal, sys, time
from pathlib import Path
from regrow.cli import main
import regrow.bench.run, regrow.bench.data, sklearn.datasets, sklearn.model_selection

delays, folder, arguments = map(float, sys.argv[1].split(",")), Path(sys.argv[2]), sys.argv[3:]

def written():
    return {(file.name, file.stat().st_size) for file in folder.glob("checkpoint-*.pt")}

for attempt, delay in enumerate(delays):
    before = written()
    child = os.fork()
    if child == 0:
        os._exit(main(arguments))
    deadline = time.monotonic() + 20
    while attempt % 2 and written() == before and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
sys.exit(main(arguments))
"""


def arguments(folder: Path, **changes: object) -> list[str]:
    """The command line of the tiny run."""
    options: dict[str, object] = {
        name: getattr(TINY, name) for name in ("width", "limit", "batch_size", "epochs", "events", "log_every")
    }
    options |= {"out": folder} | changes
    return ["run", TINY.task] + [
        text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))
    ]


def test_killed_at_random_moments_a_run_ends_with_the_very_same_numbers(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    draw = random.Random(time.time_ns())
    delays = [round(draw.uniform(0, 0.3), 3) for _ in range(6)]
    command = [str(tmp_path / "run"), *arguments(tmp_path / "run", setting="constant", checkpoint_every=2)]
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, ",".join(map(str, delays)), *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (delays, done.stderr)
    statuses = done.stdout.split()[: len(delays)]
    assert str(-signal.SIGKILL) in statuses, (delays, statuses)
    assert "continuing" in done.stderr, (delays, done.stderr)
    assert read(tmp_path / "run") == read(folders["constant"]), delays
    assert weights(tmp_path / "run") == weights(folders["constant"]), delays


def test_interrupted_after_any_step_a_run_recomputes_at_most_one_interval(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(TINY, setting="constant", checkpoint_every=4, out=tmp_path / "run")
    record, seen = RunFolder.record, []

    def interrupt(self: RunFolder, event: dict[str, Any]) -> None:
        record(self, event)
        seen.append(event["step"])
        if event["event"] not in ("start", "end") and len(seen) in (3, 9, 14, 25):
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "record", interrupt)
    interruptions = 0
    while True:
        try:
            run(options)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 3
    assert all(earlier - later <= options.checkpoint_every for earlier, later in pairwise(seen))
    assert read(tmp_path / "run") == read(folders["constant"])


def test_ctrl_c_is_said_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "regrow.cli", *arguments(folder, epochs=10_000, checkpoint_every=2)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        deadline = time.monotonic() + 60
        while not list(folder.glob("checkpoint-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip().splitlines() == ["regrow: interrupted; the same command continues from the last checkpoint"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits on file sizes are a matter of Unix")
def test_a_disk_that_fills_while_saving_stops_in_one_line_and_goes_on_later(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """A limit on the size of files stands for the full disk: the write of a checkpoint fails half-way."""
    command = [sys.executable, "-c", FULL, *arguments(tmp_path / "run", setting="constant")]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert failed.returncode == 1
    (line,) = failed.stderr.strip().splitlines()
    assert "cannot write a checkpoint" in line and "File too large" in line
    run(replace(TINY, setting="constant", out=tmp_path / "run"))
    assert read(tmp_path / "run") == read(folders["constant"])


FULL = """
import resource, sys
from regrow.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""

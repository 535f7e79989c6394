"""The runner: nothing is lost and nothing is done twice, whatever is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from regrow.bench import ray_pool
from regrow.bench.cells import Cell
from regrow.bench.pools import Processes
from regrow.bench.results import RESULTS_FILE, Store
from regrow.bench.runner import run_cells
from regrow.bench.suites import Arm

FIXED = {"width": 0.1, "limit": 96, "validation": 40, "batch_size": 32, "epochs": 4, "events": 2, "threads": 1}
ARMS = (
    Arm("large", "static", {"budget": 1.0}),
    Arm("grow", "grow", {"budget": 1.0, "start_fraction": 0.5, "checkpoint_every": 2}, "large"),
)


def cells(*arms: Arm, seeds: tuple[int, ...] = (0,), task: str = "digits/vgg11") -> list[Cell]:
    return [Cell(task, arm, seed, tuple(FIXED.items())) for seed in seeds for arm in arms]


def lines(store: Path) -> list[dict[str, Any]]:
    path = store / RESULTS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def numbers(result: dict[str, Any]) -> list[dict[str, Any]]:
    timed = {"seconds", "edit_seconds"}
    return [{key: value for key, value in event.items() if key not in timed} for event in result["events"]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which all cells were done undisturbed."""
    folder = tmp_path_factory.mktemp("grid") / "store"
    outcome = run_cells(cells(*ARMS), Store(folder), jobs=2)
    assert sorted(outcome.done) == sorted(cell.key for cell in cells(*ARMS))
    return folder


def test_what_is_done_is_not_done_again(done: Path) -> None:
    assert [line["key"] for line in lines(done)] != []
    outcome = run_cells(cells(*ARMS), Store(done), jobs=1)
    assert outcome.done == []
    assert len(lines(done)) == 2
    assert list((done / "running").iterdir()) == []
    for line in lines(done):
        assert line["environment"]["torch"]
        assert line["environment"]["threads"] == 1
        assert "data" not in line["config"]
        assert {event["event"] for event in line["events"]} >= {"start", "metrics", "end"}
        assert "batch" not in {event["event"] for event in line["events"]}


RUNNER = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_bench_runner import ARMS, cells
from regrow.bench.results import Store
from regrow.bench.runner import run_cells
run_cells(cells(*ARMS), Store(Path(sys.argv[1])), jobs=1)
"""


def test_a_runner_that_is_killed_goes_on_to_the_same_numbers(done: Path, tmp_path: Path) -> None:
    script, store = RUNNER.format(here=str(Path(__file__).parent)), tmp_path / "store"
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", script, str(store)], start_new_session=True)
        deadline = time.monotonic() + 60
        before = _progress(store)
        while _progress(store) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run_cells(cells(*ARMS), Store(store), jobs=2)
    assert sorted(line["key"] for line in lines(store)) == sorted(line["key"] for line in lines(done))
    undisturbed = {line["key"]: numbers(line) for line in lines(done)}
    assert {line["key"]: numbers(line) for line in lines(store)} == undisturbed


def _progress(store: Path) -> list[int]:
    """How much has been written of what is being done."""
    return [path.stat().st_size for path in sorted(store.glob("running/*/events.jsonl"))] + [len(lines(store))]


def test_a_worker_that_dies_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = Processes.start, []

    def killing(self: Processes, cell: Cell, data: Path | None) -> None:
        start(self, cell, data)
        started.append(cell.key)
        if len(started) == 1:
            self._running[-1][1].kill()

    monkeypatch.setattr(Processes, "start", killing)
    outcome = run_cells(cells(ARMS[0]), Store(tmp_path / "store"), jobs=1)
    assert started == [cells(ARMS[0])[0].key] * 2
    assert outcome.done == started[:1]
    assert outcome.failed == {}


def test_what_cannot_run_is_told_and_the_rest_runs(tmp_path: Path) -> None:
    odd = Arm("odd", "grow", {"where": "nowhere.*", "budget": 1.0})
    store = Store(tmp_path / "store")
    wanted = [*cells(odd), *cells(ARMS[0]), *cells(ARMS[0], task="cifar10/vgg11")]
    outcome = run_cells(wanted, store, data=tmp_path / "nothing", jobs=2)
    assert outcome.done == [cells(ARMS[0])[0].key]
    assert list(outcome.failed) == [cells(odd)[0].key]
    assert "matches no axis" in outcome.failed[cells(odd)[0].key]
    assert "is not a folder" in outcome.skipped["cifar10/vgg11"]
    assert (tmp_path / "store" / "failures.jsonl").read_text().count("matches no axis") == 1


def on_a_cluster(store: Path) -> None:
    """Do the cells on a cluster of this machine, and kill the first worker that is at one; tells what came of it."""
    import ray

    start, killed = ray_pool.RayPool.start, []

    def killing(self: Any, cell: Cell, data: Path | None) -> None:
        start(self, cell, data)
        if not killed:
            killed.append(_kill_the_first_worker())

    ray_pool.RayPool.start = killing  # type: ignore[method-assign]
    ray_pool.tempfile.gettempdir = lambda: str(store.parent)  # type: ignore[attr-defined]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    outcome = run_cells(cells(*ARMS), Store(store), ray="auto")
    ray.shutdown()
    print(json.dumps({"killed": killed, "failed": outcome.failed}))


def test_a_cluster_of_two_loses_a_worker_and_nothing_else(done: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray isn't installed")
    # In a process of its own: ray's threads and the forks of other tests don't agree.
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_bench_runner as t; "
    script += f"t.on_a_cluster(t.Path({str(tmp_path / 'store')!r}))"
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout.splitlines()[-1]) == {"killed": [True], "failed": {}}
    found = {line["key"]: numbers(line) for line in lines(tmp_path / "store")}
    assert len(lines(tmp_path / "store")) == 2
    assert found == {line["key"]: numbers(line) for line in lines(done)}


def _kill_the_first_worker() -> bool:
    """Kill a process that does a cell, once it is at it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                name = process.read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::_do"):
                os.kill(int(process.parent.name), signal.SIGKILL)
                return True
        time.sleep(0.05)
    return False

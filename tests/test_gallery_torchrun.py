"""The gallery's loops of several processes run under torchrun, and go on by other numbers of processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import regrow as rg
from test_gallery import GALLERY, script

#: One thread for each process, and no accelerator: the same numbers wherever this runs.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass
class Run:
    """What a run said.

    Attributes:
        edits: Lines about these.
        weights: What the weights of each process come to.
        accuracy: On all digits.
    """

    edits: list[str]
    weights: list[str]
    accuracy: str


def launched(name: str, processes: int, folder: Path, *given: object) -> Run:
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes)
    command = [sys.executable, *map(str, (*run, GALLERY / f"{name}.py", folder, *given))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as begun:
        try:
            said, errors = begun.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            begun.terminate()  # torchrun ends its processes then
            raise
    assert begun.returncode == 0, errors
    weights = re.findall(r"^weights of process \d: (\w{8})$", said, re.MULTILINE)
    (accuracy,) = re.findall(r"^accuracy on all digits: (\d\.\d{3})$", said, re.MULTILINE)
    assert len(weights) == processes
    return Run([line for line in said.splitlines() if "->" in line], weights, accuracy)


def accuracy_of(name: str, saved: Path) -> str:
    """Of what was saved, in this process, which took no part in the run."""
    loop = script(name)
    model, (x, y) = rg.load(saved, loop.build()), loop.data()
    return f"{float((model(x).argmax(1) == y).float().mean()):.3f}"


def test_processes_with_copies_train_as_one_and_another_number_goes_on(tmp_path: Path) -> None:
    run = launched("loop_ddp", 2, tmp_path / "run")
    assert len(set(run.weights)) == 1
    assert len(run.edits) == 7
    assert float(run.accuracy) > 0.9
    assert accuracy_of("loop_ddp", tmp_path / "run" / "checkpoint-00000003") == run.accuracy
    stopped = tmp_path / "stopped" / "checkpoint-00000002"  # of step 100: two edits are to come
    shutil.copytree(tmp_path / "run" / stopped.name, stopped)
    resumed = launched("loop_ddp", 1, stopped.parent)
    assert resumed.edits == run.edits[-2:]
    assert abs(float(resumed.accuracy) - float(run.accuracy)) < 0.02


def test_processes_with_parts_of_the_weights_stay_one_model_and_another_number_goes_on(tmp_path: Path) -> None:
    begun = launched("loop_fsdp", 2, tmp_path, "--stop", 110)
    assert len(set(begun.weights)) == 1
    assert len(begun.edits) == 6
    ended = launched("loop_fsdp", 1, tmp_path)
    assert len(ended.edits) == 1
    assert float(ended.accuracy) > 0.95
    assert accuracy_of("loop_fsdp", tmp_path / "model") == ended.accuracy

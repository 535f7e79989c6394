"""Other people's training loops in several processes: all processes make the same edits, and stay one model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("pytorch_lightning")
pytest.importorskip("transformers")

SCRIPT = Path(__file__).with_name("loops_parallel.py")


def test_every_loop_keeps_two_processes_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for loop in ("accelerate", "transformers", "lightning"):
        first, second = (torch.load(tmp_path / loop / f"{rank}.pt", weights_only=True) for rank in (0, 1))
        assert {name: tensor.shape for name, tensor in first.items()} != {}
        assert first["0.weight"].shape[0] + first["2.weight"].shape[0] == 16 + 3 - 2 + 4, loop
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items()), loop

"""Several processes that train copies of a model make the same edits, and what one with the joint batch would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ddp_runs
import regrow as rg


def weights(folder: Path, rank: int) -> dict[str, Tensor]:
    return torch.load(folder / f"{rank}.pt", weights_only=True)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert {name: t.shape for name, t in one.items()} == {name: t.shape for name, t in other.items()}
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return ddp_runs.train(ddp_runs.model())[0].state_dict()


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_are_one_with_the_joint_batch(ranks: int, alone: dict[str, Tensor], tmp_path: Path) -> None:
    ddp_runs.launch(ddp_runs.trained, ranks, tmp_path, False)
    assert apart(weights(tmp_path, 0), alone) < 1e-6
    for rank in range(1, ranks):
        assert apart(weights(tmp_path, rank), weights(tmp_path, 0)) == 0.0


#: What these look at is no mean over examples: processes agree, but not on what one with all of the batch would do.
APART = (rg.SENN(candidates=4, held_out=False), rg.North())


@pytest.mark.parametrize(
    "method",
    [
        *(rg.Splitting(), rg.TINY(), rg.Net2Wider(), rg.GradMaxOptim(steps=5), *APART),
        *(rg.Fisher(), rg.OBS(), rg.APoZ(), rg.GeometricMedian(), rg.GroupNorm()),
    ],
    ids=lambda method: method.name,
)
def test_an_edit_by_any_method_is_that_of_one_process(method: Any, tmp_path: Path) -> None:
    ddp_runs.launch(ddp_runs.edited, 2, tmp_path, method)
    assert apart(weights(tmp_path, 1), weights(tmp_path, 0)) == 0.0
    if method in APART:
        return
    one = ddp_runs.train(ddp_runs.model(), stop=8, plan=ddp_runs.once(method))[0].state_dict()
    assert apart(weights(tmp_path, 0), one) < 1e-6


@pytest.mark.parametrize("ranks", [2, 3])
def test_with_batch_norm_all_stay_the_same(ranks: int, tmp_path: Path) -> None:
    ddp_runs.launch(ddp_runs.trained, ranks, tmp_path, True)
    first = weights(tmp_path, 0)
    assert all(bool(t.isfinite().all()) for t in first.values())
    learned = {name for name in first if "running" not in name and "batches" not in name}
    for rank in range(1, ranks):
        other = weights(tmp_path, rank)
        assert apart({n: other[n] for n in learned}, {n: first[n] for n in learned}) == 0.0


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 1), (1, 2)])
def test_a_run_goes_on_by_another_number(before: int, after: int, alone: dict[str, Tensor], tmp_path: Path) -> None:
    for ranks, work in ((before, ddp_runs.begun), (after, ddp_runs.ended)):
        ddp_runs.launch(work, ranks, tmp_path)
    assert apart(weights(tmp_path, 0), alone) < 1e-6


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_sharded_model_is_edited_as_a_whole_one(ranks: int, adam: bool, tmp_path: Path) -> None:
    ddp_runs.launch(ddp_runs.sharded, ranks, tmp_path, adam)
    assert apart(weights(tmp_path, 0), ddp_runs.alone(adam)) < 1e-6
    for rank in range(1, ranks):
        assert apart(weights(tmp_path, rank), weights(tmp_path, 0)) == 0.0


def test_a_latency_is_that_of_the_first_ones_clock(tmp_path: Path) -> None:
    ddp_runs.launch(ddp_runs.timed, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True)["sizes"] for rank in (0, 1))
    assert first == second
    assert sum(before - after for before, after in first.values()) == 8  # of 24 for a latency of 0.7: 16 are left


def test_one_that_dies_is_an_error_of_the_others(tmp_path: Path) -> None:
    ddp_runs.launch(ddp_runs.dying, 2, tmp_path, survive=True)
    assert (tmp_path / "0.error").exists()


def test_the_plan_is_one_with_many_edits() -> None:
    net = ddp_runs.model()
    _, _, shaper = ddp_runs.train(net)
    assert len(shaper.structure.edits) == 12
    assert any(weights.sparsity > 0.3 for weights in rg.analyze(net, ddp_runs.batch(0)[0]).weights)

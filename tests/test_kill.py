"""A run that is killed at any moment goes on to the same bits; checkpoints refuse what they can't be of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kill_run
import regrow as rg
from regrow.checkpoints import STATE_FILE, Checkpoint
from state import differences, snapshot

SEED, KILLS = 0, 50
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

#: The same class without its types, for calls that the types forbid.
LOOSELY: Any = Checkpoint


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested values by their paths."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else None
    if items is None:
        return {path: value}
    return {name: leaf for key, item in items for name, leaf in flat(item, f"{path}/{key}").items()}


def unequal(one: Any, other: Any) -> list[str]:
    """Where two nested values aren't the same to the bit."""
    return differences(flat(one), flat(other))


def run_and_kill(folder: Path) -> None:
    """Leave in the folder what the runs came to, and ``kills.json``."""
    paths = os.pathsep.join([str(Path(rg.__file__).parent.parent), str(Path(__file__).parent)])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, kill_run.__file__, str(folder), str(SEED), str(KILLS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def check_that_edits_of_all_kinds_were_made(final: dict[str, Any]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in final["model"].items()}
    assert "2_1.one.weight" in shapes and "0.regrow_behind.0.layers.0.weight" in shapes  # a cell and a layer came
    assert sum(name.endswith("norm.weight") for name in shapes) == 3  # and a cell left
    assert {shapes[name][0] for name in shapes if name.endswith("one.weight")} != {4}  # neurons came and went
    assert any(mask is not None and not mask.all() for mask in final["masks"].values())
    assert len(final["losses"]) == kill_run.STEPS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_a_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """By the clock, and within saving and edits; one test, since all is compared with the same uninterrupted run."""
    run_and_kill(tmp_path)
    found = {path.stem: torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("*.pt"))}
    expected = found.pop("whole")
    check_that_edits_of_all_kinds_were_made(expected)
    assert {name: odd for name, final in found.items() if (odd := unequal(final, expected))} == {}
    kills = json.loads((tmp_path / "kills.json").read_text())
    assert kills["points"] == dict.fromkeys(kill_run.POINTS, True)
    assert {name.partition("-")[0] for name in found} == {"random", "point"} and len(kills["phases"]) == KILLS
    assert {"save", "edit", "step"} <= set(kills["phases"])
    for run in (path for path in tmp_path.iterdir() if path.is_dir()):  # what killed saves had left is gone
        assert [path.name[:-2] for path in sorted(run.iterdir())] == ["checkpoint-000000"] * 2


# --------------------------------------------------------------------------------------------------
# checkpoints


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())


PLAN = rg.every(2, rg.Grow(rg.Random(), 1, where="one"))
NO_PLAN = rg.at(10**6, rg.Grow(rg.Random(), 1, where="one"))


def begun(checkpoint: Checkpoint, plan: Any = PLAN, kind: Any = torch.optim.Adam) -> tuple[nn.Module, Any, rg.Shaper]:
    torch.manual_seed(0)
    model = checkpoint.load(Net())
    optimizer = kind(model.parameters(), 0.01)
    return model, optimizer, rg.Shaper(model, optimizer, plan, example=X)


def stepped(model: nn.Module, optimizer: Any, shaper: rg.Shaper, steps: int = 1) -> None:
    for _ in range(steps):
        model(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        shaper.step()


def test_the_same_lines_begin_and_continue_a_run(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a" / "run")
    model, optimizer, shaper = begun(checkpoint)
    assert checkpoint.restore(optimizer, shaper) == {}
    stepped(model, optimizer, shaper, 5)
    path = checkpoint.save(model, optimizer, shaper, {"best": 0.5})
    assert checkpoint.paths == [path]
    again = Checkpoint(tmp_path / "a" / "run")
    other, its, shapers = begun(again)
    assert again.restore(its, shapers) == {"best": 0.5}
    for one in ((model, optimizer, shaper), (other, its, shapers)):
        stepped(*one, 3)
    assert unequal(model.state_dict(), other.state_dict()) == []
    assert unequal(optimizer.state_dict(), its.state_dict()) == []
    assert unequal(shaper.state_dict(), shapers.state_dict()) == []


def test_the_newest_stay_and_other_files_too(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    (tmp_path / "checkpoint-00000007.partial").mkdir()
    checkpoint = Checkpoint(tmp_path, keep=3)
    model, optimizer, shaper = begun(checkpoint)
    for _ in range(5):
        checkpoint.save(model, optimizer, shaper)
    names = [f"checkpoint-0000000{number}" for number in (3, 4, 5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "notes.txt"]


def test_other_objects_and_the_random_state_are_restored(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, random=True)
    model, optimizer, shaper = begun(checkpoint)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler, mean = torch.amp.GradScaler("cpu"), torch.optim.swa_utils.AveragedModel(model)
    stepped(model, optimizer, shaper)
    scheduler.step()
    mean.update_parameters(model)
    checkpoint.save(model, optimizer, shaper, scheduler=scheduler, scaler=scaler, mean=mean)
    drawn = torch.rand(3)
    again = Checkpoint(tmp_path, random=True)
    other, its, shapers = begun(again)
    its_scheduler = torch.optim.lr_scheduler.StepLR(its, 1)
    its_mean = torch.optim.swa_utils.AveragedModel(other)
    its_scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    again.restore(its, shapers, scheduler=its_scheduler, scaler=its_scaler, mean=its_mean)
    assert torch.equal(torch.rand(3), drawn)
    assert its.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
    assert its_scheduler.state_dict() == scheduler.state_dict()
    assert its_scaler.state_dict() == scaler.state_dict()
    assert unequal(mean.state_dict(), its_mean.state_dict()) == []


def test_an_optimizer_may_list_its_parameters_in_another_order(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    model, optimizer, shaper = begun(checkpoint)
    stepped(model, optimizer, shaper, 2)
    checkpoint.save(model, optimizer, shaper)
    other = Checkpoint(tmp_path)
    loaded = other.load(Net())
    reverse = torch.optim.Adam(reversed(list(loaded.named_parameters())), 0.5)
    other.restore(reverse, rg.Shaper(loaded, reverse, PLAN, example=X))
    assert reverse.param_groups[0]["lr"] == 0.01
    expected = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        assert unequal(optimizer.state[expected[name]], reverse.state[parameter]) == []


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_paces_go_on_whether_the_optimizer_has_other_state_or_not(kind: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    model, optimizer, shaper = begun(checkpoint, NO_PLAN, kind)
    rg.grow_(shaper.structure["one"], 2, rg.Random(), optimizer=optimizer, lr_factor=0.25)
    checkpoint.save(model, optimizer, shaper)
    again = Checkpoint(tmp_path)
    other, its, shapers = begun(again, NO_PLAN, kind)
    again.restore(its, shapers)
    for one in ((model, optimizer, shaper), (other, its, shapers)):
        stepped(*one, 3)
    assert unequal(model.state_dict(), other.state_dict()) == []


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_whole(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    model, optimizer, shaper = begun(checkpoint)
    first = checkpoint.save(model, optimizer, shaper)
    second = checkpoint.save(model, optimizer, shaper)
    for name in (STATE_FILE, "model.safetensors", "shape.json"):
        whole = (second / name).read_bytes()
        for content in (b"", whole[: len(whole) // 2], bytes(100)):
            (second / name).write_bytes(content)
            fresh = Net()
            before = snapshot(fresh)
            with pytest.raises(ValueError, match="checkpoint-00000002"):
                Checkpoint(tmp_path).load(fresh)
            assert differences(before, snapshot(fresh)) == []
        (second / name).write_bytes(whole)
    second.rename(tmp_path / "bad")
    assert Checkpoint(tmp_path).paths == [first]
    Checkpoint(tmp_path).load(Net())


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


def test_no_code_is_run_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    model, optimizer, shaper = begun(checkpoint)
    path = checkpoint.save(model, optimizer, shaper)
    torch.save({"format": 1, "optimizer": Evil()}, path / STATE_FILE)
    with pytest.raises(ValueError, match=STATE_FILE):
        Checkpoint(tmp_path).load(Net())
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("value", [Evil(), lambda: 0, Path("x"), rg.Random()], ids=["evil", "function", "path", "own"])
def test_what_could_not_be_read_again_is_refused_before_it_is_saved(value: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    model, optimizer, shaper = begun(checkpoint)
    first = checkpoint.save(model, optimizer, shaper)
    with pytest.raises(TypeError, match="plain values"):
        checkpoint.save(model, optimizer, shaper, {"value": value})
    assert list(tmp_path.iterdir()) == [first]


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path, keep=1)
    model, optimizer, shaper = begun(checkpoint)
    first = checkpoint.save(model, optimizer, shaper)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("regrow.checkpoints._write_state", full)
        with pytest.raises(OSError):
            checkpoint.save(model, optimizer, shaper)
    assert list(tmp_path.iterdir()) == [first]


def test_misuse_is_told(tmp_path: Path) -> None:
    for keep in (0, -1, True, 1.5, None):
        with pytest.raises(ValueError, match="keep"):
            LOOSELY(tmp_path, keep=keep)
    checkpoint = Checkpoint(tmp_path)
    model, optimizer, shaper = begun(Checkpoint(tmp_path))
    with pytest.raises(RuntimeError, match="load"):
        checkpoint.restore(optimizer, shaper)
    checkpoint.save(model, optimizer, shaper)
    with pytest.raises(RuntimeError, match="checkpoints of a run"):
        Checkpoint(tmp_path).save(model, optimizer, shaper)
    with pytest.raises(TypeError, match="best"):
        checkpoint.save(model, optimizer, shaper, best=0.5)
    with pytest.raises(TypeError, match="a Shaper"):
        LOOSELY(tmp_path).save(model, optimizer, None)
    other, its, shapers = begun(checkpoint)
    with pytest.raises(ValueError, match="another"):
        checkpoint.save(model, its, shapers)
    with pytest.raises(RuntimeError, match="restored"):
        checkpoint.save(other, its, shapers)
    with pytest.raises(ValueError, match="restore got scheduler"):
        checkpoint.restore(its, shapers, scheduler=torch.optim.lr_scheduler.StepLR(its, 1))


def test_another_optimizers_parameters_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(*begun(checkpoint))
    again = Checkpoint(tmp_path)
    model = again.load(Net())
    optimizer = torch.optim.Adam([model.one.weight, model.one.bias, model.two.weight])
    with pytest.raises(ValueError, match=r"two\.bias"):
        again.restore(optimizer, rg.Shaper(model, optimizer, PLAN, example=X))
    without = Checkpoint(tmp_path, random=True)
    with pytest.raises(ValueError, match="random"):
        without.restore(*begun(without)[1:])

"""What does a Shaper cost: a step at which nothing is due, the stall of an edit in training, resuming, and processes?

Edits are timed beside training steps of one run: a growth by Random, which needs no statistics, and one by GradMax,
which looks at the loss once more. Two processes (gloo) train with a Shaper in turn with plain DistributedDataParallel.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
import torchvision
from common import interleaved, paired_ratio, repeats, seconds, summary, write
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import regrow as rg

IDLE, STALL, PLAIN_STALL = 20e-6, 2.0, 0.3
NEVER = 10**9
LAYERS = "layer[12].*conv1"


def model_and_data(side: int = 64) -> tuple[Any, Tensor, Tensor]:
    """ResNet-18 and a batch of 32 square images."""
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10), torch.randn(32, 3, side, side), torch.randint(10, (32,))


def trainer(model: Any, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Any:
    """One training step."""

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def idle(number: int) -> dict[str, Any]:
    """Microseconds of a step at which nothing is due."""
    model, x, _ = model_and_data()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    plan = rg.chain(
        rg.every(NEVER, rg.Grow(rg.GradMax(), 8)),
        rg.every(NEVER, rg.Prune(rg.Magnitude(), 0.1)),
        rg.every(NEVER, rg.Rewire(rg.RigL(), 0.3)),
    )
    shaper = rg.Shaper(model, optimizer, plan, example=x)
    times = [seconds(lambda: [shaper.step() for _ in range(1000)]) / 1000 for _ in range(number)]
    best = sorted(times)[len(times) // 2]
    return {
        "model": "resnet18, three actions, nothing due", "edit": "none", "shown": f"{1e6 * best:.1f} µs",
        "ratio": best / IDLE, "met": best <= IDLE, "repeats": number,
    }  # fmt: skip


def stall(method: Any, goal: float, number: int, side: int) -> dict[str, Any]:
    """An edit of eight units of each of four layers (64 and 128 wide), over a training step; each is undone."""
    model, x, y = model_and_data(side)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    plan = rg.every(1, rg.Grow(method, 8, where=LAYERS))
    shaper = rg.Shaper(model, optimizer, plan, example=x)
    step = trainer(model, x, y, optimizer)

    def edit() -> float:
        edits: list[rg.Edit] = []
        taken = seconds(lambda: edits.extend(shaper.step(lambda: F.cross_entropy(model(x), y))))
        edits[0].undo_()
        return taken

    times = interleaved({"step": lambda: seconds(step), "edit": edit}, number)
    ratio = paired_ratio(times["edit"], times["step"])
    return {
        "model": f"resnet18, batch 32, {side}x{side}", "edit": f"grow by {method.name}", "ratio": ratio,
        "met": ratio <= goal, "goal": goal, "repeats": number,
        "plain": summary(times["step"]), "time": summary(times["edit"]),
    }  # fmt: skip


def resuming(number: int) -> dict[str, Any]:
    """Loading an edited model, its optimizer's and its Shaper's state, over building all of it afresh."""
    model, x, y = model_and_data()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    plan = rg.every(NEVER, rg.Grow(rg.Random(), 8))
    rg.grow_(rg.analyze(model, x), 4, rg.Random(), optimizer=optimizer)
    trainer(model, x, y, optimizer)()
    with tempfile.TemporaryDirectory() as folder:
        rg.save(model, folder)
        state = optimizer.state_dict()

        def build(load: bool) -> float:
            started = time.perf_counter()
            fresh, data, _ = model_and_data()
            if load:
                rg.load(folder, fresh)
            made = torch.optim.SGD(fresh.parameters(), 1e-3, momentum=0.9)
            rg.Shaper(fresh, made, plan, example=data)
            if load:
                made.load_state_dict(state)
            return time.perf_counter() - started

        times = interleaved({"fresh": lambda: build(False), "resumed": lambda: build(True)}, number)
    ratio = paired_ratio(times["resumed"], times["fresh"])
    return {
        "model": "resnet18", "edit": "resume / begin afresh", "ratio": ratio, "met": True,
        "repeats": number, "plain": summary(times["fresh"]), "time": summary(times["resumed"]),
    }  # fmt: skip


def _process(rank: int, folder: str, number: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model, x, y = model_and_data()
    wrapper = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    step = trainer(wrapper, x[:8], y[:8], optimizer)
    shaper = rg.Shaper(wrapper, optimizer, rg.every(NEVER, rg.Grow(rg.Random(), 8)), example=x[:8])

    def shaped() -> None:
        step()
        shaper.step()

    times = interleaved({"plain": lambda: seconds(step), "shaped": lambda: seconds(shaped)}, number)
    if rank == 0:
        torch.save(times, f"{folder}/times.pt")
    dist.destroy_process_group()


def processes(number: int) -> dict[str, Any]:
    """A training step of two processes with a Shaper, over one without."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_process, (folder, number), 2, start_method="spawn")  # type: ignore[attr-defined]
        times = torch.load(Path(folder) / "times.pt", weights_only=True)
    ratio = paired_ratio(times["shaped"], times["plain"])
    return {
        "model": "resnet18, batch 8 each, 2 processes", "edit": "none", "ratio": ratio, "met": True,
        "repeats": number, "plain": summary(times["plain"]), "time": summary(times["shaped"]),
    }  # fmt: skip


def main() -> None:
    number = repeats("A Shaper's cost: nothing due, edits, resuming, processes.", 20)
    write("shaper_idle", "a Shaper's step at which nothing is due", "at most 20 µs", [idle(number)])
    forms = [(rg.Random(), PLAIN_STALL), (rg.GradMax(), STALL)]
    rows = [stall(method, goal, number, side) for side in (64, 128) for method, goal in forms]
    for row in rows:
        row["part_of_goal"] = row["ratio"] / row.pop("goal")
    write(
        "edit_stall", "growing 32 units while training / a training step", "at most 0.3 plain, 2 with statistics", rows
    )
    write("resume", "resuming an edited run / beginning afresh", "told", [resuming(number)])
    write("ddp", "a step of two processes with a Shaper / without", "told", [processes(number)])


if __name__ == "__main__":
    main()

"""Training runs that are killed with SIGKILL, at moments of the clock or at chosen points, and go on from there.

``python tests/kill_run.py FOLDER SEED KILLS`` leaves in FOLDER what each run came to, and in ``kills.json`` what it was
doing when it was killed. This process imports everything once and forks a child for each attempt; it computes nothing
itself, since threads don't survive a fork.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regrow as rg
from regrow import checkpoints, saving
from regrow.checkpoints import Checkpoint
from regrow.masks import mask_of, place_of
from regrow.transaction import Transaction

STEPS, EVERY = 36, 3

PLAN = rg.chain(
    rg.every(5, rg.Grow(rg.GradMax(beyond_rank="random"), 2, where="[123].one"), stop=15),
    rg.at(8, rg.Grow(rg.Deepen(), 1, where="2", kind="cell")),
    rg.at(13, rg.Prune(rg.Taylor(), 3, where="[12].one")),
    rg.at(17, rg.Prune(rg.Magnitude(), 0.4, kind="weight")),
    rg.every(4, rg.Rewire(rg.RigL(), 0.3), start=17, stop=33),
    rg.at(23, rg.Prune(rg.Ablation(), 1, kind="cell", protect="2")),
    rg.at(28, rg.Grow(rg.Deepen(), 1, where="0", kind="layer")),
    rg.at(31, rg.Grow(rg.Random(), 2, where="[123].one")),
)

_save = torch.save  # a child may have another one put in its place

#: What the child is doing, for the parent to see after it has died.
PHASES = ("start", "step", "edit", "save", "end")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.norm(self.one(x)).relu())


def build() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [Block() for _ in range(3)]
    return nn.Sequential(nn.Conv2d(2, 4, 1), *blocks, nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4, 3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(6, 2, 4, 4, generator=generator)
    return x, torch.randint(3, (6,), generator=generator)


def train(folder: Path, note: Callable[[str], Any] = lambda phase: None) -> dict[str, Any]:
    """Train to the end, from wherever the folder has got to; returns all that there is in the end."""
    checkpoint = Checkpoint(folder, keep=2, random=True)
    model = checkpoint.load(build())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    edit = {"before_edit": lambda _: note("edit"), "after_edit": lambda _: note("step")}
    shaper = rg.Shaper(model, optimizer, PLAN, example=batch(0)[0], **edit)
    losses = checkpoint.restore(optimizer, shaper, scheduler=scheduler).get("losses", [])
    while shaper.steps < STEPS:
        note("step")
        x, y = batch(shaper.steps)

        def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
            return F.cross_entropy(model(x), y)

        value = loss() + shaper.penalty()
        value.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        shaper.step(loss)
        losses.append(value.item())
        if shaper.steps % EVERY == 0:
            note("save")
            checkpoint.save(model, optimizer, shaper, {"losses": losses}, scheduler=scheduler)
    note("end")
    state = shaper.state_dict()
    there = {axis.name for axis in shaper.structure.axes}  # it also remembers units of axes that have left
    state["births"] = {name: born for name, born in state["births"].items() if name in there}
    return {
        "model": model.state_dict(),
        "masks": {name: mask_of(*place_of(model, name)) for name, _ in model.named_parameters()},
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "shaper": state,
        "losses": losses,
        "random": torch.get_rng_state(),
    }


# --------------------------------------------------------------------------------------------------
# points at which a child kills itself


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(owner: Any, name: str, at: int, after: bool = False) -> None:
    """Let a function kill the process in its call of that number, before or after it has done its work."""
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def replaced(*args: Any, **kwargs: Any) -> Any:
        number = next(calls)
        if number == at and not after:
            die()
        returned = original(*args, **kwargs)
        if number == at and after:
            die()
        return returned

    put(owner, name, replaced)


def put(owner: Any, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)


def half_written(at: int) -> None:
    """Die when half of the optimizer's state is in its file."""
    original, calls = torch.save, iter(range(1, 10**6))

    def replaced(state: Any, path: Path) -> None:
        original(state, path)
        if next(calls) == at:
            os.truncate(path, path.stat().st_size // 2)
            die()

    put(checkpoints.torch, "save", replaced)


def half_removed(at: int) -> None:
    """Die when one file of an old checkpoint is gone."""
    calls = iter(range(1, 10**6))

    def replaced(folder: Path, ignore_errors: bool = False) -> None:
        for path in sorted(folder.iterdir()):
            path.unlink()
            if next(calls) == at:
                die()
        folder.rmdir()

    put(checkpoints.shutil, "rmtree", replaced)


def mid_edit(write: int) -> None:
    """Die when an edit has made so many of its writes."""
    original, calls = Transaction.run, iter(range(1, 10**6))

    def replaced(self: Transaction) -> None:
        for place, planned in enumerate(self.planned):

            def counted(value: Any, inner: Callable[[Any], None] = planned.set) -> None:
                inner(value)
                if next(calls) == write:
                    die()

            self.planned[place] = planned._replace(set=counted)
        original(self)

    put(Transaction, "run", replaced)


POINTS: dict[str, Callable[[], None]] = {
    "before the model is written": lambda: dying(checkpoints, "save", 3),
    "between the model and the rest": lambda: dying(checkpoints, "_write_state", 3),
    "within the model's file": lambda: dying(saving, "serialize", 2),
    "before a file of the model is renamed": lambda: dying(Path, "replace", 5),
    "after the first file of the model": lambda: dying(Path, "replace", 5, after=True),
    "half of a file": lambda: half_written(4),
    "before anything is synchronised": lambda: dying(checkpoints, "_synchronise", 11),
    "before the first is renamed": lambda: dying(Path, "rename", 1),
    "after the first is renamed": lambda: dying(Path, "rename", 1, after=True),
    "before a later one is renamed": lambda: dying(Path, "rename", 6),
    "after a later one is renamed": lambda: dying(Path, "rename", 6, after=True),
    "before an old one is removed": lambda: dying(checkpoints.shutil, "rmtree", 1),
    "within removing an old one": lambda: half_removed(2),
    "after the first write of an edit": lambda: mid_edit(1),
    "within growth": lambda: mid_edit(7),
    "within later edits": lambda: mid_edit(60),
    "within much later edits": lambda: mid_edit(150),
}


# --------------------------------------------------------------------------------------------------
# the parent


class Runs:
    """Starts children, and sees what they were doing when they died."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shared = folder, mmap.mmap(-1, 1)

    def start(self, name: str, point: str = "") -> int:
        """A child that goes on with a run, and leaves what it came to."""
        self._note("start")
        child = os.fork()
        if child:
            return child
        try:
            if point:
                POINTS[point]()
            final = train(self.folder / name, self._note)
            _save(final, self.folder / f"{name}.part")
            os.replace(self.folder / f"{name}.part", self.folder / f"{name}.pt")
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _note(self, phase: str) -> None:
        self.shared[0] = PHASES.index(phase)

    @property
    def phase(self) -> str:
        return PHASES[self.shared[0]]

    def ended(self, child: int, seconds: float | None = None, phase: str = "") -> bool:
        """Whether a child came to its end before it was killed, by this process or by itself.

        This process kills it after so many seconds, and not before it is in a phase, if one is named.
        """
        if seconds is not None:
            time.sleep(seconds)
            while phase and self.phase not in (phase, "end"):
                time.sleep(1e-4)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"a run failed with {code}")
        return code == 0


def warm_up() -> None:
    """Import what torch imports at first use, which takes longer than a run; nothing runs backwards here."""
    model = build()
    optimizer = torch.optim.Adam(model.parameters())
    rg.Shaper(model, optimizer, PLAN, example=batch(0)[0])
    gc.collect()
    gc.freeze()  # else each child looks through all of these again, at some moment at which most kills would then fall


def main(folder: Path, seed: int, kills: int) -> None:
    warm_up()
    runs, found = Runs(folder), random.Random(seed)
    begun = time.monotonic()
    runs.ended(runs.start("whole"))
    length = time.monotonic() - begun
    hit: list[str] = []
    number = 0
    while len(hit) < kills:
        name = f"random-{number}"
        while not (folder / f"{name}.pt").exists():
            last = len(hit) == kills
            phase = "" if len(hit) % 10 else "save"  # which is short, and seldom met by the clock
            if not runs.ended(runs.start(name), None if last else found.uniform(0, 0.35 * length), phase):
                hit.append(runs.phase)
        number += 1
    points, number = {}, 0
    for point in POINTS:
        ended = runs.ended(runs.start(f"point-{number}", point))
        if ended:  # the run was over before; a new one begins
            number += 1
            ended = runs.ended(runs.start(f"point-{number}", point))
        points[point] = not ended
    runs.ended(runs.start(f"point-{number}"))
    (folder / "kills.json").write_text(json.dumps({"seconds": length, "phases": hit, "points": points}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

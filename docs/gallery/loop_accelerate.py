"""
Accelerate's loop
=================

Growth and pruning on scanned digits, in a run that may be stopped and goes on.

::

    python docs/gallery/loop_accelerate.py run/ [--stop 60]     # again, to go on from there
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import Tensor, nn

import regrow as rg
from regrow.loops.accelerate import AccelerateShaper

STEPS = 150

PLAN = rg.chain(
    rg.every(15, rg.Grow(rg.GradMax(beyond_rank="random"), 8, where="0"), stop=60),
    rg.every(15, rg.Prune(rg.L1(strength=1e-4), 0.15, where="0"), start=75, stop=120),
)


def data() -> tuple[Tensor, Tensor]:
    """Pixels between −1 and 1, and labels."""
    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target)


def train(folder: Path, stop: int = STEPS, say: bool = True) -> tuple[nn.Module, float]:
    """Train until a step, from where the folder has got to; the model, and its accuracy on all digits."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    x, y = data()
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 1e-2))
    shaper = AccelerateShaper(accelerator, model, optimizer, PLAN, example=x[:8], after_edit=print if say else None)
    if folder.is_dir():
        accelerator.load_state(str(folder))

    def loss(batch: Tensor) -> Tensor:
        return F.cross_entropy(model(x[batch]), y[batch])

    while shaper.steps < stop:
        for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(shaper.steps))[:128].chunk(2):
            with accelerator.accumulate(model):
                accelerator.backward(loss(batch) + shaper.penalty())
                optimizer.step()
                optimizer.zero_grad()
                shaper.step(lambda batch=batch: loss(batch))
    accelerator.save_state(str(folder))
    with torch.no_grad():
        return shaper.shaper.model, float((model(x).argmax(1) == y).float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stop", type=int, default=STEPS)
    given = parser.parse_args()
    model, accuracy = train(given.folder, given.stop)
    print(f"{model}\naccuracy on all digits: {accuracy:.3f}")

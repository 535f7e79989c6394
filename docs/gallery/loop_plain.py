"""
A plain loop
============

Growth and pruning on scanned digits, in mixed precision, with every edit written down as JSON.

Each step accumulates the gradients of two batches, and the learning rate follows a schedule.

::

    python docs/gallery/loop_plain.py [edits.jsonl]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import regrow as rg
from regrow.loops.events import as_dict

STEPS = 200

PLAN = rg.chain(
    rg.every(20, rg.Grow(rg.GradMax(beyond_rank="random"), 8, where="0"), stop=80),
    rg.every(20, rg.Prune(rg.L1(strength=1e-4), 0.15, where="0"), start=100, stop=160),
)


def data() -> tuple[Tensor, Tensor]:
    """Pixels between −1 and 1, and labels."""
    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target)


def train() -> tuple[nn.Module, float, list[dict[str, Any]]]:
    """The model, its accuracy on all digits, and what was done to it."""
    torch.manual_seed(0)
    x, y = data()
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    edits: list[dict[str, Any]] = []
    shaper = rg.Shaper(model, optimizer, PLAN, example=x[:8], after_edit=lambda edit: edits.append(as_dict(edit)))

    def loss(batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x[batch]), y[batch])

    for _ in range(STEPS):
        batch = torch.randperm(len(x))[:128]
        for part in batch.chunk(2):
            ((loss(part) + shaper.penalty()) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        shaper.step(lambda batch=batch: loss(batch))
    with torch.no_grad():
        return model, float((model(x).argmax(1) == y).float().mean()), edits


if __name__ == "__main__":
    model, accuracy, edits = train()
    lines = "".join(json.dumps(edit) + "\n" for edit in edits)
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w") as file:
            file.write(lines)
    print(*(f"step {edit['step']}: {edit['text']}" for edit in edits), sep="\n")
    print(f"{model}\naccuracy on all digits: {accuracy:.3f}")

"""
DistributedDataParallel
=======================

Several processes train, grow and prune one model on scanned digits, and may be stopped.

Each takes its part of every batch, the first one writes checkpoints, and any number of processes goes on from there.

::

    torchrun --nproc_per_node 2 docs/gallery/loop_ddp.py run/ [--stop 60]     # again, to go on from there
"""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import regrow as rg

STEPS = 150
#: Of all processes together; a multiple of their number, so that the mean of their means is that of the batch.
BATCH = 120

PLAN = rg.chain(
    rg.every(15, rg.Grow(rg.GradMax(beyond_rank="random"), 8, where="0"), stop=60),
    rg.every(15, rg.Prune(rg.L1(strength=1e-4), 0.15, where="0"), start=75, stop=120),
)


def data() -> tuple[Tensor, Tensor]:
    """Pixels between −1 and 1, and labels."""
    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target)


def build() -> nn.Sequential:
    """The model as it is at first."""
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


def share(step: int, size: int) -> Tensor:
    """Which examples of a step's batch are this process's: all draw the same batch, and each takes its part."""
    batch = torch.randperm(size, generator=torch.Generator().manual_seed(step))[:BATCH]
    return batch[dist.get_rank() :: dist.get_world_size()]


def train(folder: Path, device: torch.device, stop: int = STEPS, say: bool = True) -> tuple[nn.Module, float]:
    """Train until a step, from where the folder has got to; the model, and its accuracy on all digits."""
    torch.manual_seed(0)
    x, y = (tensor.to(device) for tensor in data())
    first = dist.get_rank() == 0
    checkpoint = rg.Checkpoint(folder)
    model = checkpoint.load(build()).to(device)  # on all processes, before the wrapper is made
    wrapper = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    tell = print if say and first else None
    shaper = rg.Shaper(wrapper, optimizer, PLAN, example=x[:8], after_edit=tell)
    checkpoint.restore(optimizer, shaper)
    while shaper.steps < stop:
        batch = share(shaper.steps, len(x))

        def loss(batch: Tensor = batch) -> Tensor:
            return F.cross_entropy(wrapper(x[batch]), y[batch])

        (loss() + shaper.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        shaper.step(loss)
        if first and (shaper.steps % 50 == 0 or shaper.steps == stop):
            checkpoint.save(model, optimizer, shaper)
    with torch.no_grad():
        return model, float((model(x).argmax(1) == y).float().mean())


def digest(model: nn.Module) -> str:
    """A few letters for the weights that this process has."""
    held = b"".join(tensor.cpu().numpy().tobytes() for tensor in model.state_dict().values())
    return hashlib.sha256(held).hexdigest()[:8]


def begin() -> torch.device:
    """Meet the other processes; each has a GPU of its own, or all are on the CPU."""
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
        dist.init_process_group("gloo")
        return torch.device("cpu")
    torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl")
    return torch.device("cuda", local)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stop", type=int, default=STEPS)
    given = parser.parse_args()
    device = begin()
    model, accuracy = train(given.folder, device, given.stop)
    if dist.get_rank() == 0:
        print(f"{model}\naccuracy on all digits: {accuracy:.3f}")
    dist.barrier()
    print(f"weights of process {dist.get_rank()}: {digest(model)}\n", end="")  # in one piece: others write there too
    dist.destroy_process_group()

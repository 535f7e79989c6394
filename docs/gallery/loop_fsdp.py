"""
FSDP2
=====

Several processes, each with a part of the weights, train, grow and prune a model, and may be stopped.

For an edit, and to save, each gathers the whole model for a moment. Any number of processes goes on from there.

::

    torchrun --nproc_per_node 2 docs/gallery/loop_fsdp.py run/ [--stop 60]     # again, to go on from there
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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import regrow as rg

STEPS = 150
#: Of all processes together; a multiple of their number, so that the mean of their means is that of the batch.
BATCH = 120

PLAN = rg.chain(  # methods with penalties on weights, as L1, don't work on parts of these
    rg.every(15, rg.Grow(rg.GradMax(beyond_rank="random"), 8, where="[12].one"), stop=45),
    rg.at(60, rg.Grow(rg.Deepen(), 1, where="2", kind="cell")),
    rg.every(15, rg.Prune(rg.Taylor(), 0.15, where="*.one"), start=75, stop=105),
    rg.at(120, rg.Prune(rg.Magnitude(), 0.3, kind="weight")),
)


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.one(x)))


def data() -> tuple[Tensor, Tensor]:
    """Pixels between −1 and 1, and labels."""
    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target)


def build() -> nn.Sequential:
    """The model as it is at first."""
    return nn.Sequential(nn.Linear(64, 16), Block(16, 8), Block(16, 8), nn.Linear(16, 10))


def share(step: int, size: int) -> Tensor:
    """Which examples of a step's batch are this process's: all draw the same batch, and each takes its part."""
    batch = torch.randperm(size, generator=torch.Generator().manual_seed(step))[:BATCH]
    return batch[dist.get_rank() :: dist.get_world_size()]


def train(folder: Path, device: torch.device, stop: int = STEPS, say: bool = True) -> tuple[str, float]:
    """Train until a step, from where the folder has got to; what the whole model's weights come to, its accuracy."""
    torch.manual_seed(0)
    x, y = (tensor.to(device) for tensor in data())
    first, mesh = dist.get_rank() == 0, init_device_mesh(device.type, (dist.get_world_size(),))

    def shard(model: nn.Module) -> None:  # each block, also those that have come, and what is left
        for block in model.modules():
            if isinstance(block, Block):
                fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    checkpoint = rg.Checkpoint(folder)
    model = checkpoint.load(build()).to(device)  # on all processes, before it is sharded
    shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    tell = print if say and first else None
    shaper = rg.Shaper(model, optimizer, PLAN, example=x[:8], shard=shard, after_edit=tell)
    with shaper.whole():  # inside, the model and the optimizer's state are plain ones
        checkpoint.restore(optimizer, shaper)
    while shaper.steps < stop:
        batch = share(shaper.steps, len(x))

        def loss(batch: Tensor = batch) -> Tensor:
            return F.cross_entropy(model(x[batch]), y[batch])

        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        shaper.step(loss)
        if shaper.steps % 50 == 0 or shaper.steps == stop:
            with shaper.whole():
                if first:
                    checkpoint.save(model, optimizer, shaper)
    with shaper.whole(), torch.no_grad():
        if first:
            rg.save(model, folder / "model")
        return digest(model), float((model(x).argmax(1) == y).float().mean())


def digest(model: nn.Module) -> str:
    """A few letters for the weights that this process has gathered."""
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
    weights, accuracy = train(given.folder, device, given.stop)
    if dist.get_rank() == 0:
        print(f"accuracy on all digits: {accuracy:.3f}")
    dist.barrier()
    print(f"weights of process {dist.get_rank()}: {weights}\n", end="")  # in one piece: others write there too
    dist.destroy_process_group()

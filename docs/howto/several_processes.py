"""
Several processes
=================

Wrap the model as always, and give the wrapper to the Shaper. All processes make the same edits, and the wrapper
follows::

    wrapper = DistributedDataParallel(model)
    shaper = rg.Shaper(wrapper, optimizer, plan, example=x)

Run this page by ``torchrun --nproc_per_node 2 several_processes.py``; it needs no GPU. A whole script, which can be
stopped and goes on by any number of processes, is :ref:`sphx_glr_made_gallery_loop_ddp.py`; one for FSDP2 is
:ref:`sphx_glr_made_gallery_loop_fsdp.py`.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regrow as rg

# %%
# Meet the others
# ---------------

dist.init_process_group("gloo")
rank, processes = dist.get_rank(), dist.get_world_size()

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
wrapper = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

# %%
# Grow and prune together
# -----------------------
# Each process draws its own batches, and the loss is that of the wrapper. What methods see is the mean over processes,
# and they draw the same random numbers.

plan = rg.chain(
    rg.every(15, rg.Grow(rg.GradMax(beyond_rank="random"), 8), stop=60),
    rg.every(15, rg.Prune(rg.Taylor(), 0.2), start=75, stop=120),
)
shaper = rg.Shaper(wrapper, optimizer, plan, example=x[:8])
own = torch.Generator().manual_seed(rank)


def loss():
    batch = torch.randint(len(x), (60,), generator=own)
    return F.cross_entropy(wrapper(x[batch]), y[batch])


for _ in range(150):
    optimizer.zero_grad()
    (loss() + shaper.penalty()).backward()
    optimizer.step()
    for edit in shaper.step(loss):
        if rank == 0:
            print(f"step {edit.step}: {edit}")

# %%
# One model
# ---------
# Every process has the same weights in the end, to the bit.

mine = torch.cat([p.detach().flatten() for p in model.parameters()])
everyone = [torch.empty_like(mine) for _ in range(processes)]
dist.all_gather(everyone, mine)
assert all(torch.equal(theirs, mine) for theirs in everyone)
if rank == 0:
    accuracy = (model(x).argmax(1) == y).float().mean()
    print(f"{processes} processes, one model of {model[0].out_features} units: accuracy {accuracy:.1%}")
dist.destroy_process_group()

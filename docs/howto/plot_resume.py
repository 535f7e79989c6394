"""
Stop and resume
===============

The same lines begin a run and continue it, shapes, masks, optimizer state and plan included::

    checkpoint = rg.Checkpoint("run/", random=True)
    model = checkpoint.load(Net())  # as it is, where nothing has been saved yet
    optimizer = torch.optim.AdamW(model.parameters())
    shaper = rg.Shaper(model, optimizer, plan, example=x)
    checkpoint.restore(optimizer, shaper)

A run that was interrupted ends with the same bits as one that wasn't.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import regrow as rg

# %%
# A run that can stop anywhere
# ----------------------------
# Channels grow, then are pruned, then single weights go off. ``while shaper.steps < …`` counts on from where the
# checkpoint was. ``random=True`` keeps torch's random state, from which batches are drawn here; a scheduler of learning
# rates, or whatever else has a state, is given by name to both ``restore`` and ``save``.

digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
y = torch.tensor(digits.target)
plan = rg.chain(
    rg.every(10, rg.Grow(rg.GradMax(), 4, where="[03]"), stop=40),
    rg.every(10, rg.Prune(rg.L1(1e-4), 0.2), start=60, stop=80),
    rg.every(10, rg.Prune(rg.Magnitude(), rg.cubic(0.3, 0.8), kind="weight"), start=90, stop=120),
)


def run(folder, sizes, interrupted_at=None):
    torch.manual_seed(0)
    checkpoint = rg.Checkpoint(folder, random=True)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )
    model = checkpoint.load(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    shaper = rg.Shaper(model, optimizer, plan, example=x[:2])
    checkpoint.restore(optimizer, shaper, decay=decay)
    print(f"from step {shaper.steps}")

    def loss():
        batch = torch.randint(len(x), (64,))
        return F.cross_entropy(model(x[batch]), y[batch])

    while shaper.steps < 150:
        optimizer.zero_grad()
        (loss() + shaper.penalty()).backward()
        if shaper.steps == interrupted_at:
            raise KeyboardInterrupt
        optimizer.step()
        decay.step()
        shaper.step(loss)
        sizes[shaper.steps] = sum(int(p.count_nonzero()) for p in model.parameters())
        if shaper.steps % 25 == 0:
            checkpoint.save(model, optimizer, shaper, decay=decay)
    return model, optimizer


folder, sizes, parts = Path(tempfile.mkdtemp()), {}, [{}, {}, {}]
whole, whole_optimizer = run(folder / "whole", sizes)

# %%
# The same, interrupted twice
# ---------------------------
# Each time in the middle of a step, and each time it goes on from the last checkpoint.

for part, step in enumerate((35, 110)):
    try:
        run(folder / "parts", parts[part], interrupted_at=step)
    except KeyboardInterrupt:
        print(f"interrupted at step {step}")
resumed, resumed_optimizer = run(folder / "parts", parts[2])

# %%
# The same bits
# -------------

expected = whole.state_dict()
assert resumed.state_dict().keys() == expected.keys()
assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state_dict().items())
pairs = zip(whole_optimizer.state.values(), resumed_optimizer.state.values(), strict=True)
assert all(torch.equal(one[key], other[key]) for one, other in pairs for key in one)
print(f"{len(expected)} tensors of the model and the optimizer's state: equal to the bit")

figure, plot = plt.subplots(figsize=(6, 3), layout="constrained")
plot.plot(list(sizes), list(sizes.values()), linewidth=6, color="lightgray", label="in one go")
for number, part in enumerate(parts, start=1):
    plot.plot(list(part), list(part.values()), marker="|", markevery=[0, -1], label=f"part {number}")
plot.set_xlabel("step")
plot.set_ylabel("weights that aren't zero")
plot.legend()
plt.show()

# %%
# What is on the disk
# -------------------
# The two newest checkpoints, each a folder: the model as ``rg.save`` writes it, and ``training.pt`` with the rest. That
# holds plain values and tensors, no code.

for path in sorted((folder / "parts").rglob("*.*")):
    print(path.relative_to(folder))
state = torch.load(path, weights_only=True)
print(f"{path.name}: {', '.join(state)}")

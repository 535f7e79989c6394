"""
Start small and grow
====================

Two ways to a network of a given size. By a plan, which says when, where and how many::

    plan = rg.every(20, rg.Grow(rg.GradMax(), {"0": 2, "3": 3, "6": 4}), stop=120)
    shaper = rg.Shaper(model, optimizer, plan, example=x)

or by a budget, within which the network finds its own shape::

    shaper = rg.Shaper(model, optimizer, rg.Homeostasis(flops=20.0), example=x)  # twenty times those that it has now
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import regrow as rg

# %%
# A network of four channels, and a loop
# --------------------------------------
# ``shaper.step(loss)`` returns the edits that were due. The loss is a function without arguments, which methods call
# to see gradients; it may draw a batch of its own.

digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
y = torch.tensor(digits.target)
steps = 240


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16, 10)),
    )


def train(model, plan):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    shaper = rg.Shaper(model, optimizer, plan, example=x[:2])
    widths, losses, moved = [], [], []

    def loss():
        batch = torch.randint(len(x), (64,))
        return F.cross_entropy(model(x[batch]), y[batch])

    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        for edit in shaper.step(loss):
            print(f"step {edit.step}: {edit}")
            moved.append(edit.measure(x[:64]))  # how far it has moved the model's output
        widths.append([axis.size for axis in shaper.structure])
        losses.append(value.item())
    return widths, losses, moved


# %%
# By a plan
# ---------
# Amounts are by the names of axes, as ``print(rg.analyze(model, x))`` lists them. The preview tells sizes and cost, and
# trains nothing.

plan = rg.every(20, rg.Grow(rg.GradMax(), {"0": 2, "3": 3, "6": 4}), stop=120)
print(plan.preview(small(), x[:2], steps=steps))

# %%
# ``rg.GradMax`` makes the channels for which the gradient is largest. When they come they change the output by nothing,
# under batch norm too:

planned = small()
widths, losses, moved = train(planned, plan)
assert max(moved) < 1e-5
print(f"loss {sum(losses[-20:]) / 20:.3f}, largest change of the output by an edit: {max(moved):.0e}")

# %%
# One can't have more of them at a time than the gradients have directions, and is told:

structure = rg.analyze(planned, x[:2])
try:
    rg.grow_(structure["6"], 40, rg.GradMax(), loss=lambda: F.cross_entropy(planned(x[:64]), y[:64]))
except rg.NotPermissible as error:
    print(error)

# %%
# By a budget
# -----------
# ``rg.Homeostasis`` takes a number of FLOPs (int), or a multiple of the present ones (float). ``rate=0.5`` lets up to
# half as many units come at a time as there are. ``rg.until`` ends it when nine tenths are reached; what it does from
# there on is shown in :ref:`sphx_glr_made_howto_plot_keep_the_size.py`.

target = rg.analyze(planned, x[:2]).flops()
plan = rg.until(rg.Above("flops", 0.9 * target), rg.Homeostasis(flops=int(target), period=20, rate=0.5))
found = small()
found_widths, found_losses, _ = train(found, plan)
reached = rg.analyze(found, x[:2]).flops()
assert 0.9 * target < reached <= target
print(f"loss {sum(found_losses[-20:]) / 20:.3f} at {reached / target:.0%} of the planned FLOPs")

# %%
# Both
# ----

figure, plots = plt.subplots(2, 2, figsize=(8, 5), sharex=True, sharey="row", layout="constrained")
shown = (("by a plan", widths, losses), ("by a budget", found_widths, found_losses))
for (above, below), (title, sizes, curve) in zip(plots.T, shown, strict=True):
    above.plot(sizes, label=["first", "second", "third"])
    above.set_title(title)
    below.semilogy(curve, color="gray")
    below.set_xlabel("step")
plots[0, 0].set_ylabel("channels")
plots[0, 0].legend()
plots[1, 0].set_ylabel("training loss")
plt.show()

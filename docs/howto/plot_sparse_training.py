"""
Sparse training with RigL
=========================

All but two in a hundred weights are off from the first step to the last; which ones, RigL finds while it trains. Weak
ones go, and those come whose gradients are largest::

    rg.prune_(structure.weights, rg.Sparsity(0.98, "erk"), rg.Random(), optimizer=optimizer)
    plan = rg.every(10, rg.Rewire(rg.RigL(), rg.cosine(0.3, 0.0)), stop=200)
    shaper = rg.Shaper(model, optimizer, plan, example=x)
"""

import copy

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import regrow as rg

# %%
# Off at random
# -------------
# ``structure.weights`` are the tensors whose single weights may be off. ``"erk"`` leaves small layers denser. A weight
# that is off is zero in its parameter, and a mask holds it there.

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)


def sparse():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    structure = rg.analyze(model, x[:2])
    rg.prune_(structure.weights, rg.Sparsity(0.98, "erk"), rg.Random(), optimizer=optimizer)
    return model, optimizer, structure


def train(model, optimizer, steps, shaper=None):
    for _ in range(steps):
        batch = torch.randint(1400, (128,))  # the other 397 digits are for testing
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        for edit in [] if shaper is None else shaper.step():
            if edit.step % 50 == 0:
                print(f"step {edit.step}: {edit}")


def accuracy(model):
    return (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()


model, optimizer, structure = sparse()
first = structure.weights[0].mask.sum(0)
for weights in structure.weights:
    print(weights)

# %%
# Train, and let weights move
# ---------------------------
# Every ten steps a fraction of the weights may move: three tenths at first, none at the end. RigL looks at the
# gradients of the step itself, so that ``shaper.step()`` needs no loss.

shaper = rg.Shaper(model, optimizer, rg.every(10, rg.Rewire(rg.RigL(), rg.cosine(0.3, 0.0)), stop=200), example=x[:2])
train(model, optimizer, 300, shaper)
still, still_optimizer, _ = sparse()
train(still, still_optimizer, 300)
alive, size = (sum(getattr(weights, what) for weights in structure.weights) for what in ("alive", "size"))
print(f"{1 - alive / size:.1%} of the weights are off")
print(f"test accuracy {accuracy(model):.1%}, where the masks stay as they were {accuracy(still):.1%}")

# %%
# Where the first layer looks
# ---------------------------
# Little is to be seen at the digits' margins, and weights have left them:

last = structure.weights[0].mask.sum(0)
middle = [float(on.reshape(8, 8)[:, 2:6].sum() / on.sum()) for on in (first, last)]
print("weights on in the four columns in the middle: {:.0%} at first, {:.0%} at last".format(*middle))
figure, plots = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
shown = (("weights on at first", first), ("weights on at last", last), ("mean digit", x.mean(0)))
for plot, (title, values) in zip(plots, shown, strict=True):
    plot.imshow(values.reshape(8, 8), cmap="gray")
    plot.set_title(title)
    plot.axis("off")
plt.show()

# %%
# Another optimizer
# -----------------
# An optimizer that was given to ``prune_`` or to a Shaper holds the masks by itself. One that is made later has to be
# told:

for told in (False, True):
    copied = copy.deepcopy(model)
    later = torch.optim.AdamW(copied.parameters(), lr=1e-3)
    if told:
        rg.hold_masks(copied, later)
    train(copied, later, 20)
    zero = (copied[2].weight == 0).float().mean()
    print(f"{'told' if told else 'not told'}: {zero:.0%} of the second layer's weights are zero")

# %%
# From dense to sparse
# --------------------
# Where training may begin dense, weights go along a schedule instead. Here only the preview runs:

dense = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
plan = rg.every(50, rg.Prune(rg.Magnitude(), rg.cubic(0.5, 0.95), kind="weight"), stop=200)
print(plan.preview(dense, x[:2], steps=300))

# %%
# Faster
# ------
# A mask alone makes nothing faster. For inference ``rg.to_sparse`` gives linear layers compressed rows where it
# measures, on this example, that these are faster, and says what it did.

weights = rg.analyze(dense, x[:2]).weights
rg.prune_(weights, rg.Sparsity(0.95), rg.Magnitude())
before = dense(x[:1]).detach()
for converted in rg.to_sparse(dense, x[:1]):
    print(converted)
assert torch.allclose(dense(x[:1]), before, atol=1e-5)

# %%
# On GPUs it is two of every four weights that run fast; ``rg.Pattern`` keeps the best of these:

layer = nn.Sequential(nn.Linear(64, 10))
print(rg.prune_(rg.analyze(layer, x[:2]).weights, rg.Pattern(2, 4), rg.Magnitude()))
assert bool((layer[0].weight.reshape(-1, 4).count_nonzero(1) == 2).all())

"""
Keep the size, let the shape adapt
==================================

Without a budget ``rg.Homeostasis`` keeps the FLOPs that the model has, and moves units from where they do least to
where they do most, while the model trains::

    shaper = rg.Shaper(model, optimizer, rg.Homeostasis(), example=x)

Give it a network whose widths you have guessed, and see which ones it would rather have.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import regrow as rg

# %%
# A bad guess
# -----------
# Most of the channels are where the image is large and has little to tell.

digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
y = torch.tensor(digits.target)


def guessed():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)),
    )


def train(model, plan=None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    shaper = rg.Shaper(model, optimizer, plan, example=x[:2]) if plan else None
    history = []

    def loss():
        batch = torch.randint(1400, (64,))  # the other 397 digits are for testing
        return F.cross_entropy(model(x[batch]), y[batch])

    for _ in range(180):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if shaper is not None:
            for edit in shaper.step(loss):
                if edit.step % 20 == 0:
                    print(f"step {edit.step}: {edit}; moved the output by {edit.measure(x[:64]):.2f}")
            sizes = {axis.name: axis.size for axis in shaper.structure}
            history.append({"flops": shaper.structure.flops(), **sizes})
    return history


@torch.no_grad()
def accuracy(model):
    return (model.eval()(x[1400:]).argmax(1) == y[1400:]).float().mean().item()


# %%
# As guessed, and adapting
# ------------------------
# Every ten steps, as this training is short. Of every second edit there is a line, which says how many units came and
# went. What comes leaves the output as it is; what goes moves it. So let it end some time before the training does.

static = guessed()
train(static)
adapting = guessed()
history = train(adapting, rg.until(rg.Above("step", 100), rg.Homeostasis(period=10)))

first, last = history[0]["flops"], history[-1]["flops"]
assert all(0.85 * first < entry["flops"] <= first for entry in history)
print(f"{last / first:.0%} of the FLOPs: test accuracy {accuracy(adapting):.1%}, as guessed {accuracy(static):.1%}")

# %%
# What is kept is FLOPs of a forward pass. Parameters may rise, as weights of late layers cost few FLOPs; to keep these,
# say so:

lean = guessed()
train(lean, rg.until(rg.Above("step", 100), rg.Homeostasis(params=1.0, period=10)))
for name, model in (("as guessed", static), ("FLOPs kept", adapting), ("parameters kept", lean)):
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, test accuracy {accuracy(model):.1%}")

# %%
# Where the units went
# --------------------

names = ["first conv", "second conv", "third conv", "linear"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5), sharey=True, layout="constrained")
for axis, name in zip(("0", "3", "6", "10"), names, strict=True):
    left.plot([entry[axis] for entry in history], label=name)
left.set_xlabel("step")
left.set_ylabel("units")
left.legend(loc="center right")
right.bar(names, [24, 4, 4, 16], width=-0.4, align="edge", label="as guessed")
right.bar(names, [history[-1][axis] for axis in ("0", "3", "6", "10")], width=0.4, align="edge", label="adapted")
right.legend()
plt.show()

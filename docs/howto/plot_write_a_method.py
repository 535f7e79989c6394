"""
Write a method of your own
==========================

A method is a frozen dataclass. With ``score`` it prunes, with ``fresh`` it grows; its fields are its configuration::

    @rg.register
    @dataclass(frozen=True)
    class Mine:
        name: ClassVar[str] = "mine"

        def score(self, axis, seen): ...  # one number for each unit
"""

from dataclasses import dataclass
from typing import ClassVar

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import regrow as rg
from regrow.rows import laid_out, rows_of

# %%
# One that prunes
# ---------------
# ``axis.entries`` are the places of an axis in the model's tensors, each with a role: "out" makes the units, "in" reads
# them, "tied" does both, and of norms there are "scale", "shift", "mean" and "var". ``rows_of`` lays any of these out
# as one row a unit. The units with the lowest scores go, over all axes alike.


@rg.register
@dataclass(frozen=True)
class Redundant:
    """Units go that look in the direction in which another one looks."""

    name: ClassVar[str] = "redundant"
    opposite: bool = False  # whether the opposite direction counts as well

    def score(self, axis, seen):
        made = [rows_of(entry, entry.tensor.detach(), axis.size).flatten(1) for entry in axis.with_role("out", "tied")]
        directions = F.normalize(torch.cat(made, 1), dim=1)
        alike = directions @ directions.T
        alike = (alike.abs() if self.opposite else alike).fill_diagonal_(-1.0)  # nobody is redundant to itself
        return 1 - alike.amax(1)


torch.manual_seed(0)
net = nn.Sequential(nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 2))
net[0].weight.data[3] = -2 * net[0].weight.data[1]  # they look in opposite directions
axis = rg.analyze(net, torch.rand(2, 32))["0"]
for method in (Redundant(), Redundant(opposite=True)):
    print(method, [round(score, 1) for score in method.score(axis, {}).tolist()])

# %%
# One that grows
# --------------
# ``fresh`` gives the values of ``num`` new units for some of the entries. What it leaves out is zero: here "in", so
# that nobody reads them yet and the function stays. Whatever is random comes from the generator.


@rg.register
@dataclass(frozen=True)
class Opposite:
    """New units see what old ones see with the other sign: behind a ReLU they speak where those are silent."""

    name: ClassVar[str] = "opposite"

    def fresh(self, axis, num, seen, generator):
        signs = {"out": -1, "shift": -1, "mean": -1, "tied": 1, "scale": 1, "var": 1}
        chosen = torch.randint(axis.size, (num,), generator=generator)
        rows = {}
        for entry in axis.with_role(*signs):
            old = rows_of(entry, entry.tensor.detach(), axis.size)
            rows[entry] = signs[entry.role] * old[chosen.to(old.device)]
        return laid_out(axis, rows)


# %%
# The laws
# --------
# ``rg.testing.check_method`` edits small networks, with and without batch norm, and holds a method to what all keep. It
# raises ``AssertionError`` where a law is broken; those that a method breaks by design it names in ``breaks``.

for method in (Redundant(), Opposite()):
    rg.testing.check_method(method)
    print(method, "keeps", ", ".join(dict.fromkeys(law.rule.__name__ for law in rg.testing.laws_of(method))))
try:
    rg.testing.check_method(rg.Random(epsilon=0.1))  # new units that are read from the start
except AssertionError as error:
    print(f"{str(error)[:130]}…")

# %%
# In a plan
# ---------
# As any other method: grow by the one, prune by the other, and write it down as JSON.

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
y = torch.tensor(digits.target)
model = nn.Sequential(
    *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
    *(nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(128, 10)),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
plan = rg.chain(
    rg.every(20, rg.Grow(Opposite(), 4), stop=80),
    rg.every(20, rg.Prune(Redundant(opposite=True), 0.15), start=100, stop=160),
)
assert rg.plan_from_json(rg.plan_to_json(plan)) == plan
shaper = rg.Shaper(model, optimizer, plan, example=x[:2])
widths = []
for _ in range(220):
    batch = torch.randint(1400, (64,))  # the other 397 digits are for testing
    optimizer.zero_grad()
    F.cross_entropy(model(x[batch]), y[batch]).backward()
    optimizer.step()
    for edit in shaper.step():
        print(f"step {edit.step}, {edit.method}: {edit}")
    widths.append([axis.size for axis in shaper.structure])
accuracy = (model.eval()(x[1400:]).argmax(1) == y[1400:]).float().mean()
print(f"test accuracy {accuracy:.1%}")

figure, plot = plt.subplots(figsize=(6, 3), layout="constrained")
plot.plot(widths, label=["first convolution", "second convolution"])
plot.set_xlabel("step")
plot.set_ylabel("channels")
plot.legend()
plt.show()

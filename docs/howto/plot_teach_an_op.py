"""
Teach it an operator of your own
================================

An operator that regrow doesn't know freezes what it touches; nothing is guessed. A rule of a few lines says how its
tensors belong together::

    @rg.rule("mylib::swish")
    def swish_rule(trace, call): ...

and ``structure.verify()`` holds the rule to real numbers. A pointwise operator only needs torch's tag for such.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import regrow as rg

# %%
# An operator that nobody knows
# -----------------------------
# Swish with a slope for each feature, as if it were a kernel of your own.


def kernel(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(slope * x)


def backward(ctx, grad):
    x, slope = ctx.saved_tensors
    gate = torch.sigmoid(slope * x)
    bent = grad * x * gate * (1 - gate)
    return grad * gate + bent * slope, (bent * x).sum(0)


swish = torch.library.custom_op("mylib::swish", kernel, mutates_args=())
swish.register_fake(lambda x, slope: torch.empty_like(x))
swish.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


class Net(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.operator, self.slope = operator, nn.Parameter(torch.ones(12))

    def forward(self, x):
        return self.last(torch.relu(self.second(self.operator(self.first(x), self.slope))))


# %%
# At first
# --------
# ``structure.unknown`` names the call, and ``structure.frozen`` what it has frozen: here the first layer's units. The
# second layer's can change all the same.

torch.manual_seed(0)
model, x = Net(swish), torch.randn(32, 6)
structure = rg.analyze(model, x)
without = {axis.name: axis.size for axis in structure}
print(structure.unknown, without)
for frozen in structure.frozen:
    if "mylib" in frozen.reason:
        print(f"{frozen.name}, dimension {frozen.dim}: {frozen.reason}")

# %%
# A rule that says too little
# ---------------------------
# A rule asks ``trace.of`` what a tensor carries: fields, which are labels over some of its dimensions. It takes the
# call's arguments by name, and sets what the output carries. This one lets the labels of ``x`` pass, and forgets that
# ``slope`` lies along the same features. The numbers find that out:


@rg.rule("mylib::swish")
def forgetful(trace, call):
    known = trace.of(call["x"])
    trace.set(call.out, known.fields, known.origin)


print(rg.analyze(model, x).verify())

# %%
# One that says it all
# --------------------
# ``trace.relations.equate``: these labels are the same. A later rule takes an earlier one's place.


@rg.rule("mylib::swish")
def swish_rule(trace, call):
    known, along = trace.of(call["x"]), trace.of(call["slope"])
    for features in known.fields:
        for slopes in along.fields:
            trace.relations.equate(features.labels, slopes.labels)
    trace.set(call.out, known.fields, known.origin)


structure = rg.analyze(model, x)
print(structure.verify())
print([f"{entry.name}, dimension {entry.dim}" for entry in structure["first"].entries])
assert not structure.unknown

# %%
# Now the first layer grows and is pruned as any other, and ``slope`` with it:

edit = rg.grow_(structure["first"], 4, rg.GradMax(), loss=lambda: model(x).square().mean())
print(f"{edit}; the output moved by {edit.measure(x):.0e}; slope has {len(model.slope)} numbers")
print(rg.prune_(structure["first"], 6, rg.Taylor(), loss=lambda: model(x).square().mean()))
assert model.slope.shape == (10,)

# %%
# Or say that it is pointwise
# ---------------------------
# Then the rule for pointwise calls holds, which goes by how the arguments broadcast:

tagged = torch.library.custom_op("mylib::tagged", kernel, mutates_args=(), tags=torch.Tag.pointwise)
tagged.register_fake(lambda x, slope: torch.empty_like(x))
known = rg.analyze(Net(tagged), x)
assert not known.unknown
print([axis.name for axis in known], known.verify())

# %%
# What may change
# ---------------

figure, plot = plt.subplots(figsize=(5, 3), layout="constrained")
found = {axis.name: axis.size for axis in known}
plot.bar(list(found), [without.get(name, 0) for name in found], width=-0.4, align="edge", label="without a rule")
plot.bar(list(found), list(found.values()), width=0.4, align="edge", label="with one")
plot.set_ylabel("units that may come and go")
plot.legend()
plt.show()

"""
Make a ResNet smaller by half in FLOPs
======================================

One call takes whole channels out until half of the FLOPs are left::

    structure = rg.analyze(model, x[:2])
    edit = rg.prune_(structure, rg.Budget(flops=0.5), rg.Taylor(), loss=loss, optimizer=optimizer, round_to=8)

The model is changed in place and stays an ordinary torchvision ResNet, only narrower. Train on for a little behind it.
"""

import tempfile

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits

import regrow as rg

# %%
# A ResNet-18, trained for a moment
# ---------------------------------
# Scanned digits, enlarged to 16 x 16 pixels, stand in for your data.

torch.manual_seed(0)
digits = load_digits()
x = F.interpolate(torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, scale_factor=2).repeat(1, 3, 1, 1)
y = torch.tensor(digits.target)
model = torchvision.models.resnet18(num_classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)


def loss():
    batch = torch.randint(1400, (32,))  # the other 397 digits are for testing
    return F.cross_entropy(model(x[batch]), y[batch])


@torch.no_grad()
def accuracy(model):
    model.eval()
    right = (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
    model.train()
    return right


for _ in range(36):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
print(f"trained: test accuracy {accuracy(model):.1%}")

# %%
# Which method?
# -------------
# ``edit.undo_()`` brings everything back to the bit, so several can be tried on the same model:

structure = rg.analyze(model, x[:2])
half, widths = rg.Budget(flops=0.5), {axis.name: axis.size for axis in structure}
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
for method, seen in ((rg.Magnitude(), None), (rg.L1(), loss), (rg.Taylor(), loss)):
    edit = rg.prune_(structure, half, method, loss=seen, optimizer=optimizer, round_to=8)
    print(f"{method.name:9}: {edit}; test accuracy {accuracy(model):.1%}")
    edit.undo_()
assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

# %%
# * ``rg.Magnitude()`` needs no data: above it was given no loss.
# * ``rg.L1()`` goes by the scales of batch norm. It is made for plans, in which its penalty makes scales small before
#   their channels go (below).
# * ``rg.Taylor()`` asks the loss what each channel does. Take it for a model that was trained without a penalty.
#
# Accuracy straight behind a cut says little. Compare methods once the model has trained on.
#
# Halve it, and train on
# ----------------------
# ``optimizer=`` lets momentum follow. ``round_to=8`` keeps sizes that hardware likes.

edit = rg.prune_(structure, half, rg.Taylor(), loss=loss, batches=4, optimizer=optimizer, round_to=8)
print(f"{edit}; test accuracy {accuracy(model):.1%}")
assert edit.flops[1] <= 0.5 * edit.flops[0]
assert all(axis.size % 8 == 0 for axis in structure)
for _ in range(20):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
print(f"after 20 steps more: test accuracy {accuracy(model):.1%}")
halved = {axis.name: axis.size for axis in structure}

# %%
# Further, while it trains
# ------------------------
# A plan does it little by little: with L1's penalty on the scales, until a quarter of the FLOPs is left. What a plan
# waits for is said in FLOPs of a forward pass on the example.

quarter = 0.25 * edit.flops[0]
plan = rg.until(rg.Below("flops", quarter), rg.every(5, rg.Prune(rg.L1(1e-3), 0.15, round_to=8)))
shaper = rg.Shaper(model, optimizer, plan, example=x[:2])
for _ in range(40):
    optimizer.zero_grad()
    (loss() + shaper.penalty()).backward()
    optimizer.step()
    for edit in shaper.step(loss):
        print(f"step {edit.step}: {edit}")
print(f"{shaper.structure.flops() / quarter / 4:.1%} of the FLOPs: test accuracy {accuracy(model):.1%}")

# %%
# Where the channels were
# -----------------------

figure, plot = plt.subplots(figsize=(8, 3.5), layout="constrained")
for label, sizes in (("at first", widths), ("half of the FLOPs", halved)):
    plot.bar(list(sizes), list(sizes.values()), label=label)
plot.bar([axis.name for axis in shaper.structure], [axis.size for axis in shaper.structure], label="a quarter")
plot.set_ylabel("channels")
plot.tick_params(axis="x", rotation=60)
plot.legend()
plt.show()

# %%
# Save it, load it
# ----------------
# Two files, no pickle. Loading takes the model as its code builds it, and gives it the shapes.

folder = tempfile.mkdtemp()
rg.save(model, folder)
loaded = rg.load(folder, torchvision.models.resnet18(num_classes=10))
assert torch.equal(loaded.eval()(x[:8]), model.eval()(x[:8]))
print(f"loaded: {sum(p.numel() for p in loaded.parameters()):,} parameters, test accuracy {accuracy(loaded):.1%}")

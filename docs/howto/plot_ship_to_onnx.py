"""
Ship to ONNX after pruning
==========================

A pruned model is an ordinary one with smaller tensors, and is exported as any other::

    torch.onnx.export(model.eval(), (x,), "model.onnx", dynamo=True)

Weights that masks have off are zeros in the parameters already. Gates, if there are any, are folded first.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import regrow as rg

# %%
# Prune a network that has gates
# ------------------------------
# Where there is no batch norm, ``rg.add_gates_`` gives each unit a factor that L1 can drive to zero.

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
y = torch.tensor(digits.target)
model = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)),
)
whole = sum(p.numel() for p in model.parameters())
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
structure = rg.add_gates_(rg.analyze(model, x[:2]), optimizer)
at_first = {axis.name: axis.size for axis in structure}
print([name for name, _ in model.named_parameters() if "gate" in name])

plan = rg.chain(
    rg.every(20, rg.Prune(rg.L1(1e-3), 0.2, min_size=16), stop=80),
    rg.at(100, rg.Prune(rg.Magnitude(), 0.5, kind="weight")),
)
shaper = rg.Shaper(model, optimizer, plan, example=x[:2])


def loss():
    batch = torch.randint(1400, (64,))  # the other 397 digits are for testing
    return F.cross_entropy(model(x[batch]), y[batch])


for _ in range(160):
    optimizer.zero_grad()
    (loss() + shaper.penalty()).backward()
    optimizer.step()
    for edit in shaper.step(loss):
        print(f"step {edit.step}: {edit}")

# %%
# Fold the gates
# --------------
# They are multiplied into the weights that they are on, which changes nothing. What is left are convolutions and linear
# layers as they were, with fewer channels.

model.eval()
with torch.no_grad():
    expected = model(x)
structure = rg.fold_gates_(shaper.structure, optimizer)
with torch.no_grad():
    assert torch.allclose(model(x), expected, atol=1e-5)
print(model)

# %%
# Export
# ------
# With any number of images in a batch, for ONNX and for ``torch.export``.

path = Path(tempfile.mkdtemp()) / "model.onnx"
batches = ({0: torch.export.Dim.DYNAMIC},)
torch.onnx.export(model, (x[:8],), path, dynamo=True, dynamic_shapes=batches, external_data=False, verbose=False)
exported = torch.export.export(model, (x[:8],), dynamic_shapes=batches)
with torch.no_grad():
    assert torch.allclose(exported.module()(x), expected, atol=1e-5)

# %%
# Run it, on all digits, and compare:

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
(found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
found = torch.from_numpy(found)
print(f"largest difference to torch: {(found - expected).abs().max():.0e}")
print(f"test accuracy by onnxruntime: {(found[1400:].argmax(1) == y[1400:]).float().mean():.1%}")
assert torch.allclose(found, expected, atol=1e-4)

# %%
# The file has the smaller tensors, with the masks' zeros in them:

tensors = [torch.from_numpy(onnx.numpy_helper.to_array(held).copy()) for held in onnx.load(path).graph.initializer]
weights = [tensor for tensor in tensors if tensor.ndim > 1]
size, zeros = sum(t.numel() for t in weights), sum(int((t == 0).sum()) for t in weights)
print(f"{size:,} of {whole:,} parameters, {zeros / size:.0%} of them zero, {path.stat().st_size / 1024:.0f} KiB")

figure, plot = plt.subplots(figsize=(5, 3), layout="constrained")
plot.bar(["first conv", "second conv", "linear"], list(at_first.values()), color="lightgray", label="as built")
plot.bar(["first conv", "second conv", "linear"], [axis.size for axis in structure], label="shipped")
plot.set_ylabel("units")
plot.legend()
plt.show()

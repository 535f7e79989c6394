"""
Prune heads of a Hugging Face model
===================================

Attention heads are axes of their own kind, each head one unit, and leave as channels do::

    structure = rg.analyze(model, tokens)
    heads = structure.select(kind="head")
    rg.prune_(heads, {axis.name: 0.5 for axis in heads}, rg.Taylor(), loss=loss, optimizer=optimizer)
    rg.save_pretrained(model, "smaller/")  # for from_pretrained
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import regrow as rg

# %%
# A small Llama
# -------------
# It learns to write Python, letter by letter, from a file that is on every machine.

torch.manual_seed(0)
text = torch.tensor(list(Path(argparse.__file__).read_bytes())).clamp(max=127)
learnt, unseen = text[:-8192], text[-8192:].reshape(-1, 64)
sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=8))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)


def loss():
    batch = learnt[torch.randint(len(learnt) - 64, (16, 1)) + torch.arange(64)]
    return model(batch, labels=batch).loss


def train(steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


@torch.no_grad()
def test(model):
    return model(unseen, labels=unseen).loss.item()


train(80)
print(f"loss on unseen text: {test(model):.3f}")

# %%
# Its heads
# ---------

structure = rg.analyze(model, unseen[:2])
heads = structure.select(kind="head")
for axis in heads:
    print(axis)

# %%
# What is each worth? Taken out one at a time, and put back to the bit:

whole, losses = test(model), []
for axis in heads:
    for head in range(axis.size):
        edit = rg.prune_(axis, [head])
        losses.append(test(model) - whole)
        edit.undo_()
assert test(model) == whole

figure, plot = plt.subplots(figsize=(7, 2.5), layout="constrained")
image = plot.imshow(torch.tensor(losses).reshape(len(heads), -1), cmap="Reds")
plot.set_yticks(range(len(heads)), [f"layer {number}" for number in range(len(heads))])
plot.set_xlabel("head")
figure.colorbar(image, label="loss without it, more")
plt.show()

# %%
# Half of them
# ------------
# ``rg.Taylor`` estimates the same from gradients, for all heads at once. A number or a fraction is of all layers
# together, which may then have different numbers of heads. No configuration of a Llama can say that:

edit = rg.prune_(heads, 3, rg.Taylor(), loss=loss, batches=4, optimizer=optimizer)
print(edit.sizes)
try:
    rg.check_pretrained(model)
except ValueError as error:
    print(error)
edit.undo_()

# %%
# So let every layer lose as many:

edit = rg.prune_(heads, {axis.name: 0.5 for axis in heads}, rg.Taylor(), loss=loss, batches=4, optimizer=optimizer)
print(edit.sizes)
print(f"loss with half of the heads: {test(model):.3f}")
train(30)
print(f"after 30 steps more: {test(model):.3f}")

# %%
# Save it for others
# ------------------
# The configuration that is saved says the new numbers. Whoever loads it needs no regrow.

folder = tempfile.mkdtemp()
rg.save_pretrained(model, folder)
again = LlamaForCausalLM.from_pretrained(folder)
print(f"{again.config.num_attention_heads} heads in each layer, loss {test(again):.3f}")
assert torch.equal(again(unseen).logits, model(unseen).logits)

# %%
# BERT's configuration can't say fewer heads at all: there a head is as wide as the model divided by their number. What
# no configuration can say, ``rg.save`` and ``rg.load`` keep:

sizes["num_attention_heads"] = 8
bert = BertModel(BertConfig(**sizes)).eval()
heads = rg.analyze(bert, unseen[:2]).select(kind="head")
rg.prune_(heads, {axis.name: 0.5 for axis in heads}, rg.L1())
try:
    rg.save_pretrained(bert, folder)
except ValueError as error:
    print(f"{str(error)[:120]}…")
folder = tempfile.mkdtemp()
rg.save(bert, folder)
loaded = rg.load(folder, BertModel(BertConfig(**sizes)).eval())
assert torch.equal(loaded(unseen[:8]).pooler_output, bert(unseen[:8]).pooler_output)

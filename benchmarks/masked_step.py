"""What do masks add to a training step, and what does moving weights by RigL take beside a forward and backward pass?

One model trains with one optimizer, its steps in turn with its masks and without. RigL looks at the gradients of the
step that it follows, as in a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from common import interleaved, paired_ratio, repeats, seconds, summary, write

import regrow as rg
from regrow.bench.models import VGG11_WIDTHS, scaled, vgg11
from regrow.masks import masks_on
from regrow.weight_operations import rewire_weights

MASKED, UPDATE = 1.05, 0.3


def main() -> None:
    number = repeats("Training steps with masks against dense ones, and RigL's updates.", 100)
    cases = {
        "vgg11, width 1/4, batch 128, 32x32": (vgg11(scaled(VGG11_WIDTHS, 0.25), 3, 10), (128, 3, 32, 32)),
        "resnet18, batch 32, 64x64": (torchvision.models.resnet18(num_classes=10), (32, 3, 64, 64)),
    }
    steps, updates = [], []
    for name, (model, shape) in cases.items():
        torch.manual_seed(0)
        x, y = torch.randn(shape), torch.randint(10, shape[:1])
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        structure = rg.analyze(model, x)
        rg.prune_(structure.weights, rg.Sparsity(0.9, "erk"), rg.Random(), optimizer=optimizer)
        stores = [(masks_on(weights.owner), weights.attribute) for weights in structure.weights]
        masks = [store[attribute] for store, attribute in stores if attribute in store]
        stores = [(store, attribute) for store, attribute in stores if attribute in store]

        def forward_backward(model: Any = model, x: Any = x, y: Any = y) -> None:
            F.cross_entropy(model(x), y).backward()

        def train(masked: bool, stores: Any = stores, masks: Any = masks, optimizer: Any = optimizer) -> float:
            for (store, attribute), mask in zip(stores, masks, strict=True):
                if masked:
                    store[attribute] = mask
                else:
                    store.pop(attribute)

            def step() -> None:
                forward_backward()
                optimizer.step()
                optimizer.zero_grad()

            taken = seconds(step)
            for (store, attribute), mask in zip(stores, masks, strict=True):
                store[attribute] = mask
            return taken

        contestants: dict[str, Callable[[], float]] = {"dense": lambda: train(False), "masked": lambda: train(True)}
        times = interleaved(contestants, number)
        steps.append(_row(name, "masked", times["masked"], times["dense"], MASKED, number))

        def update(structure: Any = structure, optimizer: Any = optimizer) -> float:
            forward_backward()
            gradients = {weights.tensor: weights.tensor.grad for weights in structure.weights}
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(0)
            found: list[Any] = []
            taken = seconds(
                lambda: found.append(
                    rewire_weights(structure.weights, 0.3, rg.RigL(), optimizer, generator, lambda _: gradients)
                )
            )
            found[0].undo_()
            return taken

        def passes(optimizer: Any = optimizer) -> float:
            taken = seconds(forward_backward)
            optimizer.zero_grad()
            return taken

        times = interleaved({"pass": passes, "update": update}, max(3, number // 5))
        updates.append(_row(name, "rigl", times["update"], times["pass"], UPDATE, max(3, number // 5)))
    write("masked_step", "training step with masks / without", f"at most {MASKED}", steps)
    write("rigl_update", "moving weights by RigL / a forward and backward pass", f"at most {UPDATE}", updates)


def _row(model: str, edit: str, time: list[float], plain: list[float], goal: float, number: int) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model, "edit": edit, "ratio": paired_ratio(time, plain)}
    return row | {"met": row["ratio"] <= goal, "repeats": number, "plain": summary(plain), "time": summary(time)}


if __name__ == "__main__":
    main()

"""A ResNet loses half of its FLOPs in the middle of its training, and goes on."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import regrow as rg

LR, MOMENTUM = 0.01, 0.9


def resnet(seed: int = 0) -> nn.Module:
    """torchvision's ResNet-18, for ten classes."""
    torch.manual_seed(seed)
    return torchvision.models.resnet18(weights=None, num_classes=10)


def torch_pruning_halves(model: Any, x: Tensor, ratio: float, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """Torch-Pruning: channels go, ``ratio / steps`` of each layer at a time, until half of the FLOPs are left."""
    import torch_pruning as tp

    by = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.BasePruner(model, x, by, pruning_ratio=ratio, iterative_steps=steps, ignored_layers=[model.fc])
    before = tp.utils.count_ops_and_params(model, x)[0]
    while tp.utils.count_ops_and_params(model, x)[0] > before / 2:
        pruner.step()
    model.train()  # it was left in eval mode
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM), pruner  # the old one holds what is no more


def regrow_halves(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> rg.Edit:
    """regrow: as few units as possible go, those with the smallest weights over all layers, until half is left."""
    structure = rg.analyze(model, x)
    return rg.prune_(structure, rg.Budget(flops=0.5), rg.GroupNorm(), optimizer=optimizer)

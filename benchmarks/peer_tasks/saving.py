"""A pruned model is saved and loaded, no module of it being pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regrow as rg


def torch_pruning_saves(model: nn.Module, pruner: Any, fresh: nn.Module, x: Tensor, file: Path) -> nn.Module:
    """Torch-Pruning: weights, and the history of what went, which is done again to a fresh model."""
    import torch_pruning as tp

    torch.save({"weights": model.state_dict(), "history": pruner.pruning_history()}, file)
    saved = torch.load(file)
    tp.DependencyGraph().build_dependency(fresh, x).load_pruning_history(saved["history"])
    fresh.load_state_dict(saved["weights"])
    return fresh


def regrow_saves(model: nn.Module, fresh: nn.Module, folder: Path) -> nn.Module:
    """regrow: weights and shapes."""
    rg.save(model, folder)
    return rg.load(folder, fresh)

"""Integers in Python follow, wherever a module keeps them: edits, undo, and saved models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regrow as rg


class Convolution(nn.Module):
    """A convolution that keeps its arguments as ``kept`` says."""

    def __init__(self, channels: int, width: int, groups: int, kept: str) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, channels // groups, 3, 3))
        self.kept = kept
        if kept == "attribute":
            self.number_of_parts = groups
        elif kept == "tuple":
            self.arguments: Any = (1, 1, 1, groups)
        elif kept == "list":
            self.arguments = [1, 1, 1, groups]
        else:
            self.arguments = {"padding": 1, "groups": groups}

    def forward(self, x: Tensor) -> Tensor:
        if self.kept == "attribute":
            return F.conv2d(x, self.kernel, padding=1, groups=self.number_of_parts)
        if self.kept == "dict":
            return F.conv2d(x, self.kernel, None, **self.arguments)
        return F.conv2d(x, self.kernel, None, *self.arguments)

    def groups(self) -> int:
        if self.kept == "attribute":
            return self.number_of_parts
        return self.arguments["groups"] if self.kept == "dict" else self.arguments[3]


def network(kept: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        Convolution(3, 12, 1, kept), nn.ReLU(), Convolution(12, 12, 12, kept), Convolution(12, 8, 4, kept),
        nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5),
    )  # fmt: skip


def groups(model: nn.Module) -> list[int]:
    return [module.groups() for module in model.modules() if isinstance(module, Convolution)]


@pytest.mark.parametrize("kept", ["attribute", "tuple", "list", "dict"])
def test_the_groups_of_a_convolution_follow_wherever_they_are_kept(kept: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 6, 6)
    model = network(kept)
    before = model(x)
    structure = rg.analyze(model, x)
    # Twelve channels in four groups of three, each group read by two units; the depthwise groups move with them.
    assert {(axis.kind, axis.size) for axis in structure.axes} == {("head", 4), ("neuron", 3), ("neuron", 2)}
    [heads] = structure.select(kind="head")
    edit = rg.grow_(heads, 1)
    assert groups(model) == [1, 15, 5]
    torch.testing.assert_close(model(x), before)
    rg.save(model, tmp_path)
    loaded = rg.load(tmp_path, network(kept))
    assert torch.equal(loaded(x), model(x))
    edit.undo_()
    assert groups(model) == [1, 12, 4]
    assert torch.equal(model(x), before)
    heads.silence_([1])
    silent = model(x)
    rg.prune_(heads, [1])
    assert groups(model) == [1, 9, 3]
    torch.testing.assert_close(model(x), silent)

"""Edits around weights that are computed, memory layouts, and positions that nobody reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import regrow as rg
from state import differences, snapshot


def test_undoing_a_growth_leaves_spectral_norms_where_they_were() -> None:
    model: Any = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 5))
    axis = rg.analyze(model, torch.randn(9, 6))["0"]
    saved = snapshot(model)
    rg.grow_(axis, 2).undo_()
    assert differences(saved, snapshot(model)) == []


def test_undoing_a_split_keeps_the_memory_layout() -> None:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3)]
    model: Any = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 8, 8)
    axis = rg.analyze(model, x)["0"]
    before = [p.stride() for p in model.parameters()]
    rg.grow_(axis, 2, rg.Firefly(new=0.0), loss=lambda: model(x).square().mean()).undo_()
    assert [p.stride() for p in model.parameters()] == before


def test_pruning_between_weight_norms_stays_finite_and_is_undone() -> None:
    norm = nn.utils.parametrizations.weight_norm
    model: Any = nn.Sequential(norm(nn.Linear(6, 8)), nn.Tanh(), norm(nn.Linear(8, 5)))
    x = torch.randn(9, 6)
    saved = snapshot(model)
    edit = rg.prune_(rg.analyze(model, x)["0"], 0.25, rg.L1())
    assert model(x).isfinite().all()
    edit.undo_()
    assert differences(saved, snapshot(model)) == []


def test_units_that_are_divided_by_their_length_cannot_come_with_zero_incoming_weights() -> None:
    model: Any = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 5))
    axis = rg.analyze(model, torch.randn(9, 6))["0"]
    with pytest.raises(rg.NotPermissible, match="divided by its own length"):
        rg.grow_(axis, 2, rg.Random(zero="incoming"))


def test_unread_positions_are_no_units() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("ids", torch.arange(12)[None])
            self.words, self.places, self.head = nn.Embedding(9, 6), nn.Embedding(12, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.words(x) + self.places(self.ids[:, : x.shape[1]]))

    model = Positions()
    structure = rg.analyze(model, torch.randint(0, 9, (2, 5)))
    assert [axis.name for axis in structure.axes] == ["words"]
    rg.prune_(structure, 0.34)
    assert model.words.weight.shape == (9, 4)

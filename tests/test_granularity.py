"""Every field of the table of granularities: what it says can be done is done, and really changes the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regrow as rg
from depth_models import build
from granularity import DIRECTIONS, EMPTY, GRANULARITIES, MODELS, PAGE, page_with_table

FIELDS = [(m, g, d) for m in MODELS for g in GRANULARITIES for d in DIRECTIONS]


def _loss(model: Any, x: Tensor) -> Tensor:
    out = model(x)
    return (out if isinstance(out, Tensor) else out.logits).square().mean()


@pytest.mark.parametrize(("model_name", "granularity", "direction"), FIELDS)
def test_a_field(model_name: str, granularity: str, direction: str) -> None:
    model, x = build(MODELS[model_name])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    _loss(model, x).backward()
    optimizer.step()
    structure = rg.analyze(model, x)
    parts = structure.select(kind=granularity)
    able = [
        p for p in parts if granularity == "weight" or getattr(p, {"grow": "growable", "prune": "prunable"}[direction])
    ]
    if (model_name, granularity, direction) in EMPTY:
        assert not able
        return
    given: dict[str, Any] = {"optimizer": optimizer, "loss": lambda: _loss(model, x)}
    size = sum(parameter.numel() for parameter in model.parameters())
    if granularity == "weight":
        edit = rg.prune_(able, 0.5, **given)
        edit = edit if direction == "prune" else rg.grow_(able, 0.1, **given)
        alive = sum(weights.alive for weights in structure.weights)
        assert alive == sum(int(weights.mask.sum()) for weights in structure.weights)
        assert not any(bool(weights.tensor[~weights.mask].any()) for weights in structure.weights)
    else:
        target = able[: 1 if granularity == "cell" else 3]
        if direction == "grow":
            edit = rg.grow_(target, 1, **given)
            assert sum(parameter.numel() for parameter in model.parameters()) > size
        else:
            edit = rg.prune_(target, 1, **given)
            assert sum(parameter.numel() for parameter in model.parameters()) < size
            assert structure.flops() <= edit.flops[0]
    assert (edit.params[1] > edit.params[0]) == (direction == "grow")
    _loss(model, x).backward()
    optimizer.step()
    edit_again = rg.analyze(model, x)
    assert [axis.name for axis in edit_again.axes] == [axis.name for axis in structure.axes]


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text()
    assert page_with_table(text) == text

"""Layers that leave by being folded: what feeds them does what both did."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regrow as rg
from depth_models import build
from state import differences, snapshot


def test_every_batch_norm_of_a_resnet_folds_into_its_convolution() -> None:
    model, x = build("torchvision resnet18")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(x).sum().backward()
    optimizer.step()
    structure = rg.analyze(model.eval(), x)
    with torch.no_grad():
        before = model(x)
    state = snapshot(model, optimizer)
    norms = [layer for layer in structure.layers if "bn" in layer.name or "downsample.1" in layer.name]
    edits = []
    for number in range(len(norms)):
        norm = next(la for la in structure.layers if type(la.module) is nn.BatchNorm2d)
        edits.append(rg.prune_(norm, 1, fold=True, optimizer=optimizer))
        with torch.no_grad():
            assert float((model(x) - before).abs().max()) <= 1e-4 * float(before.abs().max()), number
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert set(model.parameters()) == held
    for edit in reversed(edits):
        edit.undo_()
    assert differences(state, snapshot(model, optimizer)) == []


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_chain_folds_into_one_layer(bias: bool) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.Conv2d(6, 9, 1, bias=bias)
    model = nn.Sequential(first, second, nn.ReLU(), nn.Flatten(), nn.Linear(9 * 16, 7), nn.Linear(7, 5)).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    structure = rg.analyze(model, x)
    before = model(x).detach()
    for name in ("1", "5"):
        layer = next(layer for layer in structure.layers if layer.name == name)
        edit = rg.prune_(layer, 1, fold=True)
        assert edit.params[1] != edit.params[0]
        torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert [type(module).__name__ for module in model] == ["Conv2d", "ReLU", "Flatten", "Linear"]
    assert (first.out_channels, structure["0"].size) == (9, 9)


def test_what_cannot_be_folded_is_refused() -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2)
    )
    structure = rg.analyze(model, torch.randn(3, 4))
    before = snapshot(model)
    for name, why in (("2", "no single layer"), ("4", "neither scales")):
        layer = next(layer for layer in structure.layers if layer.name == name)
        with pytest.raises(rg.NotPermissible, match=why):
            rg.prune_(layer, 1, fold=True)
    assert differences(before, snapshot(model)) == []

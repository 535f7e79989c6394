"""Sparse forms are taken where they compute the same, and it is said where they aren't."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regrow as rg
from regrow import sparse


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 8))
    structure = rg.analyze(model, torch.randn(2, 64))
    rg.prune_(structure.weights[:2], 0.9)
    return model


def test_what_is_faster_is_taken_and_computes_the_same(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_ratio", lambda one, other: 0.5)
    x = torch.randn(5, 64)
    before = net(x)
    found = rg.to_sparse(net, x)
    assert [(each.name, each.form, each.times_dense) for each in found] == [
        ("0", "csr", 0.5), ("2", "csr", 0.5), ("4", "dense", None),
    ]  # fmt: skip
    assert found[2].reason == "none of its weights are zero"
    torch.testing.assert_close(net(x), before)
    assert net[0].weight.layout is torch.sparse_csr  # type: ignore[index]


def test_what_is_slower_stays_and_says_so(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_ratio", lambda one, other: 1.5)
    before = [parameter.clone() for parameter in net.parameters()]
    found = rg.to_sparse(net, torch.randn(5, 64))
    assert [each.form for each in found] == ["dense"] * 3
    expected = f"0: {found[0].sparsity:.0%} sparse, dense, 1.50 of the dense time: csr isn't faster here"
    assert str(found[0]) == expected
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


def test_times_are_measured() -> None:
    slow, fast = torch.randn(300, 300), torch.randn(3, 3)
    assert sparse._ratio(lambda: slow @ slow, lambda: fast @ fast) > 1

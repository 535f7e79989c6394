"""The proof on numbers finds nothing where the analysis is right, and something where it is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import awkward
import regrow as rg
from regrow.structure.axis import Verdict
from state import differences, snapshot


@pytest.mark.parametrize("name", awkward.NAMES)
def test_what_is_offered_stands_the_comparison(name: str) -> None:
    structure = rg.analyze(awkward.build(name), awkward.example())
    found = structure.verify()
    assert found.ok, str(found)
    assert not structure.axes or found.checks
    assert structure.verify(each=False).ok


def test_an_inexact_axis_that_is_called_exact_is_found() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    structure = rg.analyze(model, torch.rand(3, 4))
    [axis] = structure
    assert structure.verify().ok
    axis.exact = Verdict(True)
    found = structure.verify()
    assert {check.done for check in found.failures} == {
        "its first half removed", "a random half removed", "a unit added that sends nothing",
    }  # fmt: skip
    assert "it is said to be exact" in str(found)


def test_a_place_that_is_left_out_is_found() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    structure = rg.analyze(model, torch.rand(3, 4))
    [axis] = structure
    axis.entries = tuple(e for e in axis.entries if e.name != "2.weight")
    assert all("mat1 and mat2" in check.error for check in structure.verify().failures)
    assert not structure.verify().ok


class Crossed(nn.Module):
    """Units are read in another order than they are made in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)).flip(1))


def test_units_in_the_wrong_order_are_found() -> None:
    structure = rg.analyze(Crossed(), torch.rand(3, 4))
    [axis] = structure
    assert structure.verify().ok
    consumer = axis.with_role("in")[0]
    consumer.unit_of = consumer.unit_of.flip(0)
    assert [c.done for c in structure.verify().failures] == [
        "its first half removed", "a random half removed", "a unit added that sends nothing",
    ]  # fmt: skip


def test_an_axis_that_is_called_inexact_and_is_not_is_listed() -> None:
    structure = rg.analyze(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.rand(3, 4))
    [axis] = structure
    axis.exact = Verdict(False, "for no reason")
    found = structure.verify()
    assert found.ok
    assert found.unmoved == ("0",)


def test_the_model_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.Flatten(), nn.Linear(96, 3))
    x = torch.rand(2, 3, 6, 6)
    structure = rg.analyze(model, x)
    before = snapshot(model)
    assert structure.verify().ok
    assert structure.verify(x[:1]).ok
    assert not differences(before, snapshot(model))
    rg.prune_(structure["0"], [0, 3])
    assert structure.verify().ok


class Fading(nn.Module):
    """A bias that each pass halves, and no axis has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.last.bias.data.mul_(0.5)
        return self.last(torch.relu(self.first(x)))


def test_what_a_pass_writes_to_is_as_before_in_the_next() -> None:
    model = Fading()
    structure = rg.analyze(model, torch.rand(3, 4))
    before = snapshot(model)
    assert structure.verify().ok
    assert not differences(before, snapshot(model))


def test_without_weights_there_is_nothing_to_compare() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="weights don't exist"):
        rg.analyze(model, torch.rand(2, 4)).verify()


@pytest.mark.parametrize("residual", [True, False])
def test_features_of_attention_are_inexact_with_a_residual_and_without(residual: bool) -> None:
    """Queries are divided by a root of their number; a trial that ends before it gets there doesn't show otherwise."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            keys = self.first(x)
            out = self.attention(self.first(x), keys, keys)[0]
            return self.head(keys + out if residual else out)

    torch.manual_seed(0)
    model, x = Attends().double(), torch.randn(3, 4, 6).double()
    before = model(x)
    axis = rg.analyze(model, x)["attention.features"]
    assert "number in mul" in axis.exact.reason
    rg.grow_(axis, 2)
    assert float((model(x) - before).detach().abs().max()) > 1e-3

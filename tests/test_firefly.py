"""Firefly: planted candidates are found among many, the loss falls alike in both modes, and all of it can be undone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow as rg
from state import differences, snapshot


class Branches(nn.Module):
    """Branches that see parts of the input of their own."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)) for _ in range(number))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(part) for branch, part in zip(self.branches, x.split(4, 1), strict=True)], 1)


@pytest.mark.parametrize("config", [{}, {"split": 0.0, "new": 1.0}, {"form": "official"}])
def test_of_candidates_in_several_layers_those_that_help_are_kept(config: dict[str, Any]) -> None:
    """Three branches are as good as they can be; all new units go to the fourth, whose target has more of them."""
    torch.manual_seed(0)
    model, x = Branches(4).double(), torch.randn(200, 16).double()
    teacher = copy.deepcopy(model)
    teacher.branches[2] = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    target = teacher(x).detach()
    structure = rg.analyze(model, x)
    loss = lambda: (model(x) - target).square().mean()  # noqa: E731
    before = loss().item()
    edit = rg.grow_(structure, 1, rg.Firefly(**config), loss=loss, batches=3)
    assert {name: len(units) for name, units in edit.units("new").items()} == {"branches.2.0": 4}
    assert loss().item() < before


def test_a_planted_split_is_found_with_its_direction() -> None:
    """One unit stands for two of the teacher's; of all splits its own, apart along their difference, helps most."""
    torch.manual_seed(3)
    teacher: Any = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    student: Any = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    with torch.no_grad():
        teacher[2].weight[:, 5:] = 1.5
        pair, both = teacher[0].weight[5:].detach(), teacher[0].bias[5:]
        student[0].weight.copy_(torch.cat([teacher[0].weight[:5], pair.mean(0, keepdim=True)]))
        student[0].bias.copy_(torch.cat([teacher[0].bias[:5], both.mean(0, keepdim=True)]))
        student[2].weight.copy_(torch.cat([teacher[2].weight[:, :5], teacher[2].weight[:, 5:].sum(1, keepdim=True)], 1))
        student[2].bias.copy_(teacher[2].bias)
    x = torch.randn(2000, 5).double()
    target = teacher(x).detach()
    structure = rg.analyze(student, x)
    old = student[0].weight.detach().clone()
    edit = rg.grow_(
        structure["0"], 1, rg.Firefly(new=0.0), loss=lambda: (student(x) - target).square().mean(), batches=8
    )
    weight = student[0].weight.detach()
    assert (weight[:6] != old).any(1).tolist() == [False] * 5 + [True]
    apart = weight[edit.new[0]] - weight[5]
    torch.testing.assert_close(weight[edit.new[0]] + weight[5], 2 * old[5])
    assert abs(float(torch.cosine_similarity(apart, pair[0] - pair[1], dim=0))) > 0.95
    torch.testing.assert_close(student[2].weight[:, 5], student[2].weight[:, 6])


def _normed() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


@pytest.mark.parametrize("config", [{}, {"new": 0.0}])
def test_the_loss_falls_alike_in_both_modes_under_batch_norm(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x, y = _normed(), torch.randn(64, 3, 8, 8), torch.randint(4, (64,))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    loss = lambda m=model: nn.functional.cross_entropy(m(x), y)  # noqa: E731
    for _ in range(40):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    model(x)

    def both() -> list[float]:
        return [loss(copy.deepcopy(model).train(mode)).item() for mode in (True, False)]

    before = both()
    rg.grow_(rg.analyze(model, x), 4, rg.Firefly(**config), loss=loss, batches=2, optimizer=optimizer)
    after = both()
    falls = [new - old for old, new in zip(before, after, strict=True)]
    assert falls[0] < 0
    assert falls[1] == pytest.approx(falls[0], abs=0.2 * abs(falls[0]) + 1e-3)


def test_a_split_is_undone_to_the_bit_and_keeps_what_was_trained_since() -> None:
    torch.manual_seed(0)
    model: Any = _normed()
    x = torch.randn(16, 3, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loss = lambda: model(x).square().mean()  # noqa: E731
    for _ in range(2):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    structure = rg.analyze(model, x)
    before = snapshot(model, optimizer)
    edit = rg.grow_(structure, 2, rg.Firefly(new=0.0), loss=loss, optimizer=optimizer)
    assert differences(before, snapshot(model, optimizer)) != []
    edit.undo_()
    assert differences(before, snapshot(model, optimizer)) == []
    edit = rg.grow_(structure, 2, rg.Firefly(new=0.0), loss=loss, optimizer=optimizer)
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    trained = model[0].weight.detach().clone()
    edit.undo_()
    kept = trained[: len(model[0].weight)]
    assert torch.equal(model[0].weight, kept)


def test_amounts_by_name_are_kept_and_a_largest_size_is_respected() -> None:
    torch.manual_seed(0)
    model, x = _normed(), torch.randn(16, 3, 8, 8)
    loss = lambda: model(x).square().mean()  # noqa: E731
    structure = rg.analyze(model, x)
    edit = rg.grow_(structure, {"0": 3, "4": 1}, rg.Firefly(), loss=loss)
    assert {name: len(units) for name, units in edit.units("new").items()} == {"0": 3, "4": 1}
    edit.undo_()
    rg.grow_(structure, 4, rg.Firefly(), loss=loss, max_size=13)
    assert sum(axis.size for axis in structure.axes) == 24
    assert max(axis.size for axis in structure.axes) <= 13


def test_more_units_than_candidates_are_refused() -> None:
    model, x = _normed(), torch.randn(8, 3, 8, 8)
    structure = rg.analyze(model, x)
    with pytest.raises(rg.NotPermissible, match="candidates"):
        rg.grow_(structure["0"], 20, rg.Firefly(), loss=lambda: model(x).square().mean())
    with pytest.raises(rg.NotPermissible, match="candidates"):
        rg.grow_(structure, 20, rg.Firefly(), loss=lambda: model(x).square().mean())
    assert [axis.size for axis in structure.axes] == [8, 8]


@pytest.mark.parametrize(
    "options",
    [{"form": "fast"}, {"epsilon": 0.0}, {"split": -1.0}, {"new": 0.0, "split": 0.0}, {"steps": 0}, {"rate": 0.0}],
)
def test_wrong_configurations_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is|candidates"):
        rg.Firefly(**options)


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(243, 9), nn.Tanh(), nn.Linear(9, 7), nn.GELU(), nn.Linear(7, 4))


@pytest.mark.parametrize("new", [0.0, 0.5])
@pytest.mark.parametrize("build", [_normed, _perceptron])
def test_tiny_splits_of_layers_behind_each_other_change_nothing(build: Any, new: float) -> None:
    """Copies are read by copies as the units are by units: what is split twice is neither lost nor doubled."""
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(24, 3, 9, 9).double()
    for _ in range(30):
        model(x)
    structure = rg.analyze(model, x)
    before = [copy.deepcopy(model).train(mode)(x).detach() for mode in (True, False)]
    method = rg.Firefly(split=1e-7, epsilon=1e-7, new=new)
    amounts = {axis.name: round(axis.size * (0.6 + new)) for axis in structure.axes}
    rg.grow_(structure, amounts, method, loss=lambda: model(x).square().mean())
    for mode, expected in zip((True, False), before, strict=True):
        torch.testing.assert_close(copy.deepcopy(model).train(mode)(x).detach(), expected, rtol=1e-5, atol=1e-6)


def test_the_loss_is_computed_once_for_each_batch() -> None:
    torch.manual_seed(0)
    model, batches = _normed(), iter(torch.randn(3, 8, 3, 9, 9))
    structure = rg.analyze(model, torch.randn(2, 3, 9, 9))
    rg.grow_(structure, 2, rg.Firefly(), loss=lambda: model(next(batches)).square().mean(), batches=3)
    assert next(batches, None) is None
    assert not model._forward_pre_hooks

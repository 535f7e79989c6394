"""Penalties against their formulas; thresholds, valleys and budgets; constants absorbed; gates; young units spared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow as rg
import zoo
from regrow.pruning.gates import scales, values
from state import differences, relative_change, snapshot

# --------------------------------------------------------------------------------------------------
# polarization


def flat(axes: Any) -> Tensor:
    return torch.cat([values(e) for axis in axes for e in scales(axis)])


def gradient(entry: Any) -> Tensor:
    return entry.tensor.grad


def normed(name: str = "residual") -> tuple[Any, rg.Structure]:
    model = zoo.build(name, dtype=torch.float64)
    return model, rg.analyze(model, zoo.example(name, 4, torch.float64))


def test_the_polarization_penalty_is_its_formula_by_hand() -> None:
    """Three scales 0.25, 0.5, 0.75: the mean is 0.5, so R = λ(t·1.5 − 0.5)."""
    model: Any = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.25, 0.5, 0.75]))
    [axis] = rg.analyze(model, torch.randn(4, 4).double()).axes
    penalty = rg.Polarization(0.1, t=1.4).penalty(axis)
    assert penalty.item() == pytest.approx(0.1 * (1.4 * 1.5 - 0.5))
    penalty.backward()
    # ∂R/∂γ = λ(t·sgn γ − sgn(γ − γ̄) + ⅓Σ sgn(γ − γ̄)), and the signs add up to zero.
    assert model[1].weight.grad.tolist() == pytest.approx([0.24, 0.14, 0.04])


@pytest.mark.parametrize("t", [-1.0, 0.0, 1.2, 2.0])
def test_the_polarization_gradient_has_the_mean_differentiated(t: float) -> None:
    _, structure = normed()
    axes = [axis for axis in structure.axes if scales(axis)]
    with torch.no_grad():
        for axis in axes:
            for entry in scales(axis):
                drawn = torch.randn(entry.tensor.shape, generator=torch.Generator().manual_seed(3))
                entry.tensor.copy_(drawn.double() + 0.4)
    rg.Polarization(0.01, t=t).penalty(axes).backward()
    gamma = flat(axes).detach()
    signs = (gamma - gamma.mean()).sign()
    expected = 0.01 * (t * gamma.sign() - signs + signs.mean())
    found = torch.cat([gradient(e) for axis in axes for e in scales(axis)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", [rg.Polarization(0.3, t=1.1), rg.L1(0.3)])
def test_penalties_have_the_gradient_of_finite_differences(method: Any) -> None:
    _, structure = normed("concat")
    axes = [axis for axis in structure.axes if scales(axis)]
    weights = list(dict.fromkeys(e.tensor for axis in axes for e in scales(axis)))

    assert torch.autograd.gradcheck(lambda *_: method.penalty(axes), weights)


def test_the_mean_is_over_all_axes_together() -> None:
    _, structure = normed()
    axes = [axis for axis in structure.axes if scales(axis)]
    method = rg.Polarization(1.0)
    with torch.no_grad():
        for entry in scales(axes[0]):
            entry.tensor.mul_(0.1)
    apart = torch.stack([method.penalty(axis) for axis in axes]).sum()
    assert float((method.penalty(axes) - apart).detach().abs()) > 0.1
    gamma = flat(axes)
    expected = 1.2 * gamma.abs().sum() - (gamma - gamma.mean()).abs().sum()
    torch.testing.assert_close(method.penalty(axes), expected)


def _many_scales() -> tuple[Any, rg.Axis]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 200), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, 2))
    return model, rg.analyze(model, torch.randn(4, 4))["0"]


def test_polarized_scales_gather_at_two_poles() -> None:
    model, axis = _many_scales()
    with torch.no_grad():
        model[1].weight.uniform_(0, 1)
    method = rg.Polarization(1.0, t=0.8)
    for _ in range(2000):
        (gradient,) = torch.autograd.grad(method.penalty(axis), model[1].weight)
        with torch.no_grad():
            model[1].weight -= 0.002 * gradient
        method.project(axis)
    gamma = model[1].weight.detach()
    assert float(gamma.min()) == 0
    assert float(gamma.max()) == 1
    assert float(((gamma < 0.02) | (gamma > 0.98)).float().mean()) > 0.95


@pytest.mark.parametrize("t", [0.0, 0.8, 1.2, 1.6])
def test_of_all_shares_at_the_upper_pole_the_theorems_has_the_least_penalty(t: float) -> None:
    """½ − t/4 of the scales at one, the rest at zero."""
    model, axis = _many_scales()
    method, found = rg.Polarization(1.0, t=t), []
    for number in range(201):
        with torch.no_grad():
            model[1].weight.copy_((torch.arange(200) < number).float())
        found.append(method.penalty(axis).item())
    assert found.index(min(found)) / 200 == pytest.approx(0.5 - t / 4, abs=0.005)


def test_projection_clamps_only_the_units_of_the_axis() -> None:
    model, structure = normed("concat")
    with torch.no_grad():
        model.norm.weight.copy_(torch.linspace(-1, 2, len(model.norm.weight)))
    before = model.norm.weight.detach().clone()
    left = structure["left"].size
    rg.Polarization().project(structure["left"])
    assert torch.equal(model.norm.weight[:left], before[:left].clamp(0, 1))
    assert torch.equal(model.norm.weight[left:], before[left:])


def test_scales_of_any_shape_are_clamped_and_penalised() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1)
            self.scale = nn.Parameter(torch.linspace(-1, 2, 5).reshape(1, 5, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)) * self.scale)

    model = Scaled()
    axis = rg.analyze(model, torch.randn(2, 3, 6, 6))["first"]
    gamma = model.scale.detach().flatten()
    expected = 1.2 * gamma.abs().sum() - (gamma - gamma.mean()).abs().sum()
    torch.testing.assert_close(rg.Polarization(1.0).penalty(axis), expected)
    rg.Polarization().project(axis)
    assert torch.equal(model.scale.detach().flatten(), gamma.clamp(0, 1))
    rg.Polarization().start_(axis)
    assert torch.equal(model.scale.detach().flatten(), torch.full((5,), 0.5))


def test_units_without_scales_are_named() -> None:
    structure = rg.analyze(zoo.build("mlp"), zoo.example("mlp"))
    with pytest.raises(ValueError, match=r"units of 0 have no scales.*add_gates_"):
        rg.Polarization().penalty(structure["0"])


@pytest.mark.parametrize("options", [{"t": 3.0}, {"strength": -1.0}, {"grace": -1}, {"grace": 1.5}])
def test_wrong_configurations_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        rg.Polarization(**options)


# --------------------------------------------------------------------------------------------------
# how much goes


def with_scales(found: list[float]) -> tuple[Any, rg.Structure]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Linear(4, len(found)), nn.BatchNorm1d(len(found)), nn.ReLU(), nn.Linear(len(found), 2)
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(found))
    return model, rg.analyze(model, torch.randn(4, 4))


def test_a_threshold_takes_all_units_that_are_not_above() -> None:
    _, structure = with_scales([0.5, -0.01, 0.02, 0.9, -0.6])
    assert rg.prune_(structure, rg.Threshold(0.02), rg.L1()).removed == [1, 2]


def test_at_least_one_unit_stays_below_a_threshold() -> None:
    _, structure = with_scales([0.1, 0.3, 0.2])
    assert rg.prune_(structure, rg.Threshold(1.0), rg.L1()).removed == [0, 2]


@pytest.mark.parametrize(
    ("found", "removed"),
    [
        ([0.0, 0.001, 0.004, 0.72, 0.71, 0.73], [0, 1, 2]),
        ([0.02, 0.02, 0.03, 0.05, 0.5, 0.52, 0.9], [0, 1, 2]),  # the first valley is between 0.03 and 0.05
    ],
)
def test_the_first_valley_of_the_histogram_is_the_cut(found: list[float], removed: list[int]) -> None:
    _, structure = with_scales(found)
    assert rg.prune_(structure, rg.Valley(), rg.Polarization()).removed == removed


def test_without_a_gap_nothing_goes() -> None:
    _, structure = with_scales([0.5, 0.5, 0.5])
    with pytest.raises(rg.NotPermissible, match="nothing to prune"):
        rg.prune_(structure, rg.Valley(), rg.Polarization())


@pytest.mark.parametrize("name", ["params", "flops"])
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_budget_is_met_with_as_few_units_as_possible(name: str, share: float) -> None:
    model, x = zoo.build("resnet18"), zoo.example("resnet18")
    structure = rg.analyze(model, x)
    before = {"params": sum(p.numel() for p in model.parameters()), "flops": structure.flops()}
    edit = rg.prune_(structure, rg.Budget(**{name: share}), rg.L1())
    after = {"params": sum(p.numel() for p in model.parameters()), "flops": structure.flops()}
    assert 0.985 * share * before[name] <= after[name] <= share * before[name]
    assert after["flops"] == edit.flops[1]


def test_a_budget_that_cannot_be_is_refused() -> None:
    _, structure = with_scales([0.5, 0.4, 0.3])
    with pytest.raises(rg.NotPermissible, match="2 units that may go"):
        rg.prune_(structure, rg.Budget(params=3), rg.L1())
    with pytest.raises(ValueError, match="params, flops or latency"):
        rg.Budget()


# --------------------------------------------------------------------------------------------------
# what pruned units still send


def _followed_by(what: str) -> list[nn.Module]:
    first = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    second: dict[str, list[nn.Module]] = {
        "a bias": [nn.Conv2d(8, 6, 3)],
        "a norm": [nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)],
        "pooling": [nn.MaxPool2d(2), nn.Conv2d(8, 6, 3)],
        "depthwise": [nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)],
    }
    last = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    flattened = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)]
    return [*first, *(flattened if what == "flatten" else [*second[what], *last])]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("what", ["a bias", "a norm", "pooling", "depthwise", "flatten"])
def test_units_with_zero_scales_go_without_a_change(what: str, training: bool) -> None:
    torch.manual_seed(1)
    model: Any = nn.Sequential(*_followed_by(what)).double()
    x = torch.randn(16, 3, 12, 12).double()
    for _ in range(20):
        model(x + 0.5)
    with torch.no_grad():
        model[1].bias.uniform_(0.5, 1.5)
        model[1].weight[[1, 4, 6]] = 0
    structure = rg.analyze(model, torch.randn(2, 3, 12, 12).double())
    model.train(training)
    before, saved = copy.deepcopy(model)(x).detach(), snapshot(model)
    edit = rg.prune_(structure["0"], rg.Threshold(0.0), rg.L1())
    assert edit.removed == [1, 4, 6]
    torch.testing.assert_close(copy.deepcopy(model)(x).detach(), before, rtol=1e-9, atol=1e-9)
    edit.undo_()
    assert differences(saved, snapshot(model)) == []
    rg.prune_(structure["0"], [1, 4, 6])
    if what not in ("a norm", "depthwise") or not training:  # a norm takes off the batch's own mean
        assert float((copy.deepcopy(model)(x).detach() - before).abs().max()) > 1e-3


def test_where_the_reading_weights_are_the_gates_nothing_is_absorbed() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    structure = rg.analyze(model, torch.randn(3, 4))
    before = model[2].bias.detach().clone()
    rg.prune_(structure, 2, rg.L1())
    assert torch.equal(model[2].bias, before)


# --------------------------------------------------------------------------------------------------
# gates


@pytest.mark.parametrize(("name", "variant"), zoo.variants("mlp", "flatten", "chain"))
def test_gates_come_and_go_without_a_change(name: str, variant: str) -> None:
    model, x = zoo.build(name, variant, torch.float64), zoo.example(name, 6, torch.float64)
    model.eval()
    structure = rg.analyze(model, x)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model(x).square().mean().backward()
    optimizer.step()
    parameters, before = dict(model.named_parameters()), model(x)
    if all(scales(axis) for axis in structure.axes):
        with pytest.raises(rg.NotPermissible, match="no axis without scales"):
            rg.add_gates_(structure, optimizer)
        return
    structure = rg.add_gates_(structure, optimizer)
    assert all(scales(axis) for axis in structure.axes)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    optimizer.zero_grad()
    (model(x).square().mean() + rg.Polarization(0.1).penalty(structure.axes)).backward()
    optimizer.step()
    assert all(gradient(e).abs().min() > 0 for axis in structure.axes for e in scales(axis) if "gate" in e.name)
    rg.Polarization().start_(structure.axes, 0.7)
    trained = model(x)
    structure = rg.fold_gates_(structure, optimizer)
    assert relative_change({"y": trained}, {"y": model(x)}) < 1e-12
    now = dict(model.named_parameters())
    assert now.keys() == parameters.keys()
    assert all(now[key] is parameters[key] for key in now)
    assert {p for group in optimizer.param_groups for p in group["params"]} == set(now.values())
    optimizer.step()


# --------------------------------------------------------------------------------------------------
# with a plan


def _run(plan: Any, steps: int) -> tuple[rg.Shaper, list[rg.Edit]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    shaper = rg.Shaper(model, optimizer, plan, example=x)
    edits = []
    for _ in range(steps):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), y) + shaper.penalty()).backward()
        optimizer.step()
        edits += shaper.step(lambda: nn.functional.cross_entropy(model(x), y))
    return shaper, edits


def test_a_shaper_clamps_scales_and_welcomes_new_units_with_their_mean() -> None:
    prune = rg.at(50, rg.Prune(rg.Polarization(0.05), 0.1))
    shaper, [edit] = _run(rg.chain(rg.at(5, rg.Grow(rg.GradMax(beyond_rank="random"), 4)), prune), 5)
    gamma = shaper.model[1].weight.detach()  # type: ignore[index, operator]
    assert float(gamma.min()) >= 0 and float(gamma.max()) <= 1
    torch.testing.assert_close(gamma[edit.new], gamma[:12].mean().expand(4))


@pytest.mark.parametrize(("grace", "spared"), [(20, True), (0, False)])
def test_young_units_are_spared_for_as_long_as_the_method_says(grace: int, spared: bool) -> None:
    """New units have the smallest gates of all; they go only when they are old enough."""
    grow = rg.at(5, rg.Grow(rg.Random(), 4))
    prune = rg.at(10, rg.Prune(Smallest(0.0, grace=grace), 4))
    _, edits = _run(rg.chain(grow, prune), 10)
    assert set(edits[1].removed).isdisjoint(edits[0].new) == spared


class Smallest(rg.L1):
    """Takes the newest units."""

    def score(self, axis: rg.Axis, seen: Any) -> Tensor:
        return -torch.arange(axis.size, dtype=torch.float32)


def test_ages_survive_a_state_dict_and_follow_edits() -> None:
    plan = rg.chain(rg.at(3, rg.Grow(rg.Random(), 4)), rg.at(5, rg.Prune(rg.L1(), 3)), rg.at(99, rg.Prune(rg.L1(), 1)))
    shaper, _ = _run(plan, 6)
    [(name, born)] = shaper.state_dict()["births"].items()
    assert len(born) == shaper.structure[name].size == 13
    assert born.count(3) == 4
    other, _ = _run(plan, 6)
    other.load_state_dict(shaper.state_dict())
    assert other.state_dict()["births"] == {name: born}

"""Growing and pruning in one currency: prices, gains, exchanges within a budget, and the method that makes them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import regrow as rg
from regrow.amounts import first
from regrow.cutoffs import sizes_with
from regrow.evidence import gather
from regrow.joint.exchange import Budgeted, Exchange, balanced
from regrow.joint.market import Market, _norm_of_mean
from regrow.limits import Limits


def convolutions(norm: bool = True) -> nn.Sequential:
    def block(inside: int, outside: int) -> list[nn.Module]:
        return [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside) if norm else nn.Identity(), nn.ReLU()]

    torch.manual_seed(0)
    return nn.Sequential(*block(3, 6), *block(6, 8), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)).double()


def batch(seed: int = 0, number: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (number,), generator=generator)


def markets(model: nn.Module, batches: list[tuple[Tensor, Tensor]], finding: int = 1, most: int = 2) -> Any:
    structure, given = rg.analyze(model, batches[0][0]), iter(batches)

    def loss() -> Tensor:
        x, y = next(given)
        return F.cross_entropy(model(x), y)

    axes = list(structure.axes)
    seen = gather(axes, {"market": lambda axis, _: Market(axis, finding, most)}, loss, len(batches))
    return structure, {axis: found["market"] for axis, found in seen.items()}


@pytest.mark.parametrize("norm", [False, True])
def test_a_price_is_the_derivative_by_the_gate(norm: bool) -> None:
    model, (x, y) = convolutions(norm), batch()
    _, found = markets(model, [(x, y)])
    for axis, market in found.items():
        (entry,) = axis.with_role("in")
        gates = torch.ones(axis.size, dtype=torch.float64, requires_grad=True)
        shape = [-1 if d == entry.dim else 1 for d in range(entry.tensor.ndim)]
        gated = entry.tensor.detach() * gates[entry.unit_of].reshape(shape)
        loss = F.cross_entropy(torch.func.functional_call(model, {entry.name: gated}, (x,)), y)
        (expected,) = torch.autograd.grad(loss, gates)
        torch.testing.assert_close(market.prices, expected.abs().float())


@pytest.mark.parametrize("norm", [False, True])
def test_a_gain_is_what_the_loss_falls_by_to_first_order(norm: bool) -> None:
    model, (x, y) = convolutions(norm), batch()
    structure, found = markets(model, [(x, y)])
    axis = structure["0"]
    gains, size = found[axis].gains, axis.size
    (reader,) = axis.with_role("in")
    old = reader.tensor.detach().clone()
    edit = rg.grow_(axis, 2, rg.Homeostasis(rate=0.3), loss=lambda: F.cross_entropy(model(x), y))
    loss = F.cross_entropy(model(x), y)
    (gradient,) = torch.autograd.grad(loss, reader.tensor)
    falls = []
    for unit in edit.new:
        direction = torch.zeros_like(gradient)
        direction[:, unit] = -gradient[:, unit] / gradient[:, unit].norm()
        step = 1e-6 * old.transpose(0, 1).flatten(1).norm(dim=1).mean()
        with torch.no_grad():
            changed = {reader.name: reader.tensor + step * direction}
            falls.append(float(loss - F.cross_entropy(torch.func.functional_call(model, changed, (x,)), y)) / 1e-6)
    assert size + 2 == axis.size
    torch.testing.assert_close(torch.tensor(falls), gains, rtol=1e-3, atol=1e-6)


def test_noise_alone_makes_no_gain() -> None:
    torch.manual_seed(0)
    noise, signal = torch.randn(64, 500, 10), torch.tensor([0.5, *[0.0] * 9])
    pairs = [(a @ b.T).diagonal() for a, b in itertools.permutations(noise[:4], 2)]
    torch.testing.assert_close(
        _norm_of_mean(noise[:4]), torch.stack(pairs).mean(0).clamp(min=0).sqrt(), atol=1e-4, rtol=1e-4
    )
    assert float((_norm_of_mean(noise) ** 2).mean()) < 0.05 * float((noise.mean(0).square().sum(1)).mean()) + 0.05
    assert float(_norm_of_mean(noise + signal).mean()) == pytest.approx(0.5, rel=0.2)
    torch.testing.assert_close(_norm_of_mean(noise[:1]), noise[0].norm(dim=1))


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_first_number_for_which_something_holds(most: int, least: int) -> None:
    assert first(most, lambda number: number >= least) == min(most, least)


@given(
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.floats(0.5, 1.6),
    st.floats(0, 3),
    st.integers(1, 6),
)
def test_an_exchange_is_what_the_rule_says(
    prices: list[float], gains: list[float], part: float, margin: float, number: int
) -> None:
    structure = rg.analyze(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3)), X)
    one, two = structure["0"], structure["2"]
    priced = {one: torch.tensor(prices[:4]), two: torch.tensor(prices[4:])}
    gained = {axis: torch.tensor(sorted(values, reverse=True)) for axis, values in ((one, gains[:2]), (two, gains[2:]))}
    budget = Budgeted(structure, {"flops": part * structure.flops()})
    made = balanced(priced, gained, budget, number, margin, Limits())
    costs = budget.costs([one, two])
    coming = sorted(((float(g) / costs[a], a) for a, values in gained.items() for g in values if g > 0), key=_falling)
    # Of each axis one unit stays, its best.
    going = sorted(((p / costs[a], a.name, a, u) for a, u, p in _all_but_the_best(priced)), key=lambda offer: offer[0])
    coming, going = coming[:number], going[:number]

    def exchange(arrivals: int, departures: int) -> Exchange:
        removed: dict[Any, list[int]] = {}
        for _, _, axis, unit in going[:departures]:
            removed.setdefault(axis, []).append(unit)
        counts = [axis for _, axis in coming[:arrivals]]
        return Exchange(removed, {axis: counts.count(axis) for axis in dict.fromkeys(counts)})

    def cheapest(arrivals: int) -> int | None:
        return next((m for m in range(len(going) + 1) if budget.holds(exchange(arrivals, m))), None)

    anyway, best = cheapest(0), 0
    if anyway is None:
        assert sum(map(len, made.removed.values())) == len(going)
        assert not made.gained
        return
    for arrivals in range(1, len(coming) + 1):
        departures = cheapest(arrivals)
        if departures is None or (departures > anyway and coming[arrivals - 1][0] <= margin * going[departures - 1][0]):
            break
        best = arrivals
    assert sum(made.gained.values()) == best
    assert sum(map(len, made.removed.values())) == cheapest(best)
    assert budget.holds(made)


X = torch.zeros(2, 5)
LOOSELY: Any = rg


def _falling(offer: Any) -> float:
    return -offer[0]


def _all_but_the_best(prices: Any) -> Any:
    for axis, values in prices.items():
        for unit in values.argsort(stable=True).tolist()[:-1]:
            yield axis, unit, float(values[unit])


def loss_of(model: nn.Module) -> Any:
    numbers = itertools.count()

    def loss() -> Tensor:
        x, y = batch(next(numbers))
        return F.cross_entropy(model(x), y)

    return loss


@pytest.mark.parametrize("flops", [0.6, 1.0, 1.8])
def test_a_model_comes_to_its_budget_and_stays_there(flops: float) -> None:
    model = convolutions()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    shaper = rg.Shaper(model, optimizer, rg.Homeostasis(flops=flops, period=2, rate=0.2, grace=4), example=batch()[0])
    before, loss, seen = shaper.structure.flops(), loss_of(model), []
    for _ in range(40):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        shaper.step(loss)
        seen.append(shaper.structure.flops() / before)
    assert all(part <= max(1.0, flops) for part in seen)
    unit = max(Budgeted(shaper.structure, {"flops": before}).costs(shaper.structure.axes).values())
    assert flops - unit <= seen[-1] <= flops


def test_parameters_are_a_budget_as_well_and_numbers_are_absolute() -> None:
    model = convolutions()
    structure = rg.analyze(model, batch()[0])
    now = sizes_with(structure, {})
    for method in (rg.Homeostasis(params=int(1.5 * now["params"]), rate=0.5), rg.Homeostasis(params=1.5, rate=0.5)):
        edit = rg.adapt_(structure, method, loss=loss_of(model), batches=2)
        assert now["params"] < edit.params[1] <= 1.5 * now["params"]
        edit.undo_()


def test_what_a_structure_says_of_its_flops_is_a_number_and_no_multiple() -> None:
    model = convolutions()
    structure = rg.analyze(model, batch()[0])
    most = 1.2 * structure.flops()
    assert isinstance(most, float)
    assert rg.adapt_(structure, rg.Homeostasis(flops=most, rate=0.5), loss=loss_of(model), batches=2).flops[1] <= most
    edit = rg.grow_(structure, rg.Budget(flops=1.5 * most), rg.Random())
    assert most < edit.flops[1] <= 1.5 * most


def test_units_move_to_where_the_loss_needs_them() -> None:
    class Two(nn.Module):
        """Two branches of like size: one sees what the target depends on, the other sees noise."""

        def __init__(self) -> None:
            super().__init__()
            self.useful, self.useless = nn.Linear(4, 10), nn.Linear(4, 10)
            self.one, self.other = nn.Linear(10, 1), nn.Linear(10, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(torch.tanh(self.useful(x[:, :4]))) + self.other(torch.tanh(self.useless(x[:, 4:])))

    torch.manual_seed(0)
    model, teacher = Two(), nn.Sequential(nn.Linear(4, 60), nn.Tanh(), nn.Linear(60, 1))
    with torch.no_grad():
        for layer in (teacher[0], teacher[2]):
            layer.weight.mul_(4)  # type: ignore[operator]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def loss() -> Tensor:
        x = torch.randn(128, 8)
        return F.mse_loss(model(x), teacher(x[:, :4]).detach())

    plan = rg.Homeostasis(period=20, rate=0.1, batches=4, grace=40)
    shaper = rg.Shaper(model, optimizer, plan, example=torch.randn(2, 8))
    for _ in range(600):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        shaper.step(loss)
    assert model.useful.out_features >= 15
    assert model.useful.out_features + model.useless.out_features <= 20


def test_what_comes_and_goes_at_once_is_one_edit_and_undone_to_the_bit() -> None:
    model, x = convolutions(), batch()[0]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loss = loss_of(model)
    loss().backward()
    optimizer.step()
    structure = rg.analyze(model, x)
    before = json.dumps({n: t.tolist() for n, t in model.state_dict().items()})
    held = {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    edit = rg.adapt_(structure, rg.Homeostasis(rate=0.3, margin=0.0), optimizer=optimizer, loss=loss, batches=2)
    came, went = (sum(map(len, edit.units(which).values())) for which in ("new", "removed"))
    assert came >= 2
    assert went >= 2
    assert f"({came} new, {went} gone)" in str(edit)
    edit.undo_()
    assert json.dumps({n: t.tolist() for n, t in model.state_dict().items()}) == before
    assert all(torch.equal(v, held[id(p)][k]) for p, s in optimizer.state.items() for k, v in s.items())


def test_new_units_send_nothing_and_what_goes_is_absorbed() -> None:
    model, (x, y) = convolutions(), batch()
    structure = rg.analyze(model, x)
    for mode in (model.train, model.eval):
        mode()
        grown = rg.adapt_(structure, rg.Homeostasis(flops=4.0, rate=0.4), loss=loss_of(model), batches=2)
        assert not any(grown.units("removed").values())
        assert grown.measure(x) < 1e-12
        grown.undo_()
    pruned = rg.adapt_(structure, rg.Homeostasis(flops=0.7, rate=0.4), loss=lambda: F.cross_entropy(model(x), y))
    moved = pruned.measure(x)
    removed = pruned.units("removed")
    pruned.undo_()
    with torch.no_grad():
        before = model(x)
        for name, units in removed.items():
            structure[name].silence_(units)
        plain = float((model(x) - before).abs().max())
    assert moved < plain


def test_a_run_is_the_same_where_it_was_stopped_and_goes_on(tmp_path: Any) -> None:
    plan = rg.chain(rg.Homeostasis(period=3, rate=0.2, grace=6))
    assert rg.plan_from_json(rg.plan_to_json(plan)) == plan

    def run(steps: int, state: Any = None) -> Any:
        model = convolutions()
        if state is not None:
            rg.reshape_(model, state["model"])
            model.load_state_dict(state["model"])
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
        shaper = rg.Shaper(model, optimizer, plan, example=batch()[0], generator=torch.Generator().manual_seed(0))
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            shaper.load_state_dict(state["shaper"])
        for step in range(shaper.steps, steps):
            x, y = batch(step)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            shaper.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "shaper": shaper.state_dict()}

    whole, parts = run(12), run(12, run(7))
    assert all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items())
    assert whole["shaper"]["progress"] == parts["shaper"]["progress"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: rg.Homeostasis(flops=0),
        lambda: rg.Homeostasis(params=-1.0),
        lambda: rg.Homeostasis(flops=float("nan")),
        lambda: rg.Homeostasis(period=0),
        lambda: rg.Homeostasis(batches=0),
        lambda: rg.Homeostasis(grace=-1),
        lambda: rg.Homeostasis(rate=0.0),
        lambda: rg.Homeostasis(rate=1.5),
        lambda: rg.Homeostasis(margin=-1.0),
        lambda: rg.Adapt(rg.GradMax()),
        lambda: LOOSELY.Adapt(rg.Homeostasis(), 3),
        lambda: rg.Adapt(rg.Homeostasis(), kind="weight"),
        lambda: rg.Adapt(rg.Homeostasis(), round_to=8),
        lambda: rg.chain(rg.GradMax()),
        lambda: LOOSELY.chain(rg.Homeostasis),
    ],
)
def test_what_cannot_be_is_said(make: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        make()


def test_units_that_came_a_short_while_ago_stay_and_others_go() -> None:
    model = convolutions()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    plan = rg.every(1, rg.Adapt(rg.Homeostasis(rate=0.3, margin=0.0, grace=100)))
    shaper, loss = rg.Shaper(model, optimizer, plan, example=batch()[0]), loss_of(model)
    came: dict[str, int] = {}
    for _ in range(3):
        (edit,) = shaper.step(loss)
        for name, gone in edit.units("removed").items():
            assert all(unit < edit.sizes[name][0] - came.get(name, 0) for unit in gone)  # new ones come last
            came[name] = came.get(name, 0) + len(edit.units("new")[name])
    assert sum(came.values()) > 4


def test_without_a_loss_or_units_that_are_read_nothing_is_done() -> None:
    model, (x, _) = convolutions(), batch()
    structure = rg.analyze(model, x)
    with pytest.raises(ValueError, match="looks at the loss"):
        rg.adapt_(structure, rg.Homeostasis())
    with pytest.raises(TypeError, match="can't adapt"):
        rg.adapt_(structure, rg.Random(), loss=loss_of(model))
    with pytest.raises(rg.NotPermissible, match="changes nothing"):
        rg.adapt_(structure, rg.Homeostasis(margin=1e9), loss=loss_of(model))

"""Amounts over time, conditions, budgets, plans as JSON, and what a plan will do before it runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regrow as rg
from regrow import budgets
from test_plan import Run

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def net(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = widths or (20, 10)
    return nn.Sequential(nn.Linear(8, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 3))


class Loop:
    """A training loop that reports losses which it is told."""

    def __init__(self, plan: Any, model: nn.Module | None = None, losses: Callable[[int], float] = float) -> None:
        self.model, self.losses = net() if model is None else model, losses
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        generator = torch.Generator().manual_seed(0)
        self.shaper = rg.Shaper(self.model, self.optimizer, plan, example=X, generator=generator)

    def step(self) -> list[rg.Edit]:
        (self.model(X).square().mean() + self.shaper.penalty()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.shaper.step(lambda: self.model(X).square().mean(), loss=self.losses(self.shaper.steps + 1))

    def widths(self, steps: int) -> list[tuple[int, ...]]:
        found = []
        for _ in range(steps):
            self.step()
            found.append(tuple(axis.size for axis in self.shaper.structure.axes if axis.kind == "neuron"))
        return found


@pytest.mark.parametrize("curve", [rg.linear, rg.cubic, rg.cosine])
def test_a_schedule_prunes_units_to_its_values(curve: Any) -> None:
    plan = rg.every(2, rg.Prune(rg.Magnitude(), curve(0.0, 0.5)), stop=10)
    found = [sum(sizes) for sizes in Loop(plan).widths(12)]
    schedule = curve(0.0, 0.5)
    assert found[1::2] == [round(30 * (1 - schedule.at(n / 4))) for n in range(5)] + [15]
    assert found[-1] == 15


def test_a_schedule_grows_each_axis_to_its_values() -> None:
    plan = rg.every(1, rg.Grow(rg.Random(), rg.linear(0.25, 1.0)), stop=4)
    assert Loop(plan).widths(5) == [(25, 12), (30, 15), (35, 18), (40, 20), (40, 20)]


def test_a_constant_makes_up_for_what_comes_in_between() -> None:
    plan = rg.chain(
        rg.every(1, rg.Grow(rg.Random(), 2, where="0"), start=1),
        rg.every(1, rg.Prune(rg.Magnitude(), rg.constant(0.5))),
    )
    assert [sum(sizes) for sizes in Loop(plan).widths(4)] == [15, 15, 15, 15]


def test_cells_leave_by_a_schedule() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.two(torch.relu(self.one(x)))

    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(8)))
    loop = Loop(rg.every(1, rg.Prune(rg.Taylor(), rg.linear(0.25, 0.5), kind="cell"), stop=2), model)
    lengths = []
    for _ in range(3):
        loop.step()
        lengths.append(len(model))
    assert lengths == [6, 4, 4]


def test_a_function_of_the_step_is_an_amount() -> None:
    plan = rg.every(1, rg.Grow(rg.Random(), lambda step: step, where="0"), stop=3)
    assert [first for first, _ in Loop(plan).widths(4)] == [21, 23, 26, 26]


def test_a_schedule_goes_on_where_it_was() -> None:
    def plan() -> Any:
        return rg.every(2, rg.Prune(rg.Magnitude(), rg.cubic(0.0, 0.6)), stop=10)

    whole = Loop(plan()).widths(10)
    loop = Loop(plan())
    loop.widths(5)
    sizes = tuple(axis.size for axis in loop.shaper.structure.axes if axis.kind == "neuron")
    again = Loop(plan(), net(*sizes))
    again.shaper.load_state_dict(json_of(loop.shaper.state_dict()))
    assert [sum(s) for s in again.widths(5)] == [sum(s) for s in whole[5:]]


def json_of(state: dict[str, Any]) -> dict[str, Any]:
    """The state through JSON: but for the generator's it is plain values."""
    plain = {name: value for name, value in state.items() if name != "generator"}
    return {**json.loads(json.dumps(plain)), "generator": state["generator"]}


# --------------------------------------------------------------------------------------------------
# conditions


def test_a_plan_waits_for_a_plateau() -> None:
    losses = [4.0, 4.0, 2.0, 2.0, 1.99, 1.99, 1.0, 1.0, 1.0, 1.0]
    plan = rg.when(rg.Plateau(patience=2, threshold=0.05), rg.Grow(rg.Random(), 1, where="0"))
    found = [first for first, _ in Loop(plan, losses=lambda step: losses[step - 1]).widths(10)]
    assert found == [20, 20, 20, 20, 20, 21, 21, 21, 21, 22]


def test_a_plan_ends_for_good() -> None:
    grow = rg.every(1, rg.Grow(rg.Random(), 10, where="0"))
    plan = rg.chain(rg.until(rg.Above("params", 600), grow), rg.at(5, rg.Prune(rg.Magnitude(), 20, where="0")))
    assert [first for first, _ in Loop(plan).widths(7)] == [30, 30, 30, 30, 10, 10, 10]


@pytest.mark.parametrize(("condition", "fires"), [(rg.Below("loss", 3.0), [1, 2]), (rg.Above("loss", 3.0), [4, 5])])
def test_conditions_on_what_is_reported(condition: Any, fires: list[int]) -> None:
    loop = Loop(rg.when(condition, rg.Grow(rg.Random(), 1, where="0")))
    assert [step for step in range(1, 6) if loop.step()] == fires


def test_between_its_steps() -> None:
    loop = Loop(rg.when(rg.Above("loss", 0.0), rg.Grow(rg.Random(), 1, where="0"), start=2, stop=4))
    assert [step for step in range(1, 7) if loop.step()] == [3, 4]


def test_what_isn_t_reported_is_asked_for() -> None:
    run = Run(rg.when(rg.Below("loss", 1.0), rg.Grow(rg.Random(), 1)))
    with pytest.raises(ValueError, match=r"step\(loss="):
        run.step()


def test_conditions_go_on_where_they_were() -> None:
    def loop(model: nn.Module | None = None) -> Loop:
        plan = rg.when(rg.Plateau(patience=3), rg.Grow(rg.Random(), 1, where="0"))
        return Loop(plan, model, losses=lambda _: 1.0)

    whole = loop().widths(9)
    first = loop()
    first.widths(4)
    again = loop()
    again.shaper.load_state_dict(json_of(first.shaper.state_dict()))
    assert again.widths(5) == whole[4:]


def test_a_pattern_that_matches_nothing_is_told_also_where_layers_have_changed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    rg.prune_(rg.analyze(model, X).layers[1], 1)
    plan = rg.at(5, rg.Grow(rg.Random(), 2, where="nowhere"))
    shaper = rg.Shaper(model, torch.optim.SGD(model.parameters(), 0.1), plan, example=X)
    with pytest.raises(ValueError, match="nowhere"):
        shaper.step()
    shaper.load_state_dict({**shaper.state_dict(), "steps": 3})  # of a run that goes on, what it was about has left
    assert shaper.step() == []


# --------------------------------------------------------------------------------------------------
# budgets


@pytest.mark.parametrize("what", ["params", "flops"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.8])
def test_pruning_gets_within_a_percent_of_a_budget(what: str, part: float) -> None:
    model = net(200, 200)
    structure = rg.analyze(model, X)
    size: Callable[[], float] = lambda: rg.measure.parameters(model) if what == "params" else structure.flops()  # noqa: E731
    wanted = part * size()
    rg.prune_(structure, rg.Budget(**{what: round(wanted)}), rg.Magnitude())
    assert 0.99 * wanted <= size() <= round(wanted)


@pytest.mark.parametrize("what", ["params", "flops"])
def test_growing_gets_within_a_percent_of_a_budget(what: str) -> None:
    model = net(100, 100)
    structure = rg.analyze(model, X)
    size: Callable[[], float] = lambda: rg.measure.parameters(model) if what == "params" else structure.flops()  # noqa: E731
    wanted = round(2.5 * size())
    plan = rg.at(1, rg.Grow(rg.Random(), rg.Budget(**{what: wanted})))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rg.Shaper(model, optimizer, plan, example=X).step()
    assert 0.99 * wanted <= size() <= wanted
    with pytest.raises(rg.NotPermissible, match="more than that already"):
        rg.grow_(structure, rg.Budget(**{what: 10}))


def test_a_latency_is_reached_by_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that goes by parameters."""
    model = net(100, 100)
    monkeypatch.setattr(budgets, "latency", lambda model, *_: 1e-6 * rg.measure.parameters(model))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    structure = rg.analyze(model, X)
    wanted = 0.4e-6 * rg.measure.parameters(model)
    with pytest.raises(rg.NotPermissible, match="seconds"):
        rg.prune_(structure, rg.Budget(latency=1e-9), rg.Magnitude())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    rg.prune_(structure, rg.Budget(latency=wanted), rg.Magnitude())
    assert 0.95 * wanted <= 1e-6 * rg.measure.parameters(model) <= wanted
    with pytest.raises(TypeError, match="latency"):
        rg.grow_(structure, rg.Budget(latency=1.0))


def test_latency_is_a_time() -> None:
    model = net().train()
    assert rg.measure.latency(model, X, repeats=3) > 0
    assert model.training


# --------------------------------------------------------------------------------------------------
# JSON


GROWERS = st.sampled_from([rg.Random(), rg.GradMax(), rg.Firefly(split=0.5), rg.GradMaxOptim()])
FRACTIONS = st.floats(0.01, 0.9)
SCHEDULES = st.builds(
    lambda make, a, b: make(a, b), st.sampled_from([rg.linear, rg.cubic, rg.cosine]), FRACTIONS, FRACTIONS
)
GROWS = st.builds(lambda m, n: rg.Grow(m, n, where="layer[12].*", protect=("stem",)), GROWERS, st.integers(1, 9))
PRUNES = st.builds(
    lambda amount: rg.Prune(rg.L1(1e-3), amount),
    FRACTIONS | st.builds(rg.constant, FRACTIONS) | st.sampled_from([rg.Valley(), rg.Budget(flops=0.5), {"conv": 3}]),
)
WEIGHTS = st.builds(lambda s: rg.Prune(rg.Magnitude(), rg.Sparsity(s, "erk"), kind="weight"), FRACTIONS)
REWIRES = st.builds(lambda s: rg.Rewire(rg.RigL(), 0.3, pattern=s), st.none() | st.just(rg.Pattern(2, 4)))
ACTIONS = GROWS | PRUNES | WEIGHTS | REWIRES
CONDITIONS = st.sampled_from([rg.Plateau(20), rg.Below("loss", 0.5), rg.Above("params", 100)])
PLANS = st.recursive(
    st.builds(lambda p, a, s: rg.every(p, a, s, s + 10 * p), st.integers(1, 9), ACTIONS, st.integers(0, 50))
    | st.builds(lambda steps, a: rg.at(steps, a), st.lists(st.integers(1, 99), min_size=1, max_size=3), ACTIONS)
    | st.builds(lambda c, a: rg.when(c, a, 5, 500), CONDITIONS, ACTIONS)
    | st.builds(lambda s: rg.every(3, rg.Prune(rg.Polarization(1e-4), s), stop=30), SCHEDULES),
    lambda inner: (
        st.builds(rg.until, CONDITIONS, inner) | st.builds(lambda p: rg.chain(*p), st.lists(inner, max_size=3))
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(PLANS)
def test_a_plan_goes_through_json(plan: Any) -> None:
    text = rg.plan_to_json(plan)
    again = rg.plan_from_json(text)
    assert again == plan
    assert repr(again) == repr(plan)
    assert rg.plan_to_json(again) == text


def test_a_function_can_t_be_written() -> None:
    with pytest.raises(TypeError, match="JSON can't hold"):
        rg.plan_to_json(rg.every(1, rg.Grow(rg.Random(), lambda step: step)))
    with pytest.raises(TypeError, match="a plan is made by"):
        rg.plan_to_json("every")  # type: ignore[arg-type]


HOSTILE = [
    "", "1", "null", "[]", '{"is": "every"}', '{"is": "os.system", "period": 1}', '{"is": []}',
    '{"is": "every", "period": 0, "action": {"is": "rewire", "method": {"method": "set"}, "amount": 0.3}}',
    '{"is": "every", "period": 1, "action": 3}', '{"is": "at", "steps": [true], "action": {}}',
    '{"is": "grow", "method": {"method": "nothing"}, "amount": 1}', '{"is": "chain", "plans": 3}',
    '{"is": "chain", "plans": [{"is": "chain", "plans": "x"}]}', '{"is": "mapping", "items": 5}',
    '{"is": "chain", "plans": ' + '[' * 400 + ']' * 400 + '}', '{"method": {"a": 1}}',
    '{"is": "every", "__class__": 1}',
    '{"is": "until", "condition": {"is": "below"}, "plan": {"is": "chain", "plans": []}}',
    '{"is": "chain", "plans": ["a"]}',
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="this is no plan"):
        rg.plan_from_json(text)


# --------------------------------------------------------------------------------------------------
# preview


PREVIEWED = rg.chain(
    rg.every(5, rg.Grow(rg.GradMax(beyond_rank="random"), 4, where="0"), stop=15),
    rg.at(20, rg.Prune(rg.Magnitude(), {"0": 6, "2": 2})),
    rg.every(5, rg.Prune(rg.Magnitude(), rg.Sparsity(0.5), kind="weight"), start=20, stop=25),
    rg.every(5, rg.Prune(rg.L1(), rg.linear(0.1, 0.3), where="0"), start=25, stop=35),
)


def test_a_preview_is_what_happens(tmp_path: Path) -> None:
    model = net()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    preview = PREVIEWED.preview(model, X, 40)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    loop = Loop(PREVIEWED, model)
    events, cost = [], 0.0
    assert (preview.params, preview.flops) == (rg.measure.parameters(model), loop.shaper.structure.flops())
    for step in range(1, 41):
        cost += 3 * loop.shaper.structure.flops()
        events += [(step, rg.measure.parameters(model), loop.shaper.structure.flops()) for _ in loop.step()]
    assert [(event.step, event.params, event.flops) for event in preview.events] == events
    assert preview.cost == pytest.approx(cost)
    assert f"{preview.events[0].params:,}" in str(preview)
    preview.draw(tmp_path / "plan.svg")
    picture = ElementTree.parse(tmp_path / "plan.svg").getroot()
    assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) == len(events)


def test_a_preview_says_what_it_can_t_foresee() -> None:
    plan = rg.chain(
        rg.at(3, rg.Prune(rg.L1(), rg.Threshold(0.1))), rg.when(rg.Plateau(), rg.Grow(rg.Random(), 4)),
        rg.at(5, rg.Prune(rg.Magnitude(), 29)),
    )  # fmt: skip
    preview = plan.preview(net(), X, 10)
    assert [event.foreseen for event in preview.events] == [False, False, False]
    for part in ("Threshold(value=0.1)", "waits for Plateau", "can't be done"):
        assert part in str(preview)
    assert dataclasses.is_dataclass(preview)


def test_due_tells_of_what_may_come() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    action = rg.Grow(rg.Random(), 1)
    plan = rg.chain(
        rg.until(rg.Above("loss", 5.0), rg.every(2, action)), rg.when(rg.Below("loss", 0.0), action, stop=1)
    )
    shaper = rg.Shaper(model, torch.optim.SGD(model.parameters(), 0.1), plan, example=torch.zeros(2, 4))
    seen = []
    for _ in range(4):
        seen.append((shaper.due, len(shaper.step(loss=1.0))))
    assert seen == [(True, 0), (True, 1), (False, 0), (True, 1)]  # at first the condition might have held

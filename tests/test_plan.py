"""Plans fire at exact steps; the Shaper runs them in a plain loop and can be stopped and continued anywhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow as rg
import zoo
from state import differences, differing, snapshot, tensors_of

#: The same functions without their types, for calls that the types forbid.
LOOSELY: Any = rg

GROW = rg.Grow(rg.Random(), 2, where="conv1")
PRUNE = rg.Prune(rg.L1(0.1), 1, where="conv1")


class Run:
    """A plain training loop under a Shaper, on one of the small nets."""

    def __init__(self, plan: Any, name: str = "residual", seed: int = 0, **options: Any) -> None:
        self.model = zoo.build(name)
        self.x = zoo.example(name)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.shaper = rg.Shaper(
            self.model, self.optimizer, plan, example=self.x, generator=torch.Generator().manual_seed(seed), **options
        )

    def step(self, zero_first: bool = False) -> list[rg.Edit]:
        if zero_first:
            self.optimizer.zero_grad()
        loss = self.model(self.x).square().mean() + self.shaper.penalty()
        loss.backward()
        self.optimizer.step()
        if not zero_first:
            self.optimizer.zero_grad()
        return self.shaper.step()

    def fired(self, steps: int) -> dict[int, list[dict[str, tuple[int, int]]]]:
        """Step -> the sizes of each edit made in it."""
        found = {}
        for step in range(1, steps + 1):
            edits = self.step()
            if edits:
                found[step] = [edit.sizes for edit in edits]
        return found


def steps_of(plan: Any, steps: int = 30) -> list[int]:
    return list(Run(plan).fired(steps))


# --------------------------------------------------------------------------------------------------
# when


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (rg.every(7, GROW), [7, 14, 21, 28]),
        (rg.every(1, GROW, stop=3), [1, 2, 3]),
        (rg.every(5, GROW, stop=15), [5, 10, 15]),
        (rg.every(5, GROW, start=10), [15, 20, 25, 30]),
        (rg.every(5, GROW, start=12, stop=25), [17, 22]),
        (rg.at(5, GROW), [5]),
        (rg.at([3, 11], GROW), [3, 11]),
        (rg.at((11, 3), GROW), [3, 11]),
        (rg.at(31, GROW), []),
        (rg.chain(), []),
        (rg.chain(rg.at(4, GROW), rg.at(9, PRUNE)), [4, 9]),
        (rg.chain(rg.every(10, GROW), rg.chain(rg.at(3, PRUNE), rg.at(10, PRUNE))), [3, 10, 20, 30]),
    ],
    ids=str,
)
def test_plans_fire_at_exactly_their_steps(plan: Any, expected: list[int]) -> None:
    assert steps_of(plan) == expected


def test_actions_of_one_step_come_in_the_order_of_the_chain() -> None:
    assert Run(rg.chain(rg.at(2, GROW), rg.at(2, PRUNE))).fired(2) == {2: [{"conv1": (6, 8)}, {"conv1": (8, 7)}]}
    assert Run(rg.chain(rg.at(2, PRUNE), rg.at(2, GROW))).fired(2) == {2: [{"conv1": (6, 5)}, {"conv1": (5, 7)}]}


@pytest.mark.parametrize("zero_first", [False, True])
def test_due_says_whether_the_next_step_edits(zero_first: bool) -> None:
    run = Run(rg.chain(rg.every(3, GROW, stop=9), rg.at(7, PRUNE)))
    for step in range(1, 13):
        assert run.shaper.steps == step - 1
        due = run.shaper.due
        assert due is (step in (3, 6, 7, 9))
        assert bool(run.step(zero_first)) is due
        assert run.shaper.steps == step


@pytest.mark.parametrize(
    "make",
    [
        lambda: LOOSELY.every(0, GROW),
        lambda: LOOSELY.every(-5, GROW),
        lambda: LOOSELY.every(2.5, GROW),
        lambda: LOOSELY.every(True, GROW),
        lambda: LOOSELY.every("5", GROW),
        lambda: LOOSELY.every(5, "grow"),
        lambda: LOOSELY.every(5, rg.Random()),
        lambda: LOOSELY.every(5, GROW, start=-1),
        lambda: LOOSELY.every(5, GROW, start=9, stop=4),
        lambda: LOOSELY.every(5, GROW, start=9, stop=13),
        lambda: LOOSELY.at(0, GROW),
        lambda: LOOSELY.at(-3, GROW),
        lambda: LOOSELY.at([], GROW),
        lambda: LOOSELY.at([3, "4"], GROW),
        lambda: LOOSELY.at(1.5, GROW),
        lambda: LOOSELY.at(3, None),
        lambda: LOOSELY.chain(GROW),
        lambda: LOOSELY.chain(3),
        lambda: LOOSELY.Grow(rg.L1(), 2),
        lambda: LOOSELY.Prune(rg.Random(), 2),
        lambda: LOOSELY.Grow("random", 2),
        lambda: LOOSELY.Grow(rg.Random(), -2),
        lambda: LOOSELY.Grow(rg.Random(), float("nan")),
        lambda: LOOSELY.Grow(rg.Random(), True),
        lambda: LOOSELY.Prune(rg.L1(), 1.5),
        lambda: LOOSELY.Grow(rg.Random(), 2, round_to=0),
        lambda: LOOSELY.Grow(rg.Random(), 2, min_size=9, max_size=3),
    ],
)  # fmt: skip
def test_plans_refuse_what_makes_no_sense(make: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        make()


def test_plans_are_values() -> None:
    def make() -> Any:
        grow = rg.Grow(rg.Random(0.5), 0.25, where="layer[12].*", round_to=8, max_size=64, protect=("stem",))
        return rg.chain(rg.every(10, grow, start=20, stop=100), rg.at([3, 5], rg.Prune(rg.L1(), {"conv1": 2})))

    one, other = make(), make()
    assert one == other
    assert one is not other
    assert repr(one) == repr(other)
    for part in ("Random", "0.25", "layer[12].*", "L1", "conv1"):
        assert part in str(one)
    assert one != rg.chain(rg.every(10, GROW))
    for value in (one, GROW, PRUNE, rg.every(2, GROW), rg.at(2, GROW)):
        assert dataclasses.is_dataclass(value)
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)


# --------------------------------------------------------------------------------------------------
# where and how much


def test_where_selects_by_name() -> None:
    sizes = Run(rg.at(1, rg.Grow(rg.Random(), 2, where="*"))).fired(1)[1]
    assert sizes == [{"stem": (8, 10), "conv1": (6, 8)}]
    assert Run(rg.at(1, rg.Grow(rg.Random(), 2, where="st*"))).fired(1)[1] == [{"stem": (8, 10)}]


def test_a_pattern_that_matches_nothing_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        Run(rg.every(100, rg.Grow(rg.Random(), 2, where="nowhere*")))


def test_sizes_and_protection_reach_the_edit() -> None:
    plan = rg.chain(
        rg.every(1, rg.Grow(rg.Random(), 3, max_size=10, protect=("stem",)), stop=4),
        rg.at(5, rg.Prune(rg.L1(), {"stem": 5}, round_to=4)),
    )
    run = Run(plan)
    run.fired(5)
    assert {axis.name: axis.size for axis in run.shaper.structure.axes} == {"stem": 4, "conv1": 10}


# --------------------------------------------------------------------------------------------------
# the penalty


def test_the_penalty_is_that_of_the_plans_methods_on_their_axes() -> None:
    plan = rg.chain(rg.at(3, rg.Prune(rg.L1(0.1), 1, where="conv1")), rg.at(5, rg.Prune(rg.L1(0.01), 1)))
    run = Run(plan)
    model = run.model

    def norm(*names: str) -> float:
        return sum(model.get_parameter(f"{name}.weight").abs().sum().item() for name in names)

    both = 0.1 * norm("bn1") + 0.01 * norm("norm", "bn1", "bn2")
    assert run.shaper.penalty().item() == pytest.approx(both, rel=1e-5)
    run.fired(3)
    assert run.shaper.penalty().item() == pytest.approx(0.01 * norm("norm", "bn1", "bn2"), rel=1e-5)
    run.fired(2)
    assert run.shaper.penalty().item() == 0.0


def test_a_penalty_ends_with_the_plan_that_it_belongs_to() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    plan = rg.until(rg.Above("step", 3), rg.every(2, rg.Prune(rg.L1(0.1), 1)))

    def shaper() -> rg.Shaper:
        return rg.Shaper(model, optimizer, plan, example=x)

    running, penalties, due = shaper(), [], []
    for step in range(6):
        if step == 5:  # what has ended has ended after going on, too
            running, state = shaper(), running.state_dict()
            running.load_state_dict(state)
        penalties.append(running.penalty().item())
        due.append(running.due)
        running.step()
    assert [value > 0 for value in penalties] == [True] * 4 + [False] * 2  # it ends at step 4
    assert due == [False, True, False, True, False, False]  # step 6 would have been next


def test_without_a_penalty_it_is_a_zero_that_may_be_added() -> None:
    run = Run(rg.every(5, GROW))
    penalty = run.shaper.penalty()
    assert isinstance(penalty, Tensor)
    assert penalty.shape == () and penalty.item() == 0.0
    run.model.stem.weight.sum().add(penalty).backward()


# --------------------------------------------------------------------------------------------------
# the Shaper


def test_an_idle_shaper_changes_nothing() -> None:
    plain = zoo.build("residual")
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9)
    x = zoo.example("residual")
    for _ in range(4):
        plain(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    run = Run(rg.at(100, rg.Grow(rg.Random(), 2)))
    assert run.fired(4) == {}
    assert differing(tensors_of(plain), tensors_of(run.model)) == []


def test_building_a_shaper_touches_nothing() -> None:
    model, x = zoo.build("residual"), zoo.example("residual")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    before = snapshot(model, optimizer)
    rg.Shaper(model, optimizer, rg.every(2, GROW), example=x)
    assert differences(before, snapshot(model, optimizer)) == []


def test_the_callbacks_are_called_around_every_single_edit() -> None:
    seen: list[tuple[str, Any]] = []

    def before(action: Any) -> None:
        seen.append(("before", action))
        seen.append(("size", run.shaper.structure["conv1"].size))

    def after(edit: rg.Edit) -> None:
        seen.append(("after", edit))
        seen.append(("size", run.shaper.structure["conv1"].size))

    run = Run(rg.chain(rg.at(2, GROW), rg.at(2, PRUNE)), before_edit=before, after_edit=after)
    run.step()
    assert seen == []
    grown, pruned = run.step()
    assert seen == [
        ("before", GROW), ("size", 6), ("after", grown), ("size", 8),
        ("before", PRUNE), ("size", 8), ("after", pruned), ("size", 7),
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_run_and_global_randomness_is_untouched() -> None:
    plan = rg.chain(rg.every(2, GROW), rg.every(3, PRUNE))
    results = []
    for seed in (0, 0, 1):
        run = Run(plan, seed=seed)
        state = torch.get_rng_state()
        run.fired(7)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(tensors_of(run.model))
    assert differing(results[0], results[1]) == []
    assert differing(results[0], results[2])


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 9])
@pytest.mark.parametrize(("name", "variant"), [("residual", "module"), ("grouped", "attribute")])
def test_a_run_continues_from_its_state_as_if_never_stopped(name: str, variant: str, stop: int, tmp_path: Path) -> None:
    where = "conv1" if name == "residual" else "*"
    plan = rg.chain(
        rg.every(2, rg.Grow(rg.Random(), 1, where=where)), rg.every(3, rg.Prune(rg.L1(0.1), 1, where=where))
    )

    def start(model: nn.Module) -> Run:
        run = Run.__new__(Run)
        run.model, run.x = model, zoo.example(name)
        run.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        run.shaper = rg.Shaper(model, run.optimizer, plan, example=run.x, generator=torch.Generator().manual_seed(3))
        return run

    whole = start(zoo.build(name, variant))
    edits = whole.fired(stop)
    rg.save(whole.model, tmp_path / "model")
    torch.save({"optimizer": whole.optimizer.state_dict(), "shaper": whole.shaper.state_dict()}, tmp_path / "state.pt")
    edits |= {stop + step: sizes for step, sizes in whole.fired(8).items()}
    assert edits

    again = start(rg.load(tmp_path / "model", zoo.build(name, variant)))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.optimizer.load_state_dict(state["optimizer"])
    again.shaper.load_state_dict(state["shaper"])
    assert again.shaper.steps == stop
    continued = {stop + step: sizes for step, sizes in again.fired(8).items()}
    assert continued == {step: sizes for step, sizes in edits.items() if step > stop}
    assert differing(tensors_of(whole.model), tensors_of(again.model)) == []


def test_a_state_dict_is_a_snapshot() -> None:
    run = Run(rg.every(1, GROW))
    run.fired(2)
    state = run.shaper.state_dict()
    frozen = repr(state)
    run.fired(2)
    assert repr(state) == frozen
    run.shaper.load_state_dict(state)
    assert run.shaper.steps == 2


@pytest.mark.parametrize("damage", ["nothing", "not a dict", "missing", "unknown", "negative", "type"])
def test_a_damaged_state_is_refused_and_changes_nothing(damage: str) -> None:
    run = Run(rg.every(2, GROW))
    run.fired(3)
    good = run.shaper.state_dict()
    steps = "steps"
    assert good[steps] == 3
    state: Any = {
        "nothing": None,
        "not a dict": [1, 2],
        "missing": {key: value for key, value in good.items() if key != steps},
        "unknown": {**good, "strange": 1},
        "negative": {**good, steps: -1},
        "type": {**good, steps: "3"},
    }[damage]
    with pytest.raises((ValueError, TypeError)):
        run.shaper.load_state_dict(state)
    assert run.shaper.steps == 3
    assert run.step()


@pytest.mark.parametrize(
    "options",
    [{"plan": 3}, {"plan": None}, {"plan": GROW}, {"optimizer": None}, {"model": "x"}, {"generator": 3}],
    ids=str,
)
def test_a_shaper_checks_its_arguments(options: dict[str, Any]) -> None:
    model = zoo.build("residual")
    given: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "plan": rg.every(2, GROW),
        "generator": None,
    }
    given.update(options)
    with pytest.raises((ValueError, TypeError)):
        rg.Shaper(
            given["model"], given["optimizer"], given["plan"], example=zoo.example("residual"),
            generator=given["generator"],
        )  # fmt: skip


def test_a_failing_edit_in_a_step_leaves_model_and_optimizer_as_they_were() -> None:
    run = Run(rg.at(2, rg.Prune(rg.L1(), {"conv1": 6})))
    run.step()
    (run.model(run.x).square().mean() + run.shaper.penalty()).backward()
    run.optimizer.step()
    before = snapshot(run.model, run.optimizer)
    with pytest.raises(rg.NotPermissible):
        run.shaper.step()
    assert differences(before, snapshot(run.model, run.optimizer)) == []


def test_the_shapers_structure_is_live() -> None:
    run = Run(rg.every(2, GROW))
    structure = run.shaper.structure
    run.fired(4)
    assert run.shaper.structure is structure
    assert structure["conv1"].size == run.model.conv1.out_channels == 10


def test_a_closure_is_accepted() -> None:
    run = Run(rg.at(1, GROW))
    (run.model(run.x).square().mean() + run.shaper.penalty()).backward()
    run.optimizer.step()
    edits = run.shaper.step(lambda: run.model(run.x).square().mean())
    assert [edit.sizes for edit in edits] == [{"conv1": (6, 8)}]


def test_a_plan_of_the_readme_runs_on_a_torchvision_model() -> None:
    """Growth of the inner widths, then slimming over all axes, as in a first script."""
    plan = rg.chain(
        rg.every(2, rg.Grow(rg.Random(), 16, where="layer[34].*.conv1"), stop=4),
        rg.every(2, rg.Prune(rg.L1(1e-4), 0.1), start=4, stop=6),
    )
    run = Run(plan, "resnet18")
    fired = run.fired(7)
    assert list(fired) == [2, 4, 6]
    grown = {f"layer{i}.{j}.conv1": (64 * 2 ** (i - 1),) * 2 for i in (3, 4) for j in (0, 1)}
    assert fired[2] == [{name: (a, a + 16) for name, (a, _) in grown.items()}]
    total = sum(before for before, _ in fired[6][0].values())
    assert sum(before - after for before, after in fired[6][0].values()) == round(0.1 * total)
    assert json.dumps(fired)

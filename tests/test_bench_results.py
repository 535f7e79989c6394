"""The store of a grid, and what its results say."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from regrow.bench.cells import Cell, cells_of
from regrow.bench.comparison import Interval, _first, holm, leaderboard, ranks, summary
from regrow.bench.errors import InputError
from regrow.bench.results import RESULTS_FILE, Store, history_of, merge
from regrow.bench.suites import Arm, entered, get_suite, list_suites
from regrow.bench.worker import from_json, to_json


def result(arm: str, seed: int, score: float, *, task: str = "some/task", against: str = "", **more: Any) -> dict:
    """A finished run whose score rises evenly with FLOPs."""
    events: list[dict[str, Any]] = [{"event": "start", "step": 0, "widths": {"0": 4}}]
    for part in (1, 2, 3, 4):
        events.append(
            {
                "event": "metrics" if part < 4 else "end",
                "step": part * 10,
                "training_flops": part * more.get("cost", 100.0),
                "test_accuracy": score * part / 4,
                "test_loss": 1.0,
                "train_loss": 0.5,
                "edit_flops": 3,
                "edit_seconds": 0.1,
                "seconds": 2.0,
                "parameters": 10,
                "flops": 20,
            }
        )
    for before, after in more.get("jumps", ()):
        events.insert(1, {"event": "edit", "step": 5, "loss_train_mode": [before, after], "loss_eval_mode": [1.0, 1.0]})
    setting = more.get("setting", "grow")
    return {
        "key": f"{task} | {arm} | {seed}", "task": task, "arm": arm, "seed": seed, "against": against,
        "config": {"setting": setting, "task": task}, "events": events,
    }  # fmt: skip


def test_a_store_keeps_each_run_once_whatever_cuts_it_off(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    lines = [result("a", seed, 0.5) for seed in range(3)]
    for line in lines:
        store.add(line)
    store.add(lines[0] | {"arm": "again"})
    assert list(store.results()) == [line["key"] for line in lines]
    assert store.results()[lines[0]["key"]]["arm"] == "a"
    path = tmp_path / "store" / RESULTS_FILE
    whole = path.read_bytes()
    for cut in random.Random(0).sample(range(len(whole)), 40):
        path.write_bytes(whole[:cut])
        known = Store(tmp_path / "store").results()
        assert set(known) <= {line["key"] for line in lines}
        complete = [line for line in whole[:cut].split(b"\n")[:-1] if line]
        assert len(known) >= len({json.loads(line)["key"] for line in complete})
        store.add(result("b", 9, 0.5))
        assert result("b", 9, 0.5)["key"] in Store(tmp_path / "store").results()


def test_one_runner_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.held(), pytest.raises(InputError, match="another runner"), Store(tmp_path / "store").held():
        pass
    with store.held():
        pass


def test_a_folder_that_is_no_store_of_this_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "old")
    (tmp_path / "old" / "store.json").write_text('{"protocol": 0}')
    with pytest.raises(InputError, match="version 0 of the protocol"):
        Store(tmp_path / "old")
    (tmp_path / "old" / "store.json").write_text("[]")
    with pytest.raises(InputError, match="can't be used as a store"):
        Store(tmp_path / "old")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"other files \(thesis.tex\)"):
        Store(tmp_path / "other")


def test_stores_are_brought_together_without_anything_twice(tmp_path: Path) -> None:
    for name, seeds in (("mine", (0, 1)), ("theirs", (1, 2))):
        for seed in seeds:
            Store(tmp_path / name).add(result(name, seed, 0.5) | {"key": f"run {seed}"})
    stores = [tmp_path / "mine", tmp_path / "theirs"]
    assert merge(stores, tmp_path / "all") == merge(stores, tmp_path / "all") == 3
    found = Store(tmp_path / "all").results()
    assert [found[f"run {seed}"]["arm"] for seed in range(3)] == ["mine", "mine", "theirs"]
    assert len((tmp_path / "all" / RESULTS_FILE).read_text().splitlines()) == 3


def test_a_result_is_a_history() -> None:
    history = history_of(result("a", 0, 0.8))
    assert history.finished
    assert history.last_step == 40


# Cells ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in list_suites() if name != "smoke"])
def test_every_cell_of_a_suite_is_a_run_of_its_own(name: str) -> None:
    cells = list(cells_of(get_suite(name)))
    assert len({cell.key for cell in cells}) == len(cells)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    arms = {arm.name for arm in get_suite(name).arms}
    assert all(arm.against in {"", *arms} for arm in get_suite(name).arms)


def test_a_key_tells_what_matters_and_nothing_else() -> None:
    fixed = (("width", 0.25), ("threads", 1), ("validation", 100))
    cell = Cell("digits/vgg11", Arm("a", "grow", {"budget": 0.5}), 3, fixed)
    same = Cell("digits/vgg11", Arm("a", "grow", {"budget": 0.5}), 3, (("threads", 2), *fixed[:1], *fixed[2:]))
    assert cell.key == same.key
    assert cell.options(Path("there")).out == Path("there")
    others = [
        Cell("digits/vgg11", Arm("a", "grow", {"budget": 0.6}), 3, fixed),
        Cell("digits/vgg11", Arm("a", "grow", {"budget": 0.5}), 4, fixed),
        Cell("digits/vgg11", Arm("a", "grow", {"budget": 0.5}), 3, (*fixed[:2], ("validation", 0))),
        Cell("digits/vgg11", Arm("a", "grow", {"budget": 0.5}), 3, fixed, held_out=False),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 5
    assert others[-1].options().validation == 0
    assert from_json(to_json(cell, Path("/data"))) == (cell, Path("/data"))
    assert from_json(to_json(cell, None))[0].key == cell.key


def test_anybodys_method_gets_arms() -> None:
    suite = entered(get_suite("poster"), "regrow.pruning.taylor:Taylor")
    assert [arm.name for arm in suite.arms[-2:]] == [
        "shrink: regrow.pruning.taylor:Taylor",
        "constant: regrow.pruning.taylor:Taylor + gradmax",
    ]
    assert len({cell.key for cell in cells_of(suite)}) == 3 * len(suite.arms)
    for text, said in {
        "nowhere.at.all:Method": "No module named",
        "regrow.pruning.taylor:Tailor": "no attribute",
        "regrow.limits:Limits": "a class attribute name",
        "set": "neither fresh",
    }.items():
        with pytest.raises(InputError, match=said):
            entered(get_suite("poster"), text)


# Comparisons ------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_is_the_step_down_rule(ps: list[float]) -> None:
    corrected = holm(ps)
    for level in (0.01, 0.05, 0.3):
        rejected, order = set(), sorted(range(len(ps)), key=ps.__getitem__)
        for place, index in enumerate(order):
            if ps[index] * (len(ps) - place) > level:
                break
            rejected.add(index)
        assert {index for index, p in enumerate(corrected) if p <= level} == rejected


def test_an_interval_covers_what_it_says() -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(3.0, 2.0, (4000, 5))
    covered = [(i := Interval.of(list(map(float, draw)))).low <= 3.0 <= i.high for draw in draws]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)
    low, high = stats.t.interval(0.95, 4, draws[0].mean(), draws[0].std(ddof=1) / math.sqrt(5))
    assert (Interval.of(list(draws[0])).low, Interval.of(list(draws[0])).high) == pytest.approx((low, high))
    assert math.isnan(Interval.of([1.0]).low)


def test_a_run_in_numbers() -> None:
    run = summary(result("a", 0, 0.8, jumps=[(2.0, 2.5), (1.0, 0.9)]))
    assert run.score == 0.8
    assert run.area == pytest.approx(0.5)  # of a line from 0.2 to 0.8
    assert run.jump_train == pytest.approx(0.25)
    assert run.jump_eval == 0.0
    assert run.edits == 2
    plain = summary(result("a", 0, 0.8))
    assert plain.jump_train is None
    assert plain.recovered is None


def test_arms_are_compared_seed_by_seed() -> None:
    base = [0.50, 0.60, 0.55, 0.58]
    found = [result("base", seed, score, setting="static") for seed, score in enumerate(base)]
    found += [result("good", seed, base[seed] + 0.02 + 0.001 * seed, against="base") for seed in range(3)]
    found += [result("same", seed, base[seed] + (-1) ** seed * 0.01, against="base") for seed in range(4)]
    rows = {row.arm: row for row in leaderboard(found)}
    good = rows["good"]
    assert good.gain is not None
    assert good.gain.mean == pytest.approx(0.021)
    assert good.gain.low > 0
    assert good.seeds == (0, 1, 2)
    alone = stats.ttest_rel([0.52, 0.621, 0.572], base[:3]).pvalue
    assert good.p == pytest.approx(2 * alone)
    assert rows["same"].p is not None
    assert rows["same"].p > 0.5
    assert rows["base"].gain is None
    assert [row.arm for row in leaderboard(found) if row.setting == "grow"] == ["good", "same"]


def test_where_a_score_is_first_reached() -> None:
    curve = ((100.0, 0.2), (200.0, 0.4), (300.0, 0.6))
    assert _first(curve, 0.5) == pytest.approx(250.0)
    assert _first(curve, 0.1) == 100.0
    assert _first(curve, 0.7) is None
    found = [result("large, 100%", seed, 0.4, cost=100.0, setting="static") for seed in range(2)]
    found += [result("fast", seed, 0.8, cost=50.0) for seed in range(2)]
    rows = {row.arm: row for row in leaderboard(found)}
    assert rows["fast"].reached == pytest.approx(0.25)
    assert rows["large, 100%"].reached == pytest.approx(1.0)


def test_ranks_are_over_the_tasks_that_all_have() -> None:
    found = [result(arm, 0, score, task=task) for task in ("x", "y") for arm, score in (("a", 0.3), ("b", 0.5))]
    found += [result("c", 0, 0.9, task="x"), result("d", 0, 0.2, task="x"), result("d", 0, 0.8, task="y")]
    assert ranks(leaderboard(found)) == {"a": 2.5, "b": 1.5, "d": 2.0}

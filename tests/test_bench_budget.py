"""Runs whose clock is the training FLOPs that are spent: all of them are counted, and none is spent twice."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import regrow as rg
from regrow.bench.errors import InputError
from regrow.bench.options import Options
from regrow.bench.protocol import Reached, own_plan
from regrow.bench.recovery import Meter, Recovery
from regrow.bench.run import _load, run
from regrow.bench.store import RunFolder
from regrow.bench.training import Training

TINY = Options(
    "digits/vgg11", width=0.1, limit=96, validation=40, batch_size=32, epochs=4, events=2, budget=1.0, evaluations=4
)
STEPS = 12  # that the large network makes with the whole budget


def events(options: Options, folder: Path) -> list[dict[str, Any]]:
    run(replace(options, out=folder))
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def of(kind: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in found if event["event"] == kind]


@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_a_static_network_spends_its_part_of_the_budget(budget: float, tmp_path: Path) -> None:
    found = events(replace(TINY, budget=budget), tmp_path / "run")
    (end,) = of("end", found)
    per_step = 3 * end["flops"] * 32
    assert end["step"] == math.ceil(STEPS * budget)
    assert end["training_flops"] == end["step"] * per_step
    assert end["edit_flops"] == 0
    assert end["progress"] >= 1
    assert [round(event["progress"] * 4) for event in of("metrics", found)] == [1, 2, 3]


def test_a_small_network_makes_more_steps(tmp_path: Path) -> None:
    large = of("end", events(TINY, tmp_path / "large"))[0]
    small = of("end", events(replace(TINY, size="start", start_fraction=0.5), tmp_path / "small"))[0]
    assert small["step"] == math.ceil(STEPS * large["flops"] / small["flops"])
    assert 0 <= small["training_flops"] - large["training_flops"] < 3 * 32 * small["flops"]


def test_what_a_method_looks_at_is_spent_and_random_growth_is_free(tmp_path: Path) -> None:
    grow = replace(TINY, setting="grow", start_fraction=0.5)
    free, dear = (
        events(replace(grow, grow=method), tmp_path / method[:4]) for method in ("random", "gradmax:beyond_rank=random")
    )
    for found in (free, dear):
        (end,), start = of("end", found), of("start", found)[0]
        sizes = [start["flops"], *(event["flops"][1] for event in of("edit", found))]
        steps = [0, *(event["step"] for event in of("edit", found)), end["step"]]
        trained = sum(3 * 32 * flops * (steps[i + 1] - steps[i]) for i, flops in enumerate(sizes))
        assert end["training_flops"] == trained + end["edit_flops"]
        assert end["flops"] == sizes[-1] > start["flops"]
    assert of("end", free)[0]["edit_flops"] == 0
    looked = [event["flops"][0] for event in of("edit", dear)]
    assert of("end", dear)[0]["edit_flops"] > 3 * 32 * 0.8 * sum(looked)  # a pass forward and back, and the matrices


def test_events_and_learning_rate_follow_what_is_spent(tmp_path: Path) -> None:
    found = events(replace(TINY, setting="grow", start_fraction=0.5, first=0.25, last=0.5, epochs=8), tmp_path / "run")
    spent = of("end", found)[0]["training_flops"]
    for part, edit in zip((0.25, 0.5), of("edit", found), strict=True):
        later = [e for e in found if e["event"] in ("metrics", "end") and e["step"] >= edit["step"]]
        until = later[0]["training_flops"]
        assert until / spent == pytest.approx(part, abs=0.2)
    rates = [event["learning_rate"] for event in of("metrics", found)]
    assert rates == sorted(rates, reverse=True)
    for event in of("metrics", found):
        assert event["learning_rate"] == pytest.approx(0.05 * 0.5 * (1 + math.cos(math.pi * event["progress"])))


def test_held_out_images_are_those_behind_the_training_images() -> None:
    options = TINY.settled()
    whole, part = _load(replace(options, limit=None, validation=0)), _load(options)
    assert torch.equal(part.train.pixels, whole.train.pixels[:96])
    assert torch.equal(part.test.pixels, whole.train.pixels[96:136])
    rest = _load(replace(options, limit=None, validation=37))
    assert len(rest.train) == len(whole.train) - 37
    with pytest.raises(InputError, match="hold out fewer"):
        _load(replace(options, validation=5000))


@pytest.mark.parametrize("order", ["prune-grow", "grow-prune", "alternate"])
def test_every_order_ends_as_large_as_it_began(order: str, tmp_path: Path) -> None:
    options = replace(TINY, setting="constant", order=order, grow="random", events=2, first=0.2, last=0.6)
    found = events(options, tmp_path / "run")
    kinds = [event["kind"] for event in of("edit", found)]
    first, second = ("grow", "prune") if order == "grow-prune" else ("prune", "grow")
    assert kinds == [first, second] * 2
    steps = [event["step"] for event in of("edit", found)]
    assert (steps[0] < steps[1]) == (order == "alternate")
    assert of("end", found)[0]["widths"] == of("start", found)[0]["widths"]


def test_a_method_with_a_schedule_of_its_own_stays_within_the_sizes_of_the_setting(tmp_path: Path) -> None:
    method = "homeostasis:period=1,rate=0.5,batches=1"
    options = replace(TINY, setting="grow", grow=method, schedule="own", start_fraction=0.5, last=0.9, epochs=6)
    found = events(options, tmp_path / "run")
    large = of("start", events(TINY, tmp_path / "large"))[0]["flops"]
    assert of("edit", found)
    assert all(event["kind"] == "adapt" for event in of("edit", found))
    assert of("start", found)[0]["flops"] < of("end", found)[0]["flops"] <= large
    shrunk = replace(options, setting="shrink", prune=method, start_fraction=1.0, end_fraction=0.5, first=0.1)
    assert of("end", events(shrunk, tmp_path / "less"))[0]["flops"] < 0.7 * large
    with pytest.raises(InputError, match="no schedule of its own"):
        own_plan(replace(options, grow="random").settled(), 1e6)


def test_a_run_with_a_budget_goes_on_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(TINY, setting="grow", grow="gradmax:beyond_rank=random", start_fraction=0.5, checkpoint_every=2)
    whole = events(options, tmp_path / "whole")
    record, seen = RunFolder.record, []

    def interrupt(self: RunFolder, event: dict[str, Any]) -> None:
        record(self, event)
        seen.append(event)
        if event["event"] in ("edit", "metrics") and len(seen) in (2, 4, 6, 9):
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "record", interrupt)
    interruptions = 0
    while True:
        try:
            found = events(options, tmp_path / "parts")
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 2
    timed = {"seconds", "edit_seconds"}
    assert [{k: v for k, v in e.items() if k not in timed} for e in found] == [
        {k: v for k, v in e.items() if k not in timed} for e in whole
    ]


def test_the_meter_counts_what_runs_while_it_is_on() -> None:
    meter, a, b = Meter(), torch.randn(5, 7), torch.randn(7, 11)
    a @ b
    with meter:
        a @ b
        with meter.paused():
            a @ b
        a @ b
    assert meter.flops == 2 * (2 * 5 * 7 * 11)
    again = Meter()
    again.load_state_dict(meter.state_dict())
    with again:
        a @ b
    assert again.flops == 3 * (2 * 5 * 7 * 11)


def test_recovery_is_when_the_mean_loss_is_back() -> None:
    recovery, found = Recovery(), {}
    losses = [1.0] * 20 + [3.0] * 8 + [0.5] * 30
    for step, loss in enumerate(losses, start=1):
        if step == 21:
            recovery.edited(20)
        done = recovery.after_step(step, loss)
        if done:
            found[step] = done
    # Ten losses at most one on average: 3·n + 0.5·(10 − n) <= 10 for n <= 2, so eight low ones behind eight high ones.
    assert found == {36: (20, 16)}
    assert Recovery().after_step(1, 1.0) is None


def test_a_level_is_reached_once() -> None:
    level, memory = Reached("progress", 0.5), {}
    seen = [level.holds({"progress": part / 10}, memory) for part in range(10)]
    assert seen == [False] * 5 + [True] + [False] * 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("budget", 0.0), ("evaluations", 0), ("validation", -1), ("order", "at-once"), ("schedule", "mine")],
)
def test_numbers_that_cannot_be_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError):
        replace(TINY, **{name: value}).settled()


def test_training_can_be_built_for_every_setting() -> None:
    for setting in ("static", "grow", "shrink", "constant"):
        options = replace(TINY, setting=setting).settled()
        training = Training(options, _load(options))
        assert training.may_spend == pytest.approx(STEPS * 3 * 32 * _flops_of_full())


def _flops_of_full() -> int:
    options = replace(TINY, setting="static").settled()
    training = Training(options, _load(options))
    return rg.measure.flops(training.model, training.example) // 2

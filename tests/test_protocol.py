"""The settings as plans: when, where and by how much; and options that cannot be."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regrow as rg
from regrow.bench.errors import InputError
from regrow.bench.models import VGG11_WIDTHS, scaled, vgg11
from regrow.bench.options import Options
from regrow.bench.protocol import event_steps, make_plan, staircase
from regrow.plan import Plan

TOTAL = 100


def structure(fraction: float) -> rg.Structure:
    network = vgg11(scaled(scaled(VGG11_WIDTHS, 0.1), fraction), 1, 10)
    return rg.analyze(network, torch.zeros(2, 1, 32, 32))


def sizes(fraction: float) -> dict[str, int]:
    return {axis.name: axis.size for axis in structure(fraction).axes}


def plan_of(**changes: Any) -> Plan:
    options = Options("digits/vgg11", width=0.1, **changes).settled()
    return make_plan(options, structure(options.built_fraction), sizes(options.end_fraction), TOTAL, 1e9)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 40))
def test_a_staircase_leads_from_start_to_end_in_even_steps(start: int, end: int, events: int) -> None:
    steps = staircase(start, end, events)
    assert len(steps) == events
    assert start + sum(steps) == end
    assert max(steps) - min(steps) <= 1


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(200, 100_000))
def test_events_are_evenly_spaced_within_their_bounds(events: int, total: int) -> None:
    steps = event_steps(Options("digits/vgg11", events=events, first=0.2, last=0.7).settled(), total)
    assert steps[0] == round(0.2 * total) and steps[-1] == round(0.7 * total)
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    assert max(gaps) - min(gaps) <= 1


def test_too_many_events_for_the_steps_are_refused() -> None:
    with pytest.raises(InputError, match="--events 20 do not fit"):
        event_steps(Options("digits/vgg11", events=20).settled(), 10)


def test_the_constant_setting_prunes_then_grows_at_the_asked_steps() -> None:
    plan = plan_of(setting="constant", events=3, first=0.1, last=0.5)
    due = {step: [type(action) for action in plan.due(step)] for step in range(1, TOTAL + 1)}
    assert {step: kinds for step, kinds in due.items() if kinds} == {step: [rg.Prune, rg.Grow] for step in (10, 30, 50)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"setting": "growing"}, r"unknown setting growing \(did you mean grow\?\)"),
        ({"grow": "randon"}, r"unknown method for --grow: randon \(did you mean random\?\)"),
        ({"prune": "random"}, "unknown method for --prune: random"),
        ({"prune": "l1:force=2"}, "--prune l1:force=2"),
        ({"prune": "l1:strength=much"}, "--prune l1:strength=much"),
        ({"ranking": "local"}, "unknown ranking local"),
        ({"size": "middle"}, "unknown size middle"),
        ({"device": "abacus"}, "unknown device abacus"),
        ({"device": "cuda:99"}, "device cuda:99 was asked for"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"lr": -1.0}, "--lr is -1"),
        ({"checkpoint_every": 0}, "--checkpoint-every is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 2**63}, "--seed is 9223372036854775808"),
        ({"end_fraction": 0.0}, "--end-fraction is 0"),
        ({"first": 0.7}, "--first is 0.7"),
        ({"exchange": 1.0}, "more units than there are"),
        ({"setting": "grow", "end_fraction": 0.1}, "grow must end larger"),
        ({"setting": "shrink", "end_fraction": 1.0}, "shrink must end smaller"),
        ({"setting": "constant", "end_fraction": 0.5}, "constant must end as it starts"),
    ],
)
def test_options_that_cannot_be_are_one_clear_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Options("digits/vgg11", **changes).settled()
    assert "\n" not in str(caught.value)


def test_a_pattern_without_a_match_lists_the_axes() -> None:
    with pytest.raises(InputError, match=r"--where layer\* matches no axis that can grow; the axes are: \w+"):
        plan_of(setting="grow", where="layer*")


def test_exchanging_all_units_is_refused() -> None:
    with pytest.raises(InputError, match=r"asks to prune 2 of the 2 units of features.0"):
        plan_of(setting="constant", start_fraction=0.3, exchange=0.9)


def test_a_single_unit_cannot_grow_but_can_be_the_end() -> None:
    with pytest.raises(InputError, match=r"features.0 has a single unit at --start-fraction 0.1"):
        plan_of(setting="grow", start_fraction=0.1)
    plan = plan_of(setting="shrink", end_fraction=0.1)
    amounts = [action.amount for step in range(TOTAL) for action in plan.due(step)]
    assert sum(amount["features.0"] for amount in amounts if isinstance(amount, Mapping)) == 5


def test_defaults_come_from_the_task_and_the_setting() -> None:
    digits = Options("digits/vgg11", setting="shrink").settled()
    assert (digits.width, digits.start_fraction, digits.end_fraction) == (0.25, 1.0, 0.5)
    plain = Options("cifar10/vgg11", batch_norm=False).settled()
    assert plain.lr == pytest.approx(Options("cifar10/vgg11").settled().lr / 10)
    half = Options("digits/vgg11", setting="constant", start_fraction=0.5).settled()
    assert half.end_fraction == 0.5
    static = Options("digits/vgg11", size="start").settled()
    assert static.built_fraction == 0.25

"""The page beside other libraries is what was measured, and regrow's side of each of its tasks runs."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "peers.md"
CONVOLUTIONS = "two convolutions, batch norm,"
GROWTHS = (
    ("perceptron, GELU", "GradMax"),
    ("perceptron, GELU", "TINY"),
    (f"{CONVOLUTIONS} ReLU", "GradMax"),
    (f"{CONVOLUTIONS} ReLU", "TINY"),
    (f"{CONVOLUTIONS} GELU", "GradMax"),
)


def peer(name: str) -> pytest.MarkDecorator:
    """Skips where a peer isn't there."""
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"needs {name}, of the extra peers")


@pytest.fixture(scope="module")
def tasks() -> Iterator[Any]:
    """Imports modules of the benchmark."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield lambda name: importlib.import_module(f"peer_tasks.{name}")
    finally:
        sys.path.remove(folder)


def test_the_page_is_what_was_measured_and_its_code_is_what_ran(tasks: Any) -> None:
    text = PAGE.read_text()
    found = dict(re.findall(r"<!-- begin: (.+?) -->\n(.*?)\n<!-- end: \1 -->", text, re.DOTALL))
    assert found == tasks("page").blocks()
    assert len(text.splitlines()) <= 200


def test_what_regrow_promises_there_was_met(tasks: Any) -> None:
    rows = [row for row in tasks("page").result()["rows"] if row["library"] == "regrow"]
    assert len(rows) == 1 + 3 + len(GROWTHS)
    assert all(row["met"] for row in rows)


def test_lines_are_those_of_the_code_that_is_there(tasks: Any) -> None:
    resnets, transformers, grown = map(tasks, ("resnet_rows", "attention_rows", "growing_rows"))
    expected = [length for _, _, length in resnets.contestants().values()]
    expected += [case.lines for cases in transformers.CASES.values() for case in cases]
    for case in grown.CASES:
        entered = [(True, way) for way in case.ways] + [(False, way) for way in case.methods]
        expected += [grown.code(case, gromos, way)["lines"] for gromos, way in entered]
    assert [row["lines"] for row in tasks("page").result()["rows"]] == expected


def test_a_resnet_keeps_half_of_its_flops_all_of_its_momentum_and_can_be_saved(tasks: Any) -> None:
    rows = tasks("resnet_rows")
    found = rows.facts(rows.Training(batch=4, pixels=32), rows.regrows, rows.regrow_restores)
    assert 0.45 < found["flops_left"] <= 0.5
    assert rows.kept(found)
    assert found["old_optimizer_holds"] == found["parameters"] == 62
    assert found["restored"]


@pytest.mark.parametrize("task", ["BERT", "Llama", "Llama, two heads to each key"])
def test_a_transformer_keeps_half_of_its_heads_and_hidden_units(tasks: Any, task: str) -> None:
    pytest.importorskip("transformers", reason="needs the extra transformers")
    rows = tasks("attention_rows")
    case = rows.CASES[task][-1]
    assert case.library == "regrow"
    found = rows.facts(case)
    assert rows.good(found)
    assert 0.5 < found["params_left"] < 0.55  # the rest makes the stream and its ends


@pytest.mark.parametrize(("network", "way"), GROWTHS)
def test_a_grown_network_puts_out_the_same_in_both_modes_and_goes_on(tasks: Any, network: str, way: str) -> None:
    rows = tasks("growing_rows")
    (case,) = (case for case in rows.CASES if case.name == network)
    found = rows.facts(case, False, way, seed=0, steps=10) | rows.passed_on(case, False, way, steps=10)
    assert found["units"] == rows.UNITS
    assert found["change"] == {"train": pytest.approx(0, abs=1e-5), "eval": pytest.approx(0, abs=1e-5)}
    assert found["alive"] == rows.UNITS
    assert found["held"] == found["carried"] == found["parameters"]
    assert found["saved"] == "shapes"
    assert found["loss_behind"] < found["loss_before"]


@peer("torch_pruning")
@pytest.mark.filterwarnings("ignore")
def test_torch_prunings_side_runs(tasks: Any) -> None:
    rows = tasks("resnet_rows")
    prune = rows.torch_prunings(*rows.STEPS["0.3 of the channels at once"])
    found = rows.facts(rows.Training(batch=4, pixels=32), prune, rows.torch_pruning_restores)
    assert found["flops_left"] <= 0.5
    assert found["held"] == found["moved"] == found["parameters"]
    assert found["carried"] == 0


@peer("gromo")
@pytest.mark.filterwarnings("ignore")
def test_gromos_side_begins_as_regrows_and_runs(tasks: Any) -> None:
    rows = tasks("growing_rows")
    for case in rows.CASES[:2]:
        theirs, ours = (rows.facts(case, gromos, "GradMax", seed=0, steps=3) for gromos in (True, False))
        assert theirs["loss_before"] == pytest.approx(ours["loss_before"], rel=1e-4)
        assert theirs["units"] == rows.UNITS


def test_momentum_is_only_carried_if_it_stays_with_its_elements(tasks: Any) -> None:
    looks = tasks("looks")
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = looks.shapes(model)
    looks.mark(model, optimizer)
    assert looks.carried(model, optimizer, before) == looks.held(model, optimizer) == 2
    optimizer.state[model.weight]["momentum_buffer"] = model.weight.detach().flip(0)
    assert looks.carried(model, optimizer, before) == 1
    model.bias = nn.Parameter(model.bias.detach())
    assert looks.carried(model, optimizer, before) == 0
    assert looks.held(model, optimizer) == 1
    assert looks.moved(model, optimizer, lambda: model(torch.ones(2, 3)).sum()) == 1


def test_lines_are_counted_without_what_isnt_code(tasks: Any) -> None:
    looks = tasks("looks")

    def counted(x: int) -> int:
        """Not a line."""
        import math

        y = max(
            x,
            int(math.pi),
        )

        return y

    assert looks.lines(counted) == 5
    assert looks.lines(counted, counted) == 10

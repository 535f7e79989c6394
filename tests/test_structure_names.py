"""Looking changes nothing; names, tables and selections."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regrow as rg
import zoo
from reading import analyzed, axis_with, footprints
from state import differences, snapshot

#: The same functions without their types, for calls that the types forbid.
LOOSELY: Any = rg


# --------------------------------------------------------------------------------------------------
# looking changes nothing


@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.SMALL, "resnet18"))
@pytest.mark.parametrize("training", [False, True])
def test_analysis_leaves_everything_as_it_was(name: str, variant: str, training: bool) -> None:
    model = zoo.build(name, variant).train(training)
    next(model.children()).train(not training)
    model.register_forward_hook(lambda *_: None)
    next(model.parameters()).requires_grad_(False)
    last = list(model.parameters())[-1]
    last.grad = torch.ones_like(last)
    x = zoo.example(name)
    before = snapshot(model)
    rg.analyze(model, x)
    assert differences(before, snapshot(model)) == []
    assert torch.equal(x, zoo.example(name))
    assert x.grad is None and not x.requires_grad


def test_names_are_unique_and_the_same_in_every_analysis_and_copy() -> None:
    for name in ("resnet18", "resnext50_32x4d", "grouped", "concat"):
        structure = analyzed(name)
        names = [axis.name for axis in structure.axes]
        assert len(set(names)) == len(names)
        again = rg.analyze(copy.deepcopy(structure.model), zoo.example(name, batch=3))
        assert [axis.name for axis in again.axes] == names
        assert footprints(again) == footprints(structure)


def test_a_structure_is_found_by_args_kwargs_and_tuples() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.last = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, *, y: Tensor | None = None, z: Tensor | None = None) -> dict[str, Tensor]:
            h = self.one(x)
            for extra in (y, z):
                h = h if extra is None else h + self.other(extra)
            return {"logits": self.last(F.relu(h))}

    model, x, y = Two(), torch.randn(2, 4), torch.randn(2, 3)
    full = rg.analyze(model, args=(x,), kwargs={"y": y})
    assert {e.name for e in full["one"].entries} >= {"one.weight", "other.weight", "last.weight"}
    partial = rg.analyze(model, (x,))
    assert {e.name for e in partial["one"].entries} == {"one.weight", "one.bias", "last.weight"}
    assert footprints(partial) == footprints(rg.analyze(model, x))


# --------------------------------------------------------------------------------------------------
# names, tables, selections


def test_an_axis_is_found_by_its_module_and_by_its_tensor() -> None:
    structure = analyzed("residual")
    assert structure["conv1"] is structure["conv1.weight"]
    assert structure["conv1"].size == 6
    assert structure["stem"] is axis_with(structure, ("stem.weight", 0))
    assert structure[structure.axes[0].name] is structure.axes[0]


@pytest.mark.parametrize("name", ["nowhere", "", "conv", "fc"])
def test_an_unknown_name_lists_the_candidates(name: str) -> None:
    structure = analyzed("residual")
    with pytest.raises(KeyError) as error:
        structure[name]
    assert isinstance(error.value, ValueError)
    assert "conv1" in str(error.value)


def test_an_ambiguous_name_lists_the_candidates() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.gate = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(7, 8))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.linear(F.relu(F.linear(x, self.up)), self.gate))

    structure = rg.analyze(nn.Sequential(Pair(), nn.Linear(7, 5)), torch.randn(2, 6))
    with pytest.raises(KeyError) as error:
        structure["0"]
    assert isinstance(error.value, ValueError)
    assert [axis.name for axis in structure.axes] == ["0.up", "0.gate"]
    assert "0.up" in str(error.value) and "0.gate" in str(error.value)
    assert structure["0.gate"].size == 7


def test_select_matches_names_in_execution_order() -> None:
    structure = analyzed("resnet18")
    inner = structure.select("layer[34].*.conv1")
    assert [axis.name for axis in inner] == [f"layer{i}.{j}.conv1" for i in (3, 4) for j in (0, 1)]
    assert structure.select() == structure.axes
    assert structure.select(kind="neuron") == structure.axes
    assert structure.select(kind="head") == ()
    assert structure.select("nothing*") == ()


def test_the_table_shows_every_axis_and_what_is_frozen() -> None:
    structure = analyzed("concat")
    text = str(structure)
    for axis in structure.axes:
        assert axis.name in text
        assert str(axis.size) in text
    assert "fc" in text
    assert "\x1b" not in text


def test_axes_are_listed_in_execution_order() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b, self.a = nn.Linear(7, 5), nn.Linear(8, 7), nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.b(F.relu(self.a(x)))))

    assert [axis.name for axis in rg.analyze(Backwards(), torch.randn(2, 6)).axes] == ["a", "b"]


def test_silencing_sends_zero_and_keeps_the_rest() -> None:
    model = zoo.build("residual", dtype=torch.float64).eval()
    x = zoo.example("residual", dtype=torch.float64)
    axis = rg.analyze(model, x)["conv1"]
    seen = {}
    model.conv2.register_forward_pre_hook(lambda _, args: seen.update(h=args[0].clone()))
    model(x)
    before = seen["h"]
    axis.silence_([1, 4])
    assert torch.isfinite(model(x)).all()
    assert torch.count_nonzero(model.conv2.weight[:, [1, 4]]) == 0
    assert torch.count_nonzero(seen["h"][:, [1, 4]]) == 0
    assert torch.equal(seen["h"][:, [0, 2, 3, 5]], before[:, [0, 2, 3, 5]])


@pytest.mark.parametrize("units", [[8], [-1], [0, 0], [True], [0.5], "0", None])
def test_silencing_checks_the_units(units: Any) -> None:
    model = zoo.build("residual")
    axis = rg.analyze(model, zoo.example("residual"))["stem"]
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError)):
        axis.silence_(units)
    assert differences(before, snapshot(model)) == []


@pytest.mark.parametrize(
    "bad",
    [
        lambda model, x: rg.analyze(model),
        lambda model, x: LOOSELY.analyze("model", x),
        lambda model, x: rg.analyze(model, x, args=(x,)),
        lambda model, x: rg.analyze(model, args=x),
        lambda model, x: LOOSELY.analyze(model, args=(x,), kwargs=[1]),
    ],
    ids=["no example", "no model", "example twice", "args not a tuple", "kwargs not a mapping"],
)
def test_analyze_checks_its_arguments(bad: Callable[..., Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        bad(zoo.build("mlp"), zoo.example("mlp"))


def test_an_error_in_the_model_comes_through_and_leaves_it_as_it_was() -> None:
    model, x = zoo.build("residual").eval(), torch.randn(2, 4, 8, 8)
    before = snapshot(model)
    with pytest.raises(ValueError, match="channels"):
        rg.analyze(model, x)
    assert differences(before, snapshot(model)) == []

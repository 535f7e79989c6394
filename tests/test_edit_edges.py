"""Edits at their edges: bounds that are passed already, foreign numbers, frozen weights, odd optimizers, failures."""

from __future__ import annotations

import gc
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import regrow as rg
from state import differences, snapshot

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 0, 1, 1])


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = widths or (8, 6)
    return nn.Sequential(nn.Linear(4, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2))


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.mark.parametrize("amount", [0.3, 5])
def test_an_axis_below_the_least_size_stays(amount: float) -> None:
    structure = rg.analyze(mlp(40, 12), X)
    rg.prune_(structure, amount, rg.Magnitude(), min_size=16)
    assert structure["0"].size == 40 - (round(0.3 * 52) if amount < 1 else 5)
    assert structure["2"].size == 12
    with pytest.raises(rg.NotPermissible):
        rg.prune_(structure["2"], 5, min_size=16)


def test_a_plan_leaves_what_is_below_the_least_size() -> None:
    model = mlp(40, 12)
    plan = rg.at(1, rg.Prune(rg.Magnitude(), 0.3, min_size=16))
    shaper = rg.Shaper(model, torch.optim.SGD(model.parameters(), 0.1), plan, example=X)
    shaper.step()
    assert [axis.size for axis in shaper.structure.axes] == [24, 12]


@pytest.mark.parametrize(
    ("amount", "left"), [(np.int64(3), 5), (np.float32(0.25), 6), (np.array([0, 3]), 6), ([np.int64(0)], 7)]
)
def test_numbers_of_numpy_are_numbers(amount: Any, left: int) -> None:
    structure = rg.analyze(mlp(), X)
    rg.prune_(structure["0"], amount)
    assert structure["0"].size == left
    structure["0"].silence_(np.array([1]))  # pyrefly: ignore[bad-argument-type]
    rg.grow_(structure["0"], {"0": np.int64(2)})  # pyrefly: ignore[bad-assignment]
    assert structure["0"].size == left + 2


@pytest.mark.parametrize("frozen", [0, 2])
def test_what_a_unit_is_worth_does_not_depend_on_what_learns(frozen: int) -> None:
    """Neither which units go, nor whether weights are frozen afterwards."""
    removed = []
    for freezes in (False, True):
        model = mlp()
        model[frozen].requires_grad_(not freezes)
        edit = rg.prune_(rg.analyze(model, X)["0"], 2, rg.Taylor(), loss=lambda m=model: F.cross_entropy(m(X), Y))
        assert [p.requires_grad for p in model[frozen].parameters()] == [not freezes] * 2
        removed.append(edit.removed)
    assert removed[0] == removed[1]


@pytest.mark.parametrize("method", [rg.Net2Wider(), rg.Splitting(), rg.Random(), rg.GradMax(), rg.Firefly()])
def test_growing_keeps_the_memory_layout(method: Any) -> None:
    model, x = cnn(), torch.randn(4, 3, 6, 6)
    rg.grow_(rg.analyze(model, x)["0"], 1, method, loss=lambda: model(x).square().mean())
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)


def test_compensation_keeps_the_memory_layout() -> None:
    model, x = cnn(), torch.randn(8, 3, 6, 6)
    rg.prune_(rg.analyze(model, x)["0"], 2, rg.OBS(), loss=lambda: model(x).square().mean())
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)


def test_state_that_cannot_follow_begins_afresh_when_an_edit_is_undone() -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return float(loss.detach())

    edit = rg.grow_(rg.analyze(model, X)["0"], 2, optimizer=optimizer)
    optimizer.step(closure)  # pyrefly: ignore[bad-argument-type]
    with pytest.warns(UserWarning, match="afresh"):
        edit.undo_()
    optimizer.step(closure)  # pyrefly: ignore[bad-argument-type]
    assert model[0].weight.shape == (8, 4)


def test_factored_state_follows_through_a_single_unit() -> None:
    """Of a weight with one row, Adafactor's means over the rows look like its means over columns."""
    model = mlp()
    optimizer = torch.optim.Adafactor(model.parameters(), 0.01)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()

    axis = rg.analyze(model, X)["0"]
    train()
    edit = rg.prune_(axis, range(7), optimizer=optimizer)
    train()
    edit.undo_()
    train()
    rg.prune_(axis, range(7), optimizer=optimizer)
    train()
    rg.grow_(axis, 3, optimizer=optimizer)
    train()
    state = optimizer.state[next(model.parameters())]
    assert state["row_var"].shape == (4, 1)
    assert state["col_var"].shape == (1, 4)


@dataclass(frozen=True)
class Drawing:
    """Draws for its new units, from both sources of randomness, and gives them a wrong shape."""

    name: ClassVar[str] = "drawing"

    def fresh(self, axis: rg.Axis, num: int, seen: Any, generator: torch.Generator) -> dict[Any, Tensor]:
        torch.rand(1)
        return {axis.with_role("in")[0]: torch.randn(num + 1, 3, generator=generator)}


def test_an_edit_that_fails_has_drawn_nothing() -> None:
    model, others = mlp(), torch.optim.SGD(mlp().parameters(), 0.1)
    structure, generator = rg.analyze(model, X), torch.Generator().manual_seed(1)
    before = generator.get_state(), torch.get_rng_state()
    wrong: list[dict[str, Any]] = [{"optimizer": others}, {"lr_factor": 0.5}, {"method": Drawing()}]
    for arguments in wrong:
        with pytest.raises(ValueError):
            rg.grow_(structure["0"], 1, generator=generator, **arguments)
        assert torch.equal(generator.get_state(), before[0])
        assert torch.equal(torch.get_rng_state(), before[1])


def test_what_fails_in_a_plan_has_drawn_nothing_either() -> None:
    model, generator = mlp(), torch.Generator().manual_seed(1)
    plan = rg.at(1, rg.Grow(Drawing(), 1))
    shaper = rg.Shaper(model, torch.optim.SGD(model.parameters(), 0.1), plan, example=X, generator=generator)
    before = generator.get_state(), torch.get_rng_state()
    with pytest.raises(ValueError):
        shaper.step()
    assert torch.equal(generator.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_notice_that_is_an_error_comes_before_anything_is_written() -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step(lambda: float(F.cross_entropy(model(X), Y).detach()))
    structure = rg.analyze(model, X)
    before = snapshot(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="afresh"):
            rg.grow_(structure["0"], 2, optimizer=optimizer)
        with pytest.raises(UserWarning, match="afresh"):
            rg.prune_(structure.weights, 0.5, optimizer=optimizer)
    assert not structure.edits
    assert not differences(before, snapshot(model, optimizer))


@dataclass(frozen=True)
class Welcoming(rg.L1):
    """Notes whom it was told of; it acts on each axis by itself."""

    name: ClassVar[str] = "welcoming"
    jointly: ClassVar[bool] = False
    told: ClassVar[list[tuple[str, list[int]]]] = []

    def welcome(self, axis: rg.Axis, new: list[int]) -> None:
        self.told.append((axis.name, new))


def test_a_method_is_told_of_new_units_as_its_protocol_says() -> None:
    model = mlp()
    plan = rg.chain(rg.at(1, rg.Grow(rg.Random(), 1, where="0")), rg.at(3, rg.Prune(Welcoming(0.1), 1)))
    shaper = rg.Shaper(model, torch.optim.SGD(model.parameters(), 0.1), plan, example=X)
    shaper.step()
    assert Welcoming.told == [("0", [8])]


def test_polarization_welcomes_units_of_one_axis() -> None:
    x = torch.randn(4, 3, 6, 6)
    axis = rg.analyze(cnn(), x)["0"]
    scales = next(e.tensor for e in axis.entries if e.role == "scale")
    with torch.no_grad():
        scales.copy_(torch.linspace(0.1, 0.8, 8))
    rg.Polarization(1e-4).welcome(axis, [0])
    assert float(scales.detach()[0]) == pytest.approx(float(torch.linspace(0.1, 0.8, 8)[1:].mean()))


def test_an_action_on_an_axis_by_its_name_is_about_that_axis() -> None:
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 3, 6)
    net = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3))
    (heads,) = rg.analyze(net, x).select(kind="head")
    plan = rg.at(1, rg.Grow(rg.Random(), 1, where=heads.name))
    shaper = rg.Shaper(net, torch.optim.SGD(net.parameters(), 0.1), plan, example=x)
    (edit,) = shaper.step()
    assert edit.sizes == {heads.name: (2, 3)}


def test_a_model_in_a_wrapper_is_left_to_a_shaper(tmp_path: Path) -> None:
    """Its gradients would silently stop being those of all processes."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = mlp()
        structure, wrapper = rg.analyze(model, X), DistributedDataParallel(model)
        for edit in (rg.grow_, rg.prune_):
            for target in (structure, structure["0"], [structure["0"]], structure.layers):
                with pytest.raises(rg.NotPermissible, match="DistributedDataParallel"):
                    edit(target, 1)
        assert not structure.edits
        rg.prune_(structure.weights, 0.5)  # masks change no shapes
        wrapper(X).sum().backward()
        del wrapper
        gc.collect()
        rg.grow_(structure["0"], 1)
    finally:
        torch.distributed.destroy_process_group()


def test_the_bias_names_its_axis_too() -> None:
    structure = rg.analyze(mlp(), X)
    assert structure["0.bias"] is structure["0.weight"] is structure["0"]


@pytest.mark.parametrize("edit", [lambda s: rg.prune_(s["0"], 1), lambda s: rg.grow_(s["0"], 1, rg.Random())])
def test_methods_that_look_at_weights_refuse_a_model_without_values(edit: Any) -> None:
    structure = rg.analyze(mlp().to("meta"), X.to("meta"))
    with pytest.raises(rg.NotPermissible, match="meta"):
        edit(structure)
    rg.prune_(structure["0"], [1])  # named units go without a look
    assert structure["0"].size == 7


def test_an_optimizer_with_the_state_of_another_size_is_refused() -> None:
    grown, fresh = mlp(11, 6), mlp()
    optimizer, other = (torch.optim.Adam(model.parameters()) for model in (grown, fresh))
    F.cross_entropy(grown(X), Y).backward()
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="other sizes"):
        rg.Shaper(fresh, other, rg.at(1, rg.Grow(rg.Random(), 1)), example=X)


def test_a_compiled_model_is_the_one_that_was_compiled(tmp_path: Path) -> None:
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    structure = rg.analyze(compiled, X)  # pyrefly: ignore[bad-argument-type]
    assert [axis.name for axis in structure.axes] == ["0", "2"]
    rg.prune_(structure["0"], 2)
    rg.save(compiled, tmp_path)  # pyrefly: ignore[bad-argument-type]
    for fresh in (mlp(), torch.compile(mlp(), backend="eager")):
        loaded: Any = rg.load(tmp_path, fresh)  # pyrefly: ignore[bad-specialization]
        assert loaded is fresh
        assert torch.equal(loaded(X), model(X))

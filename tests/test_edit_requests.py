"""What may be asked of an edit, what is refused before the first write, and what an edit reports."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import regrow as rg
import zoo
from state import differences
from workbench import Bench, bench, seeded

# --------------------------------------------------------------------------------------------------
# refusals come before the first write


class Broken(rg.Random):
    """Random growth that fails at its second axis."""

    def fresh(self, axis: rg.Axis, *args: Any, **kwargs: Any) -> Any:
        if axis.name == "conv1":
            raise RuntimeError("broken on purpose")
        return super().fresh(axis, *args, **kwargs)


def test_an_edit_that_fails_half_way_leaves_everything_as_it_was() -> None:
    b = bench("residual", optimizer="adam")
    before, sizes = b.snapshot(), [axis.size for axis in b.structure.axes]
    assert b.structure.axes[-1].name == "conv1"
    with pytest.raises(RuntimeError, match="on purpose"):
        rg.grow_(b.structure, 2, Broken(), optimizer=b.optimizer)
    assert differences(before, b.snapshot()) == []
    assert [axis.size for axis in b.structure.axes] == sizes
    edit = rg.grow_(b.structure, 2, optimizer=b.optimizer, generator=seeded())
    edit.undo_()
    assert differences(before, b.snapshot()) == []


GROW_REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "nothing": (0, {}),
    "no fraction": (0.0, {}),
    "negative": (-1, {}),
    "negative fraction": (-0.5, {}),
    "not a number": (math.nan, {}),
    "infinite": (math.inf, {}),
    "bool": (True, {}),
    "string": ("3", {}),
    "none": (None, {}),
    "complex": (1j, {}),
    "unknown axis": ({"nowhere": 2}, {}),
    "units of another type": ({"conv1": "2"}, {}),
    "bool in a mapping": ({"conv1": True}, {}),
    "negative in a mapping": ({"conv1": 2, "stem": -1}, {}),
    "round_to zero": (2, {"round_to": 0}),
    "round_to negative": (2, {"round_to": -8}),
    "round_to bool": (2, {"round_to": True}),
    "round_to float": (2, {"round_to": 1.5}),
    "min_size zero": (2, {"min_size": 0}),
    "max_size negative": (2, {"max_size": -1}),
    "min above max": (2, {"min_size": 9, "max_size": 4}),
    "max_size float": (2, {"max_size": 8.5}),
    "protect unknown": (2, {"protect": ("nowhere",)}),
    "generator": (2, {"generator": 0}),
    "optimizer": (2, {"optimizer": "sgd"}),
    "method of the wrong kind": (2, {"method": rg.L1()}),
    "method by a class": (2, {"method": rg.Random}),
    "batches zero": (2, {"batches": 0}),
    "loss": (2, {"loss": 3}),
}
PRUNE_REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    **{key: value for key, value in GROW_REFUSED.items() if key not in ("method of the wrong kind",)},
    "too many": (14, {}),
    "more than there are": (100, {}),
    "a fraction above one": (1.5, {}),
    "the whole": (1.0, {}),
    "all of one axis": ({"conv1": 6}, {}),
    "method of the wrong kind": (2, {"method": rg.Random()}),
}
UNITS_REFUSED: dict[str, Any] = {
    "unknown unit": [6],
    "negative unit": [-1],
    "duplicates": [1, 1],
    "bools": [True, False],
    "floats": [0.0, 1.0],
    "strings": ["0"],
    "nested": [[0, 1]],
    "all": [0, 1, 2, 3, 4, 5],
    "none": [],
    "float tensor": torch.tensor([0.0]),
    "bool tensor": torch.tensor([True, False, False, False, False, False]),
}


def refused(b: Bench, edit: Callable[[], Any]) -> None:
    before, sizes = b.snapshot(), [axis.size for axis in b.structure.axes]
    with pytest.raises((ValueError, TypeError)) as error:
        edit()
    assert len(str(error.value)) > 10
    assert differences(before, b.snapshot()) == []
    assert [axis.size for axis in b.structure.axes] == sizes


@pytest.mark.parametrize("case", GROW_REFUSED)
def test_growth_is_refused_before_the_first_write(case: str) -> None:
    b = bench("residual")
    amount, options = GROW_REFUSED[case]
    given: dict[str, Any] = {"optimizer": b.optimizer, **options}
    refused(b, lambda: rg.grow_(b.structure, amount, **given))


@pytest.mark.parametrize("case", PRUNE_REFUSED)
def test_pruning_is_refused_before_the_first_write(case: str) -> None:
    b = bench("residual")
    amount, options = PRUNE_REFUSED[case]
    given: dict[str, Any] = {"optimizer": b.optimizer, **options}
    refused(b, lambda: rg.prune_(b.structure, amount, **given))


@pytest.mark.parametrize("case", UNITS_REFUSED)
def test_wrong_units_are_refused_before_the_first_write(case: str) -> None:
    b = bench("residual")
    refused(b, lambda: rg.prune_(b.structure["conv1"], UNITS_REFUSED[case], optimizer=b.optimizer))


@pytest.mark.parametrize("edit", [rg.grow_, rg.prune_])
@pytest.mark.parametrize("target", ["model", "name", "nothing", "empty", "mixed"])
def test_wrong_targets_are_refused(edit: Callable[..., Any], target: str) -> None:
    b, other = bench("residual"), bench("residual")
    targets: dict[str, Any] = {
        "model": b.model,
        "name": "conv1",
        "nothing": None,
        "empty": [],
        "mixed": [b.structure["conv1"], other.structure["stem"]],
    }
    refused(b, lambda: edit(targets[target], 2, optimizer=b.optimizer))


def test_units_of_several_axes_cannot_be_listed() -> None:
    b = bench("residual")
    refused(b, lambda: rg.prune_(b.structure, [0, 1], optimizer=b.optimizer))


@pytest.mark.parametrize("edit", [rg.grow_, rg.prune_])
def test_an_optimizer_that_does_not_hold_the_model_is_refused(edit: Callable[..., Any]) -> None:
    b = bench("residual")
    stranger = torch.optim.SGD(zoo.build("residual").parameters(), lr=0.1)
    refused(b, lambda: edit(b.structure["conv1"], 2, optimizer=stranger))


def test_a_model_whose_shapes_have_changed_behind_its_back_is_refused() -> None:
    b = bench("residual")
    b.model.bn1.weight.data = b.model.bn1.weight.data[:4]
    before = b.snapshot()
    with pytest.raises(rg.NotPermissible, match="bn1"):
        rg.prune_(b.structure["conv1"], [0], optimizer=b.optimizer)
    assert differences(before, b.snapshot()) == []


def test_a_replaced_parameter_is_followed_or_refused() -> None:
    model = zoo.build("residual")
    axis = rg.analyze(model, zoo.example("residual"))["conv1"]
    model.conv1.weight = nn.Parameter(model.conv1.weight.detach() * 2)
    try:
        rg.prune_(axis, [0])
    except rg.NotPermissible:
        assert model.conv1.weight.shape[0] == len(model.bn1.weight) == 6
    else:
        model(zoo.example("residual"))


def test_refusals_are_value_errors() -> None:
    assert issubclass(rg.NotPermissible, ValueError)


# --------------------------------------------------------------------------------------------------
# amounts


@pytest.mark.parametrize(
    ("amount", "size"),
    [(1, 9), (16, 24), (0.01, 9), (0.5, 12), (1.0, 16), (2.0, 24), ({"stem": 3}, 11), ({"stem": 0.25}, 10)],
)
def test_amounts_of_growth(amount: Any, size: int) -> None:
    b = bench("residual")
    edit = rg.grow_(b.structure["stem"], amount, optimizer=b.optimizer)
    assert b.structure["stem"].size == size
    assert edit.new == list(range(8, size)) or edit.new == {"stem": list(range(8, size))}
    b.step()


def test_growth_is_per_axis_and_pruning_in_total() -> None:
    b = bench("residual")
    edit = rg.grow_(b.structure, 3, optimizer=b.optimizer)
    assert edit.sizes == {"stem": (8, 11), "conv1": (6, 9)}
    assert edit.new == {"stem": [8, 9, 10], "conv1": [6, 7, 8]}
    edit = rg.prune_(b.structure, 5, optimizer=b.optimizer)
    assert sum(len(units) for units in edit.removed.values()) == 5
    edit = rg.prune_(b.structure, {"stem": 2, "conv1": 0.5}, optimizer=b.optimizer)
    assert len(edit.removed["stem"]) == 2
    before, after = edit.sizes["conv1"]
    assert before - after == round(0.5 * before)
    assert [axis.size for axis in b.structure.axes] == [edit.sizes[axis.name][1] for axis in b.structure.axes]


def test_pruning_removes_the_units_that_matter_least_over_all_axes() -> None:
    b = bench("residual")
    with torch.no_grad():
        b.model.bn1.weight.copy_(torch.tensor([5.0, 1e-3, 5.0, 5.0, -1e-3, 5.0]))
        for bn in (b.model.norm, b.model.bn2):
            bn.weight.fill_(3.0)
            bn.weight[6] = 1e-4
    edit = rg.prune_(b.structure, 3, rg.L1(), optimizer=b.optimizer)
    assert edit.removed == {"stem": [6], "conv1": [1, 4]}


def test_at_least_one_unit_of_each_axis_stays() -> None:
    b = bench("residual")
    with torch.no_grad():
        b.model.bn1.weight.mul_(1e-6)
    rg.prune_(b.structure, 10, optimizer=b.optimizer)
    assert b.structure["conv1"].size >= 1
    assert sum(axis.size for axis in b.structure.axes) == 4
    b.step()


@pytest.mark.parametrize(("amount", "grown", "pruned"), [(1, 72, 64), (3, 72, 64), (9, 80, 72), (0.25, 80, 64)])
def test_sizes_are_rounded_to_the_side_of_more_units(amount: float, grown: int, pruned: int) -> None:
    b = bench("resnet18")
    axis = b.structure["layer1.0.conv1"]
    rg.grow_(axis, amount, optimizer=b.optimizer, round_to=8)
    assert axis.size == grown
    if isinstance(amount, int) and amount < 8:
        with pytest.raises(rg.NotPermissible):
            rg.prune_(axis, amount, optimizer=b.optimizer, round_to=8)
        assert axis.size == grown
    else:
        rg.prune_(axis, amount, optimizer=b.optimizer, round_to=8)
        assert axis.size == pruned


def test_min_size_and_max_size_bound_the_result() -> None:
    b = bench("residual")
    rg.grow_(b.structure, 10, optimizer=b.optimizer, max_size=12)
    assert [axis.size for axis in b.structure.axes] == [12, 12]
    rg.prune_(b.structure, 14, optimizer=b.optimizer, min_size=5)
    assert [axis.size for axis in b.structure.axes] == [5, 5]
    before = b.snapshot()
    with pytest.raises(ValueError, match="at most 0"):
        rg.prune_(b.structure, 1, optimizer=b.optimizer, min_size=5)
    assert differences(before, b.snapshot()) == []


def test_protected_axes_are_left_alone() -> None:
    b = bench("residual")
    rg.grow_(b.structure, 2, optimizer=b.optimizer, protect=("stem",))
    assert [axis.size for axis in b.structure.axes] == [8, 8]
    rg.prune_(b.structure, 3, optimizer=b.optimizer, protect=("conv*",))
    assert [axis.size for axis in b.structure.axes] == [5, 8]


class Halves(nn.Module):
    """A layer whose two halves are axes of one name, told apart by numbers in brackets."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.one, self.other = nn.Linear(4, 10), nn.Linear(6, 3), nn.Linear(4, 3)
        self.parts = [6, 4]

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.both(x).split(self.parts, -1)
        return self.one(first.relu()) + self.other(second.relu())


def test_a_name_with_brackets_means_that_axis() -> None:
    structure = rg.analyze(Halves(), torch.randn(2, 4))
    names = [axis.name for axis in structure.axes]
    assert names == ["both.weight[0]#0", "both.weight[0]#1"]
    assert [axis.name for axis in structure.select(names[1])] == names[1:]
    rg.grow_(structure, 2, protect=names[0])
    assert [axis.size for axis in structure.axes] == [6, 6]


class Block(nn.Module):
    """A residual branch behind a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


def test_all_axes_that_a_method_cannot_grow_are_named_at_once() -> None:
    """Streams behind a layer norm can't be grown by gradients; what is left when they are protected can be."""
    layers = [Block(), Block()]
    model = nn.Sequential(nn.Linear(5, 8), layers[0], nn.Linear(8, 8), layers[1], nn.Linear(8, 3))
    x = torch.randn(6, 5)
    structure = rg.analyze(model, x)
    with pytest.raises(rg.NotPermissible, match=r"2 of these 4 axes can't be; leave them out, protect=\[") as caught:
        rg.grow_(structure, 2, rg.GradMax(), loss=lambda: model(x).square().mean())
    listed = str(caught.value).partition("protect=")[2].partition(":")[0]
    streams = re.findall(r"'([^']+)'", listed)
    edit = rg.grow_(structure, 2, rg.GradMax(), loss=lambda: model(x).square().mean(), protect=streams)
    assert set(edit.sizes) == {axis.name for axis in structure.select(kind="neuron")} - set(streams)


def test_growing_a_structure_means_its_neurons_and_groups_are_asked_for() -> None:
    b = bench("grouped")
    kinds = {axis.name: axis.kind for axis in b.structure.axes}
    assert sorted(kinds.values()) == ["head", "neuron", "neuron"]
    edit = rg.grow_(b.structure, 1, optimizer=b.optimizer)
    assert set(edit.new) == {name for name, kind in kinds.items() if kind == "neuron"}
    [groups] = b.structure.select(kind="head")
    assert rg.grow_(groups, 1, optimizer=b.optimizer).new == [4]
    assert b.model[3].groups == 5


# --------------------------------------------------------------------------------------------------
# what an edit reports


@pytest.mark.parametrize(("name", "variant"), zoo.variants("residual", "grouped", "flatten", "separable"))
def test_parameters_and_flops_are_counted_right(name: str, variant: str) -> None:
    b = bench(name, variant)
    for edit in (
        lambda: rg.grow_(b.structure, 2, optimizer=b.optimizer),
        lambda: rg.prune_(b.structure.axes[0], [0], optimizer=b.optimizer),
    ):
        before = counted(b.model, b.x)
        made = edit()
        after = counted(b.model, b.x)
        assert made.params == (before[0], after[0])
        assert rg.measure.parameters(b.model) == after[0]
        assert rg.measure.flops(b.model, b.x) == after[1]
        assert made.flops[1] / made.flops[0] == pytest.approx(after[1] / before[1], rel=1e-9)


def counted(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Parameters, and FLOPs by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model)(x)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()


def test_an_edit_prints_what_it_did() -> None:
    b = bench("residual")
    text = str(rg.grow_(b.structure["conv1"], 2, optimizer=b.optimizer))
    before, after = 6 * 8 * 9 * 2 + 12, 8 * 8 * 9 * 2 + 16
    assert "conv1: 6 -> 8" in text
    assert f"+{after - before:,} params" in text
    assert "FLOPs" in text
    text = str(rg.prune_(b.structure, 3, optimizer=b.optimizer))
    assert "->" in text and "-" in text and "params" in text


def test_measure_is_the_change_of_the_output() -> None:
    b = bench("residual", dtype=torch.float64)
    b.model.eval()
    with torch.no_grad():
        before = b.model(b.x)
    edit = rg.prune_(b.structure["conv1"], [0, 1], optimizer=b.optimizer)
    with torch.no_grad():
        after = b.model(b.x)
    state = b.snapshot()
    assert edit.measure(b.x) == pytest.approx((after - before).abs().max().item(), rel=1e-9)
    assert differences(state, b.snapshot()) == []
    growth = rg.grow_(b.structure["conv1"], 2, optimizer=b.optimizer)
    assert growth.measure(b.x) < 1e-12


def test_the_loss_callable_leaves_gradients_alone() -> None:
    """``loss`` is for methods that need it; whoever passes it finds gradients and randomness as before."""
    b = bench("residual")
    b.optimizer.zero_grad()
    calls: list[int] = []

    def loss() -> Tensor:
        calls.append(1)
        return F.dropout(b.model(b.x)).square().mean()

    edit = rg.grow_(b.structure["conv1"], 2, optimizer=b.optimizer, loss=loss, batches=2)
    edit.undo_()
    assert all(p.grad is None for p in b.model.parameters())


def test_sequences_of_axes() -> None:
    b = bench("resnet18")
    chosen: Sequence[rg.Axis] = b.structure.select("layer[12].*.conv1")
    edit = rg.grow_(chosen, 0.25, optimizer=b.optimizer, generator=seeded())
    assert set(edit.new) == {axis.name for axis in chosen}
    edit = rg.prune_(chosen, 0.1, optimizer=b.optimizer)
    assert sum(map(len, edit.removed.values())) == round(0.1 * sum(before for before, _ in edit.sizes.values()))


@pytest.mark.parametrize("amount", [2, 0.3])
@pytest.mark.parametrize("edit", [rg.grow_, rg.prune_])
def test_where_all_is_protected_there_is_nothing_to_do(edit: Callable[..., rg.Edit], amount: float) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    structure = rg.analyze(model, torch.randn(2, 3))
    with pytest.raises(rg.NotPermissible, match="nothing to"):
        edit(structure, amount, protect="*")
    assert model[0].weight.shape == (8, 3)

"""What an axis says of its units: kind and tags, parameters and FLOPs; and what rules from outside make of it."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import regrow as rg
from families import FAMILIES
from regrow.structure.rules import registry
from regrow.structure.running import plain_kernels
from state import differences, outputs, relative_change, snapshot

#: Networks with axes of all kinds, in calls whose FLOPs torch counts.
COUNTED = (
    "by_hand", "packed_reshape", "kernel_grouped", "keys_interleaved", "torch", "encoder", "grouped", "depthwise",
    "transposed", "transposed_grouped", "one", "three", "group_norm", "channels_last", "windows", "gated_swiglu",
    "separate_gate", "tied_module", "lstm", "weight_norm", "twice", "low_rank", "hyper", "einsums", "shuffle_unit",
    "experts_dense", "auxiliary",
)  # fmt: skip


def flops(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """FLOPs of a pass in eval mode, as torch counts them while it computes."""
    model.eval()
    with plain_kernels(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    model.train()
    return counter.get_total_flops()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_and_flops_of_a_unit_are_what_leaves_with_it(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    structure = rg.analyze(model, inputs)
    for axis in structure:
        if not axis.prunable or axis.size < 2:
            continue
        said, before = (axis.params, axis.flops), (parameters(model), flops(model, inputs))
        edit = rg.prune_(axis, [axis.size - 1])
        after = parameters(model), flops(model, inputs)
        assert said[0] == before[0] - after[0], axis
        assert edit.params == (before[0], after[0])
        assert said[1] == pytest.approx(before[1] - after[1]), axis
        assert edit.flops[1] == pytest.approx(after[1]), axis
        edit.undo_()


@pytest.mark.parametrize("name", COUNTED)
def test_flops_of_a_structure_are_those_that_torch_counts(name: str) -> None:
    model, inputs = FAMILIES[name].model(), FAMILIES[name].inputs()
    structure = rg.analyze(model, inputs)
    assert structure.flops() == pytest.approx(flops(model, inputs))
    assert rg.measure.flops(model, *inputs) == flops(model, inputs)


def names(axes: tuple[rg.Axis, ...]) -> list[str]:
    return [axis.name for axis in axes]


@pytest.mark.parametrize(
    ("family", "kind", "pattern", "found"),
    [
        ("by_hand", "head", "*", ["body.heads"]),
        ("by_hand", "feature", "*", ["body.features"]),
        ("by_hand", "neuron", "*", ["first"]),
        ("by_hand", "stream", "*", ["first"]),
        ("by_hand", "group", "*", []),
        ("by_hand", None, "body.*", ["body.heads", "body.features"]),
        ("by_hand", None, "*s", ["body.heads", "body.features"]),
        ("grouped", "head", "*", ["1.groups"]),
        ("grouped", "group", "*", ["1.groups"]),
        ("grouped", "neuron", "[01]", ["0", "1"]),
        ("group_norm", "group", "*", ["1.groups"]),
        ("tied_module", "embedding", "*", ["tokens"]),
        ("bag_sum", "embedding", "*", ["bag"]),
        ("encoder", "neuron", "*.linear1", ["body.encoder.layers.0.linear1", "body.encoder.layers.1.linear1"]),
        ("encoder", "stream", "*", ["*heads", "*features"]),
        ("encoder", "output", "*", []),
    ],
)
def test_axes_are_selected_by_name_and_kind(family: str, kind: str | None, pattern: str, found: list[str]) -> None:
    structure = rg.analyze(FAMILIES[family].model(), FAMILIES[family].inputs())
    selected = names(structure.select(pattern, kind=kind))
    assert len(selected) == len(found)
    assert all(any(fnmatchcase(name, expected) for name in selected) for expected in found)


def test_a_kind_that_there_is_not_lists_those_there_are() -> None:
    structure = rg.analyze(FAMILIES["called"].model(), FAMILIES["called"].inputs())
    with pytest.raises(ValueError, match="neuron, head, feature"):
        structure.select(kind="channel")


# --------------------------------------------------------------------------------------------------
# operators that nobody knows, and rules from outside


@torch.library.custom_op("regrow_families::smoothed", mutates_args=())
def smoothed(x: Tensor, scale: Tensor) -> Tensor:
    return torch.tanh(x) * scale


@smoothed.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


def _context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, scale = ctx.saved_tensors
    return grad * scale / torch.cosh(x) ** 2, (grad * torch.tanh(x)).flatten(0, -2).sum(0)


smoothed.register_autograd(_backward, setup_context=_context)


class Smoothed(nn.Module):
    """A custom operator that lies along the first of two hidden widths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 4)
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(smoothed(self.first(x), self.scale))))


@pytest.fixture
def no_new_rules() -> Iterator[None]:
    """Rules that a test adds go with it."""
    before = dict(registry._RULES)
    yield
    registry._RULES.clear()
    registry._RULES.update(before)


def test_an_unknown_operator_freezes_what_it_touches_and_is_named() -> None:
    structure = rg.analyze(Smoothed(), torch.randn(3, 6))
    assert names(structure.axes) == ["second"]
    assert list(structure.unknown) == ["regrow_families.smoothed.default"]
    assert "regrow_families.smoothed.default" in str(structure)
    reasons = {(f.name, f.dim): f.reason for f in structure.frozen}
    assert "smoothed" in reasons["first.weight", 0] and "smoothed" in reasons["scale", 0]
    assert structure.verify().ok


def test_a_rule_from_outside_makes_it_an_axis(no_new_rules: None) -> None:
    @rg.rule("regrow_families::smoothed")
    def rule(trace: Any, call: Any) -> None:
        x, scale = call["x"], call["scale"]
        known, along = trace.of(x), trace.of(scale)
        for one in known.fields:
            for other in along.fields:
                if one.dims == (x.ndim - 1,):
                    trace.relations.equate(one.labels, other.labels)
        trace.set(call.out, known.fields, known.origin)

    model, x = Smoothed().double(), torch.randn(3, 6, dtype=torch.float64)
    structure = rg.analyze(model, x)
    assert not structure.unknown
    assert names(structure.axes) == ["first", "second"]
    assert {(e.name, e.dim) for e in structure["first"].entries} == {
        ("first.weight", 0), ("first.bias", 0), ("scale", 0), ("second.weight", 1),
    }  # fmt: skip
    assert structure.verify().ok
    before = snapshot(model)
    structure["first"].silence_([0, 1, 5])
    silent = outputs(model, x)
    edit = rg.prune_(structure["first"], [0, 1, 5])
    assert relative_change(silent, outputs(model, x)) < 1e-12
    rg.grow_(structure["first"], 2).undo_()
    edit.undo_()
    assert [name for name in differences(before, snapshot(model)) if not name.endswith("value")] == []


def test_a_rule_that_says_too_little_is_found_by_the_numbers(no_new_rules: None) -> None:
    """It forgets that the scale lies along the features, and the operator's shapes alone don't tell."""

    @rg.rule("regrow_families::smoothed")
    def rule(trace: Any, call: Any) -> None:
        known = trace.of(call["x"])
        trace.set(call.out, known.fields, known.origin)

    found = rg.analyze(Smoothed(), torch.randn(3, 6)).verify()
    assert "first" in {check.axis for check in found.failures}


def test_a_rule_replaces_the_one_there_is(no_new_rules: None) -> None:
    @rg.rule("aten::relu", "aten::tanh")
    def rule(trace: Any, call: Any) -> None:
        trace.relations.freeze(trace.of(call.tensors[0]).fields, "must not be touched")
        trace.set(call.out, (), "data")

    structure = rg.analyze(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(3, 6))
    assert names(structure.axes) == []
    assert "must not be touched" in str(structure)


@pytest.mark.parametrize("operator", ["relu", ""])
def test_an_operator_is_named_with_its_namespace(operator: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        rg.rule(operator)

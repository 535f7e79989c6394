"""What may change, and what moves together: against truths written by hand, by clones, and by force."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import awkward
import regrow as rg
import zoo
from state import differences, outputs, relative_change, snapshot

# --------------------------------------------------------------------------------------------------
# reading a structure

Place = tuple[str, int, tuple[int, ...]]  # tensor name, dim, the unit of each index


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every tensor name -> the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def footprint(axis: rg.Axis, names: dict[str, str]) -> frozenset[Place]:
    return frozenset((names[e.name], e.dim, tuple(e.unit_of.tolist())) for e in axis.entries)


def footprints(structure: rg.Structure) -> set[tuple[int, frozenset[Place]]]:
    """Size and footprint of each axis; axes with the same ones would be one axis."""
    names = canonical_names(structure.model)
    found = [(axis.size, footprint(axis, names)) for axis in structure.axes]
    assert len(found) == len(set(found))
    return set(found)


def roles(structure: rg.Structure) -> set[tuple[str, int, str]]:
    names = canonical_names(structure.model)
    return {(names[e.name], e.dim, e.role) for axis in structure.axes for e in axis.entries}


@cache
def analyzed(name: str, variant: str = "module") -> rg.Structure:
    """The structure of a law model; tests only read it."""
    return rg.analyze(zoo.build(name, variant), zoo.example(name))


def axis_with(
    structure: rg.Structure, *places: tuple[str, int], without: tuple[str, int] | None = None
) -> rg.Axis:
    """The only axis whose footprint has all these places (and lacks that one)."""
    lying = {axis: {(e.name, e.dim) for e in axis.entries} for axis in structure.axes}
    found = [axis for axis, its in lying.items() if its >= set(places) and without not in its]
    assert len(found) == 1, f"{places}: {[axis.name for axis in found]}"
    return found[0]


def units_along(axis: rg.Axis, name: str, dim: int) -> list[int]:
    """The unit of each index of one dimension of one tensor."""
    [entry] = [e for e in axis.entries if (e.name, e.dim) == (name, dim)]
    return entry.unit_of.tolist()


# --------------------------------------------------------------------------------------------------
# small nets: the exact list of axes

NORM = ("weight", "bias", "running_mean", "running_var")


def along(units: Iterable[int], *tensors: str) -> set[Place]:
    """Places ``"name:dim"`` (``dim`` 0 if left out) along which the units lie as given."""
    split = [(tensor.partition(":")[0], int(tensor.partition(":")[2] or 0)) for tensor in tensors]
    return {(name, dim, tuple(units)) for name, dim in split}


def norm(name: str) -> tuple[str, ...]:
    return tuple(f"{name}.{tensor}" for tensor in NORM)


NONE = -1
TRUTH: dict[str, list[tuple[int, set[Place]]]] = {
    "mlp": [
        (16, along(range(16), "0.weight", "0.bias", "2.weight:1")),
        (10, along(range(10), "2.weight", "2.bias", "4.weight:1")),
    ],
    "chain": [(8, along(range(8), "0.weight", "0.bias", *norm("1"), "3.weight:1"))],
    "residual": [
        (
            8,
            along(
                range(8), "stem.weight", *norm("norm"), "conv1.weight:1", "conv2.weight", *norm("bn2"), "fc.weight:1"
            ),
        ),
        (6, along(range(6), "conv1.weight", *norm("bn1"), "conv2.weight:1")),
    ],
    "concat": [
        (
            4,
            along(range(4), "left.weight", "left.bias")
            | along([*range(4), *[NONE] * 6], *norm("norm"), "mix.weight:1"),
        ),
        (
            6,
            along(range(6), "right.weight", "right.bias")
            | along([*[NONE] * 4, *range(6)], *norm("norm"), "mix.weight:1"),
        ),
        (7, along(range(7), "mix.weight", "mix.bias", "fc.weight:1")),
    ],
    "flatten": [
        (6, along(range(6), "0.weight", "0.bias") | along([i // 4 for i in range(24)], "4.weight:1")),
        (9, along(range(9), "4.weight", "4.bias", "6.weight:1")),
    ],
    "separable": [
        (8, along(range(8), "0.weight", *norm("1"), "3.weight", *norm("4"), "6.weight:1")),
        (6, along(range(6), "6.weight", "6.bias", "10.weight:1")),
    ],
    "grouped": [
        (  # whole groups
            4,
            along([i // 2 for i in range(8)], "0.weight", *norm("1"))
            | along([i // 3 for i in range(12)], "3.weight", *norm("4"), "6.weight:1"),
        ),
        (2, along([i % 2 for i in range(8)], "0.weight", *norm("1")) | along(range(2), "3.weight:1")),
        (3, along([i % 3 for i in range(12)], "3.weight", *norm("4"), "6.weight:1")),
    ],
    "shared": [
        (
            9,
            along(
                range(9), "first.weight", "first.bias", "shared.weight", "shared.weight:1", "shared.bias",
                "last.weight:1",
            ),
        )
    ],
    "tied_weight": [
        (7, along(range(7), "encoder.weight", "encoder.bias")),
        (10, along(range(10), "hidden.weight", "hidden.bias", "head.weight:1")),
    ],
    "squeeze_excite": [
        (
            8,
            along(
                range(8), "conv.weight", "conv.bias", *norm("norm"), "squeeze.weight:1", "excite.weight",
                "excite.bias", "fc.weight:1",
            ),
        ),
        (4, along(range(4), "squeeze.weight", "squeeze.bias", "excite.weight:1")),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.SMALL))
def test_small_nets_have_exactly_the_axes_known_by_hand(name: str, variant: str) -> None:
    structure = analyzed(name, variant)
    assert footprints(structure) == {(size, frozenset(places)) for size, places in TRUTH[name]}
    assert not structure.unknown


@pytest.mark.parametrize("name", zoo.SMALL)
def test_every_axis_of_a_small_net_may_change_exactly(name: str) -> None:
    for axis in analyzed(name).axes:
        assert axis.kind == ("head" if name == "grouped" and axis.size == 4 else "neuron")
        assert axis.prunable and axis.growable and axis.exact, axis


ROLES = {
    "residual": {
        ("stem.weight", 0, "out"), ("norm.weight", 0, "scale"), ("norm.bias", 0, "shift"),
        ("norm.running_mean", 0, "mean"), ("norm.running_var", 0, "var"), ("conv1.weight", 1, "in"),
        ("conv1.weight", 0, "out"), ("bn1.weight", 0, "scale"), ("bn1.bias", 0, "shift"),
        ("bn1.running_mean", 0, "mean"), ("bn1.running_var", 0, "var"), ("conv2.weight", 1, "in"),
        ("conv2.weight", 0, "out"), ("bn2.weight", 0, "scale"), ("bn2.bias", 0, "shift"),
        ("bn2.running_mean", 0, "mean"), ("bn2.running_var", 0, "var"), ("fc.weight", 1, "in"),
    },
    "mlp": {
        ("0.weight", 0, "out"), ("0.bias", 0, "shift"), ("2.weight", 1, "in"),
        ("2.weight", 0, "out"), ("2.bias", 0, "shift"), ("4.weight", 1, "in"),
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "variant"), zoo.variants(*ROLES))
def test_roles(name: str, variant: str) -> None:
    assert roles(analyzed(name, variant)) == ROLES[name]


def test_a_scale_and_a_shift_written_by_hand_have_the_roles_of_a_norms(seeded: None) -> None:
    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 6))
            self.gamma = nn.Parameter(torch.rand(8))
            self.beta = nn.Parameter(torch.randn(8))
            self.out = nn.Parameter(torch.randn(8, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.weight.T * self.gamma + self.beta) @ self.out

    [axis] = rg.analyze(Affine(), torch.randn(2, 6)).axes
    assert {(e.name, e.dim, e.role) for e in axis.entries} == {
        ("weight", 0, "out"), ("gamma", 0, "scale"), ("beta", 0, "shift"), ("out", 0, "in"),
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------
# torchvision: clones agree, and known facts hold


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *(pair for pair in zoo.variants(*zoo.TORCHVISION) if pair[1] != "module"),
        *((name, "functional") for name in zoo.STRUCTURE_ONLY),
    ],
)
def test_a_functional_clone_has_the_axes_of_its_model(name: str, variant: str) -> None:
    structure, clone = analyzed(name), analyzed(name, variant)
    assert not list(zoo.layer_classes(clone.model))
    assert footprints(clone) == footprints(structure)
    assert roles(clone) == roles(structure)
    assert [axis.name for axis in clone.axes] == [axis.name for axis in structure.axes]


@pytest.mark.parametrize("name", (*zoo.TORCHVISION, *zoo.STRUCTURE_ONLY))
def test_no_call_of_torchvision_is_unknown_and_every_axis_is_exact(name: str) -> None:
    structure = analyzed(name)
    assert not structure.unknown
    assert structure.axes
    assert [axis.name for axis in structure.axes if not (axis.prunable and axis.growable and axis.exact)] == []


def test_vgg_has_eight_convolutions_and_two_linear_layers_of_free_width() -> None:
    structure = analyzed("vgg11_bn")
    assert [axis.size for axis in structure.axes] == [64, 128, 256, 256, 512, 512, 512, 512, 4096, 4096]
    last = axis_with(structure, ("features.25.weight", 0))
    assert units_along(last, "classifier.0.weight", 1) == [i // 49 for i in range(512 * 49)]
    assert {e.name for e in last.entries} == {
        "features.25.weight", "features.25.bias", *norm("features.26"), "classifier.0.weight",
    }  # fmt: skip


def test_resnet_has_inner_widths_and_residual_streams() -> None:
    structure = analyzed("resnet18")
    blocks = [(layer, block) for layer in (1, 2, 3, 4) for block in (0, 1)]
    inner = [axis_with(structure, (f"layer{i}.{j}.conv1.weight", 0)) for i, j in blocks]
    for (i, j), axis in zip(blocks, inner, strict=True):
        assert axis.size == 32 * 2**i
        assert {e.name for e in axis.entries} == {
            f"layer{i}.{j}.conv1.weight", *norm(f"layer{i}.{j}.bn1"), f"layer{i}.{j}.conv2.weight",
        }  # fmt: skip
    streams = [axis_with(structure, (f"layer{i}.{j}.conv2.weight", 0)) for i, j in blocks]
    assert [axis.size for axis in streams[::2]] == [64, 128, 256, 512]
    assert streams[::2] == streams[1::2]
    assert {(e.name, e.dim) for e in streams[2].entries if e.dim or "bn" not in e.name} >= {
        ("layer2.0.downsample.0.weight", 0), ("layer2.0.conv2.weight", 0), ("layer2.1.conv1.weight", 1),
        ("layer2.1.conv2.weight", 0), ("layer3.0.conv1.weight", 1), ("layer3.0.downsample.0.weight", 1),
    }  # fmt: skip
    assert len(structure.axes) == len(inner) + 4


def test_densenet_hands_each_layers_features_to_all_later_ones() -> None:
    structure = analyzed("densenet121")
    depths, width = (6, 12, 24, 16), 64
    assert len(structure.axes) == 2 * sum(depths) + 1 + 3
    for block, depth in enumerate(depths, 1):
        path = f"features.denseblock{block}"
        for layer in range(1, depth + 1):
            axis = axis_with(structure, (f"{path}.denselayer{layer}.conv2.weight", 0))
            offset = width + 32 * (layer - 1)
            readers = [
                *(f"{path}.denselayer{later}.{part}" for later in range(layer + 1, depth + 1)
                  for part in ("norm1", "conv1")),
                *((f"features.transition{block}.norm", f"features.transition{block}.conv") if block < 4
                  else ("features.norm5", "classifier")),
            ]  # fmt: skip
            for reader in readers:
                is_norm = "norm" in reader.rpartition(".")[2]
                units = units_along(axis, f"{reader}.weight", 0 if is_norm else 1)
                here = range(offset, offset + 32)
                assert units == [i - offset if i in here else NONE for i in range(len(units))]
            names = {e.name.rpartition(".")[0] for e in axis.entries}
            assert names == {f"{path}.denselayer{layer}.conv2", *readers}
        width = (width + 32 * depth) // 2


def test_resnext_offers_groups_and_features_of_every_group() -> None:
    structure = analyzed("resnext50_32x4d")
    blocks = [(i, j) for i, depth in enumerate((3, 4, 6, 3), 1) for j in range(depth)]
    for i, j in blocks:
        path, width = f"layer{i}.{j}", 2 ** (i + 1)
        first, second, third = (f"{path}.conv{k}.weight" for k in (1, 2, 3))
        groups = axis_with(structure, (first, 0), (second, 0), (third, 1))
        columns = axis_with(structure, (first, 0), (second, 1))
        rows = axis_with(structure, (second, 0), (third, 1), without=(first, 0))
        assert (groups.size, columns.size, rows.size) == (32, width, width)
        for name, dim in ((first, 0), (second, 0), (third, 1)):
            assert units_along(groups, name, dim) == [k // width for k in range(32 * width)]
        assert units_along(columns, first, 0) == [k % width for k in range(32 * width)]
        assert units_along(columns, second, 1) == list(range(width))
        assert units_along(rows, second, 0) == units_along(rows, third, 1) == [k % width for k in range(32 * width)]
    assert len(structure.axes) == 3 * len(blocks) + 5  # the stem and four residual streams


@pytest.mark.parametrize(
    ("name", "expand", "depthwise", "squeeze", "project"),
    [
        ("mobilenet_v3_small", "features.4.block.0", "features.4.block.1", "features.4.block.2", "features.4.block.3"),
        ("efficientnet_b0", "features.2.0.block.0", "features.2.0.block.1", "features.2.0.block.2",
         "features.2.0.block.3"),
    ],
)  # fmt: skip
def test_a_depthwise_convolution_ties_the_expanded_width(
    name: str, expand: str, depthwise: str, squeeze: str, project: str
) -> None:
    axis = axis_with(analyzed(name), (f"{expand}.0.weight", 0))
    assert {(e.name, e.dim) for e in axis.entries} == {
        (f"{expand}.0.weight", 0), *((n, 0) for n in norm(f"{expand}.1")),
        (f"{depthwise}.0.weight", 0), *((n, 0) for n in norm(f"{depthwise}.1")),
        (f"{squeeze}.fc1.weight", 1), (f"{squeeze}.fc2.weight", 0), (f"{squeeze}.fc2.bias", 0),
        (f"{project}.0.weight", 1),
    }  # fmt: skip
    assert all(e.unit_of.tolist() == list(range(axis.size)) for e in axis.entries)
    assert axis_with(analyzed(name), (f"{squeeze}.fc1.weight", 0), (f"{squeeze}.fc2.weight", 1)).size < axis.size


# --------------------------------------------------------------------------------------------------
# what is not free


def test_inputs_and_outputs_are_frozen_with_a_reason() -> None:
    structure = analyzed("residual")
    frozen = {(f.name, f.dim): f for f in structure.frozen}
    assert {("stem.weight", 1), ("fc.weight", 0), ("fc.bias", 0)} <= frozen.keys()
    assert frozen["fc.weight", 0].size == 5
    assert all(f.reason for f in structure.frozen)


@pytest.mark.parametrize("name", zoo.SMALL)
def test_every_index_is_either_free_or_frozen(name: str) -> None:
    structure = analyzed(name)
    names = canonical_names(structure.model)
    free = {(names[e.name], e.dim) for axis in structure.axes for e in axis.entries}
    frozen = {(names[f.name], f.dim) for f in structure.frozen}
    tensors = [*structure.model.named_parameters(), *structure.model.named_buffers()]
    sized = {(name, dim) for name, tensor in tensors for dim, size in enumerate(tensor.shape) if size > 1}
    assert free | frozen == sized
    assert not free & frozen


def test_a_tensor_that_no_trace_read_is_frozen() -> None:
    model = zoo.mlp()
    model.spare = nn.Linear(16, 16)
    del model._modules["spare"]
    model.register_parameter("spare", nn.Parameter(torch.zeros(16)))
    structure = rg.analyze(model, zoo.example("mlp"))
    assert ("spare", 0) in {(f.name, f.dim) for f in structure.frozen}
    assert all(e.name != "spare" for axis in structure.axes for e in axis.entries)


@torch.library.custom_op("regrow_tests::mystery", mutates_args=())
def mystery(x: Tensor) -> Tensor:
    return x.flip(1).clone()


@mystery.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Mystery(nn.Module):
    """Two hidden widths; an operator that nobody knows meets the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 7)
        self.last = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(mystery(self.first(x)))))


def test_an_unknown_operator_freezes_what_it_touches_and_is_named() -> None:
    structure = rg.analyze(Mystery(), torch.randn(2, 6))
    assert footprints(structure) == {(7, frozenset(along(range(7), "second.weight", "second.bias", "last.weight:1")))}
    assert any("mystery" in name for name in structure.unknown)
    reasons = {(f.name, f.dim): f.reason for f in structure.frozen}
    assert "mystery" in reasons["first.weight", 0]
    assert "mystery" in str(structure)


# --------------------------------------------------------------------------------------------------
# never silently wrong


@pytest.mark.parametrize("name", awkward.NAMES)
def test_removing_a_unit_is_silencing_it_or_refused(name: str) -> None:
    """Whatever the code does with positions and sizes: what is offered as exact is exact."""
    x = awkward.example()
    for axis in rg.analyze(awkward.build(name), x).axes:
        if not axis.prunable:
            assert axis.prunable.reason
            continue
        for units in ([0], [axis.size // 2], [axis.size - 1], [0, axis.size - 1][: axis.size - 1]):
            model = awkward.build(name)
            here = rg.analyze(model, x)[axis.name]
            here.silence_(units)
            silent = outputs(model, x)
            try:
                rg.prune_(here, units)
            except rg.NotPermissible:
                continue
            pruned = outputs(model, x)
            assert pruned["eval"].shape == silent["eval"].shape
            if here.exact:
                assert relative_change(silent, pruned) < 1e-12, (here, units)


@pytest.mark.parametrize("name", awkward.NAMES)
def test_growing_keeps_the_function_or_is_refused(name: str) -> None:
    x = awkward.example()
    for axis in rg.analyze(awkward.build(name), x).axes:
        if not axis.growable:
            assert axis.growable.reason
            continue
        model = awkward.build(name)
        here = rg.analyze(model, x)[axis.name]
        before = outputs(model, x)
        try:
            edit = rg.grow_(here, 2, generator=torch.Generator().manual_seed(0))
        except rg.NotPermissible:
            continue
        assert here.size == axis.size + 2
        after = outputs(model, x)
        assert after["eval"].shape == before["eval"].shape
        if here.exact:
            assert relative_change(before, after) < 1e-12, here
            here.silence_(edit.new)
            silent = outputs(model, x)
            rg.prune_(here, edit.new)
            assert relative_change(silent, outputs(model, x)) < 1e-12, here


@pytest.mark.parametrize("name", sorted(awkward.INEXACT))
def test_an_axis_called_inexact_moves_the_output(name: str) -> None:
    """An inexact axis says why, and removing a silent unit of it does change the function; else it is frozen."""
    x, model = awkward.example(), awkward.build(name)
    structure = rg.analyze(model, x)
    if not structure.axes:
        assert ("first.weight", 0) in {(f.name, f.dim) for f in structure.frozen}
        return
    [axis] = structure.axes
    assert not axis.exact
    assert axis.exact.reason
    axis.silence_([1, 6])
    silent = outputs(model, x)
    rg.prune_(axis, [1, 6])
    assert relative_change(silent, outputs(model, x)) > 1e-6


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("chunked_gate", [4]), ("repeated", [8]), ("doubled", [8]), ("padded", [8]), ("shaped_heads", [4]),
        ("shaped_features", [4]), ("literal_view", []), ("literal_heads", []), ("permuted", []), ("constant", []),
        ("averaged", [8]), ("largest", [8]), ("divided_by_width", [8]),
    ],
)  # fmt: skip
def test_awkward_nets_have_the_axes_known_by_hand_or_none(name: str, sizes: list[int]) -> None:
    structure = rg.analyze(awkward.build(name), awkward.example())
    offered = [axis for axis in structure.axes if axis.prunable and axis.growable]
    if offered:
        assert [axis.size for axis in offered] == sizes
        return
    reasons = {f.name: f.reason for f in structure.frozen if f.dim == 0}
    reasons |= {axis.entries[0].name: axis.prunable.reason for axis in structure.axes}
    assert reasons["first.weight"]


# --------------------------------------------------------------------------------------------------
# by force: random nets whose classes are known while they are built


@dataclass
class Reference:
    """A random net of linear layers, sums, products and concatenations, and the classes of its features."""

    parents: dict[tuple[str, int, int], tuple[str, int, int]] = field(default_factory=dict)

    def find(self, place: tuple[str, int, int]) -> tuple[str, int, int]:
        self.parents.setdefault(place, place)
        while self.parents[place] != place:
            place = self.parents[place]
        return place

    def join(self, ones: list[tuple[str, int, int]], others: list[tuple[str, int, int]]) -> None:
        for one, other in zip(ones, others, strict=True):
            self.parents[self.find(one)] = self.find(other)

    def units(self) -> set[frozenset[tuple[str, int, int]]]:
        classes: dict[tuple[str, int, int], set[tuple[str, int, int]]] = {}
        for place in list(self.parents):
            classes.setdefault(self.find(place), set()).add(place)
        return {frozenset(places) for places in classes.values() if ("fixed", 0, 0) not in places}


Step = tuple[str, int, int]  # operation, and the values it reads or the width it makes


class Program(nn.Module):
    """Executes steps on a growing list of values; the last values are summed over a common output."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.reference = Reference()
        self.steps: list[tuple[str, int, int]] = []
        self.layers = nn.ModuleDict()
        fixed = ("fixed", 0, 0)
        known = [[fixed] * 4]
        for operation, one, other in steps:
            one %= len(known)
            match operation:
                case "linear":
                    width = 2 + other % 3
                    known.append(self._layer(known[one], width))
                    self.steps.append((operation, one, len(self.layers) - 1))
                    continue
                case "cat" if len(known[one]) < 8:
                    other %= len(known)
                    known.append(known[one] + known[other])
                case "add" | "mul":
                    fitting = [i for i, value in enumerate(known) if len(value) == len(known[one])]
                    other = fitting[other % len(fitting)]
                    self.reference.join(known[one], known[other])
                    known.append(known[one])
                case "relu" | "tanh":
                    known.append(known[one])
                case _:
                    continue
            self.steps.append((operation, one, other))
        for value, labels in enumerate(known[1:], 1):
            self.reference.join(self._layer(labels, 3), [fixed] * 3)
            self.steps.append(("read", value, len(self.layers) - 1))

    def _layer(self, inputs: list[tuple[str, int, int]], width: int) -> list[tuple[str, int, int]]:
        name = f"layers.{len(self.layers)}"
        self.layers[str(len(self.layers))] = nn.Linear(len(inputs), width)
        self.reference.join([(f"{name}.weight", 1, i) for i in range(len(inputs))], inputs)
        rows = [(f"{name}.weight", 0, i) for i in range(width)]
        self.reference.join([(f"{name}.bias", 0, i) for i in range(width)], rows)
        return rows

    def forward(self, x: Tensor) -> Tensor:
        values, total = [x], torch.zeros(len(x), 3, dtype=x.dtype)
        for operation, one, other in self.steps:
            match operation:
                case "linear":
                    values.append(self.layers[str(other)](values[one]))
                case "read":
                    total = total + self.layers[str(other)](values[one])
                case "cat":
                    values.append(torch.cat([values[one], values[other]], 1))
                case "add" | "mul":
                    values.append(getattr(torch, operation)(values[one], values[other]))
                case _:
                    values.append(getattr(torch, operation)(values[one]))
        return total


programs = st.lists(
    st.tuples(
        st.sampled_from(["linear", "linear", "cat", "add", "mul", "relu", "tanh"]), st.integers(0, 9), st.integers(0, 9)
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(programs)
def test_random_nets_have_the_units_found_by_force(steps: list[Step]) -> None:
    torch.manual_seed(0)
    model = Program(steps).double()
    structure = rg.analyze(model, torch.randn(5, 4, dtype=torch.float64))
    found = set()
    for axis in structure.axes:
        units: list[set[tuple[str, int, int]]] = [set() for _ in range(axis.size)]
        for entry in axis.entries:
            for index, unit in enumerate(entry.unit_of.tolist()):
                if unit != NONE:
                    units[unit].add((entry.name, entry.dim, index))
        found |= {frozenset(unit) for unit in units}
    assert found == model.reference.units()


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(programs, st.integers(0, 10**6))
def test_random_nets_survive_random_edits(steps: list[Step], seed: int) -> None:
    """Prune a silenced unit, then grow: nothing may show, axis after axis."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(0)
    model = Program(steps).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    for axis in rg.analyze(model, x).axes:
        if axis.prunable and axis.size > 1:
            unit = int(torch.randint(axis.size, (), generator=generator))
            axis.silence_([unit])
            before = outputs(model, x)
            rg.prune_(axis, [unit])
            assert relative_change(before, outputs(model, x)) < 1e-10
        if axis.growable:
            before = outputs(model, x)
            rg.grow_(axis, 2, generator=generator)
            assert relative_change(before, outputs(model, x)) < 1e-10


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
def test_silencing_checks_the_units(units: object) -> None:
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
        lambda model, x: rg.analyze("model", x),
        lambda model, x: rg.analyze(model, x, args=(x,)),
        lambda model, x: rg.analyze(model, args=x),
        lambda model, x: rg.analyze(model, args=(x,), kwargs=[1]),
    ],
    ids=["no example", "no model", "example twice", "args not a tuple", "kwargs not a mapping"],
)
def test_analyze_checks_its_arguments(bad: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        bad(zoo.build("mlp"), zoo.example("mlp"))


def test_an_error_in_the_model_comes_through_and_leaves_it_as_it_was() -> None:
    model, x = zoo.build("residual").eval(), torch.randn(2, 4, 8, 8)
    before = snapshot(model)
    with pytest.raises(ValueError, match="channels"):
        rg.analyze(model, x)
    assert differences(before, snapshot(model)) == []

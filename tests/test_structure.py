"""What may change, and what moves together: against truths written by hand, and by clones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regrow as rg
import zoo
from reading import (
    NONE,
    Place,
    along,
    analyzed,
    axis_with,
    canonical_names,
    footprints,
    norm,
    roles,
    units_along,
)

# --------------------------------------------------------------------------------------------------
# small nets: the exact list of axes


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


class Positions(nn.Module):
    """A bias that a small network computes from a table of coordinates, as in Swin V2."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(1, 7, 5))
        self.hidden, self.out, self.main = nn.Linear(5, 8), nn.Linear(8, 7), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.out(self.hidden(self.table).relu()).mean((0, 1))


def test_a_table_of_constants_is_what_a_weight_reads(seeded: None) -> None:
    axes = rg.analyze(Positions(), torch.randn(2, 4)).axes
    found = {axis.name: {(entry.name, entry.role) for entry in axis.entries} for axis in axes}
    assert found["hidden"] == {("hidden.weight", "out"), ("hidden.bias", "shift"), ("out.weight", "in")}
    assert {("table", "out"), ("hidden.weight", "in")} in found.values()
    assert len(found) == 2


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


def test_what_a_model_keeps_of_its_forward_does_not_outlive_the_analysis() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.hidden = torch.relu(self.first(x))
            return self.last(self.hidden)

    model = Keeps()
    rg.analyze(model, torch.randn(2, 3))
    rg.measure.flops(model, torch.randn(2, 3))
    assert model.calls == 0
    assert not hasattr(model, "hidden")

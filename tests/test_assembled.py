"""What a structure says of itself: names, order, what is frozen; and the sizes of torch's layers that follow."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import regrow as rg
from families import FAMILIES
from reading import canonical_names
from sizes_kept import stale_sizes


def images(channels: int = 3) -> Tensor:
    return torch.rand(2, channels, 6, 6)


# --------------------------------------------------------------------------------------------------
# an index is free or frozen

OVERLAPPING = ("shuffle_unit", "shuffle_units", "tile_pairs", "talking_heads", "pairs", "encoder", "torch", "modulated")


@pytest.mark.parametrize("name", [*OVERLAPPING, "unequal", "group_norm", "branch_if", "grouped", "lstm_projected"])
def test_each_index_is_free_or_frozen_for_one_reason(name: str) -> None:
    structure = rg.analyze(FAMILIES[name].model(), FAMILIES[name].inputs())
    names = canonical_names(structure.model)
    free: dict[tuple[str, int], Tensor] = {}
    for entry in (entry for axis in structure for entry in axis.entries):
        key = names[entry.name], entry.dim
        free[key] = free.get(key, torch.zeros(len(entry.unit_of), dtype=torch.bool)) | (entry.unit_of >= 0)
    frozen = Counter[tuple[str, int]]()
    for f in structure.frozen:
        frozen[names[f.name], f.dim] += f.size
    assert max(Counter((f.name, f.dim, f.reason) for f in structure.frozen).values(), default=1) == 1
    for tensor, value in [*structure.model.named_parameters(), *structure.model.named_buffers()]:
        for dim, size in enumerate(value.shape):
            moving = int(free[tensor, dim].sum()) if (tensor, dim) in free else 0
            assert moving + frozen[tensor, dim] == size or (size == 1 and not moving)


# --------------------------------------------------------------------------------------------------
# order and names


class Split(nn.Module):
    """Parts of one layer's outputs, each with a reader of its own, met in another order."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.whole = nn.Linear(5, sum(sizes))
        self.readers = nn.ModuleList(nn.Linear(size, 3) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.whole(x).tanh().split(self.sizes, -1)
        return torch.stack([read(part) for read, part in zip(self.readers[::-1], parts[::-1], strict=True)]).sum(0)


@pytest.mark.parametrize("sizes", [(6, 4, 2), (2, 4, 6), (3, 5), (4, 2, 7, 3)])
def test_parts_of_a_tensor_are_numbered_as_they_lie_in_it(sizes: tuple[int, ...]) -> None:
    model = Split(*sizes)
    structure = rg.analyze(model, torch.rand(3, 5))
    assert [(axis.name, axis.size) for axis in structure] == [
        (f"whole.weight[0]#{number}", size) for number, size in enumerate(sizes)
    ]
    again = rg.analyze(copy.deepcopy(model), torch.rand(4, 5))
    assert [(axis.name, axis.size) for axis in again] == [(axis.name, axis.size) for axis in structure]
    rg.prune_(max(structure, key=lambda axis: axis.size), [0])
    now = rg.analyze(model, torch.rand(3, 5))
    assert [axis.name for axis in now] == [axis.name for axis in structure]
    assert [axis.size for axis in now] == [axis.size for axis in structure]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("shuffle_unit", ["0"]), ("shuffle_units", ["0"]), ("tile_pairs", ["first"]), ("pairs", ["first"])],
)
def test_a_plain_name_is_given_where_no_other_axis_needs_it(name: str, expected: list[str]) -> None:
    structure = rg.analyze(FAMILIES[name].model(), FAMILIES[name].inputs())
    assert [axis.name for axis in structure] == expected


def test_the_outer_axis_of_a_tensor_comes_first() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 5, 1))
    structure = rg.analyze(model, images())
    assert [axis.name for axis in structure] == ["1.groups", "0", "1"]


@pytest.mark.parametrize("affine", [False, True])
def test_groups_of_a_norm_are_called_so(affine: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8, affine=affine), nn.ReLU(), nn.Conv2d(8, 5, 1))
    structure = rg.analyze(model, images())
    assert [(axis.name, axis.kind, axis.size, set(axis.tags)) for axis in structure] == [
        ("1.groups", "head", 4, {"group"}),
        ("0", "neuron", 2, set()),
    ]


@pytest.mark.parametrize(
    ("parametrised", "names"),
    [
        (parametrizations.weight_norm, ["1.0.weight", "1.0.parametrizations.weight.original1"]),
        (parametrizations.spectral_norm, ["1.0"]),
    ],
)
def test_a_parametrised_weight_belongs_to_its_layer(
    parametrised: Callable[[nn.Linear], nn.Linear], names: list[str]
) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(parametrised(nn.Linear(8, 7))), nn.ReLU(), nn.Linear(7, 3))
    structure = rg.analyze(model, torch.rand(3, 4))
    assert [axis.name for axis in structure] == ["0", "1.0"]
    for name in names:
        assert structure[name] is structure["1.0"]
    assert "parametrizations" not in str(structure)


def test_parts_of_a_parametrised_weight_are_named_by_it() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.rand(6, 4)), nn.Parameter(torch.rand(3, 6))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.up.T).tanh() @ self.down.T

    model = parametrizations.weight_norm(Bare(), "up")
    [axis] = rg.analyze(model, torch.rand(3, 4))
    assert axis.name == "up"


@pytest.mark.parametrize("opened", ["1", "1.weight", "1.parametrizations.weight.original1"])
def test_a_parametrised_output_is_opened_by_its_layer(opened: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), parametrizations.weight_norm(nn.Linear(8, 3, bias=False)))
    structure = rg.analyze(model, torch.rand(3, 4), grow_outputs=opened)
    assert [(axis.name, set(axis.tags)) for axis in structure] == [("0", set()), ("1", {"output"})]


# --------------------------------------------------------------------------------------------------
# sizes that torch's layers keep


def edited(structure: rg.Structure) -> Iterator[rg.Axis]:
    """Each axis pruned, then grown, with all that was kept put back afterwards."""
    for axis in structure:
        for edit in (lambda axis: rg.prune_(axis, [0]), lambda axis: rg.grow_(axis, 3)):
            done = edit(axis)
            yield axis
            done.undo_()


def check_edits(model: nn.Module, x: Tensor, expected: list[str]) -> rg.Structure:
    """The axes are these, what is said of them is true, and after an edit torch itself has nothing to say."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter), alpha=0.2)
    structure = rg.analyze(model, x)
    assert [axis.name for axis in structure] == expected
    found = structure.verify()
    assert found.ok, str(found)
    assert found.unmoved == ()
    before = repr(model)
    for axis in edited(structure):
        assert stale_sizes(model) == [], axis
        for training in (True, False):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", message=".*oneDNN.*")
                model.train(training)(x)
    assert repr(model) == before
    return structure


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(8, affine=False, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm2d(8),
    "instance with statistics": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
    "instance with scales": lambda: nn.InstanceNorm2d(8, affine=True),
    "group": lambda: nn.GroupNorm(1, 8, affine=False),
    "layer": lambda: nn.LayerNorm([8, 4, 4], elementwise_affine=False),
    "rms": lambda: nn.RMSNorm([8, 4, 4], elementwise_affine=False),
}


@pytest.mark.parametrize("kind", NORMS)
def test_the_width_of_a_norm_follows_without_tensors(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), NORMS[kind](), nn.ReLU(), nn.Conv2d(8, 5, 1))
    structure = check_edits(model, images(), ["0"])
    rg.prune_(structure["0"], [1, 5, 6])
    norm = model[1]
    width = getattr(norm, "num_features", getattr(norm, "num_channels", None))
    assert width == 5 if width is not None else norm.normalized_shape == (5, 4, 4)


def test_a_size_of_the_model_that_happens_to_be_a_norms_stays() -> None:
    class Named(nn.Sequential):
        num_features = num_channels = num_groups = 8

        def __init__(self, *layers: nn.Module) -> None:
            super().__init__(*layers)
            self.num_features = self.num_channels = self.num_groups = 8

    model = Named(nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8, affine=False), nn.InstanceNorm2d(8), nn.Conv2d(8, 5, 1))
    rg.prune_(rg.analyze(model, images())["0"], [0])
    assert (model.num_features, model.num_channels, model.num_groups) == (8, 8, 8)
    assert [model.get_submodule("1").num_groups, model.get_submodule("2").num_features] == [7, 7]


class Around(nn.Module):
    """A layer that is read by another; what it returns besides its first output isn't."""

    def __init__(self, layer: nn.Module, width: int, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Identity() if first is None else first
        self.layer, self.last = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(self.first(x))
        return self.last(found[0] if isinstance(found, tuple) else found)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_is_an_embedding(mode: str) -> None:
    model = Around(nn.EmbeddingBag(11, 6, mode=mode), 6)
    structure = check_edits(model, torch.randint(0, 11, (3, 4)), ["layer"])
    assert structure["layer"].tags == {"embedding"}
    opened = rg.analyze(model, torch.randint(0, 11, (3, 4)), grow_outputs="layer")
    rg.grow_(opened["layer.entries"], 2)
    assert model.layer.num_embeddings == 13


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_the_sizes_of_a_recurrent_cell_follow(cell: type[nn.LSTMCell | nn.GRUCell | nn.RNNCell]) -> None:
    model = Around(cell(7, 8), 8, nn.Linear(4, 7))
    structure = check_edits(model, torch.rand(3, 4), ["first", "layer"])
    rg.prune_(structure["first"], [0])
    rg.prune_(structure["layer"], [0, 1])
    assert (model.layer.input_size, model.layer.hidden_size) == (6, 6)


@pytest.mark.parametrize(("layers", "both_ways"), [(1, False), (2, False), (1, True), (2, True)])
@pytest.mark.filterwarnings("ignore:.*oneDNN")
def test_a_projected_lstm_has_two_sizes(layers: int, both_ways: bool) -> None:
    lstm = nn.LSTM(5, 8, layers, batch_first=True, bidirectional=both_ways, proj_size=3)
    model = Around(lstm, 6 if both_ways else 3, nn.Linear(4, 5))
    x = torch.rand(2, 6, 4)
    structure = rg.analyze(model, x)
    assert [axis.size for axis in structure] == [5, 8, 3]
    hidden, projected = structure.axes[1:]
    assert structure.verify().ok
    rg.prune_(hidden, [0, 7])
    rg.grow_(projected, 1)
    assert (lstm.hidden_size, lstm.proj_size) == (6, 4)
    twin = nn.LSTM(5, 6, layers, batch_first=True, bidirectional=both_ways, proj_size=4)
    assert {n: p.shape for n, p in lstm.named_parameters()} == {n: p.shape for n, p in twin.named_parameters()}
    model(x).sum().backward()


def test_the_sizes_of_attention_follow() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = nn.Linear(4, 12), nn.Linear(4, 6), nn.Linear(4, 5)
            self.attention = nn.MultiheadAttention(12, 3, kdim=6, vdim=5, batch_first=True)
            self.last = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            read = self.attention(self.query(x), self.key(x), self.value(x), need_weights=False)[0]
            return self.last(read)

    model, x = Cross(), torch.rand(2, 5, 4)
    structure = rg.analyze(model, x)
    for name, sizes in {
        "key": (12, 3, 4, 5, 5),
        "value": (12, 3, 4, 5, 4),
        "attention.features": (9, 3, 3, 5, 4),
        "attention.heads": (6, 2, 3, 5, 4),
    }.items():
        rg.prune_(structure[name], [0])
        held = model.attention
        assert (held.embed_dim, held.num_heads, held.head_dim, held.kdim, held.vdim) == sizes
        model(x)
    assert stale_sizes(model) == []


# --------------------------------------------------------------------------------------------------
# products of three tensors


class Bilinear(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 6), nn.Linear(4, 5)
        self.both, self.last = nn.Bilinear(6, 5, 7, bias=bias), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.both(self.one(x), self.other(x)).relu())


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_bilinear_layer_has_an_axis_for_each_side(shape: tuple[int, ...], bias: bool) -> None:
    model = Bilinear(bias)
    structure = check_edits(model, torch.rand(shape), ["one", "other", "both"])
    places = {axis.name: {(e.name, e.dim, e.role) for e in axis.entries} for axis in structure}
    assert places["one"] == {("one.weight", 0, "out"), ("one.bias", 0, "shift"), ("both.weight", 1, "in")}
    assert places["other"] == {("other.weight", 0, "out"), ("other.bias", 0, "shift"), ("both.weight", 2, "in")}
    assert places["both"] >= {("both.weight", 0, "out"), ("last.weight", 1, "in")}
    rows = torch.rand(shape).numel() // 4
    assert structure["one"].flops == pytest.approx(2 * rows * (4 + 5 * 7))


def test_three_tensors_are_multiplied_along_any_dimensions() -> None:
    """The same operator with its dimensions elsewhere: what is added up is the second and the last of four."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 6), nn.Linear(4, 5)
            self.core, self.last = nn.Parameter(torch.rand(6, 7, 5)), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            made = torch._trilinear(self.one(x), self.core, self.other(x), [2, 3], [0], [1, 2], [1, 3])
            return self.last(made)

    check_edits(Three(), torch.rand(3, 4), ["one", "other", "core"])


# --------------------------------------------------------------------------------------------------
# writing by index


class Written(nn.Module):
    def __init__(self, write: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.first, self.step, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.write(self.first(x).tanh(), self.step))


def _masked(h: Tensor, step: nn.Module) -> Tensor:
    h = h.clone()
    mask = torch.arange(len(h)) % 2 == 0
    h[mask] = h[mask] + step(h[mask])
    return h


def _numbered(h: Tensor, step: nn.Module) -> Tensor:
    h = h.clone()
    h[torch.tensor([0, 2])] = step(h[:2])
    return h


def _broadcast(h: Tensor, step: nn.Module) -> Tensor:
    h = h.clone()
    h[torch.tensor([0, 2])] = step(h[3])
    return h


def _out_of_place(h: Tensor, step: nn.Module) -> Tensor:
    return h.index_put((torch.tensor([1, 3]),), step(h[:2]), accumulate=True)


def _between(h: Tensor, step: nn.Module) -> Tensor:
    h = h.unflatten(0, (2, 2)).clone()
    h[torch.tensor([0, 1]), torch.tensor([1, 0])] = step(h[0])
    return h.flatten(0, 1)


def _behind(h: Tensor, step: nn.Module) -> Tensor:
    h = h.T.clone()
    h[:, torch.tensor([0, 2])] = step(h[:, :2].T).T
    return h.T


def _into_zeros(h: Tensor, step: nn.Module) -> Tensor:
    mask = torch.arange(len(h)) % 2 == 0
    out = torch.zeros_like(h)
    out[mask] = step(h[mask])
    return out + h


@pytest.mark.parametrize("write", [_masked, _numbered, _broadcast, _out_of_place, _between, _behind, _into_zeros])
def test_what_is_written_by_index_runs_along_with_its_target(write: Callable[[Tensor, nn.Module], Tensor]) -> None:
    structure = check_edits(Written(write), torch.rand(4, 4), ["first"])
    held = {(e.name, e.dim) for e in structure["first"].entries}
    assert held == {
        ("first.weight", 0), ("first.bias", 0), ("step.weight", 0), ("step.weight", 1), ("step.bias", 0),
        ("last.weight", 1),
    }  # fmt: skip
    assert structure["first"].exact


def _along_units(h: Tensor, step: nn.Module) -> Tensor:
    h = h.clone()
    h[:, torch.tensor([0, 2])] = step(h)[:, :2]
    return h


def _ones(h: Tensor, step: nn.Module) -> Tensor:
    h = step(h)
    h[torch.arange(len(h)) % 2 == 0] = 1.0
    return h


def test_a_constant_that_is_written_by_index_stands_for_all_units() -> None:
    structure = check_edits(Written(_ones), torch.rand(4, 4), ["first", "step"])
    assert {(e.name, e.dim) for e in structure["step"].entries} == {
        ("step.weight", 0), ("step.bias", 0), ("last.weight", 1),
    }  # fmt: skip
    assert structure["step"].exact


def _into_a_view(h: Tensor, step: nn.Module) -> Tensor:
    out = h.new_zeros(2, *h.shape)
    out[0][torch.tensor([0, 1])] = step(h)[:2]
    return out.sum(0) + h


@pytest.mark.parametrize("write", [_along_units, _into_a_view])
def test_what_is_written_otherwise_is_frozen(write: Callable[[Tensor, nn.Module], Tensor]) -> None:
    structure = rg.analyze(Written(write), torch.rand(4, 4))
    assert ("step.weight", 0) in {(f.name, f.dim) for f in structure.frozen}
    assert structure.verify().ok

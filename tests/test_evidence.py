"""Recorded passages against the model itself; growth matrices and moments against brute force; no trace left."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import regrow as rg
import zoo
from regrow.evidence import Growth, Needs, Passage, gather
from regrow.evidence.correlation import Window, correlate
from regrow.evidence.pairs import Pairs
from regrow.evidence.recording import Recorder
from regrow.rows import rows_of
from state import differences, snapshot, surroundings

# --------------------------------------------------------------------------------------------------
# passages


def recorded(structure: rg.Structure, loss: Callable[[], Tensor], axes: Any = None) -> list[Passage]:
    recorder = Recorder(structure.axes if axes is None else axes)
    with recorder:
        value = loss()
    return recorder.passages(value)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.SMALL))
def test_the_derivative_of_a_passage_is_the_models_own(name: str, variant: str, training: bool) -> None:
    """The gain of the old units has, in each of their weights, the gradient that the loss has."""
    model, x = zoo.build(name, variant, torch.float64).train(training), zoo.example(name, 4, torch.float64)
    target = torch.randn(model(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = lambda: (model(x) - target).square().mean()  # noqa: E731
    structure = rg.analyze(model, x)
    checked = 0
    for axis in structure.axes:
        if any(e.name in {o.name for o in axis.with_role("out", "tied")} for e in axis.with_role("in", "tied")):
            continue
        [passage] = recorded(structure, loss, [axis])
        weights = {
            e: rows_of(e, e.tensor.detach(), axis.size).requires_grad_()
            for e in passage.read
            if e.role in ("out", "scale", "shift", "in") and isinstance(e.tensor, nn.Parameter)
        }
        found = torch.autograd.grad(passage.gain(weights), list(weights.values()))
        true = torch.autograd.grad(loss(), [e.tensor for e in weights])
        for entry, ours, theirs in zip(weights, found, true, strict=True):
            expected = rows_of(entry, theirs, axis.size)
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12, msg=f"{axis.name}: {entry.name}")
            checked += 1
    assert checked or name in ("shared",)


def test_what_is_written_over_later_is_recorded_as_it_was() -> None:
    """An activation in place overwrites what the consumer's gradient and the producer's output were."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    in_place = nn.Sequential(plain[0], plain[1], nn.ReLU(inplace=True), plain[3])
    x = torch.randn(7, 6).double()
    matrices = []
    for model in (plain, in_place):
        structure = rg.analyze(model, x)
        loss = lambda: model(x).square().mean()  # noqa: B023, E731
        for name in ("0", "1"):
            axis = structure[name]
            matrices.append(gather([axis], {"growth": lambda a, _: Growth(a)}, loss, 1)[axis]["growth"].matrix)
    assert torch.equal(matrices[0], matrices[2])
    assert torch.equal(matrices[1], matrices[3])


def test_a_custom_derivative_on_the_way_is_noticed() -> None:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return torch.relu(x)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Tensor:
            return grads[0]

    class Net(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return self[1](Own.apply(self[0](input)))

    model: Any = Net(nn.Linear(4, 5, bias=False), nn.Linear(5, 2))
    x = torch.randn(6, 4)
    structure = rg.analyze(model, x)
    loss = lambda: model(x).square().mean()  # noqa: E731
    [passage] = recorded(structure, loss)
    assert passage.custom
    edit = rg.grow_(structure["0"], 1, rg.GradMax(), loss=loss)
    assert not model[0].weight[edit.new].any()
    assert model[1].weight[:, edit.new].any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["residual", "flatten", "separable"])
def test_gathering_leaves_no_trace(name: str, training: bool) -> None:
    model, x = zoo.build(name).train(training), zoo.example(name, 4)
    structure = rg.analyze(model, x)
    model(x).square().mean().backward()
    before, around, random = snapshot(model), surroundings(model), torch.get_rng_state()

    def loss() -> Tensor:
        torch.rand(3)
        return model(x).square().mean()

    axes = [a for a in structure.axes if a.size > 2]
    gather(axes, {"growth": lambda axis, _: Growth(axis, whiten=True)}, loss, 2)
    assert differences(before, snapshot(model)) == []
    assert differences(around, surroundings(model)) == []
    assert torch.equal(random, torch.get_rng_state())


# --------------------------------------------------------------------------------------------------
# what can go wrong


def _raises_stop(model: nn.Module, x: Tensor) -> Tensor:
    return model(next(iter(()))).mean()


WRONG: dict[str, tuple[Callable[[nn.Module, Tensor], Any], type[Exception], str]] = {
    "vector": (lambda model, x: model(x).square().mean(1), ValueError, "scalar"),
    "not a tensor": (lambda model, x: 1.0, TypeError, "float"),
    "no gradient": (lambda model, x: model(x).mean().detach(), ValueError, "no_grad"),
    "nan": (lambda model, x: model(x).mean() * math.nan, ValueError, "nan"),
    "infinite": (lambda model, x: model(x).mean() / 0, ValueError, "inf"),
    "infinite gradient": (lambda model, x: (model(x) * 0).abs().sqrt().sum(), ValueError, "not finite"),
    "empty loader": (_raises_stop, ValueError, "no batch"),
    "elsewhere": (lambda model, x: x.requires_grad_().square().mean(), ValueError, "no gradient"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_loss_is_one_clear_error_and_changes_nothing(what: str) -> None:
    loss, error, message = WRONG[what]
    model, x = zoo.build("residual"), zoo.example("residual", 4)
    structure = rg.analyze(model, x)
    before, around = snapshot(model), surroundings(model)
    with pytest.raises(error, match=message):
        rg.grow_(structure["conv1"], 1, rg.GradMax(), loss=lambda: loss(model, x))
    assert differences(before, snapshot(model)) == []
    assert differences(around, surroundings(model)) == []


def test_a_method_that_looks_at_the_loss_says_that_it_needs_one() -> None:
    structure = rg.analyze(zoo.build("residual"), zoo.example("residual"))
    with pytest.raises(ValueError, match="loss="):
        rg.grow_(structure["conv1"], 1, rg.GradMax())


def grown_columns(model: Any, edit: rg.Edit) -> Tensor:
    return model[2].weight[:, edit.new]


def test_float16_needs_a_scaled_loss() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)).half(), torch.randn(16, 6).half()
    axis = rg.analyze(model, x)["0"]
    before = snapshot(model)
    loss = lambda scale: model(x).float().square().mean() * scale  # noqa: E731
    with pytest.raises(ValueError, match=r"float16.*scaler\.scale"):
        rg.grow_(axis, 2, rg.GradMax(), loss=lambda: loss(1.0))
    assert differences(before, snapshot(model)) == []
    edit = rg.grow_(axis, 2, rg.GradMax(), loss=lambda: loss(2.0**14))
    assert grown_columns(model, edit).norm(dim=0).min() > 0


@pytest.mark.parametrize("frozen", ["conv1.weight", "conv2.weight"])
def test_units_of_frozen_weights_are_refused(frozen: str) -> None:
    model, x = zoo.build("residual"), zoo.example("residual", 4)
    structure = rg.analyze(model, x)
    model.get_parameter(frozen).requires_grad_(False)
    before = snapshot(model)
    with pytest.raises(rg.NotPermissible, match=frozen):
        rg.grow_(structure["conv1"], 1, rg.GradMax(), loss=lambda: model(x).square().mean())
    assert differences(before, snapshot(model)) == []


# --------------------------------------------------------------------------------------------------
# growth matrices


@st.composite
def windows(draw: Any, dims: int) -> list[Window]:
    number = st.integers
    return [Window(draw(number(1, 4)), draw(number(1, 3)), draw(number(0, 3)), draw(number(1, 2))) for _ in range(dims)]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_offset_correlations_are_those_of_patches(data: st.DataObject) -> None:
    """Any kernel, stride, padding and dilation, in one to three dimensions."""
    dims = data.draw(st.sampled_from([1, 2, 2, 3]))
    first, second = data.draw(windows(dims)), data.draw(windows(dims))
    lengths = [data.draw(st.integers(4, 8)) for _ in range(dims)]
    hidden = [w.positions(n) for w, n in zip(first, lengths, strict=True)]
    outputs = [w.positions(n) if n > 0 else 0 for w, n in zip(second, hidden, strict=True)]
    assume(min(hidden) > 0 and min(outputs) > 0)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(2, 2, *lengths, dtype=torch.float64, generator=generator)
    g = torch.randn(2, 3, *outputs, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(correlate(x, g, first, second), _by_patches(x, g, first, second), rtol=1e-10, atol=1e-10)


def _by_patches(x: Tensor, g: Tensor, first: list[Window], second: list[Window]) -> Tensor:
    convolve: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(first)]

    def options(windows: list[Window]) -> dict[str, list[int]]:
        return {name: [getattr(w, name) for w in windows] for name in ("stride", "padding", "dilation")}

    kernels = [[w.kernel for w in windows] for windows in (first, second)]
    width = x.shape[1] * math.prod(kernels[0])
    taps = torch.eye(width, dtype=x.dtype).reshape(width, x.shape[1], *kernels[0])
    patches = convolve(x, taps, **options(first))
    weight = torch.zeros(g.shape[1], width, *kernels[1], dtype=x.dtype, requires_grad=True)
    (found,) = torch.autograd.grad((convolve(patches, weight, **options(second)) * g).sum(), weight)
    return found.movedim(1, 0).reshape(x.shape[1], *kernels[0], g.shape[1], *kernels[1])


PAIRS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "strided": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 5, 3, padding=1),
        ),
        (4, 3, 9, 9),
    ),
    "norm last": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, 1, 2, dilation=2)),
        (4, 3, 9, 8),
    ),
    "taps that never meet": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ELU(), nn.Conv2d(4, 5, 1)),
        (16, 3, 2, 2),
    ),
    "perceptron": (lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6)), (4, 5)),
    "tokens": (lambda: nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 6)), (4, 3, 5)),
    "sequence": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Softplus(), nn.Conv1d(4, 5, 3, padding=2)), (4, 3, 9)),
    "dropped": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.Sigmoid(), nn.Dropout(0.4), nn.Linear(7, 6), nn.Dropout(0.2)),
        (4, 5),
    ),
    "normed rows": (lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ELU(), nn.Linear(7, 3)), (8, 5)),
}


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_the_short_way_gives_the_growth_matrix_of_the_general_one(name: str, centre: bool) -> None:
    torch.manual_seed(0)
    build, shape = PAIRS[name]
    model, x = build().double(), torch.randn(shape).double()
    structure = rg.analyze(model, x)
    axis = structure["0"]
    target = torch.randn_like(model(x))
    seen = gather([axis], {"growth": lambda a, _: Growth(a, centre)}, lambda: (model(x) - target).square().mean(), 2)
    growth = seen[axis]["growth"]
    assert Pairs.of(growth.passage) is not None
    general = growth._by_running(growth.passage)
    torch.testing.assert_close(growth.matrix, 2 * general, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["strided", "norm last", "normed rows", "taps that never meet"])
def test_moments_are_those_of_patches(name: str) -> None:
    torch.manual_seed(0)
    build, shape = PAIRS[name]
    model, x = build().double(), torch.randn(shape).double()
    axis = rg.analyze(model, x)["0"]
    seen = gather([axis], {"growth": lambda a, _: Growth(a, whiten=True)}, lambda: model(x).square().mean(), 2)
    moments = seen[axis]["growth"].moments
    if x.ndim == 4:
        first: Any = next(model.children())
        patches = F.unfold(x, 3, first.dilation, first.padding, first.stride).transpose(1, 2).flatten(0, 1)
    else:
        patches = x
    torch.testing.assert_close(moments.mean, patches.mean(0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(moments.covariance, torch.cov(patches.T, correction=0), rtol=1e-10, atol=1e-12)
    white = moments.whitener(0.0) @ moments.covariance @ moments.whitener(0.0).T
    if len(patches) > patches.shape[1]:
        torch.testing.assert_close(white, torch.eye(len(white)).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("low", ["bfloat16", "channels last"])
def test_models_in_other_precisions_and_layouts_are_seen_as_they_are(low: str) -> None:
    torch.manual_seed(0)
    build, shape = PAIRS["strided"]
    model, x = build(), torch.randn(shape)
    axis = rg.analyze(model, x)["0"]
    needs: Needs = {"growth": lambda a, _: Growth(a)}
    exact = gather([axis], needs, lambda: model(x).square().mean())[axis]["growth"].matrix
    if low == "channels last":
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low == "bfloat16"):
            return model(x).float().square().mean()

    found = gather([axis], needs, loss)[axis]["growth"].matrix
    assert found.dtype == torch.float32
    tolerance = 1e-5 if low == "channels last" else 0.03
    assert float((found - exact).norm()) <= tolerance * float(exact.norm())


# --------------------------------------------------------------------------------------------------
# dropout


class Attending(nn.Module):
    """A small transformer block, with dropout wherever those have it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.qkv, self.out = p, nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, 2))
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0)
        x = x + F.dropout(self.out(seen.transpose(1, 2).flatten(2)), self.p, self.training)
        return x + F.dropout(self.down(F.dropout(F.gelu(self.up(x)), self.p, self.training)), self.p, self.training)


class DropPath(nn.Module):
    """Leaves out a branch for some examples, as residual networks by others do."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep, self.first, self.second = keep, nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_empty(len(x), 1).bernoulli_(self.keep).div_(self.keep) if self.training else 1.0
        return x + mask * self.second(F.silu(self.first(x)))


DROPPING: dict[str, tuple[Callable[[float], Any], tuple[int, ...]]] = {
    "linear": (lambda p: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(p), nn.Linear(5, 4)), (16, 6)),
    "in place": (lambda p: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Dropout(p, True), nn.Linear(5, 4)), (16, 6)),
    "channels": (
        lambda p: nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Dropout2d(p), nn.Conv2d(5, 4, 3)),
        (6, 2, 7, 7),
    ),
    "alpha": (lambda p: nn.Sequential(nn.Linear(6, 5), nn.SELU(), nn.AlphaDropout(p), nn.Linear(5, 4)), (16, 6)),
    "attention": (Attending, (3, 5, 8)),
    "path": (lambda p: DropPath(1 - p), (16, 6)),
}


@pytest.mark.parametrize("method", ["gradmax", "gradmax-optim", "firefly"])
@pytest.mark.parametrize("name", DROPPING)
def test_methods_see_a_network_with_dropout_as_it_is_on_average(name: str, method: str) -> None:
    """As linear as dropout is, its mean is the network without it; and nobody's random numbers move."""
    build, shape = DROPPING[name]
    grown = []
    for p in (0.3, 0.0):
        torch.manual_seed(3)
        model, x = build(0.3).double(), torch.randn(shape).double()
        for module in model.modules():
            if hasattr(module, "p") and p == 0:
                module.p = 0.0
        if isinstance(model, DropPath) and p == 0:
            model.keep = 1.0
        structure = rg.analyze(model, x)
        axes = [a for a in structure.axes if a.kind == "neuron" and "stream" not in a.tags and a.growable]
        state = torch.get_rng_state()
        for axis in axes:
            rg.grow_(
                axis, 2, rg.create_method(method), loss=lambda m=model, x=x: m(x).square().mean(), generator=_seeded()
            )
        assert torch.equal(torch.get_rng_state(), state)
        assert axes
        grown.append(dict(model.named_parameters()))
    if name != "alpha":  # dropout of that kind moves zero to another number
        for key, value in grown[1].items():
            torch.testing.assert_close(grown[0][key], value, rtol=1e-6, atol=1e-7)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)

"""GradMax against the reference's outputs, its own optimality, and what it promises under batch norm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regrow as rg
from golden import CASES, EXACT, Golden
from regrow.evidence import Growth, gather
from regrow.rows import rows_of

# --------------------------------------------------------------------------------------------------
# the reference


def grown(golden: Golden, form: str = "naive") -> tuple[rg.Edit, Tensor, Tensor]:
    """An edit by two units, ∂L/∂W_in and W_out of the new units, a row for each."""
    structure = rg.analyze(golden.net, golden.x)
    edit = rg.grow_(structure["0"], 2, rg.GradMax(form), loss=golden.loss)  # type: ignore[arg-type]
    golden.loss().backward()
    gradient = golden.net[0].weight.grad[edit.new].flatten(1)
    return edit, gradient, golden.net[-1].weight.detach()[:, edit.new].transpose(0, 1).flatten(1)


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_the_references_or_larger(case: str) -> None:
    golden = Golden.read(case, "gradmax")
    before = [golden.net[0].weight.detach().clone(), golden.net[-1].weight.detach().clone()]
    loss = golden.loss().item()
    edit, gradient, sent = grown(golden)
    assert torch.equal(golden.net[0].weight[:-2], before[0])
    assert torch.equal(golden.net[-1].weight[:, :-2], before[1])
    assert not golden.net[0].weight[edit.new].any()
    assert golden.loss().item() == pytest.approx(loss, rel=1e-12)
    theirs = golden.weight("after__last__kernel")[:, -2:].transpose(0, 1).flatten(1)
    torch.testing.assert_close(sent.norm(dim=1), theirs.norm(dim=1), rtol=1e-5, atol=0)
    norm, reference = gradient.norm(), golden.weight("gradafter__first__kernel")[-2:].norm()
    if case in EXACT:
        torch.testing.assert_close(norm, reference, rtol=1e-5, atol=0)
        torch.testing.assert_close(_projector(sent), _projector(theirs), rtol=0, atol=1e-5)
    else:
        assert norm >= reference


@pytest.mark.parametrize("case", [c for c in CASES if "bn" not in c])
def test_rows_of_the_gradient_are_orthogonal_and_as_long_as_the_singular_values(case: str) -> None:
    golden = Golden.read(case, "gradmax")
    _, gradient, sent = grown(golden)
    gram = gradient @ gradient.T
    assert abs(gram[0, 1]) < 1e-12
    if case in EXACT:
        expected = sent.norm(dim=1) * torch.tensor(golden.arrays["svals"][:2]).double()
        torch.testing.assert_close(gram.diagonal().sqrt(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", [c for c in CASES if "bn" not in c])
def test_no_other_orthogonal_choice_of_that_length_has_a_larger_gradient(case: str) -> None:
    golden = Golden.read(case, "gradmax")
    edit, gradient, sent = grown(golden)
    generator = torch.Generator().manual_seed(0)
    weight = golden.net[-1].weight
    for _ in range(20):
        drawn = torch.randn(sent.shape, generator=generator, dtype=torch.float64)
        other = torch.linalg.qr(drawn.T)[0].T * sent.norm(dim=1)[:, None]
        with torch.no_grad():
            weight[:, edit.new] = other.reshape(2, len(weight), *weight.shape[2:]).transpose(0, 1)
        golden.net.zero_grad()
        golden.loss().backward()
        assert golden.net[0].weight.grad[edit.new].norm() < gradient.norm()


def _projector(rows: Tensor) -> Tensor:
    basis = torch.linalg.qr(rows.T)[0]
    return basis @ basis.T


# --------------------------------------------------------------------------------------------------
# whatever lies between


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Branched(nn.Module):
    """One layer that feeds two, beside another that is concatenated to it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.wide, self.point = nn.Conv2d(7, 5, 3, stride=2, padding=1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = F.leaky_relu(self.left(x))
        both = torch.cat([F.elu(self.right(x)), left], 1)
        return self.wide(both) + F.avg_pool2d(self.point(left), 2, ceil_mode=True)


class Stream(nn.Module):
    """A residual stream: two layers make its units, and two read them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)
        self.back, self.head = nn.Conv2d(4, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.back(torch.tanh(self.inner(F.leaky_relu(x))))).mean((2, 3)))


def _transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, groups=1), nn.LeakyReLU(), nn.ConvTranspose2d(4, 5, 3, stride=2), nn.Conv2d(5, 2, 1)
    )


BETWEEN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "nothing": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 7)), (9, 5), "0"),
    "tanh": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7)), (9, 5), "0"),
    "relu": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7)), (9, 5), "0"),
    "average pool": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 2)),
        (4, 3, 9, 9),
        "0",
    ),
    "max pool": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2)),
        (4, 3, 9, 9),
        "0",
    ),
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)),
        (4, 3, 9, 9),
        "0",
    ),
    "global pool": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
        (4, 3, 6, 6),
        "0",
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=4), nn.LeakyReLU(), nn.Conv2d(4, 5, 1)
        ),
        (4, 3, 8, 8),
        "0",
    ),
    "strides and dilation": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.LeakyReLU(), nn.Conv2d(4, 5, 3, 2, 2, dilation=2)),
        (4, 3, 11, 9),
        "0",
    ),
    "transposed": (_transposed, (3, 3, 7, 7), "0"),
    "groups read": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.LeakyReLU(), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)),
        (3, 4, 6, 6),
        "2",
    ),
    "branches": (Branched, (3, 3, 7, 7), "left"),
    "concatenation": (Branched, (3, 3, 7, 7), "right"),
    "stream": (Stream, (4, 3, 6, 6), "stem"),
    "inside a stream": (Stream, (4, 3, 6, 6), "inner"),
    "gated": (Gated, (9, 6), "up"),
    "tokens": (lambda: nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 7)), (4, 3, 5), "0"),
    "sequence": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Mish(), nn.Conv1d(4, 5, 3, 2, 1)), (3, 3, 9), "0"),
    "volume": (
        lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.ELU(), nn.Conv3d(3, 4, 2, padding=1)),
        (2, 2, 4, 5, 4),
        "0",
    ),
}


#: Activations with a kink at zero: however small a step, half of the units' inputs are on the other side.
KINKED = {"relu", "max pool", "flatten", "depthwise", "strides and dilation", "transposed", "branches", "stream"}


def net_between(name: str) -> tuple[rg.Axis, Callable[[], Tensor]]:
    torch.manual_seed(1)
    build, shape, axis = BETWEEN[name]
    model, x = build().double(), torch.randn(shape).double()
    target = torch.randn_like(model(x))
    return rg.analyze(model, x)[axis], lambda: (model(x) - target).square().mean()


def sides(growth: Growth, axis: rg.Axis, units: list[int], of: str) -> Tensor:
    """Rows of new units on the incoming or the outgoing side: of the weights, or of their gradients."""
    side = growth.incoming if of == "gradient" else growth.outgoing
    found = []
    for entry in side.entries:
        tensor = entry.tensor.grad if of == "gradient" else entry.tensor.detach()
        assert tensor is not None
        found.append(rows_of(entry, tensor, axis.size)[units].flatten(1))
    return torch.cat(found, 1)


@pytest.mark.parametrize("name", BETWEEN)
def test_the_growth_matrix_is_the_same_by_rows_and_by_columns(name: str) -> None:
    axis, loss = net_between(name)
    growth = gather([axis], {"growth": lambda a, _: Growth(a)}, loss, 1)[axis]["growth"]
    torch.testing.assert_close(growth._by_rows(growth.passage), growth.matrix, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BETWEEN)
def test_the_gradient_is_what_the_growth_matrix_says(name: str) -> None:
    """∂L/∂W_in = W_out·Mᵀ, for every map between; and no step of that size gains more to first order."""
    axis, loss = net_between(name)
    growth = gather([axis], {"growth": lambda a, _: Growth(a)}, loss, 1)[axis]["growth"]
    before, size = loss().item(), axis.size
    edit = rg.grow_(axis, 2, rg.GradMax(), loss=loss)
    assert loss().item() == pytest.approx(before, rel=1e-12)
    loss().backward()
    gradient = sides(growth, axis, edit.new, "gradient")
    sent = sides(growth, axis, edit.new, "weight")
    assert axis.size == size + 2
    torch.testing.assert_close(gradient, sent @ growth.matrix.T, rtol=1e-10, atol=1e-10 * float(gradient.norm()))
    assert (gradient.norm(dim=1) > 0).all()
    values = torch.linalg.svdvals(growth.matrix)
    torch.testing.assert_close(gradient.norm(), sent[0].norm() * values[:2].norm(), rtol=1e-10, atol=0)
    if name in KINKED:
        return
    # The loss falls by η‖∇‖² to first order.
    step = 1e-6 / float(gradient.norm()) ** 2
    with torch.no_grad():
        for entry in growth.incoming.entries:
            new = entry.indices(edit.new)
            entry.tensor.index_add_(entry.dim, new, -step * entry.tensor.grad.index_select(entry.dim, new))
    assert before - loss().item() == pytest.approx(1e-6, rel=1e-2)


@pytest.mark.parametrize(("bias", "activation"), [(False, nn.ReLU()), (True, nn.Sigmoid()), (True, nn.Softplus())])
def test_where_units_at_zero_are_dead_or_not_silent_the_roles_are_swapped(bias: bool, activation: nn.Module) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(5, 6, bias=bias), activation, nn.Linear(6, 7)).double()
    x = torch.randn(20, 5).double()
    loss = lambda: (model(x) - x.sum()).square().mean()  # noqa: E731
    axis, before = rg.analyze(model, x)["0"], loss().item()
    edit = rg.grow_(axis, 3, rg.GradMax(), loss=loss)
    assert loss().item() == before
    assert not model[2].weight[:, edit.new].any()
    loss().backward()
    assert (model[2].weight.grad[:, edit.new].norm(dim=0) > 0).all()


# --------------------------------------------------------------------------------------------------
# batch norm


def _normed(order: str) -> Any:
    between: list[nn.Module] = [nn.BatchNorm2d(6), nn.ReLU()]
    if order == "relu first":
        between.reverse()
    if order == "pooled":
        between.append(nn.MaxPool2d(2))
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), *between, nn.Conv2d(6, 5, 3, stride=2), nn.Flatten()
    )


@pytest.mark.parametrize("order", ["norm first", "relu first", "pooled"])
def test_swapped_units_change_nothing_and_have_the_statistics_that_they_will_see(order: str) -> None:
    torch.manual_seed(0)
    model, x = _normed(order), torch.randn(8, 3, 12, 12)
    for _ in range(3):
        model(x)
    outputs = [copy.deepcopy(model).train(mode)(x) for mode in (True, False)]
    axis = rg.analyze(model, x)["0"]
    edit = rg.grow_(axis, 4, rg.GradMax(), loss=lambda: model(x).square().mean())
    for mode, before in zip((True, False), outputs, strict=True):
        assert torch.equal(copy.deepcopy(model).train(mode)(x), before)
    norm: Any = next(m for m in model if isinstance(m, nn.BatchNorm2d))
    known = norm.running_mean[edit.new].clone(), norm.running_var[edit.new].clone()
    norm.momentum = 1.0
    model(x)
    torch.testing.assert_close(norm.running_mean[edit.new], known[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var[edit.new], known[1], rtol=1e-4, atol=1e-5)
    lengths = model[0].weight.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths[edit.new], lengths[:6].mean().expand(4), rtol=1e-5, atol=0)


@pytest.mark.parametrize("order", ["norm first", "pooled"])
def test_swapped_units_have_a_gradient_like_the_others_and_naive_ones_do_not(order: str) -> None:
    ratios = {}
    for form in ("swap", "naive"):
        torch.manual_seed(0)
        model, x = _normed(order), torch.randn(16, 3, 12, 12)
        target = torch.randn_like(model(x))
        loss = lambda: (model(x) - target).square().mean()  # noqa: B023, E731
        edit = rg.grow_(rg.analyze(model, x)["0"], 4, rg.GradMax(form), loss=loss)  # type: ignore[arg-type]
        loss().backward()
        weights = (model[0].weight.grad.flatten(1), model[-2].weight.grad.transpose(0, 1).flatten(1))
        norms = torch.cat(weights, 1).norm(dim=1)
        assert (norms[edit.new] > 0).all()
        ratios[form] = float(norms[edit.new].mean() / norms[:6].mean())
    assert 0.1 <= ratios["swap"] <= 10
    assert ratios["naive"] > 10


def test_swapped_units_have_a_larger_gradient_than_random_ones() -> None:
    found = {}
    for method in (rg.GradMax(), rg.Random()):
        total = 0.0
        for seed in range(5):
            torch.manual_seed(seed)
            model, x = _normed("norm first"), torch.randn(16, 3, 12, 12)
            target = torch.randn_like(model(x))
            loss = lambda: (model(x) - target).square().mean()  # noqa: B023, E731
            edit = rg.grow_(rg.analyze(model, x)["0"], 4, method, loss=loss)
            loss().backward()
            total += float(model[-2].weight.grad[:, edit.new].norm())
        found[method.name] = total
    assert found["gradmax"] > 1.1 * found["random"]


# --------------------------------------------------------------------------------------------------
# several layers at once


@pytest.mark.parametrize("form", ["naive", "epsilon", "swap"])
def test_layers_that_grow_together_get_the_gradients_of_layers_that_grow_alone(form: str) -> None:
    def gradients(*names: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model: Any = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())))
        model, x = model.append(nn.Linear(6, 6)).double(), torch.randn(32, 6).double()
        loss = lambda: model(x).square().sum()  # noqa: E731
        edit = rg.grow_(
            rg.analyze(model, x),
            dict.fromkeys(names, 2),
            rg.GradMax(form),  # type: ignore[arg-type]
            loss=loss,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
        )
        loss().backward()
        units, following = edit.units("new"), {"0": "3", "3": "6", "6": "9"}
        return {
            f"{name} {side}": gradient
            for name in names
            for side, gradient in (
                ("in", model.get_submodule(name).weight.grad[units[name]][:, :6]),
                ("out", model.get_submodule(following[name]).weight.grad[:6, units[name]]),
            )
        }

    together = gradients("0", "3", "6")
    for name in ("0", "3", "6"):
        for part, alone in gradients(name).items():
            torch.testing.assert_close(together[part], alone, rtol=1e-6, atol=1e-12)


# --------------------------------------------------------------------------------------------------
# what can't be


def test_more_units_than_the_matrix_has_rank_are_refused_or_random() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(20, 6)
    loss = lambda: model(x).square().mean()  # noqa: E731
    axis = rg.analyze(model, x)["0"]
    with pytest.raises(rg.NotPermissible, match="rank 3"):
        rg.grow_(axis, 5, rg.GradMax(), loss=loss)
    assert axis.size == 8
    before = model(x)
    edit = rg.grow_(axis, 5, rg.GradMax(beyond_rank="random"), loss=loss)
    torch.testing.assert_close(model(x), before)
    assert (model[2].weight[:, edit.new[:3]].norm(dim=0) > 0).all()
    assert not model[2].weight[:, edit.new[3:]].any()


@pytest.mark.parametrize("options", [{"batch_norm": "no"}, {"scale": 0.0}, {"beyond_rank": "all"}])
def test_wrong_configurations_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        rg.GradMax(**options)


def test_many_tokens_are_compared_where_their_number_is_written_into_the_calls() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)), torch.randn(8, 20, 3)
    loss = lambda: model(x).square().mean()  # noqa: E731
    before = model(x)
    rg.grow_(rg.analyze(model, x)["0"], 2, rg.GradMax(), loss=loss)
    torch.testing.assert_close(model(x), before)

"""Net2Wider, Splitting and TINY against their definitions: what is kept, what is found, and what it wins."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regrow as rg
from regrow.errors import NothingToDo
from regrow.evidence import gather
from regrow.growing.net2wider import Net2Wider
from regrow.growing.splits import Splits, smoothed
from regrow.growing.splitting import Splitting
from regrow.growing.tiny import TINY
from regrow.testing import laws_of
from state import differences, snapshot

LAWS = [law for method in (Net2Wider(), Splitting(), TINY(), TINY("paper")) for law in laws_of(method)]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{getattr(law.method, 'form', '')}{law}")
def test_they_keep_the_laws(law: rg.testing.Law) -> None:
    law.check()


@pytest.mark.parametrize("method", [Net2Wider(), Splitting(), TINY("paper")])
def test_what_they_say_they_break_they_break(method: Any) -> None:
    for rule in method.breaks:
        with pytest.raises(AssertionError):
            for law in laws_of(method, broken=True):
                if law.rule.__name__ == rule:
                    law.check()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (Net2Wider, {"spread": 1.5}),
        (Net2Wider, {"beyond": "all"}),
        (Splitting, {"epsilon": 0.0}),
        (Splitting, {"smoothing": -1.0}),
        (Splitting, {"steps": 0}),
        (Splitting, {"beyond": "all"}),
        (TINY, {"form": "all"}),
        (TINY, {"amplitude": 0.0}),
        (TINY, {"damping": math.nan}),
        (TINY, {"beyond_rank": "all"}),
    ],
)
def test_wrong_configurations_are_refused(method: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        method(**options)


# --------------------------------------------------------------------------------------------------
# Net2Wider


class Stream(nn.Module):
    """A residual stream: three layers make its units, three read them, and one of these does both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.inner, self.back = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.mix, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(torch.tanh(self.inner(x)))
        x = x + torch.tanh(self.mix(x))
        return self.head(torch.relu(x).mean((2, 3)))


def _normed() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(5 * 16, 4)),
    )


@pytest.mark.parametrize("build", [_normed, Stream])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_copies_share_what_was_sent_in_both_modes(build: Any, spread: float) -> None:
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(8, 3, 8, 8).double()
    for _ in range(3):
        model(x)
    before = [copy.deepcopy(model).train(mode)(x) for mode in (True, False)]
    structure = rg.analyze(model, x)
    sizes = {axis.name: axis.size for axis in structure.axes}
    edit = rg.grow_(structure, 0.5, Net2Wider(spread), generator=torch.Generator().manual_seed(3))
    assert {axis.name: axis.size for axis in structure.axes} != sizes
    assert all(len(new) for new in edit.units("new").values())
    for mode, old in zip((True, False), before, strict=True):
        torch.testing.assert_close(copy.deepcopy(model).train(mode)(x), old, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("spread", "apart"), [(0.0, False), (0.5, True)])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_copies_part_at_the_first_step_unless_both_send_a_half(spread: float, apart: bool, optimizer: Any) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(20, 5).double(), torch.randn(20, 3).double()
    rg.grow_(rg.analyze(model, x)["0"], 4, Net2Wider(spread))
    rows = model[0].weight.detach()
    order = [int((rows[4:] == row).all(1).nonzero()) + 4 for row in rows[:4]]
    trained = optimizer(model.parameters(), lr=1e-2)
    for _ in range(2):
        trained.zero_grad()
        (model(x) - y).square().mean().backward()
        trained.step()
        rows = model[0].weight.detach()
        assert bool((rows[:4] - rows[order]).abs().max() > 1e-6) == apart


def test_an_axis_is_doubled_at_most_and_the_rest_may_be_random() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double(), torch.randn(9, 5).double()
    axis, before = rg.analyze(model, x)["0"], model(x)
    with pytest.raises(rg.NotPermissible, match="copied once"):
        rg.grow_(axis, 5, Net2Wider())
    rg.grow_(axis, 6, Net2Wider(beyond="random"))
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


def test_units_without_a_gradient_are_copied_last() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(200, 5)
    with torch.no_grad():
        model[0].bias[:3] = -100.0
    model(x).square().mean().backward()
    rg.grow_(rg.analyze(model, x)["0"], 3, Net2Wider())
    assert bool((model[0].bias[6:] > -1).all())


def test_units_whose_weight_makes_and_reads_them_are_not_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.weight.T) @ self.weight

    axis = rg.analyze(Tied(), torch.randn(3, 5)).axes[0]
    with pytest.raises(rg.NotPermissible, match="makes and reads"):
        rg.grow_(axis, 1, Net2Wider())


# --------------------------------------------------------------------------------------------------
# Splitting


def _small(activation: nn.Module) -> tuple[Any, Tensor, Tensor, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)).double()
    x, y = torch.randn(60, 3).double(), torch.randn(60, 2).double()
    return model, x, y, lambda: (model(x) - y).square().mean()


def _splits(axis: rg.Axis, loss: Any, method: Splitting | None = None, batches: int = 1) -> Splits:
    return gather([axis], (method or Splitting()).needs, loss, batches)[axis]["splits"]


def test_the_splitting_matrix_has_the_eigenvectors_of_the_dense_hessian() -> None:
    model, x, y, loss = _small(nn.Tanh())
    splits = _splits(rg.analyze(model, x)["0"], loss)
    gradient = (2 * (model(x) - y) / y.numel()).detach()
    for unit in range(4):
        sent = model[2].weight.detach()[:, unit]
        made = torch.cat([model[0].weight.detach()[unit], model[0].bias.detach()[unit : unit + 1]])

        def gain(w: Tensor, sent: Tensor = sent) -> Tensor:
            return (gradient * torch.tanh(x @ w[:3] + w[3])[:, None] * sent).sum()

        values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(gain, made))
        assert splits.values[unit].item() == pytest.approx(values[0].item(), rel=1e-10)
        assert abs(float(vectors[:, 0] @ splits.directions[unit])) == pytest.approx(1, rel=1e-10)


def test_several_batches_are_as_good_as_one() -> None:
    model, x, y, loss = _small(nn.Tanh())
    axis = rg.analyze(model, x)["0"]
    parts = iter(zip(x.split(20), y.split(20), strict=True))

    def part() -> Tensor:
        some, wanted = next(parts)
        return (model(some) - wanted).square().mean()

    torch.testing.assert_close(_splits(axis, part, batches=3).values, _splits(axis, loss).values)


def test_the_loss_falls_as_the_eigenvalue_says() -> None:
    model, x, _, loss = _small(nn.Tanh())
    axis, before = rg.analyze(model, x)["0"], loss().item()
    for epsilon, within in ((0.1, 1e-2), (0.01, 1e-4)):
        method = Splitting(epsilon)
        promised = float(_splits(axis, loss, method).falls().max())
        edit = rg.grow_(axis, 1, method, loss=loss)
        assert before - loss().item() == pytest.approx(promised, rel=within)
        edit.undo_()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2)])
def test_behind_a_relu_splits_help_and_its_own_second_derivative_sees_none(activation: nn.Module) -> None:
    model, x, _, loss = _small(activation)
    axis, before = rg.analyze(model, x)["0"], loss().item()
    with pytest.raises(NothingToDo):
        rg.grow_(axis, 1, Splitting(smoothing=0.0), loss=loss)
    rg.grow_(axis, 1, Splitting(0.3), loss=loss)
    assert loss().item() < before


@pytest.mark.parametrize("activation", [nn.Hardswish(), nn.Hardsigmoid()])
def test_what_takes_the_place_of_hard_calls_is_the_same(activation: nn.Module) -> None:
    model, x, _, loss = _small(activation)
    axis = rg.analyze(model, x)["0"]
    passage = _splits(axis, loss).passages[0]
    torch.testing.assert_close(smoothed(passage, 0.3).gain({}), passage.gain({}), rtol=1e-12, atol=1e-12)


def test_units_that_no_split_helps_are_not_split() -> None:
    """Between linear layers there is no curvature; where all of it is upwards there is no way down."""
    model, x, _, loss = _small(nn.Identity())
    structure = rg.analyze(model, x)
    with pytest.raises(rg.NotPermissible, match="splits of 0"):
        rg.grow_(structure, {"0": 1}, Splitting(), loss=loss)
    with pytest.raises(NothingToDo):
        rg.grow_(structure, 1, Splitting(), loss=loss)
    edit = rg.grow_(structure["0"], 2, Splitting(beyond="random"), loss=loss)
    assert len(edit.new) == 2


class Bump(nn.Module):
    """Radial units, as in the paper's toy: exp(−(w·x + b)²/2)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-x.square() / 2)


def test_a_split_leaves_a_local_minimum_where_the_gradient_is_zero() -> None:
    """Two radial units, each between two of the target's: no gradient moves them any more, and splits do."""
    model: Any = nn.Sequential(nn.Linear(1, 2), Bump(), nn.Linear(2, 1, bias=False)).double()
    x = torch.linspace(-10, 10, 401).double()[:, None]
    target = sum(torch.exp(-(x - centre).square() / 2) for centre in (-6.5, -3.5, 3.5, 6.5))
    with torch.no_grad():
        model[0].weight.fill_(0.5)
        model[0].bias.copy_(torch.tensor([-2.5, 2.5]))
        model[2].weight.fill_(1.0)
    loss = lambda: (model(x) - target).square().mean()  # noqa: E731

    def descend() -> float:
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)
        return loss().item()

    stuck = descend()
    loss().backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-5
    assert stuck > 1e-3
    rg.grow_(rg.analyze(model, x)["0"], 2, Splitting(0.02), loss=loss)
    assert model[0].out_features == 4
    assert loss().item() < stuck
    assert descend() < 1e-3 * stuck


def test_those_that_win_most_are_split_over_all_axes_and_all_is_undone_to_the_bit() -> None:
    torch.manual_seed(0)
    model, x = _normed(), torch.randn(16, 3, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loss = lambda m=model: m(x).square().mean()  # noqa: E731
    structure = rg.analyze(model, x)
    before, start = snapshot(model, optimizer), loss(copy.deepcopy(model)).item()
    falls = {axis: _splits(axis, loss).falls() for axis in structure.axes}
    least = torch.cat(list(falls.values())).sort(descending=True).values[5] * (1 - 1e-3)
    expected = {axis.name: int((fall >= least).sum()) for axis, fall in falls.items()}
    edit = rg.grow_(structure, 3, Splitting(), loss=loss, optimizer=optimizer)
    assert sum(len(units) for units in edit.units("new").values()) == 6
    assert {name: len(units) for name, units in edit.units("new").items()} == {n: k for n, k in expected.items() if k}
    assert loss(copy.deepcopy(model)).item() < start
    edit.undo_()
    assert differences(before, snapshot(model, optimizer)) == []


def test_splits_lower_the_loss_alike_in_both_modes_under_batch_norm() -> None:
    torch.manual_seed(0)
    model, x, y = _normed(), torch.randn(64, 3, 8, 8), torch.randint(4, (64,))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    loss = lambda m=model: nn.functional.cross_entropy(m(x), y)  # noqa: E731
    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    model(x)
    both = lambda: [loss(copy.deepcopy(model).train(mode)).item() for mode in (True, False)]  # noqa: E731
    before = both()
    rg.grow_(rg.analyze(model, x), 4, Splitting(0.1), loss=loss, optimizer=optimizer)
    falls = [old - new for old, new in zip(before, both(), strict=True)]
    assert falls[0] > 0
    assert falls[1] == pytest.approx(falls[0], rel=0.2)


# --------------------------------------------------------------------------------------------------
# TINY


def _perceptron() -> tuple[Any, Tensor, Tensor, Any]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    x = torch.randn(80, 6).double() @ torch.randn(6, 6).double()
    y = torch.randn(80, 4).double()
    return model, x, y, lambda: (model(x) - y).square().mean()


def test_tiny_is_what_numpy_says() -> None:
    model, x, y, loss = _perceptron()
    wanted = -(2 * (model(x) - y) / y.numel()).detach().numpy()
    features = np.concatenate([torch.tanh(model[0](x)).detach().numpy(), np.ones((80, 1))], 1)
    left = wanted - features @ np.linalg.lstsq(features, wanted, rcond=None)[0]
    values, vectors = np.linalg.eigh(x.numpy().T @ x.numpy() / 80)
    inverse = vectors @ np.diag(values**-0.5) @ vectors.T
    directions = inverse @ np.linalg.svd(inverse @ x.numpy().T @ left)[0][:, :3]
    directions /= np.linalg.norm(directions, axis=0)
    lengths = model[0].weight.detach().norm(dim=1)
    before = loss().item()
    edit = rg.grow_(rg.analyze(model, x)["0"], 3, TINY(damping=1e-12), loss=loss)
    assert loss().item() == before
    new = model[0].weight.detach()[edit.new]
    torch.testing.assert_close(new.norm(dim=1), lengths.mean().expand(3))
    cosines = np.abs((new / new.norm(dim=1, keepdim=True)).numpy() @ directions)
    np.testing.assert_allclose(cosines.diagonal(), 1, rtol=1e-6)


def test_tiny_takes_several_batches_together() -> None:
    found = []
    for number in (1, 4):
        model, x, y, _ = _perceptron()
        parts = iter(zip(x.chunk(number), y.chunk(number), strict=True))

        def loss(parts: Any = parts, model: Any = model) -> Tensor:
            some, wanted = next(parts)
            return (model(some) - wanted).square().mean()

        edit = rg.grow_(rg.analyze(model, x)["0"], 2, TINY(), loss=loss, batches=number)
        found.append(model[0].weight.detach()[edit.new])
    cosines = torch.cosine_similarity(found[0], found[1])
    torch.testing.assert_close(cosines.abs(), torch.ones(2).double(), rtol=1e-6, atol=0)


def test_the_paper_form_lowers_the_loss_by_as_much_as_it_says() -> None:
    model, x, _, loss = _perceptron()
    before = loss().item()
    rg.grow_(rg.analyze(model, x)["0"], 2, TINY("paper", amplitude=1e-4), loss=loss)
    assert before - loss().item() == pytest.approx(1e-4 * before, rel=1e-2)


def test_what_old_units_can_do_is_left_to_them() -> None:
    """Most of the error is a map of the old units, and GradMax's unit goes there; TINY's goes to the rest."""
    left = {}
    for method in (TINY(), rg.GradMax()):
        torch.manual_seed(2)
        model: Any = nn.Sequential(nn.Linear(8, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)).double()
        x = torch.randn(400, 8).double()
        hidden, missing = torch.relu(model[0](x)).detach(), torch.randn(8).double()
        rest = torch.relu(x @ missing)[:, None] @ torch.tensor([[0.2, -0.2]]).double()
        y = model(x).detach() + 3 * hidden @ torch.randn(3, 2).double() + rest
        loss = lambda: (model(x) - y).square().mean()  # noqa: B023, E731
        rg.grow_(rg.analyze(model, x)["0"], 1, method, loss=loss)
        features = torch.cat([torch.relu(model[0](x)).detach(), torch.ones(400, 1).double()], 1)
        best = features @ torch.linalg.lstsq(features, y).solution
        left[method.name] = float((best - y).square().mean())
    assert left["tiny"] < 0.5 * left["gradmax"]


def test_more_units_than_rank_are_refused_or_random() -> None:
    model, x, _, loss = _perceptron()
    axis, before = rg.analyze(model, x)["0"], model(x)
    with pytest.raises(rg.NotPermissible, match="rank 4"):
        rg.grow_(axis, 5, TINY(), loss=loss)
    rg.grow_(axis, 5, TINY(beyond_rank="random"), loss=loss)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)

"""SENN: scores by brute force, units where and when they help, none elsewhere, and the function stays."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regrow as rg
from regrow.errors import NothingToDo
from regrow.evidence import gather
from regrow.evidence.natural import Natural
from regrow.growing.senn import SENN, Contest, Proposals
from regrow.rows import Rows, number_of, rows_of
from regrow.testing import Law, laws_of

# --------------------------------------------------------------------------------------------------
# scores by brute force

READ: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "matrix": (lambda: [nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)], (60, 5)),
    "matrix without a bias": (lambda: [nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)], (60, 5)),
    "batch norm": (lambda: [nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)], (60, 5)),
    "stride and padding": (
        lambda: [nn.Conv2d(2, 3, 3), nn.LeakyReLU(), nn.Conv2d(3, 4, 3, stride=2, padding=1)],
        (8, 2, 9, 8),
    ),
    "dilation": (
        lambda: [nn.Conv2d(2, 3, 3, 2), nn.SiLU(), nn.Conv2d(3, 2, 2, padding=2, dilation=2, bias=False)],
        (8, 2, 9, 9),
    ),
    "pooling": (lambda: [nn.Conv1d(2, 3, 3), nn.ELU(), nn.AvgPool1d(2), nn.Conv1d(3, 2, 2)], (12, 2, 11)),
    "flattened": (
        lambda: [nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)],
        (40, 1, 6, 6),
    ),
    "groups": (lambda: [nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 2, groups=2)], (8, 2, 6, 6)),
    "transposed": (lambda: [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.ConvTranspose2d(3, 2, 3, stride=2)], (6, 2, 5, 5)),
}


class Brute:
    """A model whose last layer reads what the others make, and candidates for units that are made the same way."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        build, shape = READ[name]
        self.model, self.x = nn.Sequential(*build()).double(), torch.randn(shape).double()
        self.other = copy.deepcopy(self.model)
        self.other[0].reset_parameters()  # type: ignore[operator]
        self.target = torch.randn_like(self.model(self.x)) + 2 * self.model(self.x).detach().cos()
        self.axis = rg.analyze(self.model, self.x)["0"]

    def loss(self) -> Tensor:
        return (self.model(self.x) - self.target).square().mean()

    def units(self) -> dict[Any, Tensor]:
        """The other model's units as candidates."""
        parameters = dict(self.other.named_parameters()) | dict(self.other.named_buffers())
        entries = [e for e in self.axis.entries if e.name in parameters and e.role != "in"]
        return {e: rows_of(e, parameters[e.name].detach(), self.axis.size) for e in entries}

    def natural(self, held_out: bool) -> Natural:
        return gather([self.axis], {"it": lambda a, _: Natural(a, 1e-9, held_out)}, self.loss)[self.axis]["it"]

    def gradients(self) -> Tensor:
        z = self.model(self.x)
        return torch.autograd.grad((z - self.target).square().mean(), z)[0]

    def groups(self, model: nn.Module) -> list[tuple[np.ndarray, np.ndarray]]:
        """Features and gradients of each group of outputs, ``(examples, positions, …)``.

        Features are ∂z/∂W of one of the outputs.
        """
        reader: Any = model[-1]  # type: ignore[index]
        z, gradients, found = model(self.x), self.gradients(), []
        number = getattr(reader, "groups", 1)
        for group in range(number):
            of = slice(group * z.shape[1] // number, (group + 1) * z.shape[1] // number)
            flat = z[:, of.start].flatten()
            rows = [torch.autograd.grad(value, reader.weight, retain_graph=True)[0] for value in flat]
            turned = [r.transpose(0, 1) if isinstance(reader, nn.ConvTranspose2d) else r for r in rows]
            features = torch.stack([r[of.start].flatten() for r in turned]).reshape(len(z), -1, turned[0][0].numel())
            g = gradients[:, of].reshape(len(z), of.stop - of.start, -1).transpose(1, 2)
            found.append((features.numpy(), g.numpy()))
        return found

    def sides(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Old features with the bias, candidates' features, and gradients, of each group."""
        found = []
        for (old, g), (new, _) in zip(self.groups(self.model), self.groups(self.other), strict=True):
            biased = self.model[-1].bias is not None
            found.append((np.concatenate([old, np.ones_like(old[..., :1])], 2) if biased else old, new, g))
        return found


def contest_of(natural: Natural, units: Rows) -> Contest:
    return Contest(natural.beside(units), natural.damping, number_of(units))


def flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])


def eta(features: np.ndarray, gradients: np.ndarray) -> float:
    """gᵀF⁻¹g with the Kronecker-factored Fisher matrix F = S ⊗ A as one matrix."""
    h, g = flat(features), flat(gradients)
    gradient = (g.T @ h / len(h)).flatten()
    fisher = np.kron(g.T @ g / len(h), h.T @ h / len(h))
    return float(gradient @ np.linalg.pinv(fisher, rcond=1e-13, hermitian=True) @ gradient)


@pytest.mark.parametrize("name", READ)
def test_the_score_and_what_each_unit_adds_are_those_of_the_whole_fisher_matrix(name: str) -> None:
    brute = Brute(name)
    contest, size = contest_of(brute.natural(held_out=False), brute.units()), brute.axis.size
    sides = brute.sides()
    before = sum(eta(old, g) for old, _, g in sides)
    assert contest.score == pytest.approx(before, rel=1e-5)
    assert contest.bound == pytest.approx(sum(g.shape[-1] for _, _, g in sides), rel=1e-5)
    gains, chance = contest.gains()
    assert chance == 0.0
    for unit in range(size):
        with_it = [np.concatenate([old, np.split(new, size, 2)[unit]], 2) for old, new, _ in sides]
        after = sum(eta(features, g) for features, (_, _, g) in zip(with_it, sides, strict=True))
        assert float(gains[unit]) == pytest.approx(after - before, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["matrix", "stride and padding", "groups"])
def test_what_units_add_one_after_the_other_is_what_they_add_together(name: str) -> None:
    brute = Brute(name)
    contest, sides = contest_of(brute.natural(held_out=False), brute.units()), brute.sides()
    order = [contest.take(position) for position in (1, 0)]
    assert order == [1, 0]
    both = [np.concatenate([old, *np.split(new, brute.axis.size, 2)[:2]], 2) for old, new, _ in sides]
    assert contest.score == pytest.approx(sum(eta(f, g) for f, (_, _, g) in zip(both, sides, strict=True)), rel=1e-5)
    assert contest.left == list(range(2, brute.axis.size))
    assert len(contest.gains()[0]) == len(contest.left)


def explained(weight: np.ndarray, h: np.ndarray, g: np.ndarray, prediction: np.ndarray) -> float:
    """How much smaller the squared error of g is with a linear prediction, as S⁻¹ measures it."""
    error = g - h @ prediction.T
    return float(np.einsum("ij,jk,ik->", g, weight, g) - np.einsum("ij,jk,ik->", error, weight, error))


@pytest.mark.parametrize("name", ["matrix", "stride and padding", "flattened"])
def test_a_fair_score_is_what_one_half_of_the_examples_explains_of_the_other(name: str) -> None:
    brute = Brute(name)
    contest = contest_of(brute.natural(held_out=True), brute.units())
    ((old, new, g),) = brute.sides()
    (h0, h1), (g0, g1) = ([flat(a[i::2]) for i in (0, 1)] for a in (old, g))
    weight = np.linalg.inv(flat(g).T @ flat(g))
    weight *= g.shape[-1] / np.trace(weight @ g1.T @ g1)
    # The damping is next to nothing, but for the last choice, which is a thousandth of the features' squares.
    products = [h0.T @ h0 + np.diag(ridge * np.diag(h0.T @ h0)) for ridge in (1e-9, 1e-8, 1e-7, 1e-3)]
    predictions = [g0.T @ h0 @ np.linalg.inv(product) for product in products]
    scores = [explained(weight, h1, g1, prediction) for prediction in predictions]
    assert contest.score == pytest.approx(max(scores), rel=1e-5)
    best = predictions[int(np.argmax(scores))]
    shared = np.linalg.lstsq(flat(old), flat(new), rcond=None)[0]
    left = [flat(n) - h @ shared for n, h in ((new[0::2], h0), (new[1::2], h1))]
    errors = [g0 - h0 @ best.T, g1 - h1 @ best.T]
    gains, _ = contest.gains()
    width = new.shape[-1] // brute.axis.size
    for unit in range(brute.axis.size):
        n0, n1 = (part[:, unit * width : (unit + 1) * width] for part in left)
        prediction = errors[0].T @ n0 @ np.linalg.inv(n0.T @ n0)
        expected = explained(weight, n1, errors[1], prediction)
        assert float(gains[unit]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_several_batches_count_like_one() -> None:
    brute = Brute("matrix")
    parts = list(zip(brute.x.split(20), brute.target.split(20), strict=True))
    drawn = iter(parts)

    def loss() -> Tensor:
        x, y = next(drawn)
        return (brute.model(x) - y).square().mean()

    need = {"it": lambda a, _: Natural(a, 1e-9)}
    natural = gather([brute.axis], need, loss, batches=3)[brute.axis]["it"]
    several, one = contest_of(natural, brute.units()), contest_of(brute.natural(held_out=True), brute.units())
    assert several.score == pytest.approx(one.score, rel=1e-9)
    torch.testing.assert_close(several.gains()[0], one.gains()[0], rtol=1e-9, atol=1e-12)


def test_several_that_read_the_units_have_scores_that_add_up() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.left, self.right = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.make(x))
            return self.left(h), self.right(h.mean((2, 3)))

    torch.manual_seed(0)
    model, x = Two().double(), torch.randn(30, 2, 6, 6).double()
    axis = rg.analyze(model, x)["make"]

    def contest(*weights: float) -> Contest:
        loss = lambda: sum(w * (z - z.detach().cos()).square().mean() for w, z in zip(weights, model(x), strict=True))  # noqa: E731
        found = gather([axis], {"it": lambda a, _: Natural(a, 1e-9, False)}, loss)[axis]["it"]  # type: ignore[arg-type]
        return contest_of(found, {e: rows_of(e, 1 - e.tensor.detach(), 3) for e in axis.entries if e.role != "in"})

    both, left, right = contest(1.0, 1.0), contest(1.0, 0.0), contest(0.0, 1.0)
    assert both.score == pytest.approx(left.score + right.score, rel=1e-6)
    assert both.bound == pytest.approx(6, rel=1e-6)
    torch.testing.assert_close(both.gains()[0], left.gains()[0] + right.gains()[0], rtol=1e-5, atol=1e-9)


# --------------------------------------------------------------------------------------------------
# candidates


def proposals_of(axis: rg.Axis, loss: Callable[[], Tensor], method: SENN, number: int = 1) -> Proposals:
    proposals = gather([axis], method.needs, loss)[axis]["proposals"]
    proposals.propose(number)
    return proposals


@pytest.mark.parametrize("seed", range(3))
def test_for_a_linear_map_no_candidate_beats_the_closed_form(seed: int) -> None:
    """Whatever the inputs' covariance is; and units that follow it add up to all that a linear map can explain."""
    torch.manual_seed(seed)
    model: Any = nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 5)).double()
    x = (torch.randn(300, 8) @ torch.randn(8, 8)).double()
    target = x @ torch.randn(8, 3).double() @ torch.randn(3, 5).double() + 5 * torch.randn(300, 5)
    loss = lambda: (model(x) - target).square().mean()  # noqa: E731
    method = SENN(held_out=False, damping=1e-9, candidates=64)
    contest = proposals_of(rg.analyze(model, x)["0"], loss, method, 5).contest
    gains, _ = contest.gains()
    assert float(gains[0]) == pytest.approx(float(gains.max()), rel=1e-9)
    assert float(gains[0]) > 1.05 * float(gains[32:].max())
    assert (gains[:5].diff() < 1e-9).all()
    for _ in range(5):
        contest.take(int(contest.gains()[0].argmax()))
    g = (2 * (model(x) - target)).detach()
    with_bias = torch.cat([x, torch.ones(300, 1).double()], 1)
    assert contest.score == pytest.approx(eta(with_bias[:, None].numpy(), g[:, None].numpy()), rel=1e-6)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.Sequential(nn.BatchNorm1d(6), nn.ReLU())])
def test_some_candidates_bend_where_the_data_are(activation: nn.Module) -> None:
    """What they get is around zero, whatever the inputs' mean is, and random ones' middles are elsewhere."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(3, 6), activation, nn.Linear(6, 2))
    x = torch.randn(200, 3) + 20
    loss = lambda: (model(x) - x[:, :2].sin()).square().mean()  # noqa: E731
    proposals = proposals_of(rg.analyze(model, x)["0"], loss, SENN())
    units = {entry.name: rows for entry, rows in proposals.units.items()}
    made = x @ units["0.weight"].flatten(1).T + units["0.bias"].flatten()
    if isinstance(activation, nn.Sequential):
        made = (
            F.batch_norm(made, None, None, training=True) * units["1.0.weight"].flatten() + units["1.0.bias"].flatten()
        )
    middle = made.mean(0) / made.std(0)
    assert middle[:4].abs().max() < 0.05
    assert 0.5 < middle[16:].std() < 2


def test_where_nobody_settles_how_many_the_best_come() -> None:
    brute = Brute("matrix")
    method, generator = SENN(), torch.Generator().manual_seed(0)
    seen = gather([brute.axis], method.needs, brute.loss)[brute.axis]
    fresh = method.fresh(brute.axis, 3, seen, generator)
    proposals: Proposals = seen["proposals"]
    assert len(proposals.chosen) == 3
    weight = next(entry for entry in fresh if entry.name == "0.weight")
    assert torch.equal(fresh[weight], proposals.units[weight][proposals.chosen].flatten(0, 1))
    with pytest.raises(rg.NotPermissible, match="candidates=32"):
        method.fresh(brute.axis, 33, seen, generator)


# --------------------------------------------------------------------------------------------------
# whether, where and how many


def regression(width: int, noise: float = 0.0, seed: int = 0) -> tuple[Any, Tensor, Tensor]:
    """A student, points of a line, and a smooth function of these."""
    torch.manual_seed(seed)
    x = 4 * torch.rand(256, 1) - 2
    y = torch.sin(6 * x) * torch.exp(-x.abs()) + 0.5 * torch.tanh(8 * (x - 0.5))
    return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)), x, y + noise * torch.randn_like(y)


def trained(
    model: Any, x: Tensor, y: Tensor, steps: int, shaper: Callable[[Any], rg.Shaper] | None = None
) -> list[int]:
    """Its width after each step."""
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    loss = lambda: (model(x) - y).square().mean()  # noqa: E731
    shaped, widths = shaper(optimizer) if shaper else None, []
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if shaped is not None:
            shaped.step(loss)
        widths.append(len(model[0].weight))
    return widths


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_student_grows_until_it_fits_and_then_no_more(noise: float) -> None:
    """The regression of the paper: one layer, least squares."""
    fixed, x, y = regression(2, noise)
    trained(fixed, x, y, 2000)
    grown, _, _ = regression(2, noise)
    widths = trained(grown, x, y, 2000, lambda optimizer: rg.Shaper(grown, optimizer, SENN(), example=x))
    before, after = ((model(x) - y).square().mean().item() for model in (fixed, grown))
    assert after - noise**2 < 0.2 * (before - noise**2)
    assert 4 < widths[-1] < 20
    assert widths[-1] == widths[-600]  # six times in a row it had nothing to do


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize(("threshold", "width"), [(1.1, 2), (1.5, 3)])
def test_without_a_step_of_the_optimizer_it_stops_within_the_bound(
    held_out: bool, threshold: float, width: int
) -> None:
    model, x, y = regression(width)
    trained(model, x, y, 100)
    loss = lambda: (model(x) - y).square().mean()  # noqa: E731
    structure, method = rg.analyze(model, x), SENN(threshold, least=1e-3, held_out=held_out)
    contest = proposals_of(structure["0"], loss, method).contest
    most = method.most_additions(contest.score, contest.bound)
    assert 0 < most < 100
    for _ in range(10):
        try:
            rg.grow_(structure, 4, method, loss=loss)
        except NothingToDo:
            break
    else:
        pytest.fail("it still finds something to do")
    assert structure["0"].size - width <= most


def test_what_is_promised_is_what_the_score_is_next_time() -> None:
    model, x, y = regression(3)
    model, x, y = model.double(), x.double(), y.double()
    loss = lambda: (model(x) - y).square().mean()  # noqa: E731
    axis, method = rg.analyze(model, x)["0"], SENN(None, damping=1e-12, held_out=False)
    scores = []
    for _ in range(4):
        proposals = gather([axis], method.needs, loss)[axis]["proposals"]
        proposals.propose(2)
        scores.append(proposals.contest.score)
        proposals.choose()
        proposals.choose()
        scores.append(proposals.contest.score)
        rg.grow_(axis, 2, method, loss=loss, generator=torch.Generator().manual_seed(0))
    for promised, found in zip(scores[1::2], scores[2::2], strict=False):
        assert found == pytest.approx(promised, rel=1e-3)
    assert all(promised > before for before, promised in zip(scores[::2], scores[1::2], strict=True))


def test_most_additions_says_when_there_is_no_end() -> None:
    assert SENN(1.0, least=0.0).most_additions(0.5, 1.0) == math.inf
    assert SENN(None).most_additions(0.5, 1.0) == math.inf
    assert SENN(1.1, least=0.0).most_additions(-0.1, 1.0) == math.inf
    assert SENN(1.1).most_additions(2.0, 1.0) == 0
    assert SENN(1.1, least=0.0).most_additions(0.1, 10.0) == math.floor(math.log(100) / math.log(1.1))


class Branches(nn.Module):
    """Branches that see parts of the input of their own."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(4, n), nn.Tanh(), nn.Linear(n, 2)) for n in widths)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(part) for branch, part in zip(self.branches, x.split(4, 1), strict=True)], 1)


def test_units_come_where_they_help_and_nowhere_else() -> None:
    """Two branches fit; one has too few units; what the last one lacks is noise."""
    torch.manual_seed(0)
    teacher, x = Branches((6, 6, 12, 6)), torch.randn(600, 16)
    with torch.no_grad():
        target = teacher(x) + torch.cat([torch.zeros(600, 6), 0.3 * torch.randn(600, 2)], 1)
        target += 1e-4 * torch.randn_like(target)
    model: Any = Branches((6, 6, 3, 6))
    for n in (0, 1, 3):
        model.branches[n].load_state_dict(teacher.branches[n].state_dict())
    loss = lambda: (model(x) - target).square().mean()  # noqa: E731
    structure, sizes = rg.analyze(model, x), []
    optimizer = torch.optim.Adam(model.branches[2].parameters(), 0.02)
    for _ in range(2):
        edit = rg.grow_(structure, 3, SENN(), loss=loss)
        assert set(edit.units("new")) == {"branches.2.0"}
        sizes.append(len(edit.new))
        edit.undo_()
        for _ in range(300):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    assert sizes == [1, 3]  # at first the three that there are can still do nearly all by themselves


@pytest.mark.parametrize("what", ["a perfect fit", "no gradient", "noise"])
def test_where_nothing_helps_there_is_nothing_to_do(what: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), torch.randn(500, 8)
    target = torch.randn(500, 4) if what == "noise" else model(x).detach()
    factor = 0.0 if what == "no gradient" else 1.0
    loss = lambda: factor * (model(x) - target).square().mean()  # noqa: E731
    structure = rg.analyze(model, x)
    with pytest.raises(NothingToDo):
        rg.grow_(structure, 2, SENN(), loss=loss)
    assert structure["0"].size == 6


def test_a_few_examples_do_not_let_chance_in() -> None:
    """The paper's score says of noise that units help; the fair one doesn't."""
    added = dict.fromkeys((False, True), 0)
    for seed in range(6):
        torch.manual_seed(seed)
        model, x, y = (
            nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)),
            torch.randn(96, 16),
            torch.randn(96, 4),
        )
        for held_out in added:
            structure = rg.analyze(model, x)
            try:
                edit = rg.grow_(structure, 4, SENN(held_out=held_out), loss=lambda: (model(x) - y).square().mean())  # noqa: B023
            except NothingToDo:
                continue
            added[held_out] += len(edit.new)
            edit.undo_()
    assert added[False] == 24
    assert added[True] <= 4


def test_amounts_by_name_are_kept_and_others_are_the_most() -> None:
    torch.manual_seed(0)
    model, x, target = Branches((3, 3)), torch.randn(400, 8), torch.randn(400, 4)
    loss = lambda: (model(x) - target).square().mean()  # noqa: E731
    structure = rg.analyze(model, x)
    with pytest.raises(NothingToDo):
        rg.grow_(structure, 2, SENN(), loss=loss)
    edit = rg.grow_(structure, {"branches.0.0": 3, "branches.1.0": 1}, SENN(), loss=loss)
    assert {name: len(units) for name, units in edit.units("new").items()} == {"branches.0.0": 3, "branches.1.0": 1}
    edit.undo_()
    rg.grow_(structure, 4, SENN(threshold=None), loss=loss, max_size=5)
    assert [axis.size for axis in structure.axes] == [5, 5]


def test_what_a_unit_wins_is_measured_by_the_loss_that_there_was_first() -> None:
    model, x, y = regression(3)
    loss = lambda: (model(x) - y).square().mean()  # noqa: E731
    trained(model, x, y, 300)
    axis = rg.analyze(model, x)["0"]
    method, found = SENN(1.0, least=0.05), []
    for first in (None, 2.0, 1e6):
        seen = gather([axis], method.needs, loss)
        memory: dict[str, Any] = {} if first is None else {"loss": first * loss().item()}
        chosen = method.settle({axis: 3}, {axis: 3}, True, seen, memory)
        found.append(chosen.get(axis, 0))
        assert json.loads(json.dumps(memory)) == memory
    assert found[0] >= found[1] >= found[2] == 0
    assert found[0] > 0


# --------------------------------------------------------------------------------------------------
# the edit


def _normed() -> Any:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(5)),
        *(nn.Conv2d(5, 4, 3, stride=2), nn.Flatten(), nn.Linear(16, 3)),
    )


def test_the_function_stays_to_the_bit_and_norms_know_the_new_units() -> None:
    torch.manual_seed(0)
    model, x = _normed(), torch.randn(32, 3, 12, 12)
    for _ in range(3):
        model(x)
    before = [copy.deepcopy(model).train(mode)(x) for mode in (True, False)]
    structure = rg.analyze(model, x)
    edit = rg.grow_(structure, 3, SENN(threshold=None), loss=lambda: F.cross_entropy(model(x), torch.arange(32) % 3))
    assert all(len(units) == 3 for units in edit.units("new").values())
    assert len(edit.units("new")) == 3
    for mode, old in zip((True, False), before, strict=True):
        assert torch.equal(copy.deepcopy(model).train(mode)(x), old)
    lengths = model[0].weight.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths[6:], lengths[:6].mean().expand(3))
    known = model[1].running_mean[6:].clone(), model[1].running_var[6:].clone()
    model[1].momentum = 1.0
    model(x)
    torch.testing.assert_close(model[1].running_mean[6:], known[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[1].running_var[6:], known[1], rtol=1e-4, atol=1e-5)


def test_a_network_with_norms_grows_by_a_quarter_at_most() -> None:
    torch.manual_seed(0)
    model, x = _normed(), torch.randn(256, 3, 12, 12)
    y = F.avg_pool2d(x, 3).square().mean((2, 3)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    shaper = rg.Shaper(model, optimizer, rg.every(10, rg.Grow(SENN(1.0, least=0.0), 0.25)), example=x)
    loss = lambda: F.cross_entropy(model(x), y)  # noqa: E731
    edits: list[rg.Edit] = []
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        edits += shaper.step(loss)
    assert edits
    assert all(after <= before + max(1, round(before / 4)) for e in edits for before, after in e.sizes.values())


LAWS = [
    law for law in laws_of(SENN(threshold=None, candidates=8)) if law.network in ("perceptron", "chain", "residual")
]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_it_keeps_the_laws(law: Law) -> None:
    law.check()


class Weighted(nn.Module):
    """One layer is read by a plain product, another by a weight that is divided by its length."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.head = nn.Linear(4, 5), nn.Linear(5, 2)
        self.other, self.normed = nn.Linear(4, 5), nn.utils.parametrizations.weight_norm(nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.plain(x))) + self.normed(torch.tanh(self.other(x)))


def test_where_it_cannot_be_told_it_says_so_and_leaves_that_out() -> None:
    torch.manual_seed(0)
    model, x = Weighted(), torch.randn(50, 4)
    loss = lambda: (model(x) - x[:, :2].square()).square().mean()  # noqa: E731
    structure = rg.analyze(model, x)
    with pytest.raises(rg.NotPermissible, match="plain convolution"):
        rg.grow_(structure["other"], 1, SENN(), loss=loss)
    edit = rg.grow_(structure, 1, SENN(threshold=None), loss=loss)
    assert set(edit.units("new")) == {"plain"}


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.9},
        {"threshold": math.nan},
        {"least": -1.0},
        {"least": math.inf},
        {"damping": 0.0},
        {"candidates": 0},
        {"candidates": 1.5},
        {"candidates": True},
        {"held_out": 1},
    ],
)
def test_wrong_configurations_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        SENN(**options)


def test_its_schedule_is_a_plan() -> None:
    plan: Any = rg.plan.as_plan(SENN())
    assert plan.period == 100
    assert plan.action.method == SENN()
    assert plan.action.batches == 4

"""Single weights: which go and come, what holds them at zero, and that nothing else moves."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import regrow as rg
import zoo
from regrow.masks import mask_of, masks_on
from regrow.sparsity import Pattern, Sparsity
from state import differences, snapshot

#: The same functions without their types, for calls that the types forbid.
LOOSELY: Any = rg


class Net(nn.Module):
    """A convolution, a norm, a depthwise convolution and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.inner = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 1, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.inner(self.depthwise(x))).mean((2, 3)))


class Trial:
    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD, **options: Any) -> None:
        torch.manual_seed(0)
        self.model, self.x, self.y = Net(), torch.randn(16, 3, 6, 6), torch.randint(5, (16,))
        self.optimizer = optimizer(self.model.parameters(), **{"lr": 0.02, **options})
        self.structure = rg.analyze(self.model, self.x[:2])
        self.weights = self.structure.weights

    def loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.x), self.y)

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()

    def off(self) -> dict[str, Tensor]:
        return {weights.name: ~weights.mask for weights in self.weights}

    @property
    def alive(self) -> int:
        return sum(weights.alive for weights in self.weights)


# --------------------------------------------------------------------------------------------------
# what there is


def test_the_weights_of_a_model_are_what_calls_multiply_data_by() -> None:
    trial = Trial()
    names = ["stem.weight", "depthwise.weight", "inner.weight", "head.weight"]
    assert [weights.name for weights in trial.weights] == names
    assert [weights.size for weights in trial.weights] == [216, 72, 96, 60]
    assert trial.structure.select("head", kind="weight") == (trial.weights[3],)
    assert trial.structure.select("*.weight", kind="weight") == trial.weights


@pytest.mark.parametrize(("name", "variant"), [v for v in zoo.variants(*zoo.SMALL) if v[1] != "module"])
def test_a_functional_clone_has_the_weights_of_its_model(name: str, variant: str) -> None:
    one = rg.analyze(zoo.build(name), zoo.example(name)).weights
    other = rg.analyze(zoo.build(name, variant), zoo.example(name)).weights
    assert sorted(tuple(w.tensor.shape) for w in one) == sorted(tuple(w.tensor.shape) for w in other)
    assert [w.inner for w in one] == [w.inner for w in other]


# --------------------------------------------------------------------------------------------------
# which go and come


def test_the_smallest_weights_of_all_tensors_go() -> None:
    trial = Trial()
    values = torch.cat([weights.tensor.detach().flatten() for weights in trial.weights])
    keep = values.abs().argsort(descending=True)[:111]
    expected = torch.zeros_like(values)
    expected[keep] = values[keep]
    edit = rg.prune_(trial.weights, len(values) - 111)
    assert torch.equal(torch.cat([weights.tensor.detach().flatten() for weights in trial.weights]), expected)
    assert sum(len(gone) for gone in edit.removed.values()) == len(values) - 111
    assert edit.params[0] - edit.params[1] == len(values) - 111


def test_of_equal_weights_exactly_so_many_go() -> None:
    trial = Trial()
    with torch.no_grad():
        for weights in trial.weights:
            weights.tensor.fill_(0.5)
    rg.prune_(trial.weights, 100)
    assert trial.alive == 444 - 100


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
def test_a_sparsity_is_reached_up_and_down_and_again_changes_nothing(distribution: Any) -> None:
    trial = Trial()
    rg.prune_(trial.weights, Sparsity(0.75, distribution))
    assert abs(trial.alive - 0.25 * 444) <= 2
    with pytest.raises(rg.NotPermissible, match="nothing to prune"):
        rg.prune_(trial.weights, Sparsity(0.75, distribution))
    if distribution == "uniform":
        assert [weights.alive for weights in trial.weights] == [54, 18, 24, 15]
    before = trial.off()
    rg.grow_(trial.weights, Sparsity(0.5, distribution), rg.SET())
    assert abs(trial.alive - 222) <= 2
    assert all(not bool((off & ~before[name]).any()) for name, off in trial.off().items())


def test_erdos_renyi_kernel_against_the_papers_formula() -> None:
    """ε such that the densities ε·(sum of sizes)/(product of sizes) add up, where none is above 1."""
    shapes = [(64, 3, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (10, 256)]
    alive = Sparsity(0.9, "erk").alive(shapes)
    assert alive is not None
    sizes, sums = [math.prod(s) for s in shapes], [sum(s) for s in shapes]
    capped = [i for i, n in enumerate(alive) if n == sizes[i]]
    rest = 0.1 * sum(sizes) - sum(sizes[i] for i in capped)
    epsilon = rest / sum(sums[i] for i in range(4) if i not in capped)
    for i, n in enumerate(alive):
        assert abs(n - (sizes[i] if i in capped else epsilon * sums[i])) <= 1
    assert abs(sum(alive) - 0.1 * sum(sizes)) <= 2


def test_two_of_four_are_the_largest_two_of_every_four_inputs() -> None:
    trial = Trial()
    head, inner = trial.weights[3], trial.weights[2]
    for weights in (head, inner):
        before = weights.tensor.detach().clone()
        rg.prune_(weights, Pattern(2, 4))
        for row in range(before.shape[0]):
            for start in range(0, before.shape[1], 4):
                four = before[row, start : start + 4].flatten().tolist()
                kept = weights.tensor[row, start : start + 4].flatten().tolist()
                best = max(itertools.combinations(range(4), 2), key=lambda pair: sum(abs(four[i]) for i in pair))
                assert kept == [value if i in best else 0 for i, value in enumerate(four)]
    rewired = rg.grow_(head, 6, rg.SET())
    assert len(rewired.new) == 6


def test_taylor_is_the_first_order_change_of_the_loss_for_weights_and_for_units() -> None:
    trial = Trial()
    trial.model.eval()
    trial.loss().backward()
    head = trial.weights[3]
    gate = torch.ones_like(head.tensor, requires_grad=True)
    x = torch.relu(trial.model.norm(trial.model.stem(trial.x)))
    x = torch.relu(trial.model.inner(trial.model.depthwise(x)))
    loss = F.cross_entropy(F.linear(x.mean((2, 3)), head.tensor * gate, trial.model.head.bias), trial.y)
    [by_weight] = torch.autograd.grad(loss, gate)
    seen = {"gradients": {weights.tensor: weights.tensor.grad for weights in trial.weights}}
    torch.testing.assert_close(rg.Taylor().score_weights(head, seen, torch.Generator()), by_weight.abs())
    unit = torch.ones(12, requires_grad=True)
    loss = F.cross_entropy(trial.model.head((x * unit.reshape(1, -1, 1, 1)).mean((2, 3))), trial.y)
    [by_unit] = torch.autograd.grad(loss, unit)
    torch.testing.assert_close(rg.Taylor().score(trial.structure["inner"], seen), by_unit.abs())


def test_rigl_moves_the_smallest_weights_to_where_the_gradient_is_largest() -> None:
    """By brute force: of each tensor the k smallest go, of all that are off then the k steepest come."""
    trial = Trial()
    rg.prune_(trial.weights, Sparsity(0.8), rg.Random(), generator=torch.Generator().manual_seed(1))
    before = {weights: (weights.tensor.detach().clone(), weights.mask) for weights in trial.weights}
    trial.model.eval()
    gradients = dict(
        zip(trial.weights, torch.autograd.grad(trial.loss(), [w.tensor for w in trial.weights]), strict=True)
    )
    rg.rewire_(trial.weights, 0.3, rg.RigL(), loss=trial.loss)
    for weights, (values, on) in before.items():
        flat, alive = values.abs().flatten().tolist(), on.flatten().tolist()
        number = round(0.3 * sum(alive))
        going = sorted((i for i, is_on in enumerate(alive) if is_on), key=lambda i: flat[i])[:number]
        steep = gradients[weights].abs().flatten().tolist()
        room = [i for i, is_on in enumerate(alive) if not is_on or i in going]
        coming = sorted(room, key=lambda i: -steep[i])[:number]
        expected = [(is_on and i not in going) or i in coming for i, is_on in enumerate(alive)]
        assert weights.mask.flatten().tolist() == expected
        stayed = weights.mask & on
        assert torch.equal(weights.tensor.detach()[stayed], values[stayed])
        assert not bool(weights.tensor[~stayed].any())


@pytest.mark.parametrize("method", [rg.RigL(), rg.SET()], ids=["rigl", "set"])
def test_rewiring_keeps_a_pattern(method: Any) -> None:
    trial = Trial()
    parts = trial.weights[2:]
    rg.prune_(parts, Pattern(2, 4))
    steep = dict(zip(parts, torch.autograd.grad(trial.loss(), [w.tensor for w in parts]), strict=True))
    before = {weights: weights.mask for weights in parts}
    edit = rg.rewire_(parts, 0.2, method, loss=trial.loss, pattern=Pattern(2, 4), optimizer=trial.optimizer)
    for weights in parts:
        groups = weights.mask.flatten(1).reshape(-1, 4)
        assert (groups.sum(1) == 2).all()
        number = len(edit.units("new")[weights.name])
        assert number == len(edit.units("removed")[weights.name]) == round(0.2 * weights.size / 2)
        if method == rg.RigL():
            promise = (
                steep[weights]
                .abs()
                .flatten(1)
                .reshape(-1, 4)
                .masked_fill(before[weights].flatten(1).reshape(-1, 4), -1)
            )
            best = promise.max(1).values.sort(descending=True).values[:number]
            came = steep[weights].abs().flatten()[edit.units("new")[weights.name]].sort(descending=True).values
            torch.testing.assert_close(came, best)
    with pytest.raises(rg.NotPermissible, match="prune it to the pattern first"):
        rg.rewire_(trial.weights[:1], 0.2, rg.SET(), pattern=Pattern(1, 3))


# --------------------------------------------------------------------------------------------------
# what holds them

OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"weight_decay": 0.1, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9}),
    "adagrad": (torch.optim.Adagrad, {}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0}),
    "adamax": (torch.optim.Adamax, {}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
    "rprop": (torch.optim.Rprop, {}),
    "asgd": (torch.optim.ASGD, {}),
    "adafactor": (torch.optim.Adafactor, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_revives_a_weight_and_those_that_come_start_from_zero(name: str) -> None:
    kind, options = OPTIMIZERS[name]
    trial = Trial(kind, **options)
    trial.train(3)
    rg.prune_(trial.weights, 0.7, optimizer=trial.optimizer)
    off = trial.off()
    trial.train(5)
    for weights in trial.weights:
        assert not bool(weights.tensor[off[weights.name]].any())
        for value in trial.optimizer.state[weights.tensor].values():
            if isinstance(value, Tensor) and value.shape == weights.tensor.shape and name not in ("rprop", "asgd"):
                assert not bool((value[off[weights.name]] > 1e-7).any())  # Adamax keeps its ε
    edit = rg.grow_(trial.weights, 40, rg.SET(), optimizer=trial.optimizer)
    moved = copy.deepcopy({weights.name: weights.tensor.detach() for weights in trial.weights})
    for weights in trial.weights:
        assert not bool(weights.tensor.flatten()[edit.units("new").get(weights.name, [])].any())
    trial.train(1)
    steps = [(weights.tensor - moved[weights.name]).abs() for weights in trial.weights]
    new = torch.cat([s.flatten()[edit.units("new")[w.name]] for s, w in zip(steps, trial.weights, strict=True)])
    old = torch.cat([s[w.mask] for s, w in zip(steps, trial.weights, strict=True)])
    assert new.max() <= 12 * old.max()  # no leap, as a second moment of zero would cause


def test_second_moments_of_weights_that_come_are_the_mean_of_the_others() -> None:
    trial = Trial(torch.optim.Adam)
    trial.train(3)
    rg.prune_(trial.weights, 0.6, optimizer=trial.optimizer)
    trial.train(2)
    before = {weights.name: weights.mask for weights in trial.weights}
    edit = rg.grow_(trial.weights, 50, rg.SET(), optimizer=trial.optimizer)
    for weights in trial.weights:
        new, state = edit.units("new").get(weights.name, []), trial.optimizer.state[weights.tensor]
        assert not bool(state["exp_avg"].flatten()[new].any())
        mean = state["exp_avg_sq"][before[weights.name]].mean()
        torch.testing.assert_close(state["exp_avg_sq"].flatten()[new], mean.expand(len(new)))


def test_a_mask_is_held_with_muon_and_with_lbfgs() -> None:
    trial = Trial()
    matrices = [p for p in trial.model.parameters() if p.ndim == 2]
    muon = torch.optim.Muon(matrices, lr=0.05)
    head = trial.weights[3]
    rg.prune_(head, 0.5, optimizer=muon)
    off = ~head.mask
    for _ in range(3):
        trial.optimizer.zero_grad()
        trial.loss().backward()
        muon.step()
    assert not bool(head.tensor[off].any())
    assert bool(head.tensor[~off].all())
    lbfgs = torch.optim.LBFGS(trial.model.parameters(), lr=0.1)
    rg.hold_masks(trial.model, lbfgs)

    def closure() -> float:
        lbfgs.zero_grad()
        loss = trial.loss()
        loss.backward()
        return float(loss.detach())

    lbfgs.step(closure)
    assert not bool(head.tensor[off].any())


def test_a_masked_model_trains_as_one_whose_weights_are_multiplied_by_the_mask() -> None:
    """The same numbers as torch's own pruning, which multiplies in each forward pass."""
    trial, other = Trial(momentum=0.9, weight_decay=0.01), Trial(momentum=0.9, weight_decay=0.01)
    rg.prune_(trial.weights, 0.6, optimizer=trial.optimizer)
    for weights in trial.weights:
        module = other.model.get_submodule(weights.name.removesuffix(".weight"))
        torch_prune.custom_from_mask(module, "weight", weights.mask.float())
    optimizer = torch.optim.SGD(other.model.parameters(), 0.02, momentum=0.9, weight_decay=0.01)
    for _ in range(10):
        trial.train()
        optimizer.zero_grad()
        other.loss().backward()
        optimizer.step()
    torch.testing.assert_close(trial.model.eval()(trial.x), other.model.eval()(trial.x))


def test_a_copy_keeps_its_masks_and_a_second_analysis_sees_them() -> None:
    trial = Trial()
    rg.prune_(trial.weights, 0.5, optimizer=trial.optimizer)
    twin = copy.deepcopy(trial.model)
    structure = rg.analyze(twin, trial.x[:2])
    assert [w.alive for w in structure.weights] == [w.alive for w in trial.weights]
    optimizer = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9)
    rg.hold_masks(twin, optimizer)
    F.cross_entropy(twin(trial.x), trial.y).backward()
    optimizer.step()
    for weights in structure.weights:
        assert not bool(weights.tensor[~weights.mask].any())
    assert list(twin.state_dict()) == list(Net().state_dict())


# --------------------------------------------------------------------------------------------------
# with everything else


def test_undo_after_training_brings_back_what_went_and_takes_away_what_came() -> None:
    trial = Trial(torch.optim.Adam)
    trial.train(2)
    rg.prune_(trial.weights, 0.5, optimizer=trial.optimizer)
    values = {weights: (weights.tensor.detach().clone(), weights.mask) for weights in trial.weights}
    edit = rg.rewire_(trial.weights, 0.4, rg.RigL(), loss=trial.loss, optimizer=trial.optimizer)
    middle = {weights: weights.mask for weights in trial.weights}
    trial.train(3)
    edit.undo_()
    for weights, (before, on) in values.items():
        assert torch.equal(weights.mask, on)
        came, went = middle[weights] & ~on, on & ~middle[weights]
        assert not bool(weights.tensor[came].any())
        assert torch.equal(weights.tensor[went], before[went])


def test_masks_follow_units() -> None:
    trial = Trial(momentum=0.9)
    rg.prune_(trial.weights, 0.6, optimizer=trial.optimizer)
    trial.train()
    before = snapshot(trial.model, trial.optimizer)
    stem, masks = trial.structure["stem"], {weights.name: weights.mask for weights in trial.weights}
    edit = rg.prune_(stem, [1, 5], optimizer=trial.optimizer)
    kept = [0, 2, 3, 4, 6, 7]
    assert torch.equal(trial.weights[0].mask, masks["stem.weight"][kept])
    assert torch.equal(trial.weights[2].mask, masks["inner.weight"][:, kept])
    edit.undo_()
    assert differences(before, snapshot(trial.model, trial.optimizer)) == []
    assert all(torch.equal(weights.mask, masks[weights.name]) for weights in trial.weights)
    rg.grow_(stem, 3, rg.GradMax(), loss=trial.loss, optimizer=trial.optimizer)
    assert bool(trial.weights[0].mask[8:].all())
    assert torch.equal(trial.weights[0].mask[:8], masks["stem.weight"])
    trial.train(2)
    for weights in trial.weights:
        assert not bool(weights.tensor[~weights.mask].any())


def test_a_saved_model_has_its_masks_when_it_is_loaded(tmp_path: Any) -> None:
    trial = Trial()
    rg.prune_(trial.weights, 0.6, optimizer=trial.optimizer)
    rg.grow_(trial.weights, 30, rg.SET(), optimizer=trial.optimizer)  # zeros that are on
    rg.grow_(trial.structure["stem"], 2, optimizer=trial.optimizer)
    rg.save(trial.model, tmp_path)
    model = rg.load(tmp_path, Net())
    loaded = rg.analyze(model, trial.x[:2]).weights
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(loaded, trial.weights, strict=True))
    assert torch.equal(model.eval()(trial.x), trial.model.eval()(trial.x))


@pytest.mark.parametrize("text", ["AAAA", "!" * 36, "A" * 35])
def test_a_damaged_mask_is_refused(tmp_path: Any, text: str) -> None:
    trial = Trial()
    rg.prune_(trial.weights, 0.6)
    rg.save(trial.model, tmp_path)
    path = tmp_path / "shape.json"
    shape = json.loads(path.read_text())
    shape["masks"]["stem.weight"] = text
    path.write_text(json.dumps(shape))
    fresh = Net()
    with pytest.raises(ValueError, match=r"the mask of stem\.weight"):
        rg.load(tmp_path, fresh)
    assert not any(masks_on(module) for module in fresh.modules())


def test_a_plan_rewires_on_the_gradients_of_the_step_itself() -> None:
    """Without a closure, and whether gradients are zeroed before or after; all the same as by hand."""
    found = []
    for late in (False, True):
        trial = Trial(momentum=0.9)
        plan = rg.chain(
            rg.at(1, rg.Prune(rg.Random(), Sparsity(0.8, "erk"), kind="weight")),
            rg.every(3, rg.Rewire(rg.RigL(), rg.cosine(0.3, 0.1)), start=1, stop=13),
        )
        shaper = rg.Shaper(trial.model, trial.optimizer, plan, example=trial.x[:2], generator=torch.Generator())
        for step in range(1, 14):
            if not late:
                trial.optimizer.zero_grad()
            trial.loss().backward()
            steep = {w.name: w.tensor.grad.clone() for w in trial.weights if w.tensor.grad is not None}
            off = trial.off()
            trial.optimizer.step()
            if late:
                trial.optimizer.zero_grad()
            for edit in shaper.step():
                if edit.action == "rewire":
                    assert step in (4, 7, 10, 13)
                    for name, new in edit.units("new").items():
                        candidates = steep[name][off[name]].abs()
                        assert len(new) == 0 or steep[name].flatten()[new].abs().min() >= candidates.median()
        assert trial.alive == 89
        found.append(torch.cat([weights.tensor.detach().flatten() for weights in trial.weights]))
    assert torch.equal(*found)


def test_gradual_pruning_follows_a_cubic_schedule() -> None:
    trial = Trial()
    plan = rg.every(2, rg.Prune(rg.Magnitude(), rg.cubic(0.2, 0.9), kind="weight"), stop=10)
    shaper = rg.Shaper(trial.model, trial.optimizer, plan, example=trial.x[:2])
    found = []
    for _ in range(10):
        trial.train()
        found += [1 - edit.params[1] / edit.params[0] for edit in shaper.step()] and [1 - trial.alive / 444]
    expected = [0.9 + (0.2 - 0.9) * (1 - i / 4) ** 3 for i in range(5)]
    assert found == pytest.approx(expected, abs=1 / 444)


def test_l1_on_single_weights_is_a_penalty_on_them_all() -> None:
    trial = Trial()
    plan = rg.at(5, rg.Prune(rg.L1(0.01), 0.5, kind="weight"))
    shaper = rg.Shaper(trial.model, trial.optimizer, plan, example=trial.x[:2])
    expected = 0.01 * sum(float(weights.tensor.detach().abs().sum()) for weights in trial.weights)
    assert float(shaper.penalty().detach()) == pytest.approx(expected, rel=1e-5)


# --------------------------------------------------------------------------------------------------
# what is refused


BAD: dict[str, tuple[Callable[[Trial], Any], type[Exception], str]] = {
    "a sparsity of 1": (lambda t: Sparsity(1.0), ValueError, "from 0 to below 1"),
    "a negative sparsity": (lambda t: Sparsity(-0.1), ValueError, "from 0 to below 1"),
    "a sparsity that is none": (lambda t: Sparsity(LOOSELY.L1()), TypeError, "from 0 to below 1"),
    "a distribution": (lambda t: Sparsity(0.5, LOOSELY.L1()), ValueError, "distribution is 'global'"),
    "n of m": (lambda t: Pattern(4, 4), ValueError, "n from 1 to below m"),
    "n:m that doesn't divide": (lambda t: rg.prune_(t.weights, Pattern(2, 5)), ValueError, "isn't a multiple of 5"),
    "all weights": (lambda t: rg.prune_(t.weights, 444), ValueError, "444 weights that are on; some must stay"),
    "a fraction of 1": (lambda t: rg.prune_(t.weights, 1.0), ValueError, "below 1"),
    "nothing is off": (lambda t: rg.grow_(t.weights, 5, rg.SET()), ValueError, "0 are off"),
    "a method for units": (lambda t: rg.prune_(t.weights, 5, rg.Polarization()), TypeError, "score_weights"),
    "a method without growing": (lambda t: rg.grow_(t.weights, 5, rg.Magnitude()), TypeError, "score_absent"),
    "no loss": (lambda t: rg.prune_(t.weights, 5, rg.Taylor()), ValueError, "pass loss="),
    "round_to": (lambda t: rg.prune_(t.weights, 5, round_to=8), ValueError, "are for units"),
    "protect": (lambda t: rg.prune_(t.weights, 5, protect="nope"), ValueError, "there are stem.weight"),
    "where": (
        lambda t: rg.Shaper(
            t.model, t.optimizer, rg.at(1, rg.Prune(rg.Magnitude(), 0.5, where="nope", kind="weight")), example=t.x[:2]
        ),
        ValueError,
        "matches no weights; there are: stem.weight",
    ),
    "a kind": (lambda t: rg.Prune(rg.Magnitude(), 0.5, kind="atom"), ValueError, "kinds are weight"),
    "a schedule of units": (lambda t: rg.Prune(rg.L1(), rg.cubic(0, 1.5)), ValueError, "1.5"),
    "a schedule without end": (
        lambda t: rg.every(5, rg.Rewire(rg.SET(), rg.cosine(0.3, 0))), ValueError, "give every\\(\\) a stop",
    ),
    "a moving fraction": (lambda t: rg.Rewire(rg.SET(), 1.5), ValueError, "from 0 to 1"),
    "another optimizer": (
        lambda t: rg.prune_(t.weights, 5, optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)),
        ValueError,
        "holds none",
    ),
    "an unknown weight": (lambda t: rg.prune_(t.weights[3], [60]), ValueError, "weights 0 to 59"),
    "frozen weights": (
        lambda t: (t.weights[0].tensor.requires_grad_(False), rg.prune_(t.weights, 5, rg.SNIP(), loss=t.loss)),
        ValueError,
        "stem.weight is frozen",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_before_any_write(case: str) -> None:
    trial = Trial(momentum=0.9)
    trial.train()
    values = {name: t.clone() for name, t in trial.model.state_dict().items()}
    act, error, message = BAD[case]
    with pytest.raises(error, match=message):
        act(trial)
    assert all(torch.equal(t, values[name]) for name, t in trial.model.state_dict().items())
    assert all(mask_of(w.owner, w.attribute) is None for w in trial.weights)
    assert not trial.structure.edits

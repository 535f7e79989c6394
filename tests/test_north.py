"""NORTH*: dimensions against numpy, chosen units against brute force; layers grow by themselves, and stop."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regrow as rg
import zoo
from regrow.evidence import gather
from regrow.growing.directions import Directions
from regrow.growing.north import North
from regrow.plan import as_plan
from regrow.rows import rows_of
from state import outputs, relative_change

CONFIGS: list[dict[str, Any]] = [
    {},
    {"trigger": "weights", "select": "weights"},
    {"select": "pre"},
    {"select": "random", "against": "highest"},
]


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def looked(axis: rg.Axis, method: North, loss: Callable[[], Tensor], batches: int = 1) -> Directions:
    return gather([axis], method.needs, loss, batches)[axis]["directions"]


def read(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What a module is given, examples first."""
    given: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: given.append(args[0].detach().clone()))
    with torch.no_grad():
        run()
    handle.remove()
    return torch.cat(given)


def put_out(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What a module puts out, a row for each channel."""
    found: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, args, out: found.append(out.detach().clone()))
    with torch.no_grad():
        run()
    handle.remove()
    return found[0].transpose(0, 1).flatten(1)


def dense() -> Any:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))


def convolutional() -> Any:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
    )


def trained(model: Any, x: Tensor, steps: int = 5) -> Callable[[], Tensor]:
    """Values in which nothing is a convenient 0 or 1; returns the loss."""
    target = torch.randn_like(model(x))
    loss = lambda: (model(x) - target).square().mean()  # noqa: E731
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return loss


# --------------------------------------------------------------------------------------------------
# how many directions are used


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("batches", [1, 3])
def test_the_effective_dimension_is_numpys(rank: int, batches: int) -> None:
    """Units in groups of copies use as many directions as there are groups."""
    model, x = dense(), torch.randn(90, 6)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(rank, 6).repeat(8, 1)[:8])
        model[0].bias.copy_(torch.randn(rank).repeat(8)[:8])
    drawn = iter(x.split(90 // batches))
    axis = rg.analyze(model, x)["0"]
    directions = looked(axis, North(), lambda: model(next(drawn)).square().mean(), batches)
    sent = read(model[2], lambda: model(x)).T.double().numpy()
    assert directions.number == (np.linalg.svd(sent / np.sqrt(90), compute_uv=False) > 0.01).sum() == rank


def test_only_singular_values_above_the_threshold_count() -> None:
    model, x = dense(), torch.randn(64, 6)
    axis, loss = rg.analyze(model, x)["0"], lambda: model(x).square().mean()
    values = np.linalg.svd(read(model[2], lambda: model(x)).T.numpy() / 8, compute_uv=False)
    for k in range(7):
        assert looked(axis, North(threshold=(values[k] + values[k + 1]) / 2), loss).number == k + 1


def test_the_effective_dimension_of_weights_is_numpys() -> None:
    model, x = convolutional(), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        model[0].weight[3:] = model[0].weight[:3] + 2 * model[0].weight[[1, 2, 0]]
    axis, loss = rg.analyze(model, x)["0"], lambda: model(x).square().mean()
    weights = model[0].weight.detach().flatten(1).numpy() / np.sqrt(27)
    values = np.linalg.svd(weights, compute_uv=False)
    for threshold in (1e-6, (values[0] + values[1]) / 2, 10.0):
        method = North("weights", "weights", threshold=float(threshold))
        assert looked(axis, method, loss).number == (values > threshold).sum()
    assert looked(axis, North("weights", "weights", threshold=1e-6), loss).number == 3


READERS = [
    ("mlp", "0", "2"), ("mlp", "2", "4"), ("chain", "0", "3"), ("residual", "conv1", "conv2"),
    ("concat", "left", "mix"),
    ("concat", "right", "mix"), ("concat", "mix", "fc"), ("flatten", "0", "4"), ("flatten", "4", "6"),
    ("separable", "0", "6"), ("separable", "6", "10"), ("tied_weight", "hidden", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "axis", "reader"), READERS)
def test_what_units_send_is_what_their_readers_are_given(name: str, axis: str, reader: str | None) -> None:
    """The same numbers, in some order that is the same for all units, so that their products are the same."""
    model, x = zoo.build(name, dtype=torch.float64), zoo.example(name, 5, torch.float64)
    chosen = rg.analyze(model, x)[axis]
    old = looked(chosen, North(), lambda: model(x).square().mean()).sight.old
    given = [read(model.get_submodule(r), lambda: model(x)) for r in ([reader] if reader else ["head", "other"])]
    [unit_of] = {tuple(e.unit_of.tolist()) for e in chosen.with_role("in")}
    expected: Any = []
    for unit in range(chosen.size):
        own = [i for i, owner in enumerate(unit_of) if owner == unit]
        expected.append(torch.cat([g.transpose(0, 1)[own].flatten() for g in given]))
    expected = torch.stack(expected)
    assert old.shape == expected.shape
    torch.testing.assert_close(old @ old.T, expected @ expected.T)
    torch.testing.assert_close(old.sort(1).values, expected.sort(1).values)


@pytest.mark.parametrize("name", [name for name in zoo.SMALL if name != "shared"])
def test_functional_clones_are_seen_alike(name: str) -> None:
    def seen(variant: str) -> list[Tensor]:
        model, x = zoo.build(name, variant, torch.float64), zoo.example(name, 5, torch.float64)
        axes, loss = rg.analyze(model, x).axes, lambda: model(x).square().mean()
        found = gather(axes, North().needs, loss, leave_out=True)
        return [each["directions"].sight.old for each in found.values()]

    for one, other in zip(seen("module"), seen("functional"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_units_are_told_apart_in_any_precision(dtype: torch.dtype) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 700), nn.ReLU(), nn.Linear(700, 40)).to(dtype)
    x = torch.randn(6, 4, dtype=dtype)
    axis = rg.analyze(model, x)["0"]
    old = looked(axis, North(), lambda: model(x).float().square().mean()).sight.old
    assert torch.equal(old, read(model[2], lambda: model(x)).T.double())


def test_of_many_positions_some_are_taken() -> None:
    model, x = convolutional(), torch.randn(200, 3, 8, 8)
    axis = rg.analyze(model, x[:2])["0"]
    old = looked(axis, North(), lambda: model(x).square().mean()).sight.old
    assert old.shape == (6, 2048)  # of 200 · 16
    given = read(model[4], lambda: model(x)).transpose(0, 1).flatten(1).double()
    every, some = given @ given.T / given.shape[1], old @ old.T / 2048
    assert float((every - some).norm() / every.norm()) < 0.1
    columns = {tuple(column) for column in given.T.tolist()}
    assert all(tuple(column) in columns for column in old.T.tolist())


# --------------------------------------------------------------------------------------------------
# when, and how many


class Counted:
    """Evidence of an axis whose units use so many directions."""

    def __init__(self, number: int) -> None:
        self.number = number


def settled(method: North, axis: Any, used: int, memory: dict[str, Any], asked: int = 99, most: int = 99) -> int:
    return method.settle({axis: asked}, {axis: most}, True, {axis: {"directions": Counted(used)}}, memory)[axis]


class Sized:
    """As much of an axis as is asked for a decision."""

    def __init__(self, size: int) -> None:
        self.name, self.size = "layer", size


@pytest.mark.parametrize(
    ("first", "later", "gain"),
    [
        ((10, 10), (10, 10), 1),  # ⌊0.97·10⌋ = 9
        ((10, 10), (11, 10), 0),
        ((10, 5), (10, 10), 6),  # ⌊0.97·5⌋ = 4
        ((100, 100), (100, 100), 3),
        ((100, 100), (100, 97), 0),
        ((100, 50), (120, 60), 2),  # ⌊0.97·0.5·120⌋ = 58
        ((8, 8), (8, 1), 0),
        ((4, 0), (4, 0), 0),
    ],
)
def test_gains_are_what_is_used_beyond_a_share_of_what_was(first: Any, later: Any, gain: int) -> None:
    memory: dict[str, Any] = {}
    at_first = settled(North(), Sized(first[0]), first[1], memory)
    assert at_first == first[1] - int(0.97 * first[1])
    assert settled(North(), Sized(later[0]), later[1], memory) == gain
    assert memory == json.loads(json.dumps(memory))


def test_what_independence_is_compared_with_may_rise() -> None:
    for against, gains in (("first", [1, 6, 6]), ("highest", [1, 6, 1])):
        method, memory = North(against=against), {}
        assert [settled(method, Sized(10), used, memory) for used in (5, 10, 10)] == gains


def test_with_a_ratio_of_one_layers_grow_only_when_more_is_used_than_at_first() -> None:
    memory: dict[str, Any] = {}
    for size in range(1, 200):
        assert settled(North(ratio=1.0), Sized(size), size // 3, {}) == 0
    assert [settled(North(ratio=1.0), Sized(7), used, memory) for used in (5, 6, 4)] == [0, 1, 0]


def test_no_layer_gains_more_than_is_asked_or_allowed() -> None:
    assert settled(North(), Sized(100), 100, {}, asked=2) == 2
    assert settled(North(), Sized(100), 100, {}, most=1) == 1
    model, x = dense(), torch.randn(64, 6)
    loss, structure = trained(model, x), rg.analyze(model, x)
    edit = rg.grow_(structure, {"0": 4, "2": 2}, North(), loss=loss)
    assert {name: len(new) for name, new in edit.units("new").items()} == {"0": 4, "2": 2}
    edit.undo_()
    edit = rg.grow_(structure, 4, North(), loss=loss)
    assert {name: len(new) for name, new in edit.units("new").items()} == {"0": 1, "2": 1}
    edit.undo_()
    edit = rg.grow_(structure, 4, North(ratio=0.5), loss=loss, max_size=9)
    assert {name: len(new) for name, new in edit.units("new").items()} == {"0": 1, "2": 3}


def test_layers_of_copies_do_not_grow_and_layers_grow_once_their_units_differ() -> None:
    model, x = dense(), torch.randn(64, 6)
    structure, loss, method, memory = rg.analyze(model, x), lambda: model(x).square().mean(), North(), {}
    axis, apart = structure["0"], model[0].weight.detach().clone()

    def gain() -> int:
        seen = {axis: {"directions": looked(axis, method, loss)}}
        return method.settle({axis: 9}, {axis: 9}, True, seen, memory)[axis]

    assert gain() == 1
    with torch.no_grad():
        model[0].weight.copy_(apart[:1].expand(8, 6))
        model[0].bias.fill_(0.1)
    assert gain() == 0
    with torch.no_grad():
        model[0].weight.copy_(apart)
    assert gain() == 1


# --------------------------------------------------------------------------------------------------
# which


@pytest.mark.parametrize("form", ["dense", "convolutional"])
def test_selected_units_are_those_farthest_from_the_span(form: str) -> None:
    """Each of the chosen is, of all candidates, the farthest from what the old units and the chosen before send."""
    model = dense() if form == "dense" else convolutional()
    x = torch.randn(50, 6) if form == "dense" else torch.randn(10, 3, 8, 8)
    loss, structure = trained(model, x), rg.analyze(model, x)
    axis, reader = structure["0"], model[2] if form == "dense" else model[4]
    method = North(candidates=20)
    drawn = looked(axis, method, loss).drawn(60, seeded()).float()

    wide = copy.deepcopy(model)
    with torch.no_grad():
        length = float(model[0].weight.flatten(1).norm(dim=1).mean())
        candidates = (drawn * length / drawn.norm(dim=1, keepdim=True)).reshape(60, *model[0].weight.shape[1:])
        wide[0].weight, wide[0].bias = nn.Parameter(candidates), nn.Parameter(torch.zeros(60))
        if form == "convolutional":
            wide[1] = nn.BatchNorm2d(60)
            wide[1].weight.fill_(float(model[1].weight.abs().mean()))
    front = wide[:2] if form == "dense" else wide[:4]
    rows = lambda given: given.transpose(0, 1).flatten(1).double().numpy()  # noqa: E731
    span, sent = rows(read(reader, lambda: model(x))), rows(front(x).detach())
    chosen: list[int] = []
    for _ in range(3):
        nearest = span.T @ np.linalg.lstsq(span.T, sent.T, rcond=None)[0]
        chosen.append(int(np.argmax(np.linalg.norm(sent.T - nearest, axis=0))))
        span = np.concatenate([span, sent[chosen[-1:]]])
    edit = rg.grow_(structure, {"0": 3}, method, loss=loss, generator=seeded())
    torch.testing.assert_close(model[0].weight.detach()[edit.new], candidates[chosen])


PRE = [("mlp", "2"), ("chain", "0"), ("flatten", "0"), ("separable", "0"), ("residual", "stem"), ("residual", "conv1")]


@pytest.mark.parametrize(("name", "axis"), PRE)
def test_pre_activations_of_new_units_are_orthogonal_to_all_others(name: str, axis: str) -> None:
    """Residual streams are made by several layers: all that these make of a unit is seen as one vector."""
    model, x = zoo.build(name), zoo.example(name, 32)
    chosen = rg.analyze(model, x)[axis]
    method, loss = North(select="pre"), lambda: model(x).square().mean()
    makers = [model.get_submodule(e.name.rpartition(".")[0]) for e in looked(chosen, method, loss).incoming.entries]
    old = torch.cat([put_out(maker, lambda: model(x)) for maker in makers], 1).double()
    edit = rg.grow_(chosen, {axis: 3}, method, loss=loss)
    now = torch.cat([put_out(maker, lambda: model(x)) for maker in makers], 1).double()
    torch.testing.assert_close(now[:-3], old, rtol=1e-5, atol=1e-5)
    new = nn.functional.normalize(now[edit.new], dim=1)
    cosines = torch.cat([new @ nn.functional.normalize(old, dim=1).T, new @ new.T - torch.eye(3)], 1)
    assert float(cosines.abs().max()) < 1e-5
    assert float(now[edit.new].norm(dim=1).min()) > 0.01 * float(old.norm(dim=1).mean())


def test_pre_activations_are_not_sought_where_inputs_never_vary() -> None:
    """Weights of inputs that are always zero would be orthogonal, and dead."""
    model: Any = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(40, 9)
    x[:, 5:] = 0
    structure = rg.analyze(model, x)
    edit = rg.grow_(structure, {"0": 3}, North(select="pre"), loss=lambda: model(x).square().mean())
    with torch.no_grad():
        made = model[0](x).T[edit.new]
        old = model[0](x).T[:4]
    assert float(made.norm(dim=1).min()) > 0.1 * float(old.norm(dim=1).mean())
    cosines = nn.functional.normalize(made, dim=1) @ nn.functional.normalize(old, dim=1).T
    assert float(cosines[0].abs().max()) < 1e-5  # there are five dimensions with the bias, but four for new units


@pytest.mark.parametrize("name", ["mlp", "chain", "residual", "concat"])
def test_weights_of_new_units_are_orthogonal_to_all_others(name: str) -> None:
    model, x = zoo.build(name), zoo.example(name, 16)
    structure = rg.analyze(model, x)
    axis = structure.axes[-1]
    loss = lambda: model(x).square().mean()  # noqa: E731
    edit = rg.grow_(structure, {axis.name: 2}, North(select="weights"), loss=loss)
    vectors = looked(axis, North(select="weights"), loss).incoming.old().double()
    cosines = nn.functional.normalize(vectors, dim=1) @ nn.functional.normalize(vectors, dim=1).T
    assert float((cosines[edit.new] - torch.eye(len(vectors))[edit.new]).abs().max()) < 1e-5


@pytest.mark.parametrize("select", ["pre", "weights"])
def test_where_there_is_no_room_the_rest_is_random(select: Any) -> None:
    model, x = dense(), torch.randn(64, 6)
    with torch.no_grad():
        model[0].weight[4:] = model[0].weight[:4]
        model[0].bias[4:] = model[0].bias[:4]
    structure = rg.analyze(model, x)
    edit = rg.grow_(structure, {"0": 5}, North(select=select), loss=lambda: model(x).square().mean())
    with torch.no_grad():
        rows = model[0].weight.double() if select == "weights" else model[0](x).T.double()
    cosines = (nn.functional.normalize(rows[edit.new], dim=1) @ nn.functional.normalize(rows[:4], dim=1).T).abs()
    assert (cosines.amax(1) < 1e-5).tolist() == [True, True, False, False, False]
    assert len({tuple(row.tolist()) for row in model[0].weight.detach()[edit.new]}) == 5


def test_chosen_units_are_unlike_each_other() -> None:
    """A hundred candidates along two directions: ranked by themselves all of the best would be along one."""
    model: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 3))
    x = torch.cat([torch.randn(99, 1) * 3, torch.randn(99, 1)], 1)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.9, 0.1]]))
    edit = rg.grow_(rg.analyze(model, x), {"0": 2}, North(), loss=lambda: model(x).square().mean())
    one, other = nn.functional.normalize(model[0].weight.detach()[edit.new], dim=1)
    assert float(one @ other) < 0.9


# --------------------------------------------------------------------------------------------------
# how


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("law", rg.testing.laws_of(North()), ids=str)
def test_it_keeps_the_laws(law: rg.testing.Law, config: dict[str, Any]) -> None:
    rg.testing.Law(North(**config), law.network, law.rule, law.edits).check()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.SMALL))
def test_new_units_send_nothing_and_learn(name: str, variant: str, config: dict[str, Any]) -> None:
    model, x = zoo.build(name, variant, torch.float64), zoo.example(name, 16, torch.float64)
    structure = rg.analyze(model, x)
    axes = [axis for axis in structure.axes if axis.name not in ("first", "encoder")]
    before, loss = outputs(model, x), lambda: model(x).square().mean()
    amounts = {axis.name: 2 for axis in axes}
    if not axes:
        return
    edit = rg.grow_(axes, amounts, North(**config), loss=loss)
    assert relative_change(before, outputs(model, x)) < 1e-12
    loss().backward()
    for axis, entry in [(each, entry) for each in axes for entry in each.with_role("in")]:
        assert not bool(rows_of(entry, entry.tensor.detach(), axis.size)[edit.units("new")[axis.name]].any())
    for axis in axes:
        gradients = [rows_of(e, e.tensor.grad, axis.size) for e in axis.with_role("in") if e.tensor.grad is not None]
        reached = torch.stack([gradient.flatten(1).any(1) for gradient in gradients]).any(0)
        assert bool(reached[edit.units("new")[axis.name]].all()), axis.name


@pytest.mark.parametrize("config", CONFIGS)
def test_new_units_are_as_long_as_old_ones_and_their_norms_have_met_them(config: dict[str, Any]) -> None:
    model, x = convolutional().double(), torch.randn(32, 3, 8, 8).double()
    loss, structure = trained(model, x), rg.analyze(model, x)
    length = float(model[0].weight.detach().flatten(1).norm(dim=1).mean())
    edit = rg.grow_(structure, {"0": 4}, North(**config), loss=loss)
    torch.testing.assert_close(
        model[0].weight.detach()[edit.new].flatten(1).norm(dim=1), torch.full((4,), length).double(), rtol=1e-5, atol=0
    )
    with torch.no_grad():
        made = model[0](x).transpose(0, 1).flatten(1)[edit.new]
    torch.testing.assert_close(model[1].running_mean[edit.new], made.mean(1))
    torch.testing.assert_close(model[1].running_var[edit.new], made.var(1))


def test_axes_that_cannot_be_looked_at_are_passed_over() -> None:
    model, x = zoo.build("tied_weight"), zoo.example("tied_weight", 16)
    structure, loss = rg.analyze(model, x), lambda: model(x).square().mean()
    edit = rg.grow_(structure, 1, North(), loss=loss)
    assert list(edit.units("new")) == ["hidden"]
    with pytest.raises(rg.NotPermissible, match="makes and reads"):
        rg.grow_(structure["encoder"], 1, North(), loss=loss)


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).softmax(1))


def test_units_that_depend_on_each_other_are_refused() -> None:
    model, x = Softmax(), torch.randn(20, 6)
    axis = rg.analyze(model, x)["first"]
    with pytest.raises(rg.NotPermissible, match="depends on the others"):
        rg.grow_(axis, 1, North(), loss=lambda: model(x).square().mean())


def test_weights_divided_by_their_length_are_selected_but_not_solved_for() -> None:
    model: Any = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 4))
    x = torch.randn(20, 6)
    axis, loss = rg.analyze(model, x)["0"], lambda: model(x).square().mean()
    with pytest.raises(rg.NotPermissible, match="divided by its own length"):
        rg.grow_(axis, 1, North(select="pre"), loss=loss)
    before = outputs(model, x)
    rg.grow_(axis, {"0": 2}, North(), loss=loss)
    assert relative_change(before, outputs(model, x)) < 1e-6


@pytest.mark.parametrize(
    "options",
    [{"trigger": "loss"}, {"select": "post"}, {"against": "last"}, {"ratio": 0.0}, {"ratio": float("nan")},
     {"threshold": -1.0}, {"candidates": 0}, {"candidates": 1.5}],
)  # fmt: skip
def test_wrong_configurations_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        North(**options)


# --------------------------------------------------------------------------------------------------
# in training


def student(teacher_width: int = 3) -> tuple[Any, Tensor, Tensor]:
    teacher: Any = nn.Sequential(nn.Linear(2, teacher_width), nn.Tanh(), nn.Linear(teacher_width, 1))
    with torch.no_grad():
        teacher[0].weight.mul_(3)
        teacher[2].weight.mul_(3)
    x = torch.randn(256, 2)
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), x, teacher(x).detach()


def taught(method: North | None, steps: int) -> tuple[list[int], float]:
    """The sizes at every 50th step of a student that begins with two units, and its loss at the end."""
    torch.manual_seed(0)
    model, x, y = student()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    shaper = None if method is None else rg.Shaper(model, optimizer, method, example=x)
    loss, sizes = lambda: (model(x) - y).square().mean(), []
    for step in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if shaper is not None:
            shaper.step(loss)
        if step % 50 == 49:
            sizes.append(model[0].out_features)
    return sizes, loss().item()


def test_a_student_grows_to_what_its_task_needs_and_stops() -> None:
    sizes, loss = taught(North(threshold=0.03), 1500)
    assert sizes[0] == 3
    assert sizes == sorted(sizes)
    assert 3 < sizes[-1] < 15
    assert len(set(sizes[-10:])) == 1
    _, ungrown = taught(None, 1500)
    assert loss < 0.1 * ungrown


def test_its_schedule_is_a_plan() -> None:
    plan: Any = as_plan(North())
    assert (plan.period, plan.action.amount, plan.action.method) == (50, 0.25, North())


def test_what_it_has_noted_goes_on_from_a_checkpoint() -> None:
    """A run that goes on from a state does what the first run does; the state is plain values."""
    model, x, y = student()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    plan = rg.every(2, rg.Grow(North(), 0.5))
    shaper = rg.Shaper(model, optimizer, plan, example=x)

    def run(model: Any, optimizer: Any, shaper: rg.Shaper, steps: int) -> int:
        loss = lambda: (model(x) - y).square().mean()  # noqa: E731
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            shaper.step(loss)
        return model[0].out_features

    assert run(model, optimizer, shaper, 2) == 3
    state = shaper.state_dict()
    memories = json.loads(json.dumps(state["progress"]["memories"]))
    assert memories == state["progress"]["memories"]
    assert list(memories.values()) == [{"0": 1.0}]
    state["progress"]["memories"] = memories
    other = copy.deepcopy(model)
    again = torch.optim.SGD(other.parameters(), 0.05)
    resumed = rg.Shaper(other, again, plan, example=x)
    resumed.load_state_dict(state)
    assert run(model, optimizer, shaper, 8) == run(other, again, resumed, 8)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)

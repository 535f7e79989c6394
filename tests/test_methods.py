"""Random and L1 against their formulas; the registry; what holds for every registered method."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import regrow as rg
import regrow.method
import zoo
from golden import Golden
from regrow.evidence import gather
from state import differences, only, outputs, places, relative_change, snapshot, tensors_of, train_step

#: The same functions without their types, for calls that the types forbid.
LOOSELY: Any = rg

GROWERS = [name for name in rg.list_methods() if hasattr(rg.create_method(name), "fresh")]
#: Configurations in which every axis may grow by any number of units.
GENEROUS = {
    "gradmax": {"beyond_rank": "random"},
    "gradmax-optim": {"beyond_rank": "random"},
    "net2wider": {"beyond": "random"},
    "senn": {"threshold": None},
    "splitting": {"beyond": "random"},
    "tiny": {"beyond_rank": "random"},
}
PRUNERS = [name for name in rg.list_methods() if hasattr(rg.create_method(name), "score")]


def analyzed(name: str, variant: str = "module", dtype: torch.dtype = torch.float64) -> rg.Structure:
    return rg.analyze(zoo.build(name, variant, dtype), zoo.example(name, dtype=dtype))


def modelled(structure: rg.Structure) -> Any:
    """The model, with its type left open."""
    return structure.model


def made(method: str) -> Any:
    """A method in its most generous configuration."""
    return rg.create_method(method, **GENEROUS.get(method, {}))


def growing_with(method: str, structure: rg.Structure) -> list[rg.Axis]:
    """The axes that a method grows: one that looks at the loss leaves out units that one weight makes and reads."""
    makes = {axis: {e.name for e in axis.with_role("out", "tied")} for axis in structure.axes}
    tied = [a for a in structure.axes if any(e.name in makes[a] for e in a.with_role("in", "tied"))]
    if method == "net2wider":
        tied = [axis for axis in structure.axes if axis.with_role("tied")]
    elif not getattr(rg.create_method(method), "needs", None):
        tied = []
    edit = rg.grow_ if hasattr(rg.create_method(method), "fresh") else rg.prune_
    for axis in tied:
        with pytest.raises(rg.NotPermissible, match=r"makes and reads|no weight only reads"):
            edit(axis, 1, rg.create_method(method), loss=lambda: structure.run_example().square().mean())
    return [axis for axis in structure.axes if axis not in tied]


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------------------------------
# L1


@pytest.mark.parametrize("variant", ["module", "functional"])
def test_the_l1_penalty_is_the_sum_of_absolute_batch_norm_scales(variant: str) -> None:
    structure = analyzed("residual", variant)
    model = modelled(structure)
    scales = {name: model.get_parameter(f"{name}.weight") for name in ("norm", "bn1", "bn2")}
    with torch.no_grad():
        scales["bn1"][2] = -0.7
    method = rg.L1(0.01)
    assert method.penalty(structure["conv1"]).item() == pytest.approx(0.01 * scales["bn1"].abs().sum().item())
    stream = 0.01 * (scales["norm"].abs().sum() + scales["bn2"].abs().sum()).item()
    assert method.penalty(structure["stem"]).item() == pytest.approx(stream)
    method.penalty(structure["conv1"]).backward()
    assert torch.equal(scales["bn1"].grad, 0.01 * scales["bn1"].detach().sign())
    assert all(p.grad is None for name, p in model.named_parameters() if name != "bn1.weight")


def test_the_l1_penalty_is_on_outgoing_weights_where_there_is_no_batch_norm() -> None:
    structure = analyzed("mlp")
    weight = modelled(structure)[2].weight
    penalty = rg.L1(0.5).penalty(structure["0"])
    assert penalty.item() == pytest.approx(0.5 * weight.abs().sum().item())
    penalty.backward()
    assert torch.equal(weight.grad, 0.5 * weight.detach().sign())
    assert modelled(structure)[0].weight.grad is None


def test_the_l1_penalty_takes_only_the_units_of_its_axis() -> None:
    structure = analyzed("concat")
    scale = modelled(structure).norm.weight
    left = rg.L1(1.0).penalty(structure["left"])
    assert left.item() == pytest.approx(scale[:4].abs().sum().item())
    rg.L1(1.0).penalty(structure["right"]).backward()
    assert torch.equal(scale.grad, torch.cat([torch.zeros(4).double(), scale[4:].detach().sign()]))


@pytest.mark.parametrize(("name", "axis"), [("residual", "stem"), ("concat", "right"), ("flatten", "0"), ("mlp", "2")])
def test_the_l1_gradient_is_that_of_finite_differences(name: str, axis: str) -> None:
    structure = analyzed(name)
    method, chosen = rg.L1(0.1), structure[axis]
    penalty = method.penalty(chosen)
    penalty.backward()
    for parameter in modelled(structure).parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        flat = parameter.data.view(-1)
        for index in range(0, len(flat), max(1, len(flat) // 5)):
            value, change = flat[index].item(), 1e-6
            ends = []
            for sign in (1, -1):
                flat[index] = value + sign * change
                ends.append(method.penalty(chosen).item())
            flat[index] = value
            numeric = (ends[0] - ends[1]) / (2 * change)
            assert numeric == pytest.approx(gradient.view(-1)[index].item(), abs=1e-7)


def test_l1_scores_are_the_magnitudes_of_the_gates() -> None:
    structure = analyzed("residual")
    model, method = modelled(structure), rg.L1()
    expected = model.bn1.weight.detach().abs()
    assert torch.allclose(method.score(structure["conv1"], {}).double(), expected, rtol=1e-6)
    expected = (model.norm.weight.detach().abs() + model.bn2.weight.detach().abs()) / 2
    assert torch.allclose(method.score(structure["stem"], {}).double(), expected, rtol=1e-6)
    structure = analyzed("flatten")
    weight = modelled(structure)[4].weight.detach()
    magnitude = weight.abs().view(9, 6, 4).mean((0, 2))
    expected = magnitude / magnitude.mean()  # so that it can stand beside scales, which are about 1
    assert torch.allclose(method.score(structure["0"], {}).double(), expected, rtol=1e-6)


def test_training_with_the_penalty_shrinks_the_gates() -> None:
    structure = analyzed("residual")
    model, x = modelled(structure), zoo.example("residual", dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model.bn1.weight.detach().abs().sum()
    for _ in range(5):
        optimizer.zero_grad()
        (model(x).square().mean() + rg.L1(1.0).penalty(structure["conv1"])).backward()
        optimizer.step()
    assert model.bn1.weight.detach().abs().sum() < before - 0.05


def test_l1_prunes_the_smallest_scales() -> None:
    structure = analyzed("residual")
    with torch.no_grad():
        modelled(structure).bn1.weight.copy_(torch.tensor([0.5, -0.1, 0.9, 0.2, -0.8, 0.3]))
    edit = rg.prune_(structure["conv1"], 3, rg.L1())
    assert edit.removed == [1, 3, 5]
    assert modelled(structure).bn1.weight.tolist() == pytest.approx([0.5, 0.9, -0.8])


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf, "1", None])
def test_l1_checks_its_strength(strength: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        rg.L1(strength)


# --------------------------------------------------------------------------------------------------
# Random


def grown(name: str, axis: str, num: int, scale: float = 1.0) -> tuple[rg.Structure, rg.Edit]:
    structure = analyzed(name)
    return structure, rg.grow_(structure[axis], num, rg.Random(scale), generator=seeded())


def test_random_units_send_nothing_and_read_at_the_layers_own_scale() -> None:
    structure, edit = grown("residual", "conv1", 400)
    model = modelled(structure)
    assert torch.count_nonzero(model.conv2.weight[:, edit.new]) == 0
    old, new = model.conv1.weight[:6].detach(), model.conv1.weight[6:].detach()
    assert new.std() == pytest.approx(old.square().mean().sqrt().item(), rel=0.02)
    assert abs(new.mean()) < 0.02 * new.std()
    assert len(new.flatten().unique()) > 0.99 * new.numel()
    assert (new.flatten(1).norm(dim=1) > 0).all()


def test_the_scale_of_random_is_a_factor() -> None:
    one, _ = grown("mlp", "0", 50)
    three, edit = grown("mlp", "0", 50, scale=3.0)
    torch.testing.assert_close(modelled(three)[0].weight[edit.new], 3 * modelled(one)[0].weight[edit.new])


def test_random_gives_new_units_of_a_layer_of_zeros_a_finite_scale() -> None:
    structure = analyzed("mlp")
    nn.init.zeros_(modelled(structure)[0].weight)
    edit = rg.grow_(structure["0"], 200, rg.Random(), generator=seeded())
    new = modelled(structure)[0].weight[edit.new]
    assert new.std().item() == pytest.approx(1 / math.sqrt(3 * 12), rel=0.05)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, "1", None])
def test_random_checks_its_scale(scale: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        rg.Random(scale)


RANDOM_RUNS: dict[str, rg.Random] = {
    "random": rg.Random(0.5, zero="incoming", distribution="uniform"),
    "random_outzero": rg.Random(0.5, distribution="uniform"),
    "random_eps": rg.Random(0.5, zero="incoming", epsilon=0.01, distribution="uniform"),
}


@pytest.mark.parametrize("run", RANDOM_RUNS)
@pytest.mark.parametrize("case", ["dense_relu", "conv_s1s1", "conv_bn_relu"])
def test_randoms_variants_have_the_references_lengths(case: str, run: str) -> None:
    golden = Golden.read(case, run)
    before, old = golden.loss().item(), golden.net[0].weight.detach().clone()
    edit = rg.grow_(rg.analyze(golden.net, golden.x)["0"], 2, RANDOM_RUNS[run], generator=seeded())
    received = golden.net[0].weight.detach()[edit.new].flatten(1)
    sent = golden.net[-1].weight.detach()[:, edit.new].transpose(0, 1).flatten(1)
    theirs = golden.weight("after__first__kernel")[-2:].flatten(1), golden.weight("after__last__kernel")[:, -2:]
    torch.testing.assert_close(received.norm(dim=1), theirs[0].norm(dim=1), rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(sent.norm(dim=1), theirs[1].transpose(0, 1).flatten(1).norm(dim=1), rtol=1e-5, atol=0)
    assert torch.equal(golden.net[0].weight[:-2], old)
    if run != "random_eps":
        assert golden.loss().item() == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize(
    "options", [{"zero": "both"}, {"epsilon": -1.0}, {"scale_method": "no"}, {"distribution": "no"}]
)
def test_random_checks_its_choices(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        rg.Random(**options)


# --------------------------------------------------------------------------------------------------
# every method


@pytest.mark.parametrize("method", GROWERS)
@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.SMALL))
def test_every_new_unit_receives_gradient(name: str, variant: str, method: str) -> None:
    """At the first step the outgoing weights of each new unit move, and from then on the incoming ones too."""
    structure = analyzed(name, variant)
    model, x = modelled(structure), zoo.example(name, batch=16, dtype=torch.float64)
    for axis in growing_with(method, structure):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = lambda: model(x).square().mean()  # noqa: E731
        edit = rg.grow_(axis, 2, made(method), optimizer=optimizer, generator=seeded(), loss=loss)
        where, start = places(axis), tensors_of(model)
        train_step(model, optimizer, x)
        gradients = {n: p.grad for n, p in model.named_parameters(remove_duplicate=False)}
        for unit in edit.new:
            assert any(part.abs().max() > 0 for part in only(where, [unit], gradients)), (axis.name, unit)
        train_step(model, optimizer, x)
        producers = {(e.name, e.dim): e.unit_of for e in axis.entries if e.role == "out"}
        now = tensors_of(model)
        for unit in edit.new:
            for before, after in zip(only(producers, [unit], start), only(producers, [unit], now), strict=True):
                assert not torch.equal(before, after), (axis.name, unit)


KEEPING = [name for name in GROWERS if "keeps_the_function" not in getattr(rg.create_method(name), "breaks", {})]


@pytest.mark.parametrize("method", KEEPING)
@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.SMALL))
def test_every_method_that_grows_keeps_the_function(name: str, variant: str, method: str) -> None:
    structure = analyzed(name, variant)
    x = zoo.example(name, dtype=torch.float64)
    before = outputs(modelled(structure), x)
    loss = lambda: modelled(structure)(x).square().mean()  # noqa: E731
    axes = growing_with(method, structure)
    # Copies of groups and of the units in them can't come in one edit.
    apart = [[axis] for axis in axes] if (name, method) == ("grouped", "net2wider") else [axes]
    for together in filter(None, apart):
        rg.grow_(together, 0.5, made(method), generator=seeded(), loss=loss)
    assert relative_change(before, outputs(modelled(structure), x)) < 1e-12


@pytest.mark.parametrize("method", PRUNERS)
@pytest.mark.parametrize("name", zoo.SMALL)
def test_every_score_is_one_finite_number_a_unit_and_changes_nothing(name: str, method: str) -> None:
    structure = analyzed(name)
    gradients = {entry.tensor: torch.randn_like(entry.tensor) for axis in structure for entry in axis.entries}
    x = zoo.example(name, dtype=torch.float64)
    made = rg.create_method(method)
    needs, loss = getattr(made, "needs", None), lambda: modelled(structure)(x).square().mean()
    before = snapshot(modelled(structure))
    for axis in growing_with(method, structure):
        seen = gather([axis], needs, loss)[axis] if needs else {"gradients": gradients}
        score = made.score(axis, seen)
        assert score.shape == (axis.size,)
        assert torch.isfinite(score).all()
        assert not score.requires_grad
    assert differences(before, snapshot(modelled(structure))) == []


@pytest.mark.parametrize("method", rg.list_methods())
def test_configurations_survive_json(method: str) -> None:
    made = rg.create_method(method)
    config = json.loads(json.dumps(rg.method_config(made)))
    assert config["method"] == method == made.name
    assert rg.create_method(**config) == made
    assert hash(rg.create_method(**config)) == hash(made)
    assert dataclasses.is_dataclass(made)
    for field in dataclasses.fields(made):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, field.name, 0)


@pytest.mark.parametrize("method", rg.list_methods())
def test_every_method_says_what_it_is(method: str) -> None:
    made = rg.create_method(method)
    assert len(type(made).__doc__ or "") > 200
    assert repr(made).startswith(type(made).__name__)


def test_configurations_keep_what_is_not_default() -> None:
    assert rg.method_config(rg.L1(0.25)) == {"method": "l1", "strength": 0.25, "grace": 100, "absorb": True}
    assert rg.create_method("random", scale=0.5) == rg.Random(0.5)
    assert {"l1", "random"} <= set(rg.list_methods())
    assert rg.list_methods() == sorted(rg.list_methods())


@pytest.mark.parametrize(
    "make",
    [
        lambda: rg.create_method("nowhere"),
        lambda: rg.create_method("random", strength=1.0),
        lambda: rg.create_method("l1", strength=-1.0),
        lambda: LOOSELY.create_method(None),
        lambda: LOOSELY.create_method(["random"]),
    ],
    ids=["unknown method", "unknown field", "bad value", "none", "list"],
)
def test_wrong_names_and_configurations_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        make()


def test_an_unknown_method_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="random"):
        rg.create_method("randm")


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten afterwards."""
    monkeypatch.setattr(regrow.method, "_METHODS", dict(regrow.method._METHODS))


def test_an_outsiders_method_needs_one_class(own_registry: None) -> None:
    @rg.register
    @dataclasses.dataclass(frozen=True)
    class First:
        """Prunes the first units."""

        name: ClassVar[str] = "test-first"

        def score(self, axis: rg.Axis, seen: Any) -> Tensor:
            return torch.arange(axis.size, dtype=torch.float32)

    assert "test-first" in rg.list_methods()
    structure = analyzed("residual")
    assert rg.prune_(structure["conv1"], 2, rg.create_method("test-first")).removed == [0, 1]


@pytest.mark.parametrize("wrong", ["not a dataclass", "not frozen", "no name", "taken"])
def test_registration_refuses_what_is_no_method(wrong: str) -> None:
    if wrong == "not a dataclass":
        candidate: type = type("Plain", (), {"name": "test-plain"})
    elif wrong == "not frozen":
        candidate = dataclasses.make_dataclass("Loose", [], namespace={"name": "test-loose"})
    elif wrong == "no name":
        candidate = dataclasses.make_dataclass("Nameless", [], frozen=True)
    else:
        candidate = dataclasses.make_dataclass("Impostor", [], frozen=True, namespace={"name": "l1"})
    before = rg.list_methods()
    with pytest.raises((ValueError, TypeError)):
        rg.register(candidate)
    assert rg.list_methods() == before
    assert rg.create_method("l1") == rg.L1()


class Shifty(rg.Random):
    """Random growth that returns something else than what was asked for."""

    wrong: ClassVar[str] = ""

    def fresh(self, axis: rg.Axis, num: int, *args: Any, **kwargs: Any) -> Any:
        values: Any = super().fresh(axis, num, *args, **kwargs)
        entry = next(iter(values))
        match self.wrong:
            case "shape":
                values[entry] = values[entry].flatten()[:1]
            case "nothing":
                return None
            case "not a tensor":
                values[entry] = 3
            case "of another axis":
                values[next(e for e in axis.structure.axes[0].entries)] = torch.ones(1)
        return values


@pytest.mark.parametrize("wrong", ["shape", "nothing", "not a tensor", "of another axis"])
def test_a_method_that_returns_nonsense_changes_nothing(wrong: str) -> None:
    structure = analyzed("residual")
    before = snapshot(modelled(structure))
    method = type("Wrong", (Shifty,), {"wrong": wrong})()
    with pytest.raises((ValueError, TypeError)):
        rg.grow_(structure["conv1"], 2, method)
    assert differences(before, snapshot(modelled(structure))) == []


@pytest.mark.parametrize("score", [torch.zeros(3), torch.zeros(6, 2), torch.full((6,), math.nan), None])
def test_a_score_that_makes_no_sense_changes_nothing(score: Any) -> None:
    structure = analyzed("residual")
    before = snapshot(modelled(structure))
    method = type("Wrong", (rg.L1,), {"score": lambda self, axis, seen: score})()
    with pytest.raises((ValueError, TypeError)):
        rg.prune_(structure["conv1"], 2, method)
    assert differences(before, snapshot(modelled(structure))) == []


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_a_mask_in_a_buffer_follows_but_is_no_gate(dtype: torch.dtype) -> None:
    """Only parameters can be driven to zero; the mask of a new unit is that of the last one."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
            self.register_buffer("mask", torch.ones(8, dtype=dtype))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.first(x)) * self.mask)

    model, x = Masked(), torch.randn(3, 6)
    [axis] = rg.analyze(model, x).axes
    before = model(x)
    rg.L1(0.5).penalty(axis).backward()
    torch.testing.assert_close(model.last.weight.grad, 0.5 * model.last.weight.detach().sign())
    rg.grow_(axis, 3)
    assert torch.equal(model.get_buffer("mask"), torch.ones(11, dtype=dtype))
    torch.testing.assert_close(model(x), before)
    rg.prune_(axis, 5)
    assert model.get_buffer("mask").dtype == dtype
    assert model.get_buffer("mask").shape == (6,)

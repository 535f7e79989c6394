"""Fisher, OBS, APoZ, the geometric median and group norms: against their definitions, and what their papers claim."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import regrow as rg
import zoo
from regrow.evidence import gather
from regrow.pruning.apoz import APoZ
from regrow.pruning.fisher import Fisher
from regrow.pruning.geometric_median import GeometricMedian
from regrow.pruning.group_norm import GroupNorm
from regrow.pruning.obs import OBS
from regrow.rows import rows_of

METHODS: list[Any] = [Fisher(), OBS(), APoZ(), GeometricMedian(), GroupNorm(), GroupNorm(1)]


@pytest.mark.parametrize("law", [law for method in METHODS for law in rg.testing.laws_of(method)], ids=str)
def test_laws(law: Any) -> None:
    law.check()


def _mlp() -> tuple[Any, Tensor]:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(7, 5)


def _conv() -> tuple[Any, Tensor]:
    first = [nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2)]
    last = [nn.Conv2d(5, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)]
    return nn.Sequential(*first, *last), torch.randn(7, 2, 6, 6)


def _grouped() -> tuple[Any, Tensor]:
    first = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU()]
    return nn.Sequential(*first, nn.ConvTranspose2d(6, 3, 2, stride=2), nn.Tanh(), nn.Conv2d(3, 2, 1)), torch.randn(
        7, 2, 6, 6
    )


class _Tokens(nn.Module):
    """Several positions for each example, and two readers of the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.beside = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.up(x))
        return self.down(hidden) + self.beside(hidden.mean(1, keepdim=True))


def _tokens() -> tuple[Any, Tensor]:
    return _Tokens(), torch.randn(7, 9, 5)


class _Strided(nn.Module):
    """Two convolutions read the same, one of them a quarter of the positions; sums and activations write in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1)
        self.main, self.short = nn.Conv2d(4, 3, 3, stride=2, padding=1), nn.Conv2d(4, 3, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu_()
        inner = self.up(torch.tanh(self.down(x)))
        inner += x
        x = inner.relu_()
        return self.main(x) + self.short(x)


def _strided() -> tuple[Any, Tensor]:
    return _Strided(), torch.randn(7, 2, 6, 6)


def _made(build: Callable[[], tuple[Any, Tensor]]) -> tuple[Any, Tensor, rg.Structure]:
    torch.manual_seed(0)
    model, x = build()
    model, x = model.double(), x.double()
    for _ in range(5):
        model(x)
    model.eval()
    return model, x, rg.analyze(model, x)


def _seen(method: Any, axis: rg.Axis, losses: Callable[[], Tensor], batches: int = 1) -> Any:
    return gather([axis], method.needs, losses, batches)[axis]


# --------------------------------------------------------------------------------------------------
# Fisher


def _by_examples(model: Any, x: Tensor, axis: rg.Axis) -> Tensor:
    """∂L_n/∂a of each example by itself, with gates on all that reads the units."""
    found = []
    for example in x:
        gates = torch.ones(axis.size, dtype=x.dtype, requires_grad=True)
        gated = {}
        for entry in axis.with_role("in"):
            factors = torch.ones(entry.tensor.shape[entry.dim], dtype=x.dtype)
            own = entry.unit_of >= 0
            factors = factors.masked_scatter(own, gates[entry.unit_of[own]])
            shape = [-1 if d == entry.dim else 1 for d in range(entry.tensor.ndim)]
            gated[entry.name] = entry.tensor.detach() * factors.reshape(shape)
        loss = functional_call(model, gated, (example[None],)).square().mean()
        found.append(torch.autograd.grad(loss, gates)[0])
    return torch.stack(found)


@pytest.mark.parametrize("build", [_mlp, _conv, _grouped, _tokens, _strided])
def test_fisher_is_the_mean_square_of_single_examples_derivatives_by_gates(build: Any) -> None:
    model, x, structure = _made(build)
    axes = [axis for axis in structure.axes if axis.prunable]
    assert axes
    for axis in axes:
        expected = _by_examples(model, x, axis).square().mean(0) / 2
        seen = _seen(Fisher(), axis, lambda: model(x).square().mean())
        torch.testing.assert_close(Fisher().score(axis, seen).double(), expected, rtol=1e-5, atol=0)


def test_fisher_counts_examples_alike_in_batches_of_any_size() -> None:
    model, x, structure = _made(_mlp)
    parts = iter([x[:2], x[2:]])
    seen = _seen(Fisher(), structure["0"], lambda: model(next(parts)).square().mean(), 2)
    expected = _by_examples(model, x, structure["0"]).square().mean(0) / 2
    torch.testing.assert_close(Fisher().score(structure["0"], seen).double(), expected, rtol=1e-5, atol=0)


def test_at_a_minimum_fisher_tells_what_taylor_does_not() -> None:
    """The paper's case: all derivatives of the loss vanish, and units matter all the same."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, 3.0, 1.0, 0.3]).diag())
    half, noise = torch.randn(200, 3).double(), torch.randn(200, 4).double()
    x, y = torch.cat([half, half]), model(half).detach()
    y = torch.cat([y + noise, y - noise])
    structure = rg.analyze(model, x)
    loss = lambda: (model(x) - y).square().mean()  # noqa: E731
    [gradient] = torch.autograd.grad(loss(), model[1].weight)
    assert float((gradient * model[1].weight.detach()).sum(0).abs().max()) < 1e-12
    scores = Fisher().score(structure["0"], _seen(Fisher(), structure["0"], loss))
    without = []
    for unit in range(4):
        gated = {"1.weight": model[1].weight.detach().index_fill(1, torch.tensor([unit]), 0.0)}
        without.append((functional_call(model, gated, (x,)) - y).square().mean().item())
    assert scores.argsort().tolist() == np.argsort(without).tolist() == [0, 3, 2, 1]


# --------------------------------------------------------------------------------------------------
# OBS


def _prune(model: Any, structure: rg.Structure, axis: rg.Axis, units: list[int], method: OBS, loss: Any) -> None:
    """Prune as the edit is to: what reads the units is made up for before they go."""
    changed = method.compensate({axis: units}, gather([axis], method.needs, loss))
    with torch.no_grad():
        for name, values in changed.items():
            structure.tensor(name).copy_(values)
    rg.prune_(axis, units)


def test_what_is_compensated_has_the_error_of_lstsq() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(60, 5).double()
    structure, units = rg.analyze(model, x), [1, 4, 6]
    loss = lambda: model(x).square().mean()  # noqa: E731
    with torch.no_grad():
        before, hidden = model(x), torch.relu(model[0](x)).numpy()
    kept = np.concatenate([np.delete(hidden, units, 1), np.ones((60, 1))], 1)
    _, squares, *_ = np.linalg.lstsq(kept, before.numpy(), rcond=None)
    plain = copy.deepcopy(model)
    rg.prune_(rg.analyze(plain, x)["0"], units)
    _prune(model, structure, structure["0"], units, OBS(1e-10), loss)
    error = float((model(x).detach() - before).square().sum())
    assert error == pytest.approx(squares.sum(), rel=1e-6)
    assert error < float((plain(x).detach() - before).square().sum())


@pytest.mark.parametrize("units", [1, 2, 3, 4, 5])
def test_scores_are_the_error_of_all_that_have_gone(units: int) -> None:
    torch.manual_seed(1)
    model: Any = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x = torch.randn(60, 5).double()
    structure, method = rg.analyze(model, x), OBS(1e-10)
    loss = lambda: model(x).square().mean()  # noqa: E731
    scores = method.score(structure["0"], _seen(method, structure["0"], loss))
    with torch.no_grad():
        before, energy = model(x), (torch.relu(model[0](x)) @ model[2].weight.T).square().sum()
    gone = scores.argsort()[:units].tolist()
    _prune(model, structure, structure["0"], gone, method, loss)
    error = float((model(x).detach() - before).square().sum() / energy)
    assert error == pytest.approx(float(scores[gone[-1]]), rel=1e-5)


def _plant(model: Any) -> None:
    """Units 2 and 5 become copies of 0 and 1, the second three times as large."""
    with torch.no_grad():
        for part in (model[0].weight, model[0].bias):
            part[2], part[5] = part[0].clone(), 3 * part[1]


def _redundant_linear() -> tuple[Any, Tensor]:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(90, 5)


def _redundant_conv() -> tuple[Any, Tensor]:
    last = [nn.Conv2d(7, 6, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(6, 2, 1)]
    return nn.Sequential(nn.Conv2d(2, 7, 3, padding=1), nn.ReLU(), *last), torch.randn(20, 2, 6, 6)


def _redundant_flat() -> tuple[Any, Tensor]:
    last = [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(28, 6)]
    return nn.Sequential(nn.Conv2d(2, 7, 3, padding=1), nn.ReLU(), *last), torch.randn(90, 2, 6, 6)


def _redundant_groups() -> tuple[Any, Tensor]:
    last = [nn.Conv2d(7, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2)]
    return nn.Sequential(nn.Conv2d(2, 7, 3, padding=1), nn.ReLU(), *last), torch.randn(40, 2, 6, 6)


@pytest.mark.parametrize("build", [_redundant_linear, _redundant_conv, _redundant_flat, _redundant_groups])
def test_units_that_others_can_stand_in_for_go_without_a_change(build: Any) -> None:
    """One of each pair goes, never both, and the output stays where it was."""
    torch.manual_seed(0)
    model, x = build()
    model, x = model.double().eval(), x.double()
    _plant(model)
    structure, method = rg.analyze(model, x), OBS(1e-9)
    loss = lambda: model(x).square().mean()  # noqa: E731
    before = model(x).detach()
    axis = structure["0"]
    scores = method.score(axis, _seen(method, axis, loss))
    gone = scores.argsort()[:2].tolist()
    assert len({0, 2} & {*gone}) == len({1, 5} & {*gone}) == 1
    assert float(scores[gone].max()) < 1e-7 < 1e-4 < float(scores.sort().values[2])
    _prune(model, structure, axis, gone, method, loss)
    torch.testing.assert_close(model(x).detach(), before, rtol=0, atol=1e-6)


def _put_out(model: Any, reader: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    found: list[Tensor] = []
    handle = reader.register_forward_hook(lambda _, __, out: found.append(out.detach()))
    functional_call(model, tensors, (x,))
    handle.remove()
    return found[0]


@pytest.mark.parametrize("name", ["0", "2", "4"])
def test_grouped_and_transposed_readers_put_out_what_they_did_as_far_as_can_be(name: str) -> None:
    """Groups have weights of their own, and a transposed convolution has the units in front."""
    model, x, structure = _made(_grouped)
    axis, method = structure[name], OBS(1e-9)
    [entry] = axis.with_role("in")
    reader = model.get_submodule(entry.name.rpartition(".")[0])
    changed = method.compensate({axis: [0]}, gather([axis], method.needs, lambda: model(x).square().mean()))
    assert set(changed) == {entry.name, entry.name.replace("weight", "bias")}
    was, errors = _put_out(model, reader, {}, x), []
    for factor in (0.0, 0.95, 1.0, 1.05):  # least squares: any step to the side is worse
        tensors = {n: structure.tensor(n).detach().lerp(t, factor) for n, t in changed.items()}
        tensors[entry.name] = tensors[entry.name].index_fill(entry.dim, entry.indices([0]), 0.0)
        errors.append(float((_put_out(model, reader, tensors, x) - was).square().sum()))
    assert errors[2] < min(errors[1], errors[3]) < errors[0]


def test_weights_that_are_off_stay_off_and_biases_take_the_mean() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(60, 5)
    structure = rg.analyze(model, x)
    rg.prune_(structure.weights, 0.5, rg.Magnitude())
    off = model[2].weight == 0
    method = OBS()
    changed = method.compensate(
        {structure["0"]: [0, 3]}, gather([structure["0"]], method.needs, lambda: model(x).square().mean())
    )
    assert set(changed) == {"2.weight", "2.bias"}
    assert not bool(changed["2.weight"][off].any())
    assert not torch.equal(changed["2.bias"], model[2].bias)


def test_what_cannot_be_made_up_for_is_named() -> None:
    model: Any = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    structure = rg.analyze(model, torch.randn(4, 5))
    with pytest.raises(rg.NotPermissible, match=r"others can't make up for units of 0"):
        _seen(OBS(), structure["0"], lambda: model(torch.randn(1, 5)).square().mean())


# --------------------------------------------------------------------------------------------------
# APoZ


@pytest.mark.parametrize("build", [_mlp, _conv])
def test_apoz_is_a_hooks_count_of_zeros(build: Any) -> None:
    model, x, structure = _made(build)
    reader = 4
    counted: list[Tensor] = []
    model[reader].register_forward_hook(lambda _, args, __: counted.append(args[0].detach()))
    axis = structure["2" if build is _mlp else "0"]
    parts = iter([x, x + 0.3])
    seen = _seen(APoZ(), axis, lambda: model(next(parts)).square().mean(), 2)
    given = torch.cat(counted[-2:])
    zeros = (given == 0).double().transpose(0, 1).flatten(1).mean(1)
    assert float(zeros.min()) < float(zeros.max()) <= 1
    torch.testing.assert_close(APoZ().score(axis, seen).double(), 1 - zeros, rtol=1e-5, atol=1e-6)


def test_units_that_are_mostly_zero_go_first() -> None:
    """Network trimming's claim: dead units go, and the network computes what it did."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[0].bias[[2, 7]] = -100.0
    x = torch.randn(60, 5).double()
    before = model(x).detach()
    structure = rg.analyze(model, x)
    edit = rg.prune_(structure["0"], 2, APoZ(), loss=lambda: model(x).square().mean())
    assert edit.removed == [2, 7]
    torch.testing.assert_close(model(x).detach(), before, rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------------
# geometric median


@pytest.mark.parametrize("build", [_mlp, _conv])
def test_distances_to_all_others_are_summed(build: Any) -> None:
    model, _, structure = _made(build)
    axis = structure["0"]
    weights = model[0].weight.detach().flatten(1)
    expected = torch.stack([sum((a - b).norm() for b in weights) for a in weights])  # type: ignore[arg-type]
    scores = GeometricMedian().score(axis, {})
    torch.testing.assert_close(scores.double(), expected / expected.mean(), rtol=1e-5, atol=0)
    with torch.no_grad():
        model[0].weight.mul_(7).add_(0.3)
    torch.testing.assert_close(GeometricMedian().score(axis, {}), scores, rtol=1e-5, atol=0)


def test_copies_go_first_however_large() -> None:
    """The paper's claim: units that others can stand in for go, where a norm would take the smallest."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(200, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight.mul_(torch.tensor([1, 1, 1, 0.9, 1, 1, 1, 1])[:, None])
        model[0].weight[[2, 6]] = model[0].weight[4].clone()
    structure = rg.analyze(model, torch.randn(4, 200))
    assert rg.Magnitude().score(structure["0"], {}).argmin() == 3
    assert set(GeometricMedian().score(structure["0"], {}).argsort()[:3].tolist()) == {2, 4, 6}


# --------------------------------------------------------------------------------------------------
# group norm


@pytest.mark.parametrize("p", [1, 2])
def test_the_group_norm_is_its_formula(p: Any) -> None:
    model, _, structure = _made(_conv)
    axis = structure["0"]
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 1.5)
    parts = [model[0].weight.flatten(1), model[0].bias[:, None], model[1].weight[:, None], model[1].bias[:, None]]
    parts.append(model[4].weight.transpose(0, 1).flatten(1))
    powers = [part.detach().abs().pow(p).sum(1) for part in parts]
    assert not bool(powers[3].any())  # batch norm's shifts are all zero, and don't count
    expected = sum(power / power.mean() for power in powers if bool(power.any())) ** (1 / p)
    torch.testing.assert_close(GroupNorm(p).score(axis, {}).double(), expected / expected.mean(), rtol=1e-5, atol=0)


def test_a_factor_on_a_tensor_changes_no_norm_but_one_between_the_sides_of_a_unit_does() -> None:
    model, _, structure = _made(_mlp)
    scores = GroupNorm().score(structure["2"], {})
    with torch.no_grad():
        model[2].weight.mul_(100)
        model[4].weight.mul_(0.01)
    torch.testing.assert_close(GroupNorm().score(structure["2"], {}), scores, rtol=1e-5, atol=0)
    with torch.no_grad():
        model[2].weight[0].mul_(5)
        model[2].bias[0].mul_(5)
        model[4].weight[:, 0].div_(5)
    assert float((GroupNorm().score(structure["2"], {}) - scores).abs().max()) > 0.01


def test_units_that_are_small_in_all_coupled_tensors_go_without_a_change() -> None:
    """DepGraph's claim: a group that is sparse as a whole can go; one tensor by itself would take other units."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[0].weight[[1, 6]] *= 0.02
        model[0].bias[[1, 6]] *= 0.02
        model[2].weight[:, [1, 6]] *= 0.02
        model[0].weight[[3, 4]] *= 0.01  # but read, and shifted
    x = torch.randn(20, 5).double()
    structure, before = rg.analyze(model, x), model(x).detach()
    assert set(rg.Magnitude().score(structure["0"], {}).argsort()[:2].tolist()) == {3, 4}
    assert rg.prune_(structure["0"], 2, GroupNorm()).removed == [1, 6]
    assert float((model(x) - before).detach().abs().max()) < 1e-3


def test_every_parameter_counts_once() -> None:
    _, _, structure = _made(_tokens)
    [axis] = [axis for axis in structure.axes if axis.prunable]
    total = torch.zeros(axis.size)
    for entry in axis.entries:
        rows = rows_of(entry, entry.tensor.detach(), axis.size).float().flatten(1).square().sum(1)
        total += rows / rows.mean()
    expected = total.sqrt()
    torch.testing.assert_close(GroupNorm().score(axis, {}), expected / expected.mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [(OBS, {"ridge": 0.0}, "ridge is a positive"), (GroupNorm, {"p": 3}, "p is 1 or 2"), (OBS, {"ridge": -1}, "ridge")],
)
def test_wrong_configurations_are_refused(method: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        method(**options)


@pytest.mark.parametrize("method", [Fisher(), OBS(), APoZ()])
def test_methods_that_look_at_the_loss_ask_for_it(method: Any) -> None:
    _, _, structure = _made(_mlp)
    with pytest.raises(ValueError, match="pass loss="):
        rg.prune_(structure, 0.3, method)


@pytest.mark.parametrize("method", [Fisher(), OBS(), APoZ()])
def test_units_that_one_weight_makes_and_reads_are_refused(method: Any) -> None:
    model, x = zoo.build("shared"), zoo.example("shared", 5)
    axis = rg.analyze(model, x)["first"]
    with pytest.raises(rg.NotPermissible, match="one weight both makes and reads the units of first"):
        _seen(method, axis, lambda: model(x).square().mean())

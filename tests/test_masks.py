"""Masks in awkward company: closures, several models and optimizers, parametrisations, ties, folding and scalers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import regrow as rg
from regrow.masks import masked

X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4


def mlp(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = sizes or (8, 16, 16, 4)
    layers: list[nn.Module] = []
    for ins, outs in itertools.pairwise(sizes):
        layers += [nn.Linear(ins, outs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def loss_of(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X), Y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def revived(structure: rg.Structure) -> float:
    """The largest weight that a mask has off."""
    off = [w.tensor.detach()[~w.mask].abs() for w in structure.weights]
    return max((float(values.max()) for values in off if values.numel()), default=0.0)


def test_a_closure_sees_masked_gradients() -> None:
    """As LBFGS with the gradients masked by hand inside the closure."""

    def run(by_hand: bool) -> list[float]:
        model = mlp()
        structure = rg.analyze(model, X)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5, line_search_fn="strong_wolfe")
        rg.prune_(structure.weights, 0.8, rg.Magnitude(), optimizer=None if by_hand else optimizer)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            for weights in structure.weights if by_hand else ():
                assert weights.tensor.grad is not None
                weights.tensor.grad[~weights.mask] = 0.0
            return loss

        return [optimizer.step(closure).item() for _ in range(6)]  # type: ignore[arg-type]

    assert run(False) == pytest.approx(run(True), rel=1e-5)
    assert run(False)[-1] < 0.7 * run(False)[0]


@pytest.mark.parametrize("named", [True, False])
def test_momentum_stays_zero_with_a_closure(named: bool) -> None:
    model = mlp()
    structure, optimizer = rg.analyze(model, X), torch.optim.Adam(model.parameters())
    rg.prune_(structure.weights, 0.8, optimizer=optimizer)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss.item()

    optimizer.step(closure=closure) if named else optimizer.step(closure)
    for weights in structure.weights:
        assert not optimizer.state[weights.tensor]["exp_avg"][~weights.mask].any()
        assert optimizer.state[weights.tensor]["exp_avg"].any()


def test_a_step_with_a_closure_gives_rigl_its_gradients() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    shaper = rg.Shaper(model, optimizer, rg.every(1, rg.Rewire(rg.RigL(), 0.3)), example=X)
    rg.prune_(shaper.structure.weights, 0.5, optimizer=optimizer)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    assert [edit.action for edit in shaper.step()] == ["rewire"]


def test_two_models_under_one_optimizer() -> None:
    """The second sees the gradients of weights that are off, too."""
    first, second = mlp(), mlp()
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], 0.1)
    seen = []
    for model in (first, second):
        plan = rg.every(1, rg.Rewire(rg.RigL(), 0.3))
        shaper = rg.Shaper(model, optimizer, plan, example=X)
        rg.prune_(shaper.structure.weights, 0.8, optimizer=optimizer)
        seen.append(shaper)
    (loss_of(first) + loss_of(second)).backward()
    optimizer.step()
    for shaper in seen:
        weights = shaper.structure.weights[0]
        held = shaper._performer.held.of([weights])
        assert held is not None
        assert held[weights.tensor][~weights.mask].any()
        assert revived(shaper.structure) == 0.0


def test_an_optimizer_hides_gradients_of_its_own_weights_only() -> None:
    model = mlp()
    structure = rg.analyze(model, X)
    first = torch.optim.SGD(model[0].parameters(), 0.1)
    second = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], 0.1)
    rg.prune_(structure.weights, 0.8, optimizer=first)
    rg.hold_masks(model, second)
    loss_of(model).backward()
    first.step()
    grad = structure.weights[1].tensor.grad
    assert grad is not None
    assert grad[~structure.weights[1].mask].any()
    second.step()
    assert revived(structure) == 0.0


def test_a_shaper_that_is_gone_isn_t_called() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(5):
        shaper = rg.Shaper(model, optimizer, rg.every(9, rg.Rewire(rg.RigL(), 0.3)), example=X)
    train(model, optimizer)
    assert len(vars(optimizer)["_regrow_watchers"]) == 1
    assert shaper.steps == 0


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_rigl_waits_where_a_scaler_skips_the_step(bad: float) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    shaper = rg.Shaper(model, optimizer, rg.every(2, rg.Rewire(rg.RigL(), 0.3)), example=X)
    rg.prune_(shaper.structure.weights, 0.5, optimizer=optimizer)
    scaler = torch.amp.GradScaler("cpu")
    edits = []
    for number in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(model)).backward()
        if number == 1:
            assert model[0].weight.grad is not None
            model[0].weight.grad[0, 0] = bad  # type: ignore[index]
        scaler.step(optimizer)
        scaler.update()
        state = shaper.state_dict()
        shaper.load_state_dict(state)  # what waits is resumed, too
        edits.append(len(shaper.step()))
    assert edits == [0, 0, 1, 1]


def test_rigl_waits_where_neurons_come_at_the_same_step() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plan = rg.chain(
        rg.at(1, rg.Prune(rg.Magnitude(), 0.5, kind="weight")),
        rg.at(2, rg.Grow(rg.Random(), 4)),
        rg.at(2, rg.Rewire(rg.RigL(), 0.3)),
    )
    shaper = rg.Shaper(model, optimizer, plan, example=X)
    actions = []
    for _ in range(3):
        train(model, optimizer, 1)
        actions.append([edit.action for edit in shaper.step()])
    assert actions == [["prune"], ["grow"], ["rewire"]]
    train(model, optimizer)
    assert revived(shaper.structure) == 0.0


def test_without_gradients_rigl_says_what_it_needs() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    shaper = rg.Shaper(model, optimizer, rg.every(1, rg.Rewire(rg.RigL(), 0.3)), example=X)
    train(model, optimizer, 1)
    with pytest.raises(ValueError, match="pass loss="):
        shaper.step()


@pytest.mark.parametrize("sizes", [(8, 16, 16, 4), (8, 16, 12, 4)])
def test_folding_a_linear_layer_takes_the_mask_away(sizes: tuple[int, ...], tmp_path: Any) -> None:
    def build() -> nn.Sequential:
        model = mlp(*sizes)
        del model[1]  # two linear layers in a row
        return model

    model = build()
    structure, optimizer = rg.analyze(model, X), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    rg.prune_(structure.weights, 0.7, optimizer=optimizer)
    train(model, optimizer)
    expected = model(X)
    rg.prune_(structure.layers[1], 1, fold=True, optimizer=optimizer)
    assert torch.allclose(model(X), expected, atol=1e-5)
    assert structure.weights[0].alive == structure.weights[0].size
    rg.save(model, tmp_path)
    assert torch.allclose(rg.load(tmp_path, build())(X), expected, atol=1e-5)
    train(model, optimizer)
    assert revived(structure) == 0.0


def test_gates_come_and_go_over_masks() -> None:
    model = mlp()
    structure, optimizer = rg.analyze(model, X), torch.optim.SGD(model.parameters(), 0.1)
    rg.prune_(structure.weights, 0.7, optimizer=optimizer)
    alive = [w.alive for w in structure.weights]
    gated = rg.add_gates_(structure, optimizer)
    assert [w.alive for w in gated.weights][:2] == alive[:2]
    train(model, optimizer, 3)
    assert revived(gated) == 0.0
    folded = rg.fold_gates_(gated, optimizer)
    assert [w.alive for w in folded.weights] == alive
    train(model, optimizer, 3)
    assert revived(folded) == 0.0


def _old_weight_norm(module: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return weight_norm(module)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, _old_weight_norm])
def test_weight_norm_over_a_mask_keeps_it(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = mlp()
    structure, optimizer = rg.analyze(model, X), torch.optim.SGD(model.parameters(), 0.1)
    rg.prune_(structure.weights, 0.5, rg.Random(), optimizer=optimizer)
    off = ~structure.weights[1].mask
    norm(model[2])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rg.hold_masks(model, optimizer)
    train(model, optimizer, 3)
    assert not model[2].weight[off].any()  # type: ignore[index]
    again = rg.analyze(model, X)
    assert [w.sparsity for w in again.weights if w.name.startswith("2.") and w.normed is not None] == [
        pytest.approx(float(off.float().mean()))
    ]


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, _old_weight_norm])
def test_no_row_that_is_divided_by_its_norm_goes_as_a_whole(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = mlp()
    norm(model[2])
    structure, optimizer = rg.analyze(model, X), torch.optim.SGD(model.parameters(), 0.1)
    [weights] = [w for w in structure.weights if w.name.startswith("2.") and w.normed is not None]
    rg.prune_(weights, list(range(16)), optimizer=optimizer)  # the first row
    assert int(weights.mask[0].sum()) == 1
    assert bool(model(X).isfinite().all())
    rg.prune_(weights, 0.95, optimizer=optimizer)
    assert bool(weights.mask.any(1).all())
    train(model, optimizer)
    assert bool(model(X).isfinite().all())
    assert revived(structure) == 0.0


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)])
        self.layers[1].weight = self.layers[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


def test_a_shared_weight_keeps_its_mask_when_its_first_layer_leaves() -> None:
    torch.manual_seed(0)
    model = Tied()
    structure, optimizer = rg.analyze(model, X), torch.optim.SGD(model.parameters(), 0.1)
    rg.prune_(structure.weights, 0.7, optimizer=optimizer)
    before = structure.weights[0].mask
    edit = rg.prune_(structure.layers[0], 1, optimizer=optimizer)
    assert edit.params[1] < edit.params[0]
    assert torch.equal(structure.weights[0].mask, before)
    train(model, optimizer)
    assert revived(structure) == 0.0
    edit.undo_()
    assert torch.equal(structure.weights[0].mask, before)
    assert len(list(masked(model))) == 2


def test_firefly_s_splits_leave_weights_off() -> None:
    model = mlp()
    structure, optimizer = rg.analyze(model, X), torch.optim.SGD(model.parameters(), 0.1)
    rg.prune_(structure.weights, 0.7, optimizer=optimizer)
    rg.grow_(structure["0"], 4, rg.Firefly(new=0.0, split=0.3), loss=lambda: loss_of(model), optimizer=optimizer)
    assert revived(structure) == 0.0


def test_a_pattern_moves_no_more_than_can_move() -> None:
    weights = rg.analyze(mlp(), X).weights[1]
    rg.prune_(weights, rg.Pattern(2, 4))
    rg.prune_(weights, 0.7)  # groups of which none is on
    before = weights.alive
    edit = rg.rewire_(weights, 1.0, rg.SET(), pattern=rg.Pattern(2, 4))
    assert weights.alive == before == edit.sizes[weights.name][1]


def test_another_structure_s_edit_can_t_be_undone_over() -> None:
    model = mlp()
    one, other = rg.analyze(model, X), rg.analyze(model, X)
    first, second = rg.prune_(one.weights, 0.3), rg.prune_(other.weights, 0.5)
    masks = [w.mask for w in one.weights]
    with pytest.raises(rg.NotPermissible, match="changed elsewhere"):
        first.undo_()
    assert all(torch.equal(w.mask, mask) for w, mask in zip(one.weights, masks, strict=True))
    second.undo_()
    first.undo_()
    assert all(w.alive == w.size for w in one.weights)


def test_weights_are_named_by_indices_or_by_a_bool_tensor() -> None:
    structure = rg.analyze(mlp(), X)
    weights = structure.weights[0]
    gone = weights.tensor.detach() > 0.1
    rg.prune_(weights, gone)
    assert torch.equal(~weights.mask, gone)
    for wrong in ([True, False], [1.7], [None], ["a"], torch.rand(16, 8), [[1, 2]]):
        with pytest.raises(TypeError, match="named by flat indices"):
            rg.prune_(weights, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no weight was named"):
        rg.prune_(weights, [])


@pytest.mark.parametrize("amount", [rg.Sparsity(0.9999), rg.Threshold(1e9)])
def test_some_weights_stay(amount: Any) -> None:
    structure = rg.analyze(mlp(), X)
    with pytest.raises(rg.NotPermissible, match="some must stay"):
        rg.prune_(structure.weights, amount)


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_each_tensor_keeps_a_weight(distribution: Any) -> None:
    structure = rg.analyze(mlp(), X)
    rg.prune_(structure.weights, rg.Sparsity(0.999, distribution))
    assert min(w.alive for w in structure.weights) == 1


def test_doubles_are_ranked_as_doubles() -> None:
    model = nn.Linear(8, 16).double()
    with torch.no_grad():
        model.weight.copy_(1 - 1e-10 * torch.arange(128, dtype=torch.float64).reshape(16, 8))
    [weights] = rg.analyze(model, X.double()).weights
    assert rg.prune_(weights, 4, rg.Magnitude()).removed.tolist() == [124, 125, 126, 127]


def test_what_has_left_isn_t_edited() -> None:
    model = mlp(8, 16, 16, 16, 4)
    structure = rg.analyze(model, X)
    every = structure.weights
    rg.prune_(structure.layers[1], 1)
    with pytest.raises(rg.NotPermissible, match="isn't part of its structure any more"):
        rg.prune_(every, 0.5)


def test_parts_of_a_list_stay_what_they_were_when_their_number_changes() -> None:
    torch.manual_seed(0)

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.relu(layer(x))
            return x

    model = Listed()
    structure = rg.analyze(model, X)
    last = structure.weights[3]
    tensor, axis = last.tensor, structure["layers.2"]
    producer = axis.with_role("out")[0].tensor
    rg.prune_(structure.layers[1], 1)
    assert (last.name, axis.name) == ("layers.2.weight", "layers.1")
    assert last.tensor is tensor
    assert axis.with_role("out")[0].tensor is producer
    rg.prune_(last, 0.5).undo_()
    assert last in structure.weights


def test_a_layer_that_is_removed_beside_a_shaper() -> None:
    model = mlp(8, 16, 16, 16, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    shaper = rg.Shaper(model, optimizer, rg.every(1, rg.Rewire(rg.SET(), 0.3)), example=X)
    rg.prune_(shaper.structure.weights, 0.5, optimizer=optimizer)
    rg.prune_(shaper.structure.layers[1], 1, optimizer=optimizer)
    [edit] = shaper.step()
    assert list(edit.sizes) == [w.name for w in shaper.structure.weights]


def test_undoing_after_the_optimizer_made_its_state() -> None:
    model = mlp()
    structure, optimizer = rg.analyze(model, X), torch.optim.Adam(model.parameters(), 1e-2)
    edit = rg.prune_(structure.weights, 0.5, optimizer=optimizer)
    off = {w: ~w.mask for w in structure.weights}
    train(model, optimizer)
    edit.undo_()
    for weights, gone in off.items():
        state = optimizer.state[weights.tensor]
        assert not state["exp_avg"][gone].any()
        assert float(state["exp_avg_sq"][gone].min()) == pytest.approx(float(state["exp_avg_sq"][~gone].mean()))


def test_loading_a_dense_model_over_masks(tmp_path: Any) -> None:
    rg.save(mlp(), tmp_path)
    masked_model = mlp()
    rg.prune_(rg.analyze(masked_model, X).weights, 0.5)
    rg.load(tmp_path, masked_model)
    assert not list(masked(masked_model))


def test_sparse_layers_in_torch_s_fast_path() -> None:
    """An encoder's fused inference reads weights past its layers: they stay dense there, and say so."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, dropout=0.0)
    model, x = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval(), torch.randn(2, 8, 256)
    rg.prune_(rg.analyze(model, x).weights, 0.98)
    with torch.no_grad():
        expected = model(x)
        rg.to_sparse(model, x)
        assert torch.allclose(model(x), expected, atol=1e-4)


def test_sparse_layers_that_are_called_by_keyword_or_parametrised() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.normed = nn.Linear(8, 8), _old_weight_norm(nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.normed(self.inner(input=x))

    model = Named()
    rg.prune_(rg.analyze(model, X).weights, 0.5)
    assert [converted.name for converted in rg.to_sparse(model, X)] == ["inner"]


WEIGHT: dict[str, Any] = {"kind": "weight"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: rg.Prune(rg.Magnitude(), 1.0, **WEIGHT),
        lambda: rg.Prune(rg.Magnitude(), 1.5, **WEIGHT),
        lambda: rg.Prune(rg.Magnitude(), {"0.weight": 1.0}, **WEIGHT),
        lambda: rg.Grow(rg.SET(), rg.Pattern(2, 4), **WEIGHT),
        lambda: rg.Grow(rg.SET(), rg.Threshold(0.1), **WEIGHT),
        lambda: rg.Rewire(rg.SET(), 0.3, pattern="2:4"),  # type: ignore[arg-type]
        lambda: rg.Threshold("x"),  # type: ignore[arg-type]
        lambda: rg.hold_masks(mlp(), "sgd"),  # type: ignore[arg-type]
    ],
)
def test_what_can_t_be_is_refused_when_it_is_written(make: Callable[[], Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        make()


@pytest.mark.parametrize("given", [{"protect": "zzz*"}, {"amount": {"zzz": 0.5}}])
def test_a_plan_that_names_nothing_is_refused_at_once(given: dict[str, Any]) -> None:
    model = mlp()
    options: dict[str, Any] = {"amount": 0.5, **WEIGHT, **given}
    action = rg.Prune(rg.Magnitude(), **options)
    with pytest.raises(ValueError, match="zzz"):
        rg.Shaper(model, torch.optim.SGD(model.parameters(), 0.1), rg.at(1, action), example=X)


@pytest.mark.parametrize(
    "wrong", [{"generator": 3}, {"batches": 0}, {"loss": 3}, {"pattern": (2, 4)}, {"optimizer": "sgd"}]
)
def test_rewiring_checks_its_arguments(wrong: dict[str, Any]) -> None:
    weights = rg.analyze(mlp(), X).weights
    rg.prune_(weights, 0.5)
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        rg.rewire_(weights, 0.3, rg.SET(), **wrong)

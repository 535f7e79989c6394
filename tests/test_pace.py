"""New units that learn at a pace of their own: exactly that, through later edits, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow as rg
from regrow.pace import attach, has_paces
from state import differences, snapshot

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
}


def training(optimizer: str, steps: int) -> tuple[Any, torch.optim.Optimizer, rg.Structure, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(20, 5).double()
    loss = lambda: (model(x) - x[:, :3].sin()).square().mean()  # noqa: E731
    made = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(steps):
        train(made, loss)
    return model, made, rg.analyze(model, x), loss


def train(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_of_new_units_are_shorter_by_the_factor_and_those_of_old_ones_as_they_were(
    optimizer: str, steps: int
) -> None:
    moved = {}
    for factor in (1.0, 0.25):
        model, made, structure, loss = training(optimizer, steps)
        before: dict[str, Tensor] = {}
        edit = rg.grow_(
            structure["0"], 4, rg.GradMax(beyond_rank="random"), optimizer=made, loss=loss, lr_factor=factor
        )
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        train(made, loss)
        moved[factor] = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    new = edit.new
    for name, dim in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
        plain, slow = (m[name].movedim(dim, 0) for m in (moved[1.0], moved[0.25]))
        torch.testing.assert_close(slow[new], 0.25 * plain[new], rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(slow[:6], plain[:6], rtol=0, atol=0)


def test_paces_follow_edits_and_leave_with_their_undoing() -> None:
    model, optimizer, structure, loss = training("sgd", 2)
    before = snapshot(model, optimizer)
    edit = rg.grow_(structure["0"], 3, optimizer=optimizer, lr_factor=0.0)
    assert has_paces(optimizer)
    edit.undo_()
    assert not has_paces(optimizer)
    assert differences(before, snapshot(model, optimizer)) == []
    rg.grow_(structure["0"], 3, optimizer=optimizer, lr_factor=0.0)
    between = snapshot(model, optimizer)
    rg.grow_(structure["0"], 2, optimizer=optimizer, lr_factor=0.5).undo_()
    assert differences(between, snapshot(model, optimizer)) == []
    rg.grow_(structure["0"], 2, optimizer=optimizer)
    rg.prune_(structure["0"], [0, 7], optimizer=optimizer)
    start = model[2].weight.detach().clone()
    train(optimizer, loss)
    still = (model[2].weight == start).all(0)
    assert still.tolist() == [False] * 5 + [True, True] + [False, False]


def test_paces_survive_a_state_dict() -> None:
    model, optimizer, structure, loss = training("adam", 2)
    rg.grow_(structure["0"], 2, optimizer=optimizer, lr_factor=0.0)
    again = OPTIMIZERS["adam"](model.parameters())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    attach(again)
    start = model[0].weight.detach().clone()
    train(again, loss)
    assert torch.equal(model[0].weight[6:], start[6:])
    assert not torch.equal(model[0].weight[:6], start[:6])


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf"), True, "1"])
def test_a_wrong_factor_is_refused(factor: Any) -> None:
    model, optimizer, structure, _ = training("sgd", 1)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match="lr_factor"):
        rg.grow_(structure["0"], 1, optimizer=optimizer, lr_factor=factor)
    with pytest.raises(ValueError, match="pass the optimizer"):
        rg.grow_(structure["0"], 1, lr_factor=0.5)
    assert differences(before, snapshot(model, optimizer)) == []


# --------------------------------------------------------------------------------------------------
# GradMax under batch norm with an epsilon of its own


def _normed() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten()
    )


def _grown(form: str, optimizer: str) -> tuple[Any, torch.optim.Optimizer, rg.Edit, Callable[[Any], Tensor]]:
    model = _normed()
    x = torch.randn(32, 3, 8, 8)
    target = torch.randn_like(model(x))
    loss = lambda m: (m(x) - target).square().mean()  # noqa: E731
    made = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](model.parameters(), 0.01)
    for _ in range(3):
        train(made, lambda: loss(model))
    structure = rg.analyze(model, x)
    method = rg.GradMax(form)  # type: ignore[arg-type]
    return model, made, rg.grow_(structure["0"], 4, method, optimizer=made, loss=lambda: loss(model)), loss


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_epsilon_of_one_keeps_the_function_and_the_next_step_calm(optimizer: str) -> None:
    """A step after a growth is compared with one that didn't follow a growth."""
    changes = {}
    for form in ("epsilon", "naive"):
        model, made, edit, loss = _grown(form, optimizer)
        grown = [loss(copy.deepcopy(model).train(mode)).item() for mode in (True, False)]
        train(made, lambda: loss(model))  # noqa: B023
        with_growth = loss(model).item()
        model, made, edit, loss = _grown(form, optimizer)
        edit.undo_()
        assert [loss(copy.deepcopy(model).train(mode)).item() for mode in (True, False)] == pytest.approx(grown)
        train(made, lambda: loss(model))  # noqa: B023
        changes[form] = abs(with_growth - loss(model).item())
    assert changes["epsilon"] < 0.1 * changes["naive"]


def test_gradients_of_new_rows_are_scaled_by_the_norms_epsilon() -> None:
    model, made, edit, loss = _grown("epsilon", "sgd")
    start = model[0].weight.detach().clone()
    made.zero_grad()
    loss(model).backward()
    gradient = model[0].weight.grad.clone()
    made.step()
    moved = model[0].weight.detach() - start
    torch.testing.assert_close(moved[:6], -0.01 * gradient[:6], rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(moved[edit.new], -0.01 * 1e-5 * gradient[edit.new], rtol=1e-3, atol=1e-12)
    assert (moved[edit.new].flatten(1).norm(dim=1) > 0).all()


def test_an_epsilon_of_its_own_needs_the_optimizer() -> None:
    model, x = _normed(), torch.randn(8, 3, 8, 8)
    axis = rg.analyze(model, x)["0"]
    with pytest.raises(ValueError, match="pass the optimizer"):
        rg.grow_(axis, 1, rg.GradMax("epsilon"), loss=lambda: model(x).square().mean())
    assert axis.size == 6

"""What a Shaper hears of a step is the loss of that step, as far as methods look at it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regrow as rg

X, Y = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def stepped(action: rg.Grow | rg.Prune, closes: bool, parts: int = 1, model: nn.Module | None = None) -> Any:
    """The edit of a first step that changes no weight, and the state after it; the batch comes in so many parts."""
    model = net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    shaper = rg.Shaper(model, optimizer, rg.at(1, action), example=X[:2], generator=torch.Generator().manual_seed(3))

    def loss() -> Tensor:
        each = zip(X.chunk(parts), Y.chunk(parts), strict=True)
        return torch.stack([F.cross_entropy(model(x), y) for x, y in each]).mean()

    for x, y in zip(X.chunk(parts), Y.chunk(parts), strict=True):
        with torch.no_grad():
            model(x)  # looking at it teaches nothing
        (F.cross_entropy(model(x), y) / parts).backward()
    optimizer.step()
    optimizer.zero_grad()
    value = loss()
    before = {name: b.clone() for name, b in model.named_buffers() if b.ndim == 0}
    (edit,) = shaper.step(loss) if closes else shaper.step(loss=value)
    assert not model._forward_hooks
    assert all(torch.equal(before[name], model.get_buffer(name)) for name in before)
    return edit, {name: p.detach().clone() for name, p in model.named_parameters()}


METHODS = [
    rg.Grow(rg.GradMax(), 2, where="0"),
    rg.Grow(rg.GradMax(batch_norm="naive"), 2, where="0"),
    rg.Grow(rg.GradMaxOptim(), 2, where="0"),
    rg.Grow(rg.Firefly(), 2, where="0"),
    rg.Grow(rg.TINY(), 2, where="0"),
    rg.Prune(rg.Taylor(), 3),
    rg.Prune(rg.Fisher(), 3),
    rg.Prune(rg.APoZ(), 3),
]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("action", METHODS, ids=lambda action: f"{action.method}")
def test_what_is_heard_is_the_loss(action: Any, parts: int) -> None:
    """Which units come or go, and their weights, are those that a closure on the same batches gives."""
    (own, after), (other, expected) = (stepped(action, closes, parts) for closes in (False, True))
    assert own.sizes == other.sizes
    assert own.units("removed") == other.units("removed")
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=2e-4, atol=1e-6)


def test_the_place_of_zero_grad_does_not_matter_and_steps_in_between_are_not_heard() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    plan = rg.chain(
        rg.every(2, rg.Grow(rg.GradMax(), 1, where="0"), stop=4),
        rg.every(1, rg.Prune(rg.Polarization(1e-4), rg.cubic(0.0, 0.5)), start=4, stop=6),
    )
    shaper = rg.Shaper(model, optimizer, plan, example=X[:2])
    edits, hearing = [], []
    for _ in range(6):
        hearing.append(bool(model._forward_hooks))
        loss = F.cross_entropy(model(X), Y) + shaper.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        edits += shaper.step()
    assert [edit.step for edit in edits if edit.action == "grow"] == [2, 4]
    assert {edit.action for edit in edits} == {"grow", "prune"}
    assert hearing == [False, True, False, True, False, False]


def test_outputs_by_name_and_a_loss_that_the_model_computes_are_heard() -> None:
    class Learning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            outputs = self.net(x)
            return {"loss": F.cross_entropy(outputs, y), "outputs": outputs}

    model = Learning()
    plan = rg.at(1, rg.Prune(rg.Taylor(), 3))
    shaper = rg.Shaper(model, torch.optim.SGD(model.parameters(), 0.0), plan, example=(X, Y))
    model(X, Y)["loss"].backward()
    (edit,) = shaper.step()
    expected, _ = stepped(rg.Prune(rg.Taylor(), 3), closes=True)
    assert list(edit.units("removed").values()) == list(expected.units("removed").values())


def test_methods_that_weigh_the_loss_want_its_value() -> None:
    model = net()
    plan = rg.at(1, rg.Grow(rg.Firefly(), 1, where="0"))
    shaper = rg.Shaper(model, torch.optim.SGD(model.parameters(), 0.1), plan, example=X[:2])
    F.cross_entropy(model(X), Y).backward()
    with pytest.raises(ValueError, match="looks at the loss"):
        shaper.step()


def test_copies_of_a_model_hear_nothing() -> None:
    model = net()
    plan = rg.at(1, rg.Grow(rg.GradMax(), 1, where="0"))
    shaper = rg.Shaper(model, torch.optim.SGD(model.parameters(), 0.1), plan, example=X[:2])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        F.cross_entropy(other(X), Y).backward()
    with pytest.raises(ValueError, match="looks at the loss"):
        shaper.step()


def test_after_a_step_without_a_backward_pass_a_closure_is_asked_for() -> None:
    model = net()
    plan = rg.every(1, rg.Grow(rg.GradMax(), 1, where="0"))
    shaper = rg.Shaper(model, torch.optim.SGD(model.parameters(), 0.1), plan, example=X[:2])
    model(X)
    with pytest.raises(ValueError, match=r"step\(closure\)"):
        shaper.step()
    F.cross_entropy(model(X), Y).backward()
    assert len(shaper.step()) == 1

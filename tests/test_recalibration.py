"""What layers get on average, and how much it varies, is after pruning what running statistics and biases say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regrow as rg
from state import differences, snapshot


def _convolutional(kind: str = "plain") -> Any:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    if kind == "depthwise":
        layers += [nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)]
    layers += [nn.Conv2d(8, 6, 3, padding=1, bias=kind == "biased"), nn.BatchNorm2d(6), nn.ReLU()]
    if kind == "dropout":
        layers.append(nn.Dropout(0.5))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10)).double()


def _perceptron() -> Any:
    return nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 7), nn.GELU(), nn.Linear(7, 4)).double()


def _loss(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(model(x), torch.arange(len(x)) % 3)


def _inputs(model: nn.Module, x: Tensor, of: type) -> list[Tensor]:
    """What modules of a class get in train mode; the model stays as it is."""
    twin, found = copy.deepcopy(model).train(), []
    for module in twin.modules():
        if isinstance(module, of):
            module.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
    twin(x)
    return found


def _outputs(model: nn.Module, x: Tensor, of: type) -> list[Tensor]:
    twin, found = copy.deepcopy(model), []
    for module in twin.modules():
        if isinstance(module, of):
            module.register_forward_hook(lambda _, __, out: found.append(out.detach()))
    twin(x)
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["plain", "biased", "depthwise"])
def test_running_statistics_are_those_of_the_smaller_network(kind: str, training: bool) -> None:
    torch.manual_seed(3)
    model, x = _convolutional(kind), torch.randn(16, 3, 9, 9).double() + 0.3
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.momentum = 1.0
    model(x)  # running statistics are those of x now
    structure = rg.analyze(model, x[:2])
    model.train(training)
    rg.prune_(structure, 5, rg.L1(), loss=_loss(model, x))
    assert sum(axis.size for axis in structure.axes) == 9
    # In eval mode norms divide by running variances, which are those of samples.
    close = 1e-10 if training else 1e-3
    for norm, seen in zip(norms, _inputs(model, x, nn.BatchNorm2d), strict=True):
        torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=close, atol=close)
        torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=close, atol=close)


@pytest.mark.parametrize("batches", [1, 3])
def test_biases_keep_the_means_of_all_layers(batches: int) -> None:
    torch.manual_seed(4)
    model, x = _perceptron(), torch.randn(3, 40, 5).double()
    before = [out.mean(0) for out in _outputs(model, x[:batches].flatten(0, 1), nn.Linear)]
    structure = rg.analyze(model, x[0])
    data = iter(x)
    loss = lambda: model(next(data)).square().mean()  # noqa: E731
    edit = rg.prune_(structure, {"0": 4, "2": 3}, rg.L1(), loss=loss, batches=batches)
    after = [out.mean(0) for out in _outputs(model, x[:batches].flatten(0, 1), nn.Linear)]
    kept = torch.tensor([unit for unit in range(7) if unit not in edit.units("removed")["2"]])
    # Of several batches each is run with a bias that fits that one, and what comes behind isn't linear in it.
    torch.testing.assert_close(after[2], before[2], rtol=0, atol=1e-12 if batches == 1 else 0.02)
    torch.testing.assert_close(after[1], before[1][kept], rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_what_closed_gates_send_is_found_on_data_too(training: bool) -> None:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten()]
    model: Any = nn.Sequential(*layers, nn.Linear(6 * 25, 3)).double()
    x = torch.randn(16, 3, 9, 9).double()
    with torch.no_grad():
        model[1].bias.uniform_(0.5, 1.5)
        model[1].weight[[1, 4, 6]] = 0
    structure = rg.analyze(model, x[:2])
    model.train(training)
    before, saved = copy.deepcopy(model)(x).detach(), snapshot(model)
    random = torch.get_rng_state()
    edit = rg.prune_(structure["0"], rg.Threshold(0.0), rg.L1(), loss=_loss(model, x))
    assert edit.removed == [1, 4, 6]
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(copy.deepcopy(model)(x).detach(), before, rtol=1e-9, atol=1e-9)
    edit.undo_()
    assert differences(saved, snapshot(model)) == []


def test_both_runs_drop_the_same() -> None:
    """The head's mean depends on what is dropped: where nothing else differs, nothing is absorbed."""
    torch.manual_seed(2)
    model, x = _convolutional("dropout"), torch.randn(8, 3, 9, 9).double()
    with torch.no_grad():
        model[4].weight[[0, 3]] = 0
        model[4].bias[[0, 3]] = 0
    structure = rg.analyze(model, x[:2])
    bias = model[-1].bias.detach().clone()
    edit = rg.prune_(structure["3"], rg.Threshold(0.0), rg.L1(), loss=_loss(model, x))
    assert edit.removed == [0, 3]
    assert torch.equal(model[-1].bias, bias)


def test_the_biases_that_autocast_casts_are_found() -> None:
    torch.manual_seed(5)
    model, x = _perceptron().float(), torch.randn(64, 5)
    structure = rg.analyze(model, x[:2])
    before = _outputs(model, x, nn.Linear)[2].mean(0)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float().square().mean()

    rg.prune_(structure["2"], 3, rg.L1(), loss=loss)
    torch.testing.assert_close(_outputs(model, x, nn.Linear)[2].mean(0), before, rtol=0.02, atol=0.02)


def test_a_layer_that_is_used_twice_takes_the_mean_of_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu()) + 2 * self.second(self.first(-x).relu())

    torch.manual_seed(6)
    model, x = Twice().double(), torch.randn(50, 4).double()
    outs = _outputs(model.second, torch.cat([model.first(x).relu(), model.first(-x).relu()]), nn.Linear)
    edit = rg.prune_(rg.analyze(model, x[:2])["first"], 2, rg.L1(), loss=lambda: model(x).square().mean())
    assert len(edit.removed) == 2
    now = _outputs(model.second, torch.cat([model.first(x).relu(), model.first(-x).relu()]), nn.Linear)
    torch.testing.assert_close(now[0].mean(0), outs[0].mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda out: out, ValueError, "returns a scalar"),
        (lambda out: out.mean() * float("nan"), ValueError, "the loss is nan"),
        (lambda out: out.mean().detach(), ValueError, "without a gradient"),
    ],
)
def test_a_loss_that_is_none_changes_nothing(loss: Any, error: type[Exception], message: str) -> None:
    model, x = _convolutional(), torch.randn(8, 3, 9, 9).double()
    structure = rg.analyze(model, x[:2])
    saved = snapshot(model)
    with pytest.raises(error, match=message):
        rg.prune_(structure, 3, rg.L1(), loss=lambda: loss(model(x)))
    assert differences(saved, snapshot(model)) == []
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


class _Wrapped(nn.Module):
    """What is edited is this, what the loss calls is its part, as a training step does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@pytest.mark.parametrize("method", [rg.L1(1e-3), rg.Firefly(steps=2)])
def test_a_loss_that_calls_a_part_of_the_model_is_seen(method: Any) -> None:
    def edited(part: bool) -> dict[str, Tensor]:
        torch.manual_seed(3)
        model, x = _Wrapped(_convolutional("biased")), torch.randn(16, 3, 9, 9).double()
        model(x)
        structure, generator = rg.analyze(model, x[:2]), torch.Generator().manual_seed(0)
        loss = _loss(model.model if part else model, x)
        if isinstance(method, rg.L1):
            rg.prune_(structure, 4, method, loss=loss)
        else:
            rg.grow_(structure, 2, method, loss=loss, generator=generator)
        return model.state_dict()

    whole, part = edited(False), edited(True)
    assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items())


def test_a_loss_that_does_without_the_model_is_refused() -> None:
    model, x = _convolutional(), torch.randn(4, 3, 9, 9).double()
    structure, before = rg.analyze(model, x), snapshot(model)
    other = copy.deepcopy(model)
    with pytest.raises(ValueError, match="calls neither the model"):
        rg.prune_(structure, 4, rg.L1(1e-3), loss=_loss(other, x))
    assert differences(before, snapshot(model)) == []

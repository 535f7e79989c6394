"""A network gets new units in the middle of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import regrow as rg

LR, MOMENTUM = 0.05, 0.9
Batches = Sequence[tuple[Tensor, Tensor]]

#: How GroMo's documentation says to get each method, and one that starts with outgoing weights of zero.
GRADMAX = {"compute_delta": False, "use_covariance": False, "alpha_zero": True, "use_projection": False}
WAYS: Mapping[str, Mapping[str, bool]] = {
    "GradMax": GRADMAX | {"ignore_singular_values": True},
    "TINY": {"compute_delta": False},
    "TINY, outgoing weights zero": {"compute_delta": False, "omega_zero": True},
}


def perceptron() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10))


def gromo_perceptron() -> Any:
    """The same network in GroMo's classes."""
    from gromo.containers.growing_mlp import GrowingMLP

    return GrowingMLP(256, 10, 128, 2, activation=nn.GELU(), device=torch.device("cpu"))


def convnet(activation: type[nn.Module]) -> nn.Module:
    """Two convolutions with batch norm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        activation(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class GromoConvnet(nn.Module):
    """The same network in GroMo's classes, with its second forward, in which new units are tried."""

    def __init__(self, activation: type[nn.Module]) -> None:
        from gromo.modules.conv2d_growing_module import RestrictedConv2dGrowingModule as Conv2d
        from gromo.modules.growing_normalisation import GrowingBatchNorm2d

        super().__init__()
        size: dict[str, Any] = {"padding": 1, "use_bias": False, "input_size": (16, 16), "device": torch.device("cpu")}
        one = nn.Sequential(GrowingBatchNorm2d(16), activation())
        two = nn.Sequential(nn.BatchNorm2d(32), activation())
        self.first = Conv2d(1, 16, 3, post_layer_function=one, **size)
        self.second = Conv2d(16, 32, 3, post_layer_function=two, previous_module=self.first, allow_growing=True, **size)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))

    def extended_forward(self, x: Tensor) -> Tensor:
        z, new = self.first.extended_forward(x)
        return self.head(self.second.extended_forward(z, new)[0])


def gromo_grows(model: Any, layer: Any, units: int, batches: Batches, search: bool, **way: bool) -> Optimizer:
    """GroMo: new units in front of ``layer``."""
    model.eval()
    layer.init_computation()
    for x, y in batches:
        model.zero_grad()
        F.cross_entropy(model(x), y, reduction="sum").backward()
        layer.update_computation()
    layer.compute_optimal_updates(maximum_added_neurons=units, statistical_threshold=0.0, **way)
    layer.reset_computation()
    scale = min((0.0, 0.1, 0.5, 1.0), key=lambda s: gromo_tries(model, layer, s, batches)) if search else 1.0
    layer.apply_change(scaling_factor=scale)
    layer.delete_update()
    model.train()
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)  # the old one holds what is no more


@torch.no_grad()
def gromo_tries(model: Any, layer: Any, scale: float, batches: Batches) -> float:
    """GroMo's line search: the loss if the new units were that large."""
    layer.scaling_factor = scale
    return sum(F.cross_entropy(model.extended_forward(x), y).item() for x, y in batches)


def regrow_grows(model: nn.Module, layer: str, units: int, batches: Batches, method: Any, optimizer: Any) -> rg.Edit:
    """regrow: new units in ``layer``, by its name."""
    draws = iter(batches)

    def loss() -> Tensor:
        x, y = next(draws)
        return F.cross_entropy(model(x), y)

    structure = rg.analyze(model, batches[0][0][:2])
    return rg.grow_(structure[layer], units, method, loss=loss, batches=len(batches), optimizer=optimizer)

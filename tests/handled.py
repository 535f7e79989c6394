"""Models that other tools have made something of, and models that use torch in unusual ways: these are handled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from refused import Fails, Returning, mlp, rows


class WithState(Fails):
    """Doesn't fail, but writes to everything."""

    def __init__(self) -> None:
        super().__init__("never")


def compiled(make: Callable[[], nn.Module] = mlp) -> nn.Module:
    model: Any = torch.compile(make(), backend="eager")
    return model


def compiled_in_place() -> nn.Module:
    model = mlp()
    model.compile(backend="eager")
    return model


def compiled_part() -> nn.Module:
    model = mlp()
    model[2] = torch.compile(model[2], backend="eager")
    return model


def compiled_function() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), Returning(torch.compile(torch.tanh, backend="eager")))
    model[1].first = nn.Linear(8, 7)
    model[1].last = nn.Linear(7, 4)
    return model


def used(make: Callable[[], nn.Module]) -> nn.Module:
    """It has been compiled, and has run."""
    model = make()
    model(rows())
    return model


def scripted_activation() -> nn.Module:
    model = mlp()
    model[1] = torch.jit.script(nn.ReLU())
    return model


def quantised_part() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *mlp()[2:], nn.ReLU(), nn.Linear(4, 3))
    model[2] = torch.ao.quantization.quantize_dynamic(nn.Sequential(model[2]), {nn.Linear})[0]
    return model


class IntegerWeights(nn.Module):
    """Whole numbers and a scale for each row, as quantised weights are kept."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 127, (outs, ins), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(outs, 1))
        self.weight: Tensor
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype))


class Nibbles(nn.Module):
    """Two weights of four bits to a byte."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.register_buffer("packed", torch.randint(0, 255, (outs, ins // 2), dtype=torch.uint8))
        self.packed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.stack([self.packed & 15, self.packed >> 4], -1).flatten(1).to(x.dtype) - 8
        return F.linear(x, weight)


def integers() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), IntegerWeights(8, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 4))


def nibbles() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Nibbles(8, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 4))


def masked() -> nn.Module:
    """Under torch's own pruning: single weights, whole rows, a bias, and twice."""
    model = mlp()
    torch_prune.l1_unstructured(model[2], "weight", 0.5)
    torch_prune.random_structured(model[2], "weight", 0.25, dim=0)
    torch_prune.ln_structured(model[0], "weight", 0.25, n=2, dim=0)
    torch_prune.l1_unstructured(model[0], "bias", 0.2)
    return model


class LoRA(nn.Module):
    """A low-rank adapter by hand, around a frozen layer."""

    def __init__(self, base: nn.Linear, rank: int = 3) -> None:
        super().__init__()
        self.base, self.scaling = base.requires_grad_(False), 2.0 / rank
        self.in_features, self.out_features, self.rank = base.in_features, base.out_features, rank
        self.a, self.b = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x)) * self.scaling


def adapted_by_hand() -> nn.Module:
    model = mlp()
    model[0], model[2] = LoRA(model[0]), LoRA(model[2])
    return model


def adapted(**options: Any) -> nn.Module:
    """By the library that people use."""
    model: Any = peft.get_peft_model(mlp(), peft.LoraConfig(r=3, target_modules=["0", "2"], **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def adapted_and_merged() -> nn.Module:
    model: Any = adapted()
    return model.merge_and_unload()


def without_units() -> nn.Module:
    """A layer of no width between others."""
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Beside(nn.Linear(8, 0), nn.Linear(0, 7)), nn.Linear(7, 4))


class Beside(nn.Module):
    """What a layer of no width sends is its bias."""

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down, self.up, self.main = down, up, nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.up(self.down(x))


def picks_nothing() -> nn.Module:
    """A mask that picks no row."""
    return nn.Sequential(nn.Linear(6, 8), Picks(), nn.Linear(8, 4))


class Picks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.extra(x[x.sum(1) > 1e6]).sum(0)


def lazy_and_run() -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(4))
    model(rows())
    return model


#: What is handled, with the sizes of the axes.
HANDLED: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "writes to everything": (WithState, [8]),
    "compiled": (compiled, [8, 7]),
    "compiled and run": (lambda: used(compiled), [8, 7]),
    "compiled in place": (compiled_in_place, [8, 7]),
    "compiled in place and run": (lambda: used(compiled_in_place), [8, 7]),
    "compiled part": (compiled_part, [8, 7]),
    "compiled function": (compiled_function, [8, 7]),
    "scripted activation": (scripted_activation, [8, 7]),
    "quantised part": (quantised_part, [4]),
    "whole numbers": (integers, [8, 7, 5]),
    "half bytes": (nibbles, [4, 7, 5]),
    "masked": (masked, [8, 7]),
    "adapted by hand": (adapted_by_hand, [8, 3, 7, 3]),
    "adapted": (adapted, [8, 3, 7, 3]),
    "adapted by direction": (lambda: adapted(use_dora=True), [3, 7, 3]),
    "adapted and merged": (adapted_and_merged, [8, 7]),
    "without units": (without_units, [8, 7]),
    "picks nothing": (picks_nothing, [8]),
    "lazy and run": (lazy_and_run, [8]),
    "half precision": (lambda: mlp().bfloat16(), [8, 7]),
}

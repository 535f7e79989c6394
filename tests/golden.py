"""The reference growers' outputs as torch networks; see the README beside the files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[2] / "shared" / "golden"

CASES = ("dense_relu", "dense_bn_relu", "conv_valid", "conv_s1s1", "conv_bn_relu")
#: Where the reference's growth matrix is the exact one.
EXACT = ("dense_relu", "dense_bn_relu", "conv_valid")


class Relu(nn.Module):
    """max(x, 0) whose derivative at 0 is 1, as the reference has it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, x, torch.zeros_like(x))


@dataclass
class Golden:
    """One run of a reference grower: its arrays, and the network before as a torch module in float64."""

    arrays: Any
    meta: dict[str, Any]
    net: Any
    x: Tensor
    y: Tensor

    @classmethod
    def read(cls, case: str, run: str) -> Golden:
        path = FOLDER / f"{case}__{run}.npz"
        if not path.exists():
            pytest.skip(f"the reference outputs aren't here: {path.name}")
        arrays = np.load(path)
        meta = json.loads(str(arrays["meta"]))
        x, y = (_image(torch.tensor(arrays[k])).double() for k in ("x", "y"))
        return cls(arrays, meta, _network(arrays, meta), x, y)

    def loss(self) -> Tensor:
        return (self.net(self.x) - self.y).square().mean()

    def weight(self, key: str) -> Tensor:
        """A kernel of the reference in torch's layout."""
        return _weight(torch.tensor(self.arrays[key])).double()


def _image(array: Tensor) -> Tensor:
    return array.permute(0, 3, 1, 2).contiguous() if array.ndim == 4 else array


def _weight(array: Tensor) -> Tensor:
    return array.permute(3, 2, 0, 1).contiguous() if array.ndim == 4 else array.T.contiguous()


def _network(arrays: Any, meta: dict[str, Any]) -> nn.Sequential:
    weights = [_weight(torch.tensor(arrays[f"before__{layer}__kernel"])).double() for layer in ("first", "last")]
    conv = weights[0].ndim == 4
    layers: list[nn.Module] = []
    for weight, padding in zip(weights, (meta["padding"][0], meta["padding"][-1]), strict=True):
        out, into, *kernel = weight.shape
        if conv:
            layers.append(nn.Conv2d(into, out, kernel[0], padding=1 if padding == "same" else 0, bias=False))
        else:
            layers.append(nn.Linear(into, out, bias=False))
        layers[-1].double().weight = nn.Parameter(weight)
    between: list[nn.Module] = [Relu()]
    if "before__bn__gamma" in arrays:
        norm = (nn.BatchNorm2d if conv else nn.BatchNorm1d)(len(weights[0])).double()
        names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
        norm.load_state_dict(
            {ours: torch.tensor(arrays[f"before__bn__{theirs}"]).double() for theirs, ours in names.items()},
            strict=False,
        )
        between.insert(0, norm)
    return nn.Sequential(layers[0], *between, layers[1])

"""Weights that are computed from other parameters: parametrisations."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from .family import Family, vectors


def parametrised(wrap: Callable[[nn.Module], nn.Module], norm: bool = False) -> Callable[[], nn.Module]:
    """Three layers, the one in the middle with a computed weight."""

    def build() -> nn.Module:
        middle = nn.Sequential(wrap(nn.Linear(8, 7)), nn.LayerNorm(7) if norm else nn.Identity())
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), middle, nn.ReLU(), nn.Linear(7, 4))

    return build


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # there is a newer one
        return nn.utils.weight_norm(layer)


def everywhere(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(wrap(nn.Linear(6, 8)), nn.ReLU(), wrap(nn.Linear(8, 4)))


class Symmetric(nn.Module):
    """A parametrisation whose rows are its columns."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


class Exponential(nn.Module):
    """Positive weights: no finite value of the parameter sends zero."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.exp()


def symmetric() -> nn.Module:
    middle = parametrize.register_parametrization(nn.Linear(8, 8), "weight", Symmetric())
    return nn.Sequential(nn.Linear(6, 8), middle, nn.Linear(8, 4))


def by_columns(layer: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(layer, dim=1)


def exponential(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Exponential())


FAMILIES = [
    Family(
        "weight_norm",
        parametrised(parametrizations.weight_norm),
        vectors(),
        """
        0   | neuron 8 | | 0.{weight,bias} 2.0.parametrizations.weight.original1:1
        2.0 | neuron 7 | | 2.0.parametrizations.weight.{original0,original1} 2.0.bias 4.weight:1
    """,
    ),
    Family(
        "weight_norm_all",
        everywhere(parametrizations.weight_norm),
        vectors(),
        """
        0 | neuron 8 | | 0.parametrizations.weight.{original0,original1} 0.bias 2.parametrizations.weight.original1:1
    """,
    ),
    # Each input has a length of its own, which runs over the outputs: more outputs, shorter weights.
    Family(
        "weight_norm_columns",
        parametrised(by_columns),
        vectors(),
        """
        0   | neuron 8 |         | 0.{weight,bias} 2.0.parametrizations.weight.{original0,original1}:1
        2.0 | neuron 7 | inexact | 2.0.parametrizations.weight.original1 2.0.bias 4.weight:1
    """,
    ),
    Family(
        "weight_norm_old",
        parametrised(old_weight_norm),
        vectors(),
        """
        0   | neuron 8 | | 0.{weight,bias} 2.0.weight_v:1
        2.0 | neuron 7 | | 2.0.{weight_g,weight_v,bias} 4.weight:1
    """,
    ),
    Family(
        "spectral_norm",
        parametrised(parametrizations.spectral_norm),
        vectors(),
        """
        0   | neuron 8 | inexact | 0.{weight,bias} 2.0.parametrizations.weight.{original:1,0._v}
        2.0 | neuron 7 | inexact | 2.0.parametrizations.weight.{original,0._u} 2.0.bias 4.weight:1
    """,
    ),
    Family(
        "spectral_norm_old",
        parametrised(nn.utils.spectral_norm),
        vectors(),
        """
        0   | neuron 8 | inexact | 0.{weight,bias} 2.0.{weight_orig:1,weight_v}
        2.0 | neuron 7 | inexact | 2.0.{weight_orig,weight_u,bias} 4.weight:1
    """,
    ),
    # Rows of the base are columns of the weight; its other side is turned by a product of reflections.
    Family(
        "orthogonal",
        parametrised(parametrizations.orthogonal),
        vectors(),
        """
        0 | neuron 8 | | 0.{weight,bias} 2.0.parametrizations.weight.0.base
    """,
        unknown="linalg_householder_product",
    ),
    Family(
        "symmetric",
        symmetric,
        vectors(),
        """
        0 | neuron 8 | | 0.{weight,bias} 1.parametrizations.weight.{original,original:1} 1.bias 2.weight:1
    """,
    ),
    Family(
        "exponential",
        everywhere(exponential),
        lambda: (torch.rand(3, 6),),
        """
        0 | neuron 8 | inexact | {0,2:1}.parametrizations.weight.original 0.bias
    """.replace(
            "{0,2:1}.parametrizations.weight.original",
            "0.parametrizations.weight.original 2.parametrizations.weight.original:1",
        ),
    ),
]

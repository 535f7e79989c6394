"""Amounts that follow from the scores or from what is left, instead of being numbers of units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .structure import Axis, Entry, Structure
from .structure.example import named_tensors
from .structure.maps import plan


@dataclass(frozen=True)
class Threshold:
    """An amount to prune: all units whose score isn't above ``value``, in all axes alike.

    >>> import regrow as rg
    >>> rg.Prune(rg.L1(1e-4), rg.Threshold(0.01))
    Prune(method=L1(strength=0.0001, grace=100, absorb=True), amount=Threshold(value=0.01), where='*', round_to=1, \
min_size=None, max_size=None, protect=(), batches=1, kind=None)

    Raises:
        TypeError: An option is of the wrong kind.
        ValueError: An option is none of what is said above.
    """

    value: float

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise TypeError(f"a threshold is a finite number, not {self.value!r}.")
        if not math.isfinite(self.value):
            raise ValueError(f"a threshold is a finite number, not {self.value!r}.")

    def of(self, scores: Tensor) -> float:
        """The largest score that goes."""
        return self.value


@dataclass(frozen=True)
class Valley:
    """An amount to prune: in each axis by itself, the units below the first valley of the histogram of scores.

    The histogram has ``bins`` bins on (0, 1); its first valley is the first bin, behind the first that isn't empty,
    with no more scores than the one before it and the one behind. Units whose score isn't above its lower edge go, if
    any are above it.

    Zhuang et al., "Neuron-level Structured Pruning using Polarization Regularizer" (NeurIPS 2020).

    Raises:
        ValueError: An option is none of what is said above.
    """

    bins: int = 100

    def __post_init__(self) -> None:
        if isinstance(self.bins, bool) or not isinstance(self.bins, int) or self.bins < 3:
            raise ValueError(f"bins is an integer of at least 3, not {self.bins!r}.")

    def of(self, scores: Tensor) -> float:
        """The largest score that goes; −1 if there is no valley.

        >>> import torch
        >>> Valley().of(torch.tensor([0.0, 0.001, 0.002, 0.7, 0.71]))
        0.01
        """
        counts = torch.histc(scores.float().clamp(0, 1), self.bins, 0.0, 1.0)
        steps, first = counts.diff(), int(counts.nonzero()[0])
        valleys = ((steps[:-1] <= 0) & (steps[1:] >= 0)).nonzero().flatten() + 1
        valleys = valleys[valleys > first]
        return int(valleys[0]) / self.bins if len(valleys) and counts[valleys[0] :].any() else -1.0


#: A larger float is a number, such as :meth:`regrow.Structure.flops` returns: no model grows that much at once.
MOST_MULTIPLES = 1000.0


def is_multiple(value: float) -> bool:
    """Whether a size is told as a multiple of the present one, and not as a number.

    >>> is_multiple(2.0), is_multiple(2), is_multiple(3.6e9)
    (True, False, False)
    """
    return isinstance(value, float) and value <= MOST_MULTIPLES


@dataclass(frozen=True)
class Budget:
    """An amount that follows from what the model may have afterwards.

    To prune, it is as few units as possible, lowest scores first, until what is left is within the budget. To grow, it
    is as many as fit, a like fraction of each axis.

    Args:
        params: Parameters of the model: a number (int), or a fraction of those that it has when it is edited (float
            below 1 to prune, above 1 to grow; above 1000 it is a number).
        flops: FLOPs of a forward pass on the analysed example: a number, or a fraction of the present one.
        latency: Seconds of such a pass in eval mode where the model is, by measuring edited models; only to prune.

    Raises:
        ValueError: An option is none of what is said above.
    """

    params: int | float | None = None
    flops: int | float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        if self.params is None and self.flops is None and self.latency is None:
            raise ValueError("a budget is of params, flops or latency; give one.")
        for name in ("params", "flops", "latency"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not math.isfinite(value) or value <= 0):
                raise ValueError(f"{name} is a positive number, or a fraction, not {value!r}.")

    def absolute(self, structure: Structure, growing: bool = False) -> Mapping[str, float]:
        """The limits of parameters and FLOPs as numbers."""
        now = sizes_with(structure, {})
        given = {"params": self.params, "flops": self.flops}
        return {
            name: value * now[name] if is_multiple(value) and (growing or value < 1) else float(value)
            for name, value in given.items()
            if value is not None
        }


#: Amounts that compare each score with a number.
Cutoff = Threshold | Valley


def sizes_after(structure: Structure, removed: Mapping[Axis, Sequence[int]]) -> dict[str, float]:
    """Parameters and FLOPs of a structure's model when these units have gone: "params" and "flops"."""
    return sizes_with(structure, {axis: np.setdiff1d(np.arange(axis.size), units) for axis, units in removed.items()})


def sizes_with(structure: Structure, maps: Mapping[Axis, np.ndarray]) -> dict[str, float]:
    """The same when index maps are applied."""
    tensors = named_tensors(structure.model)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for (name, dim), place in plan(structure.axes, maps).items():
        if isinstance(place.places[0], Entry):
            shapes[name][dim] = len(place.take)
    params = sum(math.prod(shape) for name, shape in shapes.items() if isinstance(tensors[name], nn.Parameter))
    return {"params": params, "flops": structure.flops(shapes)}

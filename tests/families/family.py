"""What a family of networks is: a small network, its input, and its axes as known by hand."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reading import NORM


@dataclass(frozen=True)
class Known:
    """One axis as known by hand: what :class:`regrow.Axis` should say of itself."""

    name: str
    kind: str
    size: int
    remarks: frozenset[str]
    places: frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Family:
    """A network of one family.

    Args:
        axes: ``name | kind size | remarks | places`` for each axis; places may go on in further lines. Remarks are
            tags, "inexact", "unprunable" and "ungrowable". A place is a tensor's name, with ``:dim`` unless that is 0;
            ``{a,b}`` stands for each of a and b, and ``norm.*`` for scale, shift and statistics.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], tuple[Tensor, ...]]
    axes: str
    unknown: str = ""  # operators without a rule, separated by spaces

    @property
    def known(self) -> list[Known]:
        """The axes, in execution order."""
        lines = [
            re.split(r"[ \n]*\|[ \n]*", item)
            for item in re.split(r"\n *(?=[^\n|]*\|)", "\n" + self.axes)
            if "|" in item
        ]
        return [_known(*line) for line in lines]

    def model(self, dtype: torch.dtype = torch.float64) -> Any:
        """The network, in train mode, with seeded values of which none is a convenient 0 or 1."""
        torch.manual_seed(0)
        model = self.build().to(dtype)
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if tensor.is_floating_point() and not name.endswith(("_u", "_v")):
                    tensor.add_(torch.rand_like(tensor), alpha=0.2)
        return model

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """The same ones at each call."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(1)
            return tuple(x.to(dtype) if x.is_floating_point() else x for x in self.example())


def _known(name: str, what: str, remarks: str, places: str) -> Known:
    kind, size = what.split()
    found = [place for item in places.split() for place in _expanded(item)]
    assert len(found) == len(set(found)), f"{name} names a place twice"
    return Known(name.strip(), kind, int(size), frozenset(remarks.split()), frozenset(found))


def _expanded(item: str) -> list[tuple[str, int]]:
    """The places that an abbreviation stands for."""
    parts = [part.split(",") for part in re.split(r"[{}]", item.replace(".*", f".{{{','.join(NORM)}}}"))]
    names = ["".join(chosen) for chosen in itertools.product(*parts)]
    return [(name.partition(":")[0], int(name.partition(":")[2] or 0)) for name in names]


def tokens(width: int = 6, length: int = 5) -> Callable[[], tuple[Tensor, ...]]:
    """Two sequences of vectors."""
    return lambda: (torch.randn(2, length, width),)


def images(channels: int = 3, size: int = 8) -> Callable[[], tuple[Tensor, ...]]:
    """Two images."""
    return lambda: (torch.randn(2, channels, size, size),)


def vectors(width: int = 6, rows: int = 3) -> Callable[[], tuple[Tensor, ...]]:
    """A few vectors."""
    return lambda: (torch.randn(rows, width),)

"""Reading a structure: footprints that can be compared, and single places."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from torch import nn

import regrow as rg
import zoo

Place = tuple[str, int, tuple[int, ...]]  # tensor name, dim, the unit of each index


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every tensor name -> the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def footprint(axis: rg.Axis, names: dict[str, str]) -> frozenset[Place]:
    return frozenset((names[e.name], e.dim, tuple(e.unit_of.tolist())) for e in axis.entries)


def footprints(structure: rg.Structure) -> set[tuple[int, frozenset[Place]]]:
    """Size and footprint of each axis; axes with the same ones would be one axis."""
    names = canonical_names(structure.model)
    found = [(axis.size, footprint(axis, names)) for axis in structure.axes]
    assert len(found) == len(set(found))
    return set(found)


def roles(structure: rg.Structure) -> set[tuple[str, int, str]]:
    names = canonical_names(structure.model)
    return {(names[e.name], e.dim, e.role) for axis in structure.axes for e in axis.entries}


@cache
def analyzed(name: str, variant: str = "module") -> rg.Structure:
    """The structure of a law model; tests only read it."""
    return rg.analyze(zoo.build(name, variant), zoo.example(name))


def axis_with(structure: rg.Structure, *places: tuple[str, int], without: tuple[str, int] | None = None) -> rg.Axis:
    """The only axis whose footprint has all these places (and lacks that one)."""
    lying = {axis: {(e.name, e.dim) for e in axis.entries} for axis in structure.axes}
    found = [axis for axis, its in lying.items() if its >= set(places) and without not in its]
    assert len(found) == 1, f"{places}: {[axis.name for axis in found]}"
    return found[0]


def units_along(axis: rg.Axis, name: str, dim: int) -> list[int]:
    """The unit of each index of one dimension of one tensor."""
    [entry] = [e for e in axis.entries if (e.name, e.dim) == (name, dim)]
    return entry.unit_of.tolist()


#: The unit of an index that belongs to no unit of an axis.
NONE = -1

NORM = ("weight", "bias", "running_mean", "running_var")


def along(units: Iterable[int], *tensors: str) -> set[Place]:
    """Places ``"name:dim"`` (``dim`` 0 if left out) along which the units lie as given."""
    split = [(tensor.partition(":")[0], int(tensor.partition(":")[2] or 0)) for tensor in tensors]
    return {(name, dim, tuple(units)) for name, dim in split}


def norm(name: str) -> tuple[str, ...]:
    return tuple(f"{name}.{tensor}" for tensor in NORM)

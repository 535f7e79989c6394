"""Small networks, one of each family that people build, with their axes as known by hand."""

from __future__ import annotations

from . import (
    attention,
    control,
    convolution,
    experts,
    gating,
    movement,
    normalisation,
    parametrised,
    recurrent,
    shared,
    transformer,
    wider,
)
from .family import Family, Known

__all__ = ["FAMILIES", "Family", "Known"]

_MODULES = (
    attention, transformer, convolution, normalisation, movement, gating, recurrent, parametrised, shared, control,
    experts, wider,
)  # fmt: skip
FAMILIES: dict[str, Family] = {family.name: family for module in _MODULES for family in module.FAMILIES}
assert len(FAMILIES) == sum(len(module.FAMILIES) for module in _MODULES)

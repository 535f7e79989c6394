"""An axis: units that may come or go independently, and every place in the model that follows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .integers import Integer

if TYPE_CHECKING:
    from . import Structure


@dataclass(frozen=True)
class Verdict:
    """Yes, or no with a reason; usable as a bool."""

    holds: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.holds

    def __repr__(self) -> str:
        return "yes" if self.holds else f"no: {self.reason}"


YES = Verdict(True)

#: Axes at the model's boundary have these tags; they can only grow, and only where they are named.
BOUNDARY = frozenset({"input", "output"})

#: What an axis is made of, and what it may be besides.
KINDS = ("neuron", "head", "feature")
TAGS = frozenset({"group", "stream", "embedding", *BOUNDARY})


def holder(tensor: str) -> str:
    """The name of the module that a tensor of that name belongs to."""
    return tensor.rpartition(".")[0]


def read_as(tensor: str) -> str:
    """The name by which a layer's code reads a tensor: what a parametrisation keeps is read as what it computes.

    >>> read_as("last.parametrizations.weight.original"), read_as("last.bias")
    ('last.weight', 'last.bias')
    """
    return re.sub(r"(^|\.)parametrizations\.([^.]+)\..*", r"\1\2", tensor)


@dataclass(eq=False)
class Place:
    """Something with a length that follows an axis.

    ``unit_of[i]`` is the unit that index ``i`` belongs to, or -1. The indices of a unit lie in runs of ``run``
    neighbours; all units in turn make a cycle, and a place is one or more cycles, perhaps with other indices
    before, between and after.
    """

    unit_of: Tensor
    run: int
    _whole: tuple[Tensor, bool] | None = field(default=None, init=False, repr=False)

    @property
    def whole(self) -> bool:
        """Whether every index belongs to a unit."""
        if self._whole is None or self._whole[0] is not self.unit_of:  # kept, as penalties ask at every step
            self._whole = self.unit_of, bool((self.unit_of >= 0).all())
        return self._whole[1]

    @property
    def key(self) -> tuple[str, int]:
        """Places of different axes with the same key are the same place."""
        raise NotImplementedError


@dataclass(eq=False)
class Entry(Place):
    """One dimension of one parameter or buffer.

    ``role`` is what the tensor does to the units: "out" (its rows produce them), "in" (its columns consume
    them), "tied" (it does both), "scale", "shift", "mean" or "var" (of a normalisation), or "free" (none of these).

    ``summed`` tells which indices produce what is added up with no weight between, as a query's features are: a new
    unit sends nothing only where these are zero. None stands for no index. Where ``nonzero`` holds the tensor is
    divided by its own length, or another that it gives, and can't be zero.
    """

    name: str
    owner: nn.Module = field(repr=False)
    attribute: str = field(repr=False)
    dim: int = 0
    role: str = "free"
    summed: Tensor | None = field(default=None, repr=False)
    nonzero: bool = field(default=False, repr=False)

    @property
    def tensor(self) -> Tensor:
        """The parameter or buffer as it is now."""
        store = self.owner._parameters if self.attribute in self.owner._parameters else self.owner._buffers
        tensor = store[self.attribute]
        assert tensor is not None
        return tensor

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.dim

    def indices(self, units: Sequence[int] | Tensor) -> Tensor:
        """The indices along ``dim`` that belong to ``units``."""
        wanted = torch.isin(self.unit_of, torch.as_tensor(units, dtype=torch.long))
        return wanted.nonzero().squeeze(1).to(self.tensor.device)

    def own_indices(self) -> Tensor:
        """The indices along ``dim`` that belong to any unit."""
        return (self.unit_of >= 0).nonzero().squeeze(1).to(self.tensor.device)

    def by_unit(self, values: Tensor, size: int) -> Tensor:
        """Mean over each unit's indices of ``values``, a vector along ``dim``; shape ``(size,)``."""
        inside = self.unit_of >= 0
        units = self.unit_of[inside].to(values.device)
        sums = values.new_zeros(size).index_add(0, units, values[inside.to(values.device)])
        return sums / torch.bincount(units, minlength=size).clamp(min=1)


@dataclass(eq=False)
class Count(Place):
    """A Python integer that counts what follows an axis, such as a convolution's ``groups``.

    It is an attribute of a module or of a configuration object, or one item of a tuple, list or dict that is.
    """

    name: str  # of the module
    integer: Integer

    @property
    def owner(self) -> Any:
        """The module or the configuration object."""
        return self.integer.holder

    @property
    def attribute(self) -> str:
        return self.integer.attribute

    @property
    def key(self) -> tuple[str, int]:
        """Modules that share a configuration object share its integers."""
        if self.integer.within:
            return f"{type(self.owner).__name__} at {id(self.owner)}: {self.integer.name}", -1
        return f"{self.name}.{self.integer.name}", -1

    def attribute_with(self, count: int) -> Any:
        """What the attribute has to be for the count to be ``count``."""
        return self.integer.attribute_with(count)


@dataclass(eq=False)
class Axis:
    """Units of one kind: whatever subset of them goes, the network stays well-formed.

    Args:
        name: By the module (or tensor) that produces the units; unique in its structure.
        kind: "neuron"; "head" where a unit is a whole row of features or channels (an attention head, a convolution's
            group); "feature" where it is one feature of each attention head.
        size: How many units there are now; follows every edit and undo.
        entries: Each dimension of each parameter and buffer that follows the units.
        counts: Each Python integer that follows them.
        tags: What else they are: "group" (of a convolution or a group norm), "stream" (data are added along them),
            "embedding", "output" and "input" (at the model's boundary, where they were asked for).
        inputs: Each dimension of the model's inputs that follows the units.
        prunable, growable, exact: A :class:`Verdict` each. An axis is exact where a unit that sends nothing can
            come or go without moving the output.
    """

    name: str
    kind: str
    size: int
    entries: tuple[Entry, ...]
    counts: tuple[Count, ...] = ()
    tags: frozenset[str] = frozenset()
    prunable: Verdict = YES
    growable: Verdict = YES
    exact: Verdict = YES
    inputs: tuple[Place, ...] = ()
    structure: Structure = field(init=False, repr=False)

    def with_role(self, *roles: str) -> tuple[Entry, ...]:
        """The entries that have one of these roles."""
        return tuple(e for e in self.entries if e.role in roles)

    @property
    def places(self) -> tuple[Place, ...]:
        """Everything with a length that follows the axis: tensors, integers, and inputs of calls."""
        return (*self.entries, *self.counts, *self.inputs)

    @property
    def params(self) -> int:
        """Parameters that leave with one unit; where units differ, their mean, rounded."""
        return round(sum(lost for _, lost in self._lost()))

    @property
    def flops(self) -> float:
        """FLOPs of a forward pass on the analysed example that leave with one unit; see :meth:`Structure.flops`."""
        by_element = sum(self.structure.flops_per(tensor) * lost for tensor, lost in self._lost())
        by_index = (self.structure.flops_per(e.name, e.dim) * int((e.unit_of >= 0).sum()) for e in self.entries)
        return by_element + sum(by_index) / self.size

    def _lost(self) -> Iterator[tuple[str, float]]:
        """Parameters with the number of their elements that leave with one unit."""
        left: dict[str, float] = {}
        numbers = {}
        for entry in self.entries:
            if isinstance(entry.tensor, nn.Parameter):
                share = int((entry.unit_of >= 0).sum()) / (self.size * len(entry.unit_of))
                left[entry.name] = left.get(entry.name, 1.0) * (1 - share)
                numbers[entry.name] = entry.tensor.numel()
        for name, share in left.items():
            yield name, numbers[name] * (1 - share)

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the modules and tensors that this axis can be asked for by, the naming one first."""
        tensors = [name for e in self.with_role("out", "tied") for name in dict.fromkeys((read_as(e.name), e.name))]
        modules = {holder(tensor) for tensor in tensors}
        shifts = [e.name for e in self.with_role("shift") if holder(read_as(e.name)) in modules]
        return tuple(dict.fromkeys(n for tensor in [*tensors, *shifts] for n in (holder(tensor), tensor) if n))

    def check_units(self, units: Iterable[int]) -> list[int]:
        """``units`` as a sorted list of distinct indices of this axis.

        Raises:
            TypeError: An index is not an integer.
            ValueError: An index is out of range or given twice.
        """
        given = units.tolist() if isinstance(units, (Tensor, np.ndarray)) else list(units)
        given = [int(unit) if isinstance(unit, np.integer) else unit for unit in given]
        for unit in given:
            if isinstance(unit, bool) or not isinstance(unit, int):
                raise TypeError(f"units of {self.name} are integers from 0 to {self.size - 1}, not {unit!r}.")
            if not 0 <= unit < self.size:
                raise ValueError(f"{self.name} has units 0 to {self.size - 1}; there is no unit {unit}.")
        if len(set(given)) < len(given):
            raise ValueError(f"a unit of {self.name} was named twice in {given}.")
        return sorted(given)

    @torch.no_grad()
    def silence_(self, units: Iterable[int]) -> None:
        """Make these units send zero to all that reads them, in place: see :attr:`silencing`.

        Raises:
            TypeError, ValueError: As :meth:`check_units`.
        """
        chosen = self.check_units(units)
        for entry in self.silencing:
            entry.tensor.index_fill_(entry.dim, entry.indices(chosen), 0.0)

    @property
    def silencing(self) -> tuple[Entry, ...]:
        """The entries that are zero where a unit is silent: producers, scales, shifts and consumers.

        Running statistics stay, and so does what is divided by: all results stay finite.
        """
        return tuple(e for e in self.with_role("out", "tied", "scale", "shift", "in") if not e.nonzero)

    def __str__(self) -> str:
        return f"{self.name}: {self.size} {self.kind}s"

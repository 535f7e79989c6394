"""Never silently wrong: awkward nets, and random ones whose units are known by force."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import awkward
import regrow as rg
from reading import NONE
from state import outputs, relative_change

# --------------------------------------------------------------------------------------------------
# never silently wrong


@pytest.mark.parametrize("name", awkward.NAMES)
def test_removing_a_unit_is_silencing_it_or_refused(name: str) -> None:
    """Whatever the code does with positions and sizes: what is offered as exact is exact."""
    x = awkward.example()
    for axis in rg.analyze(awkward.build(name), x).axes:
        if not axis.prunable:
            assert axis.prunable.reason
            continue
        for units in ([0], [axis.size // 2], [axis.size - 1], [0, axis.size - 1][: axis.size - 1]):
            model = awkward.build(name)
            here = rg.analyze(model, x)[axis.name]
            here.silence_(units)
            silent = outputs(model, x)
            try:
                rg.prune_(here, units)
            except rg.NotPermissible:
                continue
            pruned = outputs(model, x)
            assert pruned["eval"].shape == silent["eval"].shape
            if here.exact:
                assert relative_change(silent, pruned) < 1e-12, (here, units)


@pytest.mark.parametrize("name", awkward.NAMES)
def test_growing_keeps_the_function_or_is_refused(name: str) -> None:
    x = awkward.example()
    for axis in rg.analyze(awkward.build(name), x).axes:
        if not axis.growable:
            assert axis.growable.reason
            continue
        model = awkward.build(name)
        here = rg.analyze(model, x)[axis.name]
        before = outputs(model, x)
        try:
            edit = rg.grow_(here, 2, generator=torch.Generator().manual_seed(0))
        except rg.NotPermissible:
            continue
        assert here.size == axis.size + 2
        after = outputs(model, x)
        assert after["eval"].shape == before["eval"].shape
        if here.exact:
            assert relative_change(before, after) < 1e-12, here
            if not here.prunable:
                continue
            here.silence_(edit.new)
            silent = outputs(model, x)
            rg.prune_(here, edit.new)
            assert relative_change(silent, outputs(model, x)) < 1e-12, here


@pytest.mark.parametrize("name", sorted(awkward.INEXACT))
def test_an_axis_called_inexact_moves_the_output(name: str) -> None:
    """An inexact axis says why, and removing a silent unit of it does change the function; else it is frozen."""
    x, model = awkward.example(), awkward.build(name)
    structure = rg.analyze(model, x)
    if not structure.axes:
        assert ("first.weight", 0) in {(f.name, f.dim) for f in structure.frozen}
        return
    [axis] = structure.axes
    assert not axis.exact
    assert axis.exact.reason
    axis.silence_([1, 6])
    silent = outputs(model, x)
    rg.prune_(axis, [1, 6])
    assert relative_change(silent, outputs(model, x)) > 1e-6


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("chunked_gate", [4]), ("repeated", [8]), ("doubled", [8]), ("padded", [8]), ("shaped_heads", [4]),
        ("shaped_features", [4]), ("literal_view", []), ("literal_heads", []), ("permuted", []), ("constant", []),
        ("averaged", [8]), ("largest", [8]), ("divided_by_width", [8]), ("written_in_parts", [8]),
        ("written_beside_numbers", []), ("Chosen", [8]), ("decided_by_size", [4]), ("empty_rest", [4]),
    ],
)  # fmt: skip
def test_awkward_nets_have_the_axes_known_by_hand(name: str, sizes: list[int]) -> None:
    structure = rg.analyze(awkward.build(name), awkward.example())
    offered = [axis for axis in structure.axes if axis.prunable and axis.growable]
    assert [axis.size for axis in offered] == sizes
    if offered:
        return
    reasons = {f.name: f.reason for f in structure.frozen if f.dim == 0}
    reasons |= {axis.entries[0].name: axis.prunable.reason for axis in structure.axes}
    assert reasons["first.weight"]


# --------------------------------------------------------------------------------------------------
# by force: random nets whose classes are known while they are built


@dataclass
class Reference:
    """A random net of linear layers, sums, products and concatenations, and the classes of its features."""

    parents: dict[tuple[str, int, int], tuple[str, int, int]] = field(default_factory=dict)

    def find(self, place: tuple[str, int, int]) -> tuple[str, int, int]:
        self.parents.setdefault(place, place)
        while self.parents[place] != place:
            place = self.parents[place]
        return place

    def join(self, ones: list[tuple[str, int, int]], others: list[tuple[str, int, int]]) -> None:
        for one, other in zip(ones, others, strict=True):
            self.parents[self.find(one)] = self.find(other)

    def units(self) -> set[frozenset[tuple[str, int, int]]]:
        classes: dict[tuple[str, int, int], set[tuple[str, int, int]]] = {}
        for place in list(self.parents):
            classes.setdefault(self.find(place), set()).add(place)
        return {frozenset(places) for places in classes.values() if ("fixed", 0, 0) not in places}


Step = tuple[str, int, int]  # operation, and the values it reads or the width it makes


class Program(nn.Module):
    """Executes steps on a growing list of values; the last values are summed over a common output."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.reference = Reference()
        self.steps: list[tuple[str, int, int]] = []
        self.layers = nn.ModuleDict()
        fixed = ("fixed", 0, 0)
        known = [[fixed] * 4]
        for operation, one, other in steps:
            one %= len(known)
            match operation:
                case "linear":
                    width = 2 + other % 3
                    known.append(self._layer(known[one], width))
                    self.steps.append((operation, one, len(self.layers) - 1))
                    continue
                case "cat" if len(known[one]) < 8:
                    other %= len(known)
                    known.append(known[one] + known[other])
                case "add" | "mul":
                    fitting = [i for i, value in enumerate(known) if len(value) == len(known[one])]
                    other = fitting[other % len(fitting)]
                    self.reference.join(known[one], known[other])
                    known.append(known[one])
                case "relu" | "tanh":
                    known.append(known[one])
                case _:
                    continue
            self.steps.append((operation, one, other))
        for value, labels in enumerate(known[1:], 1):
            self.reference.join(self._layer(labels, 3), [fixed] * 3)
            self.steps.append(("read", value, len(self.layers) - 1))

    def _layer(self, inputs: list[tuple[str, int, int]], width: int) -> list[tuple[str, int, int]]:
        name = f"layers.{len(self.layers)}"
        self.layers[str(len(self.layers))] = nn.Linear(len(inputs), width)
        self.reference.join([(f"{name}.weight", 1, i) for i in range(len(inputs))], inputs)
        rows = [(f"{name}.weight", 0, i) for i in range(width)]
        self.reference.join([(f"{name}.bias", 0, i) for i in range(width)], rows)
        return rows

    def forward(self, x: Tensor) -> Tensor:
        values, total = [x], torch.zeros(len(x), 3, dtype=x.dtype)
        for operation, one, other in self.steps:
            match operation:
                case "linear":
                    values.append(self.layers[str(other)](values[one]))
                case "read":
                    total = total + self.layers[str(other)](values[one])
                case "cat":
                    values.append(torch.cat([values[one], values[other]], 1))
                case "add" | "mul":
                    values.append(getattr(torch, operation)(values[one], values[other]))
                case _:
                    values.append(getattr(torch, operation)(values[one]))
        return total


programs = st.lists(
    st.tuples(
        st.sampled_from(["linear", "linear", "cat", "add", "mul", "relu", "tanh"]), st.integers(0, 9), st.integers(0, 9)
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(programs)
def test_random_nets_have_the_units_found_by_force(steps: list[Step]) -> None:
    torch.manual_seed(0)
    model = Program(steps).double()
    structure = rg.analyze(model, torch.randn(5, 4, dtype=torch.float64))
    found = set()
    for axis in structure.axes:
        units: list[set[tuple[str, int, int]]] = [set() for _ in range(axis.size)]
        for entry in axis.entries:
            for index, unit in enumerate(entry.unit_of.tolist()):
                if unit != NONE:
                    units[unit].add((entry.name, entry.dim, index))
        found |= {frozenset(unit) for unit in units}
    assert found == model.reference.units()


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(programs, st.integers(0, 10**6))
def test_random_nets_survive_random_edits(steps: list[Step], seed: int) -> None:
    """Prune a silenced unit, then grow: nothing may show, axis after axis."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(0)
    model = Program(steps).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    for axis in rg.analyze(model, x).axes:
        if axis.prunable and axis.size > 1:
            unit = int(torch.randint(axis.size, (), generator=generator))
            axis.silence_([unit])
            before = outputs(model, x)
            rg.prune_(axis, [unit])
            assert relative_change(before, outputs(model, x)) < 1e-10
        if axis.growable:
            before = outputs(model, x)
            rg.grow_(axis, 2, generator=generator)
            assert relative_change(before, outputs(model, x)) < 1e-10

"""What regrow says of a program, held against what force says; every difference is one line."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import regrow as rg
from oracle_force import (
    DRAWS,
    Removal,
    agrees,
    footprint,
    footprint_of,
    is_right,
    minimal_removals,
    presence,
    reference_of,
    right,
)
from oracle_graphs import Net, Program, roles_of
from oracle_reference import Reference

EXACT = 1e-9


class Case(NamedTuple):
    """A program, what force says of it, and which kinds its axes are of, where that is known."""

    program: Program
    minimal: frozenset[Removal]
    kinds: frozenset[str] = frozenset()

    @classmethod
    def of(cls, program: Program, kinds: Collection[str] = ()) -> Case:
        return cls(program, frozenset(minimal_removals(program)), frozenset(kinds))


def indices(axis: rg.Axis, units: Sequence[int]) -> Removal:
    """All that belongs to some units."""
    return frozenset((e.name, e.dim, index) for e in axis.entries for index in e.indices(units).tolist())


def units_of(axis: rg.Axis) -> list[Removal]:
    """Each unit's indices."""
    return [indices(axis, [unit]) for unit in range(axis.size)]


def differences(case: Case, complete: bool = True) -> Iterator[str]:
    """All of the below."""
    net = Net(case.program)
    structure = rg.analyze(net, case.program.example())
    yield from wrong_units(case, structure)
    if complete:
        yield from missing_units(case, structure)
    yield from wrong_unions(case, net, structure)
    yield from wrong_roles(case, structure)
    for axis in structure.axes:
        if axis.prunable:
            yield from wrong_pruning(net, axis, _some(axis))
        if axis.growable:
            yield from wrong_growth(net, axis, 1)
            yield from wrong_growth(net, axis, 2)


def wrong_units(case: Case, structure: rg.Structure) -> Iterator[str]:
    """Each unit that is offered is a minimal set that can be removed, with exactly what must follow."""
    for axis in structure.axes:
        for number, unit in enumerate(units_of(axis) if axis.prunable else []):
            if unit not in case.minimal:
                yield f"unit {number} of {axis} isn't minimal and right: {sorted(unit)}"


def missing_units(case: Case, structure: rg.Structure) -> Iterator[str]:
    """Each minimal set is offered, if there are three or more of its kind side by side.

    Of two that are alike, taking one away leaves a dimension of size one, along which nothing can be compared call by
    call: regrow offers them where growing shows that their number is free. The last one always stays.
    """
    offered = {unit for axis in structure.axes if axis.prunable for unit in units_of(axis)}
    for removal in sorted(case.minimal - offered, key=sorted):
        if _side_by_side(removal, case.minimal) > 2:
            yield f"not offered: {sorted(removal)}"


def _side_by_side(removal: Removal, minimal: Collection[Removal]) -> int:
    """How many disjoint sets there are that touch the same dimensions equally often."""
    chosen = [removal]
    for other in sorted(minimal, key=sorted):
        if _form(other) == _form(removal) and all(other.isdisjoint(c) for c in chosen):
            chosen.append(other)
    return len(chosen)


@lru_cache(maxsize=4096)
def _form(removal: Removal) -> frozenset[tuple[tuple[str, int], int]]:
    return frozenset(Counter((name, dim) for name, dim, _ in removal).items())


def _some(axis: rg.Axis) -> list[int]:
    """A random set of units that leaves one at least; always the same for an axis."""
    draw = random.Random(f"{axis.name} {axis.size}")
    return sorted(draw.sample(range(axis.size), draw.randint(1, max(1, axis.size - 1))))


def wrong_unions(case: Case, net: Net, structure: rg.Structure) -> Iterator[str]:
    """Units are independent: sets of them can be removed, also of several axes at once."""
    offered = [axis for axis in structure.axes if axis.prunable]
    sets = [(str(axis), indices(axis, _some(axis))) for axis in offered]
    for name, removal in sets:
        yield from _wrong(case, net, name, removal)
    together: Removal = frozenset().union(*(removal for _, removal in sets))
    if len(sets) > 1 and _leaves_some(net, together):
        yield from _wrong(case, net, "all axes", together)


def _leaves_some(net: Net, removal: Removal) -> bool:
    """Whether no dimension goes as a whole, as by all heads but one with the one's features."""
    sizes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    return all(count < sizes[name][dim] for (name, dim), count in _form(removal))


def _wrong(case: Case, net: Net, name: str, removal: Removal) -> Iterator[str]:
    labels = removal & frozenset(case.program.labels())
    if footprint(net, case.program, labels) != removal:
        yield f"some units of {name} together don't touch what must go: {sorted(labels)}"
    elif not all(is_right(Net(case.program, seed), case.program, labels, batch) for seed, batch in DRAWS):
        yield f"some units of {name} together can't be removed: {sorted(labels)}"


def wrong_roles(case: Case, structure: rg.Structure) -> Iterator[str]:
    """Tensors do to units what their steps say, and axes are of the kinds that they should be."""
    roles, kinds = roles_of(case.program), {axis.kind for axis in structure.axes}
    if case.kinds and kinds != case.kinds:
        yield f"kinds are {sorted(kinds)}, not {sorted(case.kinds)}"
    for axis in structure.axes:
        for entry in axis.entries:
            expected = roles.get(entry.key, {entry.role})
            if entry.role not in expected and not (entry.role == "tied" and len(expected) > 1):
                yield f"{entry.name}[{entry.dim}] of {axis} has the role {entry.role!r}, not {sorted(expected)}"


@contextmanager
def _undone(edit: rg.Edit) -> Iterator[rg.Edit]:
    try:
        yield edit
    finally:
        edit.undo_()


def _output(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


def _silent(net: Net, axis: rg.Axis, units: list[int], x: Tensor) -> Tensor:
    """The output when units are silent; the network is left as it was."""
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    axis.silence_(units)
    out = _output(net, x)
    net.load_state_dict(before)
    return out


def wrong_pruning(net: Net, axis: rg.Axis, units: list[int]) -> Iterator[str]:
    """Pruning for real leaves what the reference does; where the axis is exact, silent units leave unseen."""
    program, x, name = net.program, net.program.example(), str(axis)
    labels = indices(axis, units) & frozenset(program.labels())
    reference = reference_of(net, program, presence(program, [labels]), len(x))
    silent = _silent(net, axis, units, x)
    with _undone(rg.prune_(axis, units)):
        try:
            values = net.values(x)
        except RuntimeError as error:
            yield f"{name} without {units} fails: {error}"
            return
    if len(reference.removals) and not agrees(values, reference, 0):
        yield f"{name} without {units} isn't what is left"
    if axis.exact and (values[-1] - silent).abs().max() > EXACT:
        yield f"{name} is exact, but {units} don't leave unseen"


def wrong_growth(net: Net, axis: rg.Axis, count: int) -> Iterator[str]:
    """What was there is what is left of the grown network without its new units; if exact, they come unseen."""
    x, name = net.program.example(), f"{axis} and {count} more"
    before = net.values(x)
    with _undone(rg.grow_(axis, count, generator=torch.Generator().manual_seed(0))) as edit:
        try:
            after = _output(net, x)
            yield from (f"{name} {what}" for what in _strange(net, axis, list(edit.new), before))
        except (RuntimeError, ValueError) as error:
            yield f"{name} fails: {error}"
            return
    if axis.exact and (after - before[-1]).abs().max() > EXACT:
        yield f"{name} is exact, but they are seen"


def _strange(net: Net, axis: rg.Axis, new: list[int], before: Sequence[Tensor]) -> Iterator[str]:
    """A grown network against what it was, by the reference, and each new unit by itself."""
    old = _without(net, axis, new)
    if not _takes(old, indices(axis, new)):
        yield "isn't what was there and something new"
    elif not right(net, net.program, old, 0, DRAWS[0][1]) or not agrees(before, old, 0):
        yield "isn't what was there"
    elif not all(_takes(_without(net, axis, [unit]), indices(axis, [unit])) for unit in (*new, 0)):
        yield "has new units that aren't what goes together"


def _without(net: Net, axis: rg.Axis, units: Sequence[int]) -> Reference:
    """The reference of a grown network without some units."""
    program = net.program
    sizes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    present = {(name, d): np.ones((1, sizes[name][d]), bool) for name, spec in program.specs() for d in spec.labelled}
    for name, dim, index in indices(axis, units):
        if (name, dim) in present:
            present[name, dim][0, index] = False
    return reference_of(net, program, present, DRAWS[0][1])


def _takes(reference: Reference, removal: Removal) -> bool:
    """Whether its only removal makes sense, and takes just these indices."""
    return bool(len(reference.removals)) and footprint_of(reference, 0) == removal

"""By force: which sets of indices can really be removed, by trying all of them on the network itself.

A removal is *right* when the network with these indices deleted from its parameters runs, and every value on the way
to its output is what the reference computes where those indices are absent: on batches of 2 and 3, with two draws of
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from oracle_absent import OPERATIONS
from oracle_graphs import Net, Program, path, run_step
from oracle_reference import Place, Reference, along

Index = tuple[str, int, int]  # parameter, dimension, index
Removal = frozenset[Index]

#: Draws of weights with sizes of batches.
DRAWS = ((0, 3), (1, 2))
TOLERANCE = 1e-9


def held_of(net: Net) -> dict[tuple[int, str], int]:
    """The integers that a network's blocks hold now."""
    blocks = enumerate(zip(net.program.blocks, net.blocks.values(), strict=True))
    return {(i, name): getattr(block, name) for i, (spec, block) in blocks for name in spec.held}


def arrays_of(net: Net) -> dict[str, np.ndarray]:
    """The network's parameters and buffers."""
    return {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}


def reference_of(net: Net, program: Program, present: Mapping[Place, np.ndarray], batch: int) -> Reference:
    """The reference's values of a network."""
    return Reference(program, arrays_of(net), held_of(net), present).run(program.example(batch).numpy(), OPERATIONS)


def right(net: Net, program: Program, reference: Reference, row: int, batch: int) -> bool:
    """Whether the network without what is absent computes what the reference does."""
    tensors = {}
    for name, tensor in net.state_dict().items():
        for dim in range(tensor.ndim):
            present = reference.present.get((name, dim))
            if present is not None:
                tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(present[row])))
        tensors[name] = tensor
    held = held_of(net) | {key: int(counts[row]) for key, counts in reference.after.items()}
    try:
        return agrees(_values(program, tensors, held, program.example(batch)), reference, row)
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError):
        return False


def _values(
    program: Program, tensors: Mapping[str, Tensor], held: Mapping[tuple[int, str], int], x: Tensor
) -> list[Tensor]:
    values = [x]
    for number in range(len(program.blocks)):
        prefix = f"{path(number)}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        holder = SimpleNamespace(**own, **{name: value for (i, name), value in held.items() if i == number})
        for step in program.blocks[number].steps:
            values += run_step(holder, step, values)
    return values


def agrees(values: Sequence[Tensor], reference: Reference, row: int) -> bool:
    """Whether all values are what is left of the reference's."""
    for value, whole in zip(values, reference.values, strict=True):
        left = whole[row]
        for dim in range(left.ndim):
            left = left.compress(along(whole[row : row + 1], dim)[0], dim)
        if value.shape != left.shape or not np.allclose(value.detach().numpy(), left, TOLERANCE, TOLERANCE):
            return False
    return True


def everything(program: Program) -> list[Removal]:
    """All sets of labels but the empty one, the smallest first."""
    labels = program.labels()
    numbers = sorted(range(1, 2 ** len(labels)), key=lambda n: (n.bit_count(), n))
    return [frozenset(label for i, label in enumerate(labels) if n >> i & 1) for n in numbers]


def presence(program: Program, removals: Sequence[Removal]) -> dict[Place, np.ndarray]:
    """A row for each removal, along each labelled dimension."""
    found: dict[Place, np.ndarray] = {}
    for name, spec in program.specs():
        for dim in spec.labelled:
            own = [[(name, dim, i) not in removal for i in range(spec.shape[dim])] for removal in removals]
            found[name, dim] = np.array(own)
    return found


def minimal_removals(program: Program) -> set[Removal]:
    """The minimal sets that can be removed, each with all indices that follow."""
    nets = [Net(program, seed) for seed, _ in DRAWS]
    candidates = everything(program)
    if not candidates:
        return set()
    batch = DRAWS[0][1]
    reference = reference_of(nets[0], program, presence(program, candidates), batch)
    minimal: list[Removal] = []
    found = set()
    for row, number in enumerate(reference.removals):
        removal = candidates[number]
        if any(known <= removal for known in minimal) or not right(nets[0], program, reference, row, batch):
            continue
        if all(is_right(net, program, removal, size) for net, (_, size) in zip(nets[1:], DRAWS[1:], strict=True)):
            minimal.append(removal)
            found.add(footprint_of(reference, row))
    return found


def is_right(net: Net, program: Program, removal: Removal, batch: int) -> bool:
    """Whether one set of labels can be removed from this network."""
    reference = reference_of(net, program, presence(program, [removal]), batch)
    return bool(len(reference.removals)) and right(net, program, reference, 0, batch)


def footprint(net: Net, program: Program, removal: Removal) -> Removal | None:
    """A set of labels with all indices that follow; None where it makes no sense."""
    reference = reference_of(net, program, presence(program, [removal]), DRAWS[0][1])
    return footprint_of(reference, 0) if len(reference.removals) else None


def footprint_of(reference: Reference, row: int) -> Removal:
    """All indices that one of a reference's removals takes."""
    return frozenset(
        (name, dim, int(index))
        for (name, dim), present in reference.present.items()
        for index in np.flatnonzero(~present[row])
    )

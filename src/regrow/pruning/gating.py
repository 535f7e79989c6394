"""Gates where a model has no scales: a factor for each unit while it trains, folded into the weights at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from ..errors import NotPermissible
from ..evidence.recording import Recorder
from ..structure import Axis, Entry, Structure, analyze
from ..structure.running import untouched
from .gates import each, scales


class Gate(nn.Module):
    """Scales a tensor along one dimension, as a parametrisation of it.

    Args:
        gate: One factor for each unit.
        dim: Where the units are.
    """

    def __init__(self, gate: nn.Parameter, dim: int) -> None:
        super().__init__()
        self.gate, self.dim = gate, dim

    def forward(self, weight: Tensor) -> Tensor:
        """The tensor, scaled."""
        return weight * self.gate.reshape([-1 if d == self.dim else 1 for d in range(weight.ndim)])


def add_gates_(
    target: Structure | Axis | Sequence[Axis], optimizer: Optimizer | None = None, value: float = 1.0
) -> Structure:
    """Give units that have no scale one: a factor on all that makes them, weights and biases, in place.

    The model computes what it did, if ``value`` is 1. Weights keep their identity under a parametrisation of torch's;
    :func:`fold_gates_` takes it away again.

    Args:
        target: A structure, an axis, or several of one structure; axes that have scales are left alone.
        optimizer: Learns the gates from now on, in the group of the weights that they are on.
        value: What the gates start at; with another than 1 the model's function changes.

    Returns:
        The structure of the model with gates.

    Raises:
        NotPermissible: There is nothing to gate.

    >>> import torch, regrow as rg
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> structure = rg.add_gates_(rg.analyze(net, torch.rand(2, 4)))
    >>> [entry.name for entry in structure["0"].with_role("scale")]
    ['0.parametrizations.weight.0.gate']
    """
    axes = target.axes if isinstance(target, Structure) else each(target)
    wanted = [axis for axis in axes if not scales(axis) and axis.prunable and axis.kind == "neuron"]
    structure = axes[0].structure if axes else cast(Structure, target)
    gated = {axis: entries for axis, entries in _made(structure, wanted).items() if _is_whole(entries)}
    if not gated:
        raise NotPermissible("there is no axis without scales whose weights could have gates.")
    for axis, entries in gated.items():
        like = entries[0].tensor
        gate = nn.Parameter(torch.full((axis.size,), float(value), dtype=like.dtype, device=like.device))
        if optimizer is not None:
            _add_beside(optimizer, like, gate)
        for entry in entries:
            parametrize.register_parametrization(entry.owner, entry.attribute, Gate(gate, entry.dim), unsafe=True)
    args, kwargs = structure._example
    return analyze(structure.model, args=args, kwargs=kwargs)


@torch.no_grad()
def fold_gates_(structure: Structure, optimizer: Optimizer | None = None) -> Structure:
    """Multiply the gates into the weights that they are on and take them away, in place; the function is kept.

    Args:
        structure: Of a model with gates.
        optimizer: Forgets the gates; weights keep their state.

    Returns:
        The structure of the model without gates.
    """
    for module in list(structure.model.modules()):
        for name, gates in list(_gates_on(module)):
            for gate in gates:
                if optimizer is not None:
                    _forget(optimizer, gate)
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    args, kwargs = structure._example
    return analyze(structure.model, args=args, kwargs=kwargs)


def _gates_on(module: nn.Module) -> Iterator[tuple[str, list[nn.Parameter]]]:
    lists = cast(nn.ModuleDict, module.parametrizations) if parametrize.is_parametrized(module) else {}
    for name, steps in lists.items():
        if all(isinstance(step, Gate) for step in cast(nn.ModuleList, steps)):
            yield name, [cast(Gate, step).gate for step in cast(nn.ModuleList, steps)]


def _made(structure: Structure, axes: Sequence[Axis]) -> dict[Axis, list[Entry]]:
    """The weights and biases that make the units of each axis of data."""
    recorder = Recorder(axes)
    with untouched(structure.model), torch.no_grad():
        structure.model.eval()
        with recorder:
            structure.run_example()
    return {
        passage.axis: [e for root in passage.made for e in passage.entries[root] if e.role in ("out", "shift")]
        for passage in recorder.outlines()
    }


def _is_whole(entries: Sequence[Entry]) -> bool:
    """Whether all indices are the axis's units in turn, each once."""
    same = all(torch.equal(e.unit_of, torch.arange(len(e.unit_of))) for e in entries)
    return bool(entries) and same and all(isinstance(e.tensor, nn.Parameter) for e in entries)


def _add_beside(optimizer: Optimizer, neighbour: Tensor, gate: nn.Parameter) -> None:
    for group in optimizer.param_groups:
        if any(p is neighbour for p in group["params"]):
            group["params"].append(gate)
            return
    raise ValueError("this optimizer holds none of the weights that get gates; pass the one that trains them.")


def _forget(optimizer: Optimizer, gate: nn.Parameter) -> None:
    optimizer.state.pop(gate, None)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not gate]

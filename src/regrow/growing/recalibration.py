"""Running statistics follow a growth that changes what layers get, so that the loss falls alike in both modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..edit import Edit
from ..evidence import looking
from ..evidence.twice import Call, Shifts, called_again
from ..structure.example import named_tensors


@torch.no_grad()
def recalibrated(edit: Edit, before: Mapping[str, Tensor], calls: Sequence[Call]) -> dict[str, Tensor]:
    """The running statistics as they will be, by name, without the new units and in their shapes before the edit.

    The grown model is called as it was when the method looked at it, and again as it was before: new units silent, old
    ones with their old values. Running statistics move as much as those of the batches do between the two.

    Args:
        edit: The growth, which has been applied.
        before: The tensors in which old units changed, as they were, by name.
        calls: Of the model.
    """
    model = edit.structure.model
    tensors = named_tensors(model)
    device = next(iter(tensors.values())).device.type
    shifts = Shifts(tensors, (), old := _as_before(edit, before), backwards=True)
    with looking(model) as restore, called_again(model, old, shifts):
        for call in calls:
            with shifts:
                call.again(device)
            restore()
    return {name: _old_units(edit, name, moved) for name, moved in shifts.moved().items()}


def _as_before(edit: Edit, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The grown model's tensors with which it computes what it did before."""
    found: dict[str, Tensor] = {}
    for name, old in before.items():
        tensor = edit.structure.tensor(name).detach().clone()
        inside = torch.meshgrid(*(_stayed(edit, name, dim) for dim in range(tensor.ndim)), indexing="ij")
        tensor[inside] = old.to(tensor)
        found[name] = tensor
    for name, new in edit.units("new").items():
        for entry in edit.structure[name].silencing:
            if isinstance(entry.tensor, nn.Parameter):
                tensor = found.get(entry.name, entry.tensor.detach())
                found[entry.name] = tensor.index_fill(entry.dim, entry.indices(new), 0.0)
    return found


def _old_units(edit: Edit, name: str, tensor: Tensor) -> Tensor:
    """What a tensor has for old units."""
    for dim in range(tensor.ndim):
        tensor = tensor.index_select(dim, _stayed(edit, name, dim))
    return tensor


def _stayed(edit: Edit, name: str, dim: int) -> Tensor:
    """The indices along a dimension of a tensor that no new unit has."""
    tensor = edit.structure.tensor(name)
    stayed = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
    for axis, new in edit.units("new").items():
        for entry in edit.structure[axis].entries:
            if entry.name == name and entry.dim == dim:
                stayed[entry.indices(new)] = False
    return stayed.nonzero().squeeze(1)

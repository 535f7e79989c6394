"""One way for both directions: index maps applied to all that follows an axis, as an edit that can be undone.

Everything is checked and computed before the first write; if a write fails, those before it are taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .carry import Follower, check_holds, followers, kept_masks, plan_resets, resets, warn_of_reset
from .edit import Edit
from .errors import NotPermissible
from .filling import filled
from .pace import Pace, plan_pace
from .remap import DimMaps, fill_with_means, mapped, unmapped
from .structure import Axis, Entry, Structure
from .structure.declared import outdated_sizes
from .structure.example import named_tensors
from .structure.maps import FRESH, PlaceMap, plan, run_of
from .transaction import Transaction, Write


@torch.no_grad()
def apply(
    structure: Structure,
    maps: Mapping[Axis, np.ndarray],
    values: Mapping[Axis, Mapping[Entry, Tensor]],
    optimizer: Optimizer | None,
    action: str,
    method: str = "",
    changed: Mapping[str, Tensor] | None = None,
    paces: Mapping[Axis, Mapping[Entry, Sequence[Pace]]] | None = None,
    copies: Mapping[Axis, Sequence[int]] | None = None,
) -> Edit:
    """Apply index maps to a model: the one way in which shapes change.

    Args:
        maps: For each axis, the old unit (or FRESH) that each new unit comes from.
        values: For each axis, what fresh units are filled with (see :class:`regrow.method.Grower`).
        changed: New values of tensors by name, in their shapes before the edit; in whatever memory layout.
        paces: For each axis, how new units learn at an entry, where that isn't as fast as the others.
        copies: For each axis, the old units that its first fresh ones are copies of.
        optimizer: Its state follows; gradients follow always.

    Raises:
        NotPermissible: The model isn't the one that was analysed any more.
        ValueError: A value has another shape than the new units, or the optimizer is another model's.
    """
    _check_unchanged(maps)
    planned = plan(structure.axes, maps)
    by_tensor: dict[str, dict[int, PlaceMap]] = {}
    for (name, dim), place in planned.items():
        if isinstance(place.places[0], Entry):
            by_tensor.setdefault(name, {})[dim] = place
    changed = {} if changed is None else changed
    changed = {name: torch.empty_like(structure.tensor(name)).copy_(value) for name, value in changed.items()}
    by_tensor |= {name: {} for name in changed if name not in by_tensor}
    tensors = {name: structure.tensor(name) for name in by_tensor}
    edited = filled({**tensors, **changed}, by_tensor, maps, values, copies or {})
    if optimizer is not None:
        check_holds(optimizer, tensors.values())
    masks = kept_masks(structure.model)
    unable = {} if optimizer is None else resets(optimizer, set(tensors.values()))
    edit = _describe(structure, maps, edited, optimizer, action, method)
    if optimizer is not None:
        warn_of_reset(optimizer, unable.values())  # before anything is written: a warning may be an error
    with Transaction() as writes:
        for name, tensor in tensors.items():
            edit._past[name] = _carry(
                writes, tensor, edited[name], by_tensor[name], followers(tensor, optimizer, masks), name in changed
            )
        writes.run()
        kept = len(writes.done)
        if optimizer is not None:
            plan_resets(writes, optimizer, unable)
        _plan_bookkeeping(writes, structure, planned, maps)
        # Shapes of layers are others now, and are again when this is undone.
        writes.planned.append(Write(lambda _: setattr(structure, "_found_depth", None), None, None))
        writes.run()
        if optimizer is not None:
            _plan_paces(writes, optimizer, edit._new, paces or {})
            writes.run()
        for owner in _owners(structure.model, tensors.values()):
            for attribute, size in outdated_sizes(owner):
                writes.attribute(owner, attribute, size)
        writes.run()
        edit._bookkeeping = writes.done[kept:]
    structure.edits.append(edit._token)
    return edit


def _check_unchanged(maps: Mapping[Axis, np.ndarray]) -> None:
    for axis in maps:
        for entry in axis.entries:
            check_sizes(entry.name, entry.tensor, {entry.dim: len(entry.unit_of)})


def check_sizes(name: str, tensor: Tensor, sizes: Mapping[int, int]) -> None:
    """Whether a tensor has the sizes that are known of some of its dimensions.

    Raises:
        NotPermissible: It hasn't.
    """
    for dim, known in sizes.items():
        if tensor.shape[dim] != known:
            raise NotPermissible(
                f"{name} has size {tensor.shape[dim]} on dimension {dim}, but the analysis knows {known}: "
                "the model was changed elsewhere; analyze it again."
            )


@dataclass(frozen=True)
class _Mapped:
    """What an edited tensor was: its maps, and the old tensors if anything of them has left.

    Where values that stayed were changed, ``written`` is what they were changed to: as long as they are that, they
    become what they were.
    """

    maps: DimMaps
    left: dict[str, Tensor]
    written: Tensor | None = None

    def check(self, name: str, tensor: Tensor) -> None:
        check_sizes(name, tensor, {dim: len(place.take) for dim, place in self.maps.items()})

    def follower_before(self, follower: Follower) -> Tensor:
        return unmapped(follower.tensor, follower.moving(self.maps), self.left.get(follower.key))

    def before(self, tensor: Tensor) -> Tensor:
        now = tensor.detach()
        back = unmapped(now, self.maps, self.left.get(""))
        if self.written is None:
            return back
        old = self.left[""]
        same = (now == self.written) | (now.isnan() & self.written.isnan())
        untouched = unmapped(same, self.maps, torch.ones_like(old, dtype=torch.bool))
        return torch.empty_like(old).copy_(torch.where(untouched, old, back))  # in the same memory layout


def _describe(
    structure: Structure,
    maps: Mapping[Axis, np.ndarray],
    edited: Mapping[str, Tensor],
    optimizer: Optimizer | None,
    action: str,
    method: str,
) -> Edit:
    now = named_tensors(structure.model)
    before = {name: tensor.shape for name, tensor in now.items()}
    after = before | {name: tensor.shape for name, tensor in edited.items()}
    parameters = [name for name, tensor in now.items() if isinstance(tensor, nn.Parameter)]
    return Edit(
        structure,
        action,
        method,
        {axis.name: (axis.size, len(index_map)) for axis, index_map in maps.items()},
        (sum(before[name].numel() for name in parameters), sum(after[name].numel() for name in parameters)),
        (structure.flops(before), structure.flops(after)),
        {axis.name: np.flatnonzero(index_map == FRESH).tolist() for axis, index_map in maps.items()},
        {axis.name: np.setdiff1d(np.arange(axis.size), index_map).tolist() for axis, index_map in maps.items()},
        optimizer,
        {},
    )


def _carry(
    writes: Transaction, tensor: Tensor, data: Tensor, maps: DimMaps, following: Sequence[Follower], changes: bool
) -> _Mapped:
    """Plan the writes of one tensor and its followers; returns what undoing them takes."""
    loses = any(len(place.kept[0]) < place.before for place in maps.values())
    left = {"": tensor.detach()} if loses or changes else {}
    grad = tensor.grad
    for follower in following:
        if loses:
            left[follower.key] = follower.tensor
        followed = follower.moving(maps)
        moved = mapped(follower.tensor, followed, fill=follower.fresh)
        if follower.divides:
            fill_with_means(moved, followed)
        if follower.key == "grad":
            grad = moved
        else:
            follower.plan(writes, moved)
    writes.tensor(tensor, data, grad)
    return _Mapped(maps, left, data.clone() if changes else None)


def _plan_bookkeeping(
    writes: Transaction,
    structure: Structure,
    planned: Mapping[tuple[str, int], PlaceMap],
    maps: Mapping[Axis, np.ndarray],
) -> None:
    """Places and sizes of all axes, and the integers in Python that count units."""
    for place_map in planned.values():
        for place, unit_of in place_map.units_after.items():
            writes.attribute(place, "unit_of", torch.from_numpy(np.ascontiguousarray(unit_of)))
            writes.attribute(place, "run", run_of(unit_of, place.run))
            if isinstance(place, Entry) and place.summed is not None:
                writes.attribute(place, "summed", place.summed[torch.from_numpy(place_map.take)])
    for axis, index_map in maps.items():
        writes.attribute(axis, "size", len(index_map))
        for count in axis.counts:
            writes.run()  # two counts may lie in one tuple
            value = count.attribute_with(len(planned[count.key].take))
            writes.item(vars(count.owner), count.attribute, value)  # a frozen object's can't be set otherwise


def _plan_paces(
    writes: Transaction,
    optimizer: Optimizer,
    new: Mapping[str, list[int]],
    paces: Mapping[Axis, Mapping[Entry, Sequence[Pace]]],
) -> None:
    for axis, of_entries in paces.items():
        for entry, of_entry in of_entries.items():
            size = len(entry.unit_of)
            for pace in of_entry:
                plan_pace(writes, optimizer, entry.tensor, size, entry.dim, entry.indices(new[axis.name]), pace)


def _owners(model: nn.Module, tensors: Iterable[Tensor]) -> list[nn.Module]:
    """The modules whose declared sizes may have changed; a parametrised weight belongs to the module above."""
    edited = set(tensors)
    paths = []
    for path, module in model.named_modules():
        if not edited.isdisjoint([*module._parameters.values(), *module._buffers.values()]):
            paths.append(path.partition(".parametrizations.")[0])
    return [model.get_submodule(path) for path in dict.fromkeys(paths)]

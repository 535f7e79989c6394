"""One small network of each family: its axes are those known by hand, and what the analysis says of them is true."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import family_marks
import regrow as rg
from families import FAMILIES, Known
from reading import canonical_names
from regrow.structure.example import tensors_in
from sizes_kept import stale_sizes
from state import differences, snapshot


@cache
def analyzed(name: str) -> rg.Structure:
    """The structure of a family's network; every test leaves the network as it was."""
    return rg.analyze(FAMILIES[name].model(), FAMILIES[name].inputs())


def outputs(name: str, training: bool) -> list[Tensor]:
    """The network's outputs."""
    model, inputs = analyzed(name).model, FAMILIES[name].inputs()
    model.train(training)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(2)
        return [t for t in tensors_in(model(*inputs)) if t.is_floating_point()]


def both(name: str) -> dict[bool, list[Tensor]]:
    """Outputs in eval and in train mode, without their graphs; what the network keeps of the passes is put back."""
    with kept(analyzed(name).model, parameters=False):
        return {training: [t.detach() for t in outputs(name, training)] for training in (False, True)}


@contextlib.contextmanager
def kept(model: nn.Module, parameters: bool = True) -> Iterator[None]:
    """Afterwards, buffers, and parameters if asked, have the values that they had, and are the same tensors."""
    stores: list[dict[str, Any]] = [m._buffers for m in model.modules()]
    stores += [m._parameters for m in model.modules() if parameters]
    before = [(store, key, t, t.detach().clone()) for store in stores for key, t in store.items() if t is not None]
    yield
    with torch.no_grad():
        for store, key, tensor, value in before:
            store[key] = tensor
            tensor.copy_(value)


def change(before: dict[bool, list[Tensor]], after: dict[bool, list[Tensor]]) -> float:
    """The largest change of an output, as a part of its largest value."""
    pairs = [(a, b) for mode in before for a, b in zip(before[mode], after[mode], strict=True)]
    assert all(a.shape == b.shape for a, b in pairs)
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Afterwards, values and gradients are as before; and everything else has to be."""
    model.train()
    before = snapshot(model)
    try:
        with kept(model):
            yield
            model.zero_grad()
    except BaseException:
        analyzed.cache_clear()  # nobody else should meet what is left of it
        raise
    model.train()
    assert differences(before, snapshot(model)) == []


def trained(name: str) -> None:
    """A pass in train mode and backward."""
    with kept(analyzed(name).model, parameters=False):
        loss = torch.stack([t.square().mean() for t in outputs(name, True) if t.requires_grad]).sum()
        loss.backward()
        assert torch.isfinite(loss)


def remarks(axis: rg.Axis) -> frozenset[str]:
    verdicts = {"inexact": axis.exact, "unprunable": axis.prunable, "ungrowable": axis.growable}
    return frozenset(name for name, verdict in verdicts.items() if not verdict) | axis.tags


@pytest.mark.parametrize("name", family_marks.marked(family_marks.AXES, FAMILIES))
def test_the_axes_are_those_known_by_hand(name: str) -> None:
    structure, family = analyzed(name), FAMILIES[name]
    names = canonical_names(structure.model)
    found = {
        axis.name: Known(
            axis.name, axis.kind, axis.size, remarks(axis), frozenset((names[e.name], e.dim) for e in axis.entries)
        )
        for axis in structure
    }
    assert found == {known.name: known for known in family.known}
    assert [op for op in structure.unknown if not any(name in op for name in family.unknown.split())] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_every_index_is_free_or_frozen_with_a_reason(name: str) -> None:
    structure = analyzed(name)
    names = canonical_names(structure.model)
    held = [*structure.model.named_parameters(), *structure.model.named_buffers()]
    free = {(names[e.name], e.dim): (e.unit_of >= 0) for axis in structure for e in axis.entries}
    frozen = {(names[f.name], f.dim) for f in structure.frozen if f.reason}
    for tensor, dim, size in ((n, d, s) for n, t in held for d, s in enumerate(t.shape) if t.is_floating_point()):
        assert size == 1 or (tensor, dim) in free or (tensor, dim) in frozen
    for axis in structure:
        verdicts = (axis.prunable, axis.growable, axis.exact)
        assert all(verdict or verdict.reason for verdict in verdicts)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_said_is_true_on_numbers(name: str) -> None:
    found = analyzed(name).verify()
    assert found.ok, str(found)
    # A spectral norm is estimated anew in train mode only, and these numbers are compared in eval mode.
    assert found.unmoved == () or name.startswith("spectral_norm")


@pytest.mark.parametrize("name", family_marks.marked(family_marks.EDITS, FAMILIES))
def test_half_of_every_axis_may_go_and_a_quarter_come(name: str) -> None:
    """On the network itself, in eval and train mode: exact axes keep the function, inexact ones move it."""
    structure = analyzed(name)
    for axis in structure:
        moved = []
        if axis.prunable and axis.size > 1:
            with restored(structure.model):
                moved.append(pruned(name, axis))
        if axis.growable:
            with restored(structure.model):
                moved.append(grown(name, axis))
        assert moved, axis
        if axis.exact:
            assert max(moved) < 1e-9, axis
        else:
            assert max(moved) > 1e-6, axis


def pruned(name: str, axis: rg.Axis) -> float:
    """By how much the network with half of its units silent differs from the one without them."""
    half = list(range(axis.size))[: axis.size // 2]
    axis.silence_(half)
    silent = both(name)
    edit = rg.prune_(axis, half)
    moved = change(silent, both(name))
    trained(name)
    assert stale_sizes(axis.structure.model) == []
    edit.undo_()
    return moved


def grown(name: str, axis: rg.Axis) -> float:
    """By how much a quarter of an axis more moves the network; the new units learn."""
    before = both(name)
    edit = rg.grow_(axis, max(1, axis.size // 4), generator=torch.Generator().manual_seed(3))
    moved = change(before, both(name))
    trained(name)
    assert stale_sizes(axis.structure.model) == []
    learns = [
        e.tensor.grad.index_select(e.dim, e.indices(edit.new)).abs().sum()
        for e in axis.entries
        if e.tensor.grad is not None
    ]
    assert sum(learns) > 0
    edit.undo_()
    return moved

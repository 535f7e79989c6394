"""Edits keep the function, survivors keep every bit, and undo takes an edit back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import regrow as rg
import zoo
from regrow.carry import DIVISORS
from state import (
    differences,
    differing,
    only,
    optimizer_tensors,
    outputs,
    places,
    relative_change,
    tensors_of,
    without,
)
from workbench import OPTIMIZERS, REPRESENTATIVE, bench, sample, seeded

# --------------------------------------------------------------------------------------------------
# the function is kept


@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.QUICK))
def test_growing_and_pruning_torchvision_models(name: str, variant: str) -> None:
    """Growth keeps the function, silent units leave unseen, undo takes each back bit for bit, training goes on."""
    b = bench(name, variant, dtype=torch.float64)
    for axis in sample(b.structure):
        original, start = b.snapshot(), outputs(b.model, b.x)
        size = axis.size
        growth = rg.grow_(axis, 0.25, optimizer=b.optimizer, generator=seeded())
        assert axis.size == size + round(0.25 * size)
        assert relative_change(start, outputs(b.model, b.x)) <= 1e-10, axis.name
        growth.undo_()
        assert differences(original, b.snapshot()) == [], axis.name

        silent = list(range(0, size, 4))
        axis.silence_(silent)
        silenced, start = b.snapshot(), outputs(b.model, b.x)
        removal = rg.prune_(axis, silent, optimizer=b.optimizer)
        assert axis.size == size - len(silent)
        assert relative_change(start, outputs(b.model, b.x)) <= 1e-10, axis.name
        removal.undo_()
        assert differences(silenced, b.snapshot()) == [], axis.name
    rg.grow_(b.structure.axes[0], 3, optimizer=b.optimizer, generator=seeded())
    assert torch.isfinite(b.step())
    rg.prune_(b.structure.axes[-1], [0, 2], optimizer=b.optimizer)
    assert torch.isfinite(b.step())


@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.TORCHVISION))
def test_growing_every_axis_of_torchvision_models_at_once(name: str, variant: str) -> None:
    b = bench(name, variant, dtype=torch.float64)
    original, start = b.snapshot(), outputs(b.model, b.x)
    edit = rg.grow_(b.structure.axes, 0.25, optimizer=b.optimizer, generator=seeded())
    assert set(edit.sizes) == {axis.name for axis in b.structure.axes}
    assert all(after == before + round(0.25 * before) for before, after in edit.sizes.values())
    assert relative_change(start, outputs(b.model, b.x)) <= 1e-10
    edit.undo_()
    assert differences(original, b.snapshot()) == []
    assert torch.isfinite(b.step())


@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.SMALL))
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_each_axis_of_a_small_net_grows_and_shrinks_exactly(name: str, variant: str, training: bool) -> None:
    b = bench(name, variant, dtype=torch.float64)
    b.model.train(training)
    for axis in b.structure.axes:
        start, size = outputs(b.model, b.x), axis.size
        edit = rg.grow_(axis, 3, optimizer=b.optimizer, generator=seeded())
        assert edit.new == [size, size + 1, size + 2]
        assert relative_change(start, outputs(b.model, b.x)) < 1e-12
        b.step()
        axis.silence_([1, size])
        start = outputs(b.model, b.x)
        removal = rg.prune_(axis, [1, size], optimizer=b.optimizer)
        assert removal.removed == [1, size]
        assert relative_change(start, outputs(b.model, b.x)) < 1e-12
        b.step()
    assert b.model.training == training


@pytest.mark.parametrize(("name", "variant"), zoo.variants(*(name for name in zoo.SMALL if name != "tied_weight")))
def test_units_whose_outgoing_weights_are_zero_leave_unseen(name: str, variant: str) -> None:
    """Whatever they compute, whatever their scale and bias are: nobody reads it."""
    for number in range(len(rg.analyze(zoo.build(name), zoo.example(name)).axes)):
        b = bench(name, variant, dtype=torch.float64)
        axis = b.structure.axes[number]
        readers = [entry for entry in axis.entries if entry.role == "in"]
        assert readers
        with torch.no_grad():
            for entry in readers:
                entry.tensor.index_fill_(entry.dim, (entry.unit_of == 1).nonzero().flatten(), 0.0)
        start = outputs(b.model, b.x)
        rg.prune_(axis, [1], optimizer=b.optimizer)
        assert relative_change(start, outputs(b.model, b.x)) < 1e-12, axis.name


@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.SMALL))
def test_the_shapes_are_those_a_fresh_analysis_finds(name: str, variant: str) -> None:
    """After edits the live structure says what a new analysis of the edited model says."""
    b = bench(name, variant)
    rg.grow_(b.structure.axes, 2, optimizer=b.optimizer, generator=seeded())
    rg.prune_(b.structure.axes[0], [0, 2], optimizer=b.optimizer)
    fresh = rg.analyze(b.model, b.x)
    assert [axis.name for axis in b.structure.axes] == [axis.name for axis in fresh.axes]
    for live, new in zip(b.structure.axes, fresh.axes, strict=True):
        assert live.size == new.size
        lived, found = places(live), places(new)
        assert lived.keys() == found.keys()
        for place in found:
            assert same_partition(lived[place], found[place]), (live.name, place)
    for name_, tensor in [*b.model.named_parameters(), *b.model.named_buffers()]:
        for axis in b.structure.axes:
            for entry in axis.entries:
                assert entry.tensor.shape[entry.dim] == len(entry.unit_of)
                assert entry.name != name_ or entry.tensor is tensor


def same_partition(one: Tensor, other: Tensor) -> bool:
    """The same indices belong together, whatever their units are called, and the same belong to none."""
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) and torch.equal(one < 0, other < 0)


def test_a_permutation_of_units_chosen_to_leave_does_not_matter() -> None:
    results = []
    for units in ([5, 0, 3], [0, 3, 5]):
        b = bench("residual")
        edit = rg.prune_(b.structure["stem"], units, optimizer=b.optimizer)
        assert sorted(edit.removed) == [0, 3, 5]
        results.append(tensors_of(b.model))
    assert differing(*results) == []


# --------------------------------------------------------------------------------------------------
# what survives, survives bit for bit


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_survivors_keep_every_bit_and_new_units_have_no_momentum(name: str, optimizer: str) -> None:
    b = bench(name, optimizer=optimizer)
    for axis in b.structure.axes:
        values, states = tensors_of(b.model), optimizer_tensors(b.model, b.optimizer)
        assert states
        edit = rg.grow_(axis, 2, optimizer=b.optimizer, generator=seeded())
        where = places(axis)
        assert differing(values, without(where, edit.new, tensors_of(b.model))) == []
        grown = optimizer_tensors(b.model, b.optimizer)
        for key, state in states.items():
            assert differing(state, without(where, edit.new, grown[key])) == []
            new = [part for part in only(where, edit.new, grown[key]) if part.numel()]
            assert all(bool((part > 0).any()) if key in DIVISORS else not part.any() for part in new), key
        b.step()

        values, states = tensors_of(b.model), optimizer_tensors(b.model, b.optimizer)
        where = places(axis)
        edit = rg.prune_(axis, [0, axis.size - 1], optimizer=b.optimizer)
        assert differing(without(where, edit.removed, values), tensors_of(b.model)) == []
        left = optimizer_tensors(b.model, b.optimizer)
        for key, state in states.items():
            assert differing(without(where, edit.removed, state), left[key]) == []
        b.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("name", "variant"), zoo.variants(*REPRESENTATIVE, "separable", "tied_weight"))
def test_undo_restores_every_bit(name: str, variant: str, optimizer: str) -> None:
    b = bench(name, variant, optimizer)
    original, sizes = b.snapshot(), [axis.size for axis in b.structure.axes]
    shapes = [places(axis) for axis in b.structure.axes]
    edits = [
        lambda: rg.grow_(b.structure.axes[0], 2, optimizer=b.optimizer, generator=seeded()),
        lambda: rg.prune_(b.structure.axes[-1], [0], optimizer=b.optimizer),
        lambda: rg.grow_(b.structure.axes, 0.5, optimizer=b.optimizer, generator=seeded()),
        lambda: rg.prune_(b.structure, 0.3, optimizer=b.optimizer),
    ]
    for make in edits:
        edit = make()
        assert differences(original, b.snapshot())
        edit.undo_()
        assert differences(original, b.snapshot()) == []
        assert [axis.size for axis in b.structure.axes] == sizes
        for axis, shape in zip(b.structure.axes, shapes, strict=True):
            assert {k: v.tolist() for k, v in places(axis).items()} == {k: v.tolist() for k, v in shape.items()}
    stack = [make() for make in edits]
    for edit in reversed(stack):
        edit.undo_()
    assert differences(original, b.snapshot()) == []
    assert torch.isfinite(b.step())


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_growing_then_pruning_the_same_units_is_the_identity(name: str) -> None:
    b = bench(name, optimizer="adam")
    original = b.snapshot()
    for axis in b.structure.axes:
        edit = rg.grow_(axis, 2, optimizer=b.optimizer, generator=seeded())
        rg.prune_(axis, edit.new, optimizer=b.optimizer)
        assert differences(original, b.snapshot()) == []


def test_undo_after_training_keeps_what_survivors_have_learned() -> None:
    b = bench("residual", optimizer="adam")
    axis = b.structure["conv1"]
    edit = rg.grow_(axis, 3, optimizer=b.optimizer, generator=seeded())
    b.step()
    values, states, where = tensors_of(b.model), optimizer_tensors(b.model, b.optimizer), places(axis)
    edit.undo_()
    assert axis.size == 6
    assert differing(without(where, edit.new, values), tensors_of(b.model)) == []
    for key, state in optimizer_tensors(b.model, b.optimizer).items():
        assert differing(without(where, edit.new, states[key]), state) == []
    b.step()


def test_undoing_a_removal_after_training_brings_back_what_left() -> None:
    b = bench("residual", optimizer="adam")
    axis = b.structure["conv1"]
    before, where = tensors_of(b.model), places(axis)
    edit = rg.prune_(axis, [1, 4], optimizer=b.optimizer)
    b.step()
    trained = tensors_of(b.model)
    edit.undo_()
    after = tensors_of(b.model)
    assert differing(without(where, [1, 4], after), trained) == []
    weight = "conv1.weight"
    assert torch.equal(after[weight][[1, 4]], before[weight][[1, 4]])
    b.step()


def test_only_the_newest_edit_can_be_undone() -> None:
    b = bench("residual")
    first = rg.grow_(b.structure["conv1"], 2, optimizer=b.optimizer)
    second = rg.prune_(b.structure["stem"], [0], optimizer=b.optimizer)
    before = b.snapshot()
    with pytest.raises(rg.NotPermissible):
        first.undo_()
    assert differences(before, b.snapshot()) == []
    second.undo_()
    first.undo_()
    before = b.snapshot()
    with pytest.raises(rg.NotPermissible):
        first.undo_()
    assert differences(before, b.snapshot()) == []
    again = rg.grow_(b.structure["conv1"], 1, optimizer=b.optimizer)
    assert again.new == [6]


@pytest.mark.parametrize("edits", [12])
def test_a_long_life_of_random_edits(edits: int) -> None:
    """Many edits, some undone, with training in between: nothing drifts out of step."""
    for name in ("grouped", "residual", "concat"):
        b = bench(name, optimizer="adam", dtype=torch.float64)
        generator = seeded()
        for _ in range(edits):
            axis = b.structure.axes[int(torch.randint(len(b.structure.axes), (), generator=generator))]
            kind = int(torch.randint(3, (), generator=generator))
            start = outputs(b.model, b.x)
            if kind == 0 and axis.size > 1:
                rg.prune_(axis, 1, optimizer=b.optimizer)
            else:
                edit = rg.grow_(axis, 2, optimizer=b.optimizer, generator=generator)
                assert relative_change(start, outputs(b.model, b.x)) < 1e-10
                if kind == 2:
                    edit.undo_()
                    assert relative_change(start, outputs(b.model, b.x)) == 0
            assert torch.isfinite(b.step())
        assert [axis.size for axis in rg.analyze(b.model, b.x).axes] == [axis.size for axis in b.structure.axes]

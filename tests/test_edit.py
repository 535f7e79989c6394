"""Edits: they keep the function, the training and everything they do not mean to change; undo takes them back."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import regrow as rg
import zoo
from state import (
    differences,
    differing,
    only,
    optimizer_tensors,
    outputs,
    places,
    relative_change,
    snapshot,
    tensors_of,
    train_step,
    without,
)

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adamw_amsgrad": partial(torch.optim.AdamW, lr=0.01, amsgrad=True),
    "rmsprop_centered": partial(torch.optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
}
REPRESENTATIVE = ("residual", "grouped", "shared", "flatten")


@dataclass
class Bench:
    """A model, its optimizer after two steps of training, an example and the structure."""

    model: nn.Module
    x: Tensor
    optimizer: torch.optim.Optimizer
    structure: rg.Structure

    def step(self) -> Tensor:
        return train_step(self.model, self.optimizer, self.x)

    def snapshot(self) -> dict[str, Any]:
        return snapshot(self.model, self.optimizer)


def bench(
    name: str, variant: str = "module", optimizer: str = "sgd", dtype: torch.dtype = torch.float32, **options: Any
) -> Bench:
    model = zoo.build(name, variant, dtype)
    x = zoo.example(name, dtype=dtype)
    made = OPTIMIZERS[optimizer](model.parameters(), **options)
    result = Bench(model, x, made, rg.analyze(model, x))
    for _ in range(2):
        result.step()
    return result


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(structure: rg.Structure) -> list[rg.Axis]:
    """The first, the middle, the last and the most entangled axis."""
    axes = structure.axes
    busiest = max(axes, key=lambda axis: len(axis.entries))
    return list({axis.name: axis for axis in (axes[0], axes[len(axes) // 2], axes[-1], busiest)}.values())


# --------------------------------------------------------------------------------------------------
# the function is kept


@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.QUICK))
def test_growing_and_pruning_torchvision_models(name: str, variant: str) -> None:
    """Growth keeps the function, silent units leave unseen, undo takes each back bit for bit, training goes on."""
    b = bench(name, variant)
    for axis in sample(b.structure):
        original, start = b.snapshot(), outputs(b.model, b.x)
        size = axis.size
        growth = rg.grow_(axis, 0.25, optimizer=b.optimizer, generator=seeded())
        assert axis.size == size + round(0.25 * size)
        assert relative_change(start, outputs(b.model, b.x)) <= 1e-5, axis.name
        growth.undo_()
        assert differences(original, b.snapshot()) == [], axis.name

        silent = list(range(0, size, 4))
        axis.silence_(silent)
        silenced, start = b.snapshot(), outputs(b.model, b.x)
        removal = rg.prune_(axis, silent, optimizer=b.optimizer)
        assert axis.size == size - len(silent)
        assert relative_change(start, outputs(b.model, b.x)) <= 1e-5, axis.name
        removal.undo_()
        assert differences(silenced, b.snapshot()) == [], axis.name
    rg.grow_(b.structure.axes[0], 3, optimizer=b.optimizer, generator=seeded())
    assert torch.isfinite(b.step())
    rg.prune_(b.structure.axes[-1], [0, 2], optimizer=b.optimizer)
    assert torch.isfinite(b.step())


@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.TORCHVISION))
def test_growing_every_axis_of_torchvision_models_at_once(name: str, variant: str) -> None:
    b = bench(name, variant)
    original, start = b.snapshot(), outputs(b.model, b.x)
    edit = rg.grow_(b.structure.axes, 0.25, optimizer=b.optimizer, generator=seeded())
    assert set(edit.sizes) == {axis.name for axis in b.structure.axes}
    assert all(after == before + round(0.25 * before) for before, after in edit.sizes.values())
    assert relative_change(start, outputs(b.model, b.x)) <= 1e-5
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


@pytest.mark.parametrize(("name", "variant"), zoo.variants(*zoo.SMALL))
def test_units_whose_outgoing_weights_are_zero_leave_unseen(name: str, variant: str) -> None:
    """Whatever they compute, whatever their scale and bias are: nobody reads it."""
    for number in range(len(rg.analyze(zoo.build(name), zoo.example(name)).axes)):
        b = bench(name, variant, dtype=torch.float64)
        axis = b.structure.axes[number]
        reads = {place for place, role in ((e, e.role) for e in axis.entries) if role == "in"}
        if not all(e.role in ("in", "out", "scale", "shift", "mean", "var") for e in axis.entries) or not reads:
            continue
        with torch.no_grad():
            for entry in reads:
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
            assert all(torch.count_nonzero(part) == 0 for part in only(where, edit.new, grown[key]))
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


# --------------------------------------------------------------------------------------------------
# training goes on


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("name", "variant"), zoo.variants(*REPRESENTATIVE))
def test_training_goes_on_while_an_old_graph_is_alive(name: str, variant: str, optimizer: str) -> None:
    """A loss of the step before keeps autograd nodes that remember the old sizes."""
    b = bench(name, variant, optimizer)
    kept = [b.step()]
    for edit in (
        lambda axis: rg.grow_(axis, 2, optimizer=b.optimizer, generator=seeded()),
        lambda axis: rg.prune_(axis, [0], optimizer=b.optimizer),
        lambda axis: rg.grow_(axis, 1, optimizer=b.optimizer).undo_(),
    ):
        for axis in b.structure.axes:
            edit(axis)
            before = tensors_of(b.model)
            kept.append(b.step())
            assert torch.isfinite(kept[-1])
            assert all(p.grad.shape == p.shape for p in b.model.parameters() if p.grad is not None)
            assert differing(before, tensors_of(b.model))


def test_gradients_follow_an_edit_between_backward_and_step() -> None:
    """An edit may come anywhere in the loop: gradients are mapped like values."""
    b = bench("residual")
    axis = b.structure["conv1"]
    b.optimizer.zero_grad()
    loss = b.model(b.x).square().mean()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in b.model.named_parameters()}
    edit = rg.grow_(axis, 2, optimizer=b.optimizer, generator=seeded())
    where = places(axis)
    mapped = {name: p.grad for name, p in b.model.named_parameters()}
    assert differing(gradients, without(where, edit.new, mapped)) == []
    assert all(torch.count_nonzero(part) == 0 for part in only(where, edit.new, mapped))
    b.optimizer.step()
    rg.prune_(axis, edit.new, optimizer=b.optimizer)
    assert differing(gradients, {name: p.grad for name, p in b.model.named_parameters()}) == []


def test_accumulated_gradients_go_on_accumulating() -> None:
    """Silent new units change no other gradient, so two half batches give what two half batches gave."""
    totals = []
    for grow in (False, True):
        model = zoo.build("residual", dtype=torch.float64).eval()
        x = zoo.example("residual", dtype=torch.float64)
        axis = rg.analyze(model, x)["conv1"]
        model(x).square().mean().backward()
        edit = rg.grow_(axis, 2, generator=seeded()) if grow else None
        where = places(axis)
        model(x).square().mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        totals.append(without(where, edit.new, gradients) if edit else gradients)
    for name, gradient in totals[0].items():
        torch.testing.assert_close(totals[1][name], gradient, rtol=1e-9, atol=1e-12)


def test_a_model_without_an_optimizer_and_without_gradients_can_be_edited() -> None:
    model = zoo.build("residual")
    axis = rg.analyze(model, zoo.example("residual"))["conv1"]
    rg.grow_(axis, 2)
    rg.prune_(axis, [0])
    assert axis.size == 7
    assert all(p.grad is None for p in model.parameters())


def test_an_optimizer_that_has_not_stepped_yet() -> None:
    model = zoo.build("residual")
    x = zoo.example("residual")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    axis = rg.analyze(model, x)["conv1"]
    original = snapshot(model, optimizer)
    edit = rg.grow_(axis, 2, optimizer=optimizer)
    edit.undo_()
    assert differences(original, snapshot(model, optimizer)) == []
    rg.grow_(axis, 2, optimizer=optimizer)
    train_step(model, optimizer, x)


def test_a_state_that_no_map_fits_is_reset_with_a_notice() -> None:
    b = bench("residual")
    for parameter in b.model.parameters():
        b.optimizer.state[parameter]["strange"] = torch.ones(3, 7, 5, 2, 1)
    with pytest.warns(UserWarning, match="strange"):
        rg.grow_(b.structure["conv1"], 2, optimizer=b.optimizer)
    untouched = b.optimizer.state[b.model.fc.weight]["strange"]
    assert torch.equal(untouched, torch.ones(3, 7, 5, 2, 1))
    b.step()


def test_states_of_size_one_are_kept() -> None:
    b = bench("residual", optimizer="adam")
    for parameter in b.model.parameters():
        b.optimizer.state[parameter]["row"] = torch.ones([parameter.shape[0]] + [1] * (parameter.ndim - 1))
    rg.grow_(b.structure["conv1"], 2, optimizer=b.optimizer)
    assert b.optimizer.state[b.model.conv1.weight]["row"].flatten().tolist() == [1.0] * 6 + [0.0] * 2
    assert b.optimizer.state[b.model.conv2.weight]["row"].flatten().tolist() == [1.0] * 8
    assert b.optimizer.state[b.model.conv1.weight]["step"].item() == 2


# --------------------------------------------------------------------------------------------------
# what an edit does not mean to change


@pytest.mark.parametrize(("name", "variant"), zoo.variants(*REPRESENTATIVE, "tied_weight"))
def test_identity_hooks_ties_and_flags_are_kept(name: str, variant: str) -> None:
    b = bench(name, variant)
    model = b.model
    seen: list[str] = []
    for key, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, key=key: seen.append(key))
    for path, module in model.named_modules():
        module.register_forward_hook(lambda *_, path=path: None)
    ids = {key: id(p) for key, p in model.named_parameters(remove_duplicate=False)}
    hooks = {k: v for k, v in b.snapshot().items() if "hooks" in k}
    rg.grow_(b.structure, 2, optimizer=b.optimizer)
    rg.prune_(b.structure.axes[0], [0], optimizer=b.optimizer)
    assert {key: id(p) for key, p in model.named_parameters(remove_duplicate=False)} == ids
    assert {k: v for k, v in b.snapshot().items() if "hooks" in k} == hooks
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    assert list(dict(model.named_parameters())) == [key for key, _ in zoo.build(name, variant).named_parameters()]
    b.step()
    assert sorted(seen) == sorted(key for key, _ in model.named_parameters())


def test_frozen_parameters_stay_frozen() -> None:
    model = zoo.build("residual")
    model.conv1.weight.requires_grad_(False)
    axis = rg.analyze(model, zoo.example("residual"))["conv1"]
    rg.grow_(axis, 2).undo_()
    rg.grow_(axis, 2)
    assert not model.conv1.weight.requires_grad
    assert model.conv2.weight.requires_grad
    assert model.conv1.weight.shape[0] == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    model, x = zoo.build("residual", dtype=dtype), zoo.example("residual", dtype=dtype)
    before = snapshot(model)
    axis = rg.analyze(model, x)["conv1"]
    edit = rg.grow_(axis, 2)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.bn1.running_var.dtype == dtype
    assert torch.isfinite(model(x)).all()
    edit = rg.grow_(axis, 1)
    assert edit.new == [8]
    model = zoo.build("residual", dtype=dtype)
    rg.grow_(rg.analyze(model, x)["conv1"], 2).undo_()
    assert [d for d in differences(before, snapshot(model)) if "identity" not in d] == []


@pytest.mark.parametrize("edit", ["grow", "prune"])
def test_channels_last_is_kept(edit: str) -> None:
    model = zoo.build("residual").to(memory_format=torch.channels_last)
    x = zoo.example("residual").to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    axes = rg.analyze(model, x).axes
    train_step(model, optimizer, x)
    for axis in axes:
        if edit == "grow":
            rg.grow_(axis, 2, optimizer=optimizer)
        else:
            rg.prune_(axis, [0], optimizer=optimizer)
    for conv in (model.stem, model.conv1, model.conv2):
        momentum = optimizer.state[conv.weight]["momentum_buffer"]
        for tensor in (conv.weight, conv.weight.grad, momentum):
            assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_sizes_that_layers_keep_as_integers_follow() -> None:
    for name in ("residual", "grouped", "separable", "flatten", "concat"):
        b = bench(name)
        rg.grow_(b.structure.axes, 2, optimizer=b.optimizer)
        rg.prune_(b.structure.axes[0], [0], optimizer=b.optimizer)
        for module in b.model.modules():
            match module:
                case nn.Conv2d():
                    sizes = (module.out_channels, module.in_channels // module.groups)
                    assert sizes == tuple(module.weight.shape[:2])
                case nn.Linear():
                    assert (module.out_features, module.in_features) == tuple(module.weight.shape)
                case nn.BatchNorm2d():
                    assert module.num_features == len(module.weight) == len(module.running_mean)
    grouped = bench("grouped")
    [groups] = grouped.structure.select(kind="head")
    rg.grow_(groups, 2)
    assert (grouped.model[3].groups, grouped.model[3].in_channels, grouped.model[3].out_channels) == (6, 12, 18)


def test_groups_kept_in_an_attribute_of_a_functional_model_follow() -> None:
    b = bench("grouped", "attribute")
    holder = b.model.get_submodule("3")
    [axis] = b.structure.select(kind="head")
    edit = rg.grow_(axis, 2, optimizer=b.optimizer)
    assert holder.groups == 6
    edit.undo_()
    assert holder.groups == 4


def test_an_unrelated_integer_of_the_same_value_is_left_alone() -> None:
    model = zoo.build("grouped", "attribute")
    holder = model.get_submodule("3")
    holder.patience, model.depth = 4, 4
    [groups] = rg.analyze(model, zoo.example("grouped")).select(kind="head")
    rg.grow_(groups, 2)
    assert (holder.groups, holder.patience, model.depth) == (6, 4, 4)


# --------------------------------------------------------------------------------------------------
# randomness


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_the_same_seed_gives_the_same_edit_and_global_randomness_is_untouched(name: str) -> None:
    results = []
    for global_seed, seed in ((0, 3), (1, 3), (0, 4)):
        b = bench(name)
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        rg.grow_(b.structure, 3, optimizer=b.optimizer, generator=seeded(seed))
        rg.prune_(b.structure, 0.2, optimizer=b.optimizer, generator=seeded(seed))
        assert torch.equal(torch.get_rng_state(), state)
        results.append(tensors_of(b.model))
    assert differing(results[0], results[1]) == []
    assert differing(results[0], results[2])


def test_without_a_generator_the_global_randomness_is_untouched_too() -> None:
    b = bench("residual")
    before = {k: v for k, v in b.snapshot().items() if k.startswith("random")}
    rg.grow_(b.structure, 3, optimizer=b.optimizer)
    assert differences(before, {k: v for k, v in b.snapshot().items() if k.startswith("random")}) == []


def test_edits_with_a_used_generator_differ() -> None:
    generator, weights = seeded(), []
    for _ in range(2):
        b = bench("mlp")
        edit = rg.grow_(b.structure["0"], 2, generator=generator)
        weights.append(b.model[0].weight[edit.new].clone())
    assert not torch.equal(*weights)


# --------------------------------------------------------------------------------------------------
# refusals come before the first write


class Broken(rg.Random):
    """Random growth that fails at its second axis."""

    def fresh(self, axis: rg.Axis, *args: Any, **kwargs: Any) -> Any:
        if axis.name == "conv1":
            raise RuntimeError("broken on purpose")
        return super().fresh(axis, *args, **kwargs)


def test_an_edit_that_fails_half_way_leaves_everything_as_it_was() -> None:
    b = bench("residual", optimizer="adam")
    before, sizes = b.snapshot(), [axis.size for axis in b.structure.axes]
    assert b.structure.axes[-1].name == "conv1"
    with pytest.raises(RuntimeError, match="on purpose"):
        rg.grow_(b.structure, 2, Broken(), optimizer=b.optimizer)
    assert differences(before, b.snapshot()) == []
    assert [axis.size for axis in b.structure.axes] == sizes
    edit = rg.grow_(b.structure, 2, optimizer=b.optimizer, generator=seeded())
    edit.undo_()
    assert differences(before, b.snapshot()) == []


GROW_REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "nothing": (0, {}),
    "no fraction": (0.0, {}),
    "negative": (-1, {}),
    "negative fraction": (-0.5, {}),
    "not a number": (math.nan, {}),
    "infinite": (math.inf, {}),
    "bool": (True, {}),
    "string": ("3", {}),
    "none": (None, {}),
    "complex": (1j, {}),
    "unknown axis": ({"nowhere": 2}, {}),
    "units of another type": ({"conv1": "2"}, {}),
    "bool in a mapping": ({"conv1": True}, {}),
    "negative in a mapping": ({"conv1": 2, "stem": -1}, {}),
    "round_to zero": (2, {"round_to": 0}),
    "round_to negative": (2, {"round_to": -8}),
    "round_to bool": (2, {"round_to": True}),
    "round_to float": (2, {"round_to": 1.5}),
    "min_size zero": (2, {"min_size": 0}),
    "max_size negative": (2, {"max_size": -1}),
    "min above max": (2, {"min_size": 9, "max_size": 4}),
    "max_size float": (2, {"max_size": 8.5}),
    "protect unknown": (2, {"protect": ("nowhere",)}),
    "generator": (2, {"generator": 0}),
    "optimizer": (2, {"optimizer": "sgd"}),
    "method of the wrong kind": (2, {"method": rg.L1()}),
    "method by a class": (2, {"method": rg.Random}),
    "batches zero": (2, {"batches": 0}),
    "loss": (2, {"loss": 3}),
}
PRUNE_REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    **{key: value for key, value in GROW_REFUSED.items() if key not in ("method of the wrong kind",)},
    "too many": (14, {}),
    "more than there are": (100, {}),
    "a fraction above one": (1.5, {}),
    "the whole": (1.0, {}),
    "all of one axis": ({"conv1": 6}, {}),
    "method of the wrong kind": (2, {"method": rg.Random()}),
}
UNITS_REFUSED: dict[str, Any] = {
    "unknown unit": [6],
    "negative unit": [-1],
    "duplicates": [1, 1],
    "bools": [True, False],
    "floats": [0.0, 1.0],
    "strings": ["0"],
    "nested": [[0, 1]],
    "all": [0, 1, 2, 3, 4, 5],
    "none": [],
    "float tensor": torch.tensor([0.0]),
    "bool tensor": torch.tensor([True, False, False, False, False, False]),
}


def refused(b: Bench, edit: Callable[[], Any]) -> None:
    before, sizes = b.snapshot(), [axis.size for axis in b.structure.axes]
    with pytest.raises((ValueError, TypeError)) as error:
        edit()
    assert len(str(error.value)) > 10
    assert differences(before, b.snapshot()) == []
    assert [axis.size for axis in b.structure.axes] == sizes


@pytest.mark.parametrize("case", GROW_REFUSED)
def test_growth_is_refused_before_the_first_write(case: str) -> None:
    b = bench("residual")
    amount, options = GROW_REFUSED[case]
    refused(b, lambda: rg.grow_(b.structure, amount, **{"optimizer": b.optimizer, **options}))


@pytest.mark.parametrize("case", PRUNE_REFUSED)
def test_pruning_is_refused_before_the_first_write(case: str) -> None:
    b = bench("residual")
    amount, options = PRUNE_REFUSED[case]
    refused(b, lambda: rg.prune_(b.structure, amount, **{"optimizer": b.optimizer, **options}))


@pytest.mark.parametrize("case", UNITS_REFUSED)
def test_wrong_units_are_refused_before_the_first_write(case: str) -> None:
    b = bench("residual")
    refused(b, lambda: rg.prune_(b.structure["conv1"], UNITS_REFUSED[case], optimizer=b.optimizer))


@pytest.mark.parametrize("edit", [rg.grow_, rg.prune_])
@pytest.mark.parametrize("target", ["model", "name", "nothing", "empty", "mixed"])
def test_wrong_targets_are_refused(edit: Callable[..., Any], target: str) -> None:
    b, other = bench("residual"), bench("residual")
    targets: dict[str, Any] = {
        "model": b.model,
        "name": "conv1",
        "nothing": None,
        "empty": [],
        "mixed": [b.structure["conv1"], other.structure["stem"]],
    }
    refused(b, lambda: edit(targets[target], 2, optimizer=b.optimizer))


def test_units_of_several_axes_cannot_be_listed() -> None:
    b = bench("residual")
    refused(b, lambda: rg.prune_(b.structure, [0, 1], optimizer=b.optimizer))


@pytest.mark.parametrize("edit", [rg.grow_, rg.prune_])
def test_an_optimizer_that_does_not_hold_the_model_is_refused(edit: Callable[..., Any]) -> None:
    b = bench("residual")
    stranger = torch.optim.SGD(zoo.build("residual").parameters(), lr=0.1)
    refused(b, lambda: edit(b.structure["conv1"], 2, optimizer=stranger))


def test_a_model_whose_shapes_have_changed_behind_its_back_is_refused() -> None:
    b = bench("residual")
    b.model.bn1.weight.data = b.model.bn1.weight.data[:4]
    before = b.snapshot()
    with pytest.raises(rg.NotPermissible, match="bn1"):
        rg.prune_(b.structure["conv1"], [0], optimizer=b.optimizer)
    assert differences(before, b.snapshot()) == []


def test_a_replaced_parameter_is_followed_or_refused() -> None:
    model = zoo.build("residual")
    axis = rg.analyze(model, zoo.example("residual"))["conv1"]
    model.conv1.weight = nn.Parameter(model.conv1.weight.detach() * 2)
    try:
        rg.prune_(axis, [0])
    except rg.NotPermissible:
        assert model.conv1.weight.shape[0] == len(model.bn1.weight) == 6
    else:
        model(zoo.example("residual"))


def test_refusals_are_value_errors() -> None:
    assert issubclass(rg.NotPermissible, ValueError)


# --------------------------------------------------------------------------------------------------
# amounts


@pytest.mark.parametrize(
    ("amount", "size"),
    [(1, 9), (16, 24), (0.01, 9), (0.5, 12), (1.0, 16), (2.0, 24), ({"stem": 3}, 11), ({"stem": 0.25}, 10)],
)
def test_amounts_of_growth(amount: Any, size: int) -> None:
    b = bench("residual")
    edit = rg.grow_(b.structure["stem"], amount, optimizer=b.optimizer)
    assert b.structure["stem"].size == size
    assert edit.new == list(range(8, size)) or edit.new == {"stem": list(range(8, size))}
    b.step()


def test_growth_is_per_axis_and_pruning_in_total() -> None:
    b = bench("residual")
    edit = rg.grow_(b.structure, 3, optimizer=b.optimizer)
    assert edit.sizes == {"stem": (8, 11), "conv1": (6, 9)}
    assert edit.new == {"stem": [8, 9, 10], "conv1": [6, 7, 8]}
    edit = rg.prune_(b.structure, 5, optimizer=b.optimizer)
    assert sum(len(units) for units in edit.removed.values()) == 5
    edit = rg.prune_(b.structure, {"stem": 2, "conv1": 0.5}, optimizer=b.optimizer)
    assert len(edit.removed["stem"]) == 2
    before, after = edit.sizes["conv1"]
    assert before - after == round(0.5 * before)
    assert [axis.size for axis in b.structure.axes] == [edit.sizes[axis.name][1] for axis in b.structure.axes]


def test_pruning_removes_the_units_that_matter_least_over_all_axes() -> None:
    b = bench("residual")
    with torch.no_grad():
        b.model.bn1.weight.copy_(torch.tensor([5.0, 1e-3, 5.0, 5.0, -1e-3, 5.0]))
        for bn in (b.model.norm, b.model.bn2):
            bn.weight.fill_(3.0)
            bn.weight[6] = 1e-4
    edit = rg.prune_(b.structure, 3, rg.L1(), optimizer=b.optimizer)
    assert edit.removed == {"stem": [6], "conv1": [1, 4]}


def test_at_least_one_unit_of_each_axis_stays() -> None:
    b = bench("residual")
    with torch.no_grad():
        b.model.bn1.weight.mul_(1e-6)
    rg.prune_(b.structure, 10, optimizer=b.optimizer)
    assert b.structure["conv1"].size >= 1
    assert sum(axis.size for axis in b.structure.axes) == 4
    b.step()


@pytest.mark.parametrize(("amount", "grown", "pruned"), [(1, 72, 64), (3, 72, 64), (9, 80, 72), (0.25, 80, 64)])
def test_sizes_are_rounded_to_the_side_of_more_units(amount: float, grown: int, pruned: int) -> None:
    b = bench("resnet18")
    axis = b.structure["layer1.0.conv1"]
    rg.grow_(axis, amount, optimizer=b.optimizer, round_to=8)
    assert axis.size == grown
    if isinstance(amount, int) and amount < 8:
        with pytest.raises(rg.NotPermissible):
            rg.prune_(axis, amount, optimizer=b.optimizer, round_to=8)
        assert axis.size == grown
    else:
        rg.prune_(axis, amount, optimizer=b.optimizer, round_to=8)
        assert axis.size == pruned


def test_min_size_and_max_size_bound_the_result() -> None:
    b = bench("residual")
    rg.grow_(b.structure, 10, optimizer=b.optimizer, max_size=12)
    assert [axis.size for axis in b.structure.axes] == [12, 12]
    rg.prune_(b.structure, 14, optimizer=b.optimizer, min_size=5)
    assert [axis.size for axis in b.structure.axes] == [5, 5]
    before = b.snapshot()
    with pytest.raises(ValueError, match="at most 0"):
        rg.prune_(b.structure, 1, optimizer=b.optimizer, min_size=5)
    assert differences(before, b.snapshot()) == []


def test_protected_axes_are_left_alone() -> None:
    b = bench("residual")
    rg.grow_(b.structure, 2, optimizer=b.optimizer, protect=("stem",))
    assert [axis.size for axis in b.structure.axes] == [8, 8]
    rg.prune_(b.structure, 3, optimizer=b.optimizer, protect=("conv*",))
    assert [axis.size for axis in b.structure.axes] == [5, 8]


def test_growing_a_structure_means_its_neurons_and_groups_are_asked_for() -> None:
    b = bench("grouped")
    kinds = {axis.name: axis.kind for axis in b.structure.axes}
    assert sorted(kinds.values()) == ["head", "neuron", "neuron"]
    edit = rg.grow_(b.structure, 1, optimizer=b.optimizer)
    assert set(edit.new) == {name for name, kind in kinds.items() if kind == "neuron"}
    [groups] = b.structure.select(kind="head")
    assert rg.grow_(groups, 1, optimizer=b.optimizer).new == [4]
    assert b.model[3].groups == 5


# --------------------------------------------------------------------------------------------------
# what an edit reports


@pytest.mark.parametrize(("name", "variant"), zoo.variants("residual", "grouped", "flatten", "separable"))
def test_parameters_and_flops_are_counted_right(name: str, variant: str) -> None:
    b = bench(name, variant)
    for edit in (
        lambda: rg.grow_(b.structure, 2, optimizer=b.optimizer),
        lambda: rg.prune_(b.structure.axes[0], [0], optimizer=b.optimizer),
    ):
        before = counted(b.model, b.x)
        made = edit()
        after = counted(b.model, b.x)
        assert made.params == (before[0], after[0])
        assert rg.measure.parameters(b.model) == after[0]
        assert rg.measure.flops(b.model, b.x) == after[1]
        assert made.flops[1] / made.flops[0] == pytest.approx(after[1] / before[1], rel=1e-9)


def counted(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Parameters, and FLOPs by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model)(x)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()


def test_an_edit_prints_what_it_did() -> None:
    b = bench("residual")
    text = str(rg.grow_(b.structure["conv1"], 2, optimizer=b.optimizer))
    before, after = 6 * 8 * 9 * 2 + 12, 8 * 8 * 9 * 2 + 16
    assert "conv1: 6 -> 8" in text
    assert f"+{after - before:,} params" in text
    assert "FLOPs" in text
    text = str(rg.prune_(b.structure, 3, optimizer=b.optimizer))
    assert "->" in text and "-" in text and "params" in text


def test_measure_is_the_change_of_the_output() -> None:
    b = bench("residual", dtype=torch.float64)
    b.model.eval()
    with torch.no_grad():
        before = b.model(b.x)
    edit = rg.prune_(b.structure["conv1"], [0, 1], optimizer=b.optimizer)
    with torch.no_grad():
        after = b.model(b.x)
    state = b.snapshot()
    assert edit.measure(b.x) == pytest.approx((after - before).abs().max().item(), rel=1e-9)
    assert differences(state, b.snapshot()) == []
    growth = rg.grow_(b.structure["conv1"], 2, optimizer=b.optimizer)
    assert growth.measure(b.x) < 1e-12


def test_the_loss_callable_leaves_gradients_alone() -> None:
    """``loss`` is for methods that need it; whoever passes it finds gradients and randomness as before."""
    b = bench("residual")
    b.optimizer.zero_grad()
    calls: list[int] = []

    def loss() -> Tensor:
        calls.append(1)
        return F.dropout(b.model(b.x)).square().mean()

    edit = rg.grow_(b.structure["conv1"], 2, optimizer=b.optimizer, loss=loss, batches=2)
    edit.undo_()
    assert all(p.grad is None for p in b.model.parameters())


def test_an_edit_works_on_a_deep_copy_of_the_model() -> None:
    """Copies are models of their own: editing one leaves the other alone."""
    b = bench("residual")
    twin = copy.deepcopy(b.model)
    before = snapshot(twin)
    rg.grow_(b.structure, 2, optimizer=b.optimizer)
    assert differences(before, snapshot(twin)) == []
    axis = rg.analyze(twin, b.x)["conv1"]
    rg.prune_(axis, [0])
    assert b.structure["conv1"].size == 8
    assert axis.size == 5


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


@pytest.mark.parametrize("name", ["Adadelta", "Adagrad", "Adamax", "ASGD", "NAdam", "RAdam", "Rprop", "Adafactor"])
def test_other_optimizers_go_on_and_undo_too(name: str) -> None:
    model, x = zoo.build("residual"), zoo.example("residual")
    optimizer = getattr(torch.optim, name)(model.parameters())
    structure = rg.analyze(model, x)
    train_step(model, optimizer, x)
    original = snapshot(model, optimizer)
    rg.grow_(structure, 2, optimizer=optimizer).undo_()
    assert differences(original, snapshot(model, optimizer)) == []
    rg.grow_(structure, 2, optimizer=optimizer)
    train_step(model, optimizer, x)
    rg.prune_(structure, 3, optimizer=optimizer)
    assert torch.isfinite(train_step(model, optimizer, x))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_lbfgs_goes_on_or_is_refused() -> None:
    """It keeps one flat vector for all parameters together, under the first of them."""
    model, x = zoo.build("residual"), zoo.example("residual")
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    axis = rg.analyze(model, x)["conv1"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rg.grow_(axis, 2, optimizer=optimizer)
    except rg.NotPermissible:
        assert axis.size == 6
    optimizer.step(closure)


def test_an_optimizer_of_some_parameters_is_enough() -> None:
    """Parts of a model are trained alone, as when fine-tuning; what the optimizer holds follows."""
    model, x = zoo.build("residual"), zoo.example("residual")
    optimizer = torch.optim.SGD([{"params": [model.conv1.weight]}, {"params": [model.fc.weight]}], lr=0.1, momentum=0.9)
    axis = rg.analyze(model, x)["conv1"]
    train_step(model, optimizer, x)
    rg.grow_(axis, 2, optimizer=optimizer)
    assert optimizer.state[model.conv1.weight]["momentum_buffer"].shape == model.conv1.weight.shape
    train_step(model, optimizer, x)


def test_two_structures_of_one_model_do_not_get_in_each_others_way_unnoticed() -> None:
    model, x = zoo.build("residual"), zoo.example("residual")
    one, other = rg.analyze(model, x), rg.analyze(model, x)
    first = rg.grow_(one["conv1"], 2)
    before = snapshot(model)
    with pytest.raises(rg.NotPermissible):
        rg.prune_(other["conv1"], [0])
    assert differences(before, snapshot(model)) == []
    fresh = rg.analyze(model, x)
    rg.prune_(fresh["conv1"], [7])
    before = snapshot(model)
    with pytest.raises(rg.NotPermissible):
        first.undo_()
    assert differences(before, snapshot(model)) == []


def test_a_copied_structure_is_of_the_copied_model() -> None:
    structure = bench("residual").structure
    twin = copy.deepcopy(structure)
    rg.grow_(twin["conv1"], 2)
    assert (twin["conv1"].size, twin.model.conv1.out_channels) == (8, 8)
    assert (structure["conv1"].size, structure.model.conv1.out_channels) == (6, 6)


def test_edits_do_not_depend_on_the_grad_mode_or_autocast() -> None:
    results = []
    for context in (torch.enable_grad, torch.no_grad, partial(torch.autocast, "cpu", dtype=torch.bfloat16)):
        model, x = zoo.build("residual"), zoo.example("residual")
        with context():
            structure = rg.analyze(model, x)
            rg.grow_(structure, 2, generator=seeded())
            rg.prune_(structure, 3)
        assert all(p.requires_grad and p.is_leaf for p in model.parameters())
        results.append(tensors_of(model))
    assert differing(results[0], results[1]) == differing(results[0], results[2]) == []


def test_a_compiled_model_follows_an_edit() -> None:
    model, x = zoo.build("residual").eval(), zoo.example("residual")
    structure = rg.analyze(model, x)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    rg.grow_(structure["conv1"], 2)
    torch.compiler.reset()
    assert torch.equal(compiled(x), model(x))


def test_a_parametrised_weight_grows_at_its_source() -> None:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    nn.utils.parametrize.register_parametrization(model[0], "weight", Double())
    x = torch.randn(4, 6, dtype=torch.float64)
    [axis] = rg.analyze(model, x).axes
    before = outputs(model, x)
    rg.grow_(axis, 2)
    assert relative_change(before, outputs(model, x)) < 1e-12
    assert (model[0].weight.shape[0], model[0].out_features, model[2].in_features) == (10, 10, 10)
    axis.silence_([0, 9])
    before = outputs(model, x)
    rg.prune_(axis, [0, 9])
    assert relative_change(before, outputs(model, x)) < 1e-12


def test_sequences_of_axes(generator: torch.Generator) -> None:
    b = bench("resnet18")
    chosen: Sequence[rg.Axis] = b.structure.select("layer[12].*.conv1")
    edit = rg.grow_(chosen, 0.25, optimizer=b.optimizer, generator=generator)
    assert set(edit.new) == {axis.name for axis in chosen}
    edit = rg.prune_(chosen, 0.1, optimizer=b.optimizer)
    assert sum(map(len, edit.removed.values())) == round(0.1 * sum(before for before, _ in edit.sizes.values()))

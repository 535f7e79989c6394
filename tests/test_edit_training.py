"""Training goes on after an edit, under any optimizer, and what an edit does not mean to change stays."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow as rg
import zoo
from regrow.carry import DIVISORS
from state import (
    differences,
    differing,
    only,
    outputs,
    places,
    relative_change,
    snapshot,
    tensors_of,
    train_step,
    without,
)
from workbench import OPTIMIZERS, REPRESENTATIVE, bench, seeded

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
        for path, module in b.model.named_modules():
            match module:
                case nn.Conv2d():
                    sizes = (module.out_channels, module.in_channels // module.groups)
                    assert sizes == tuple(module.weight.shape[:2])
                case nn.Linear():
                    assert (module.out_features, module.in_features) == tuple(module.weight.shape)
                case nn.BatchNorm2d():
                    assert (
                        module.num_features
                        == module.weight.numel()
                        == b.model.get_buffer(f"{path}.running_mean").numel()
                    )
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
# other optimizers, other structures, other modes


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


@pytest.mark.parametrize(
    "name", ["Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop"]
)
def test_new_units_divide_by_what_the_others_do_on_average(name: str) -> None:
    model, x = zoo.build("residual"), zoo.example("residual")
    optimizer = getattr(torch.optim, name)(model.parameters())
    axis = rg.analyze(model, x)["conv1"]
    for _ in range(3):
        train_step(model, optimizer, x)
    old = {key: value.clone() for key, value in optimizer.state[model.conv1.weight].items()}
    edit = rg.grow_(axis, 2, optimizer=optimizer)
    found = {"conv1": 0, "conv2": 0}
    for layer, dim in (("conv1", 0), ("conv2", 1)):
        for key, value in optimizer.state[model.get_submodule(layer).weight].items():
            if value.ndim and key in DIVISORS:
                new, others = (value.movedim(dim, 0)[units] for units in (edit.new, slice(0, 6)))
                torch.testing.assert_close(new, others.mean(0).expand_as(new))
                found[layer] += 1
    assert min(found.values()) > 0
    assert all(torch.equal(optimizer.state[model.conv1.weight][key][:6], v) for key, v in old.items() if v.ndim)


def test_adam_takes_no_leap_after_growth_late_in_training() -> None:
    """With a second moment of zero the first step is 3.2 times the learning rate, and the tenth 6.5 times."""
    moved = []
    for step in (10, 20_000):
        model, x = zoo.build("residual"), zoo.example("residual")
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        axis = rg.analyze(model, x)["conv1"]
        for _ in range(10):
            train_step(model, optimizer, x)
        for state in optimizer.state.values():  # what they would be so late, had nothing changed
            state["exp_avg"] /= 1 - 0.9**10
            state["exp_avg_sq"] /= 1 - 0.999**10
            state["exp_avg"] *= 1 - 0.9**step
            state["exp_avg_sq"] *= 1 - 0.999**step
            state["step"].fill_(step)
        edit = rg.grow_(axis, 2, optimizer=optimizer, generator=torch.Generator().manual_seed(0))
        before = model.conv2.weight.detach().clone()
        train_step(model, optimizer, x)
        moved.append((model.conv2.weight.detach() - before)[:, edit.new].norm())
    assert moved[1] <= 1.2 * moved[0]


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
    assert (twin["conv1"].size, twin.model.get_parameter("conv1.weight").shape[0]) == (8, 8)
    assert (structure["conv1"].size, structure.model.get_parameter("conv1.weight").shape[0]) == (6, 6)


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

    model: Any = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).double()
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

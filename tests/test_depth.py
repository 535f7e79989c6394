"""Layers and cells of other people's models leave and enter, and all else is as it was."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import regrow as rg
from depth_models import COUNTED, MODELS, build
from regrow.surgery import given_to, with_first
from state import differences, snapshot

#: The same functions without their types, for calls that the types forbid.
LOOSELY: Any = rg


def logits(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out if isinstance(out, Tensor) else out.logits


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


class Trial:
    def __init__(self, name: str) -> None:
        self.name, (self.model, self.x) = name, build(name)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.Adam([{"params": decayed, "weight_decay": 0.01}, {"params": rest}], lr=1e-3)
        self.train()
        self.structure = rg.analyze(self.model, self.x)

    def loss(self) -> Tensor:
        return logits(self.model, self.x).square().mean()

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()

    def outputs(self) -> list[Tensor]:
        """In eval and in train mode, of a copy."""
        found = []
        for training in (False, True):
            model = copy.deepcopy(self.model).train(training)
            with torch.no_grad():
                found.append(logits(model, self.x))
        return found

    def moved(self, before: list[Tensor]) -> float:
        return max(relative(now, then) for now, then in zip(self.outputs(), before, strict=True))

    def held(self) -> set[nn.Parameter]:
        return {p for group in self.optimizer.param_groups for p in group["params"]}

    def counts(self) -> int | None:
        return getattr(self.model.config, COUNTED[self.name]) if self.name in COUNTED else None


# --------------------------------------------------------------------------------------------------
# what there is


@pytest.mark.parametrize("name", MODELS)
def test_the_cells_are_those_known_by_hand(name: str) -> None:
    model, x = build(name)
    names = [cell.name for cell in rg.analyze(model, x).cells]
    known = MODELS[name][2]
    assert names[: len(known)] == known
    assert bool(names) == bool(known)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_network_with_renamed_classes_has_the_same_layers_and_cells(name: str) -> None:
    model, x = build(name)
    one = rg.analyze(model, x)
    renamed = copy.deepcopy(model)
    for number, module in enumerate(renamed.modules()):
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) and module is not renamed:
            module.__class__ = type(f"Renamed{number}", (type(module),), {})
    other = rg.analyze(renamed, x)
    for kind in ("layers", "cells"):
        found = [
            [(p.name, p.shape, p.channels, bool(p.prunable), bool(p.growable), getattr(p, "pattern", 0)) for p in of]
            for of in (getattr(one, kind), getattr(other, kind))
        ]
        assert found[0] == found[1]


def test_layers_say_why_they_cannot_leave() -> None:
    trial = Trial("torchvision resnet18")
    by_name = {layer.name: layer for layer in trial.structure.layers}
    assert by_name["layer1.0.conv1"].prunable
    assert not by_name["conv1"].prunable
    assert by_name["conv1"].prunable.reason == "it makes (3, 3, 32, 32) into (3, 64, 16, 16)"
    assert [cell.name for cell in trial.structure.cells if not cell.keeps_shape] == ["layer2.0", "layer3.0", "layer4.0"]


# --------------------------------------------------------------------------------------------------
# what enters


@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name][2]])
def test_a_copy_of_a_cell_changes_nothing_and_learns(name: str, which: str) -> None:
    trial = Trial(name)
    cell = trial.structure.cells[0 if which == "first" else -1]
    before, state, counted = trial.outputs(), snapshot(trial.model, trial.optimizer), trial.counts()
    known = set(trial.model.parameters())
    groups = [len(group["params"]) for group in trial.optimizer.param_groups]
    edit = rg.grow_(cell, 1, optimizer=trial.optimizer)
    assert trial.moved(before) < 1e-5
    new = [parameter for parameter in trial.model.parameters() if parameter not in known]
    assert new
    assert trial.held() == set(trial.model.parameters())
    for group, number in zip(trial.optimizer.param_groups, groups, strict=True):
        kinds = {p.ndim > 1 for p in group["params"][number:] if p.ndim}
        assert len(kinds) <= 1  # the neighbour's group, which has its decay
    assert edit.params[1] - edit.params[0] == sum(parameter.numel() for parameter in new)
    if counted is not None:
        assert trial.counts() == counted + 1
    edit.undo_()
    assert differences(state, snapshot(trial.model, trial.optimizer)) == []
    edit = rg.grow_(cell, 1, optimizer=trial.optimizer)
    new = [parameter for parameter in trial.model.parameters() if parameter not in known]
    values = [parameter.detach().clone() for parameter in new]
    scheduler = torch.optim.lr_scheduler.StepLR(trial.optimizer, 1)
    trial.train(3)
    scheduler.step()
    moved = [not torch.equal(p, value) for p, value in zip(new, values, strict=True)]
    assert sum(moved) >= 0.7 * len(moved)  # few images leave some channels dead


@pytest.mark.filterwarnings("ignore:the copy at .* has that one's layer_idx")
@pytest.mark.parametrize("kind", ["same", "1x1", "3x3", "depthwise", "pool"])
@pytest.mark.parametrize("name", ["torchvision resnet18", "torchvision densenet", "timm vit", "transformers bert"])
def test_a_branch_beside_a_cell_changes_nothing_and_learns(name: str, kind: str) -> None:
    trial = Trial(name)
    before, known = trial.outputs(), set(trial.model.parameters())
    method = rg.Deepen(branch=kind)
    for cell in (trial.structure.cells[0], trial.structure.cells[-1]):
        if kind in ("3x3", "depthwise", "pool") and cell.channels != 1:
            with pytest.raises(rg.NotPermissible, match="is for images"):
                rg.grow_(cell, 1, method, parallel=True, optimizer=trial.optimizer)
            continue
        edit = rg.grow_(cell, 1, method, parallel=True, optimizer=trial.optimizer)
        assert trial.moved(before) == 0.0
        new = [parameter for parameter in trial.model.parameters() if parameter not in known]
        values = [parameter.detach().clone() for parameter in new]
        state = copy.deepcopy(trial.model.state_dict())
        trial.train(3)
        assert any(not torch.equal(p, value) for p, value in zip(new, values, strict=True))
        trial.model.load_state_dict(state)
        edit.undo_()


@pytest.mark.parametrize("norm", [False, True])
def test_a_layer_behind_an_activation_starts_with_the_identity_for_a_kernel(norm: bool) -> None:
    trial = Trial("torchvision vgg11_bn")
    with torch.no_grad():
        for _ in range(60):  # running statistics are those of the batch, as they nearly are late in training
            trial.model.train()(trial.x)
    before = trial.outputs()
    for layer in [layer for layer in trial.structure.layers if layer.activation == "relu"]:
        edit = rg.grow_(layer, 1, rg.Deepen("identity", norm=norm), optimizer=trial.optimizer)
        eval_mode, train_mode = trial.outputs()
        assert relative(eval_mode, before[0]) < 1e-5
        assert relative(train_mode, before[1]) < (0.05 if norm else 1e-5)
        edit.undo_()


def test_where_the_identity_would_change_the_function_a_residual_layer_follows() -> None:
    trial = Trial("timm vit")
    before = trial.outputs()
    layer = trial.structure.select("blocks.0.mlp.fc1", kind="layer")[0]
    assert layer.activation == "gelu"
    with pytest.raises(rg.NotPermissible, match="no activation like a ReLU"):
        rg.grow_(layer, 1, rg.Deepen("identity"), optimizer=trial.optimizer)
    assert trial.moved(before) == 0.0
    rg.grow_(layer, 1, optimizer=trial.optimizer)
    assert trial.moved(before) < 1e-6


# --------------------------------------------------------------------------------------------------
# what leaves


@pytest.mark.parametrize("name", MODELS)
def test_what_leaves_is_skipped_and_comes_back(name: str) -> None:
    """Each removable layer and cell: the model computes what it did with that module's output replaced by its input."""
    trial = Trial(name)
    state = snapshot(trial.model, trial.optimizer)
    parts = [part for part in (*trial.structure.layers, *trial.structure.cells) if part.prunable]
    assert parts
    for part in parts[:: max(1, len(parts) // 12)]:
        module, counted = part.module, trial.counts()

        def skip(_: nn.Module, args: tuple, kwargs: dict, returned: Any) -> Any:
            return with_first(returned, given_to(args, kwargs))

        handle = module.register_forward_hook(skip, with_kwargs=True)
        with torch.no_grad():
            expected = logits(trial.model.eval(), trial.x)
        handle.remove()
        edit = rg.prune_(part, 1, optimizer=trial.optimizer)
        with torch.no_grad():
            assert relative(logits(trial.model.eval(), trial.x), expected) < 1e-5
        assert module not in set(trial.model.modules())
        assert trial.held() == set(trial.model.parameters())
        if counted is not None and part.kind == "cell":
            assert trial.counts() == counted - 1
        edit.undo_()
        assert differences(state, snapshot(trial.model, trial.optimizer)) == [], part.name


def test_scores_of_cells_against_brute_force() -> None:
    trial = Trial("timm vit")
    cells = trial.structure.cells
    names = [cell.name for cell in cells]
    base, exact, first = float(trial.loss().detach()), [], []
    for cell in cells:
        twin = copy.deepcopy(trial.model)
        twin.get_submodule(cell.name.rpartition(".")[0])[int(cell.name[-1])] = nn.Identity()  # type: ignore[operator]
        exact.append(float(logits(twin, trial.x).square().mean().detach()) - base)
        gate, twin = torch.ones((), requires_grad=True), copy.deepcopy(trial.model)
        twin.get_submodule(cell.name).register_forward_hook(
            lambda _, args, out, gate=gate: args[0] + gate * (out - args[0])
        )
        [slope] = torch.autograd.grad(logits(twin, trial.x).square().mean(), gate)
        first.append(abs(float(slope)))
    from regrow.evidence import skipping

    assert list(skipping.exact(cells, trial.loss).values()) == pytest.approx(exact, rel=1e-3, abs=1e-5)
    seen = {"skips": skipping.first_order(cells, trial.loss)}
    assert rg.Taylor().score_layers(cells, seen) == pytest.approx(first, rel=1e-3, abs=1e-5)
    edit = rg.prune_(cells, 1, rg.Ablation(), loss=trial.loss, optimizer=trial.optimizer)
    assert list(edit.sizes) == [names[exact.index(min(exact))]]


# --------------------------------------------------------------------------------------------------
# with everything else


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name][2]])
def test_a_model_of_another_depth_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    trial = Trial(name)
    cells = trial.structure.cells
    rg.grow_(cells[0], 2, optimizer=trial.optimizer)
    rg.grow_(trial.structure.cells[-1], 1, rg.Deepen(branch="1x1"), parallel=True, optimizer=trial.optimizer)
    removable = [cell for cell in trial.structure.cells if cell.prunable]
    if removable:
        rg.prune_(removable[-1], 1, optimizer=trial.optimizer)
    neurons = [a for a in trial.structure.select(kind="neuron") if a.growable and "stream" not in a.tags]
    rg.grow_(neurons[0], 2, optimizer=trial.optimizer)
    trial.train()
    rg.save(trial.model, tmp_path)
    fresh = MODELS[name][0]()
    loaded = rg.load(tmp_path, fresh)
    with torch.no_grad():
        assert torch.equal(logits(loaded.eval(), trial.x), logits(trial.model.eval(), trial.x))
    assert list(loaded.state_dict()) == list(trial.model.state_dict())
    if name in COUNTED:
        assert getattr(loaded.config, COUNTED[name]) == trial.counts()


def _numbers(model: Any) -> list[int]:
    return [block.attn.layer_idx for block in model.transformer.h]


def test_parts_follow_edits_and_undo() -> None:
    trial = Trial("transformers gpt2")
    structure = trial.structure
    last, axis = structure.cells[-1], structure["transformer.h.2.mlp.c_fc"]
    edit = rg.grow_(structure.cells[0], 1, optimizer=trial.optimizer)
    assert [cell.name for cell in structure.cells] == [f"transformer.h.{i}" for i in range(4)]
    assert structure.cells[-1] is last
    assert last.name == "transformer.h.3"
    assert _numbers(trial.model) == [0, 1, 2, 3]
    rg.grow_(structure["transformer.h.3.mlp.c_fc"], 2, optimizer=trial.optimizer).undo_()
    edit.undo_()
    assert structure["transformer.h.2.mlp.c_fc"] is axis
    assert structure.cells[-1] is last
    assert last.name == "transformer.h.2"
    assert _numbers(trial.model) == [0, 1, 2]


def test_lists_with_an_entry_for_each_layer_follow() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3}
    heads: dict[str, Any] = {"num_attention_heads": 3, "num_key_value_heads": 3}
    model: Any = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(vocab_size=64, **sizes, **heads)).eval()
    structure = rg.analyze(model, torch.randint(64, (2, 8)))
    assert len(model.config.layer_types) == 3
    edit = rg.grow_(structure.cells[1], 2)
    assert (model.config.num_hidden_layers, len(model.config.layer_types)) == (5, 5)
    rg.prune_(structure.cells[0], 1)
    assert (model.config.num_hidden_layers, len(model.config.layer_types)) == (4, 4)
    with pytest.raises(rg.NotPermissible, match="only the newest"):
        edit.undo_()


def test_a_last_block_is_no_cell() -> None:
    trial = Trial("timm vit")
    rg.prune_(trial.structure.cells[:2], 2, loss=trial.loss)
    assert trial.structure.cells == ()


def test_autogrow_deepens_rows_in_turn_and_leaves_those_where_it_does_not_help() -> None:
    trial = Trial("torchvision resnet18")
    method, memory = rg.AutoGrow(threshold=0.05), {}
    losses = [1.0, 0.9, 0.89, 0.8, 0.79, 0.785, 0.78, 0.775]
    chosen = [[cell.name for cell in method.choose(trial.structure.cells, loss, memory)] for loss in losses]
    assert chosen == [["layer1.1"], ["layer2.1"], ["layer3.1"], ["layer4.1"], ["layer1.1"], ["layer3.1"], [], []]


def test_a_plan_mixes_granularities() -> None:
    trial = Trial("timm vit")
    plan = rg.chain(
        rg.at(1, rg.Grow(rg.GradMax(beyond_rank="random"), 4, where="*mlp*")),
        rg.at(2, rg.Grow(rg.Deepen(), 1, where="blocks.1", kind="cell")),
        rg.at(3, rg.Prune(rg.L1(), 2, kind="head")),
        rg.at(4, rg.Prune(rg.Magnitude(), 0.8, kind="weight")),
        rg.at(5, rg.Rewire(rg.RigL(), 0.3)),
        rg.at(6, rg.Prune(rg.Taylor(), 1, kind="cell")),
    )
    shaper = rg.Shaper(trial.model, trial.optimizer, plan, example=trial.x)
    made = []
    for _ in range(7):
        trial.train()
        made += shaper.step(trial.loss)
    assert [edit.kind for edit in made] == ["unit", "cell", "unit", "weight", "weight", "cell"]
    for weights in shaper.structure.weights:
        assert not bool(weights.tensor[~weights.mask].any())
    for edit in reversed(made):
        edit.undo_()
    assert list(trial.model.state_dict()) == list(build("timm vit")[0].state_dict())


# --------------------------------------------------------------------------------------------------
# what is refused

BAD: dict[str, tuple[Any, str]] = {
    "a layer that isn't removable": (
        lambda s: rg.prune_(s.select("conv1", kind="layer")[0], 1), "can't be removed: it makes",
    ),
    "two of one": (lambda s: rg.prune_(s.cells[0], 2), "the amount is 1"),
    "too many": (lambda s: rg.prune_(s.cells, 8, loss=lambda: torch.zeros(())), "5 can be"),
    "no loss": (lambda s: rg.prune_(s.cells, 1), "pass loss="),
    "half a cell": (lambda s: rg.grow_(s.cells[0], 0.5), "whole number"),
    "a method for units": (lambda s: rg.grow_(s.cells[0], 1, rg.GradMax()), r"followers\(\)"),
    "a branch": (lambda s: rg.Deepen(branch="5x5"), "branch is 'same'"),
    "round_to": (lambda s: rg.grow_(s.cells[0], 1, round_to=2), "are for units"),
    "lr_factor": (lambda s: rg.grow_(s.cells[0], 1, lr_factor=0.1), "lr_factor is for new units"),
    "units in parallel": (lambda s: rg.grow_(s.axes[0], 1, parallel=True), "parallel is for layers and cells"),
    "a plan of units in parallel": (lambda s: rg.Grow(rg.Random(), 1, parallel=True), "parallel is for layers"),
    "units folded": (lambda s: rg.prune_(s.axes[0], [0], fold=True), "fold is for layers"),
    "another optimizer": (
        lambda s: rg.grow_(s.cells[0], 1, optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)), "holds none",
    ),
    "a pattern that matches nothing": (
        lambda s: rg.Shaper(
            s.model, torch.optim.SGD(s.model.parameters(), 0.1),
            rg.at(1, rg.Grow(rg.Deepen(), 1, where="layer9.*", kind="cell")), example=torch.randn(2, 3, 32, 32),
        ),
        r"matches no cells; there are: layer1\.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_and_nothing_changes(case: str) -> None:
    trial = Trial("torchvision resnet18")
    before = snapshot(trial.model, trial.optimizer)
    act, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        act(trial.structure)
    assert differences(before, snapshot(trial.model, trial.optimizer)) in ([], ["random torch"])  # of the case's own
    assert not trial.structure.edits


HUGE: dict[str, Any] = {"kind": "1x1", "ins": 10**6, "outs": 10**6, "spatial": 2}


@pytest.mark.parametrize(
    "changes",
    [
        [{"what": "remove", "path": "nope", "how": "place"}],
        [{"what": "copy", "path": "layer1.0", "how": "sequential", "key": "0_1"}] * 10_001,
        [{"what": "copy", "path": "", "how": "list"}],
        [{"what": "delete", "path": "layer1", "how": "place"}],
        [{"what": "copy", "path": 3, "how": "place"}],
        [
            {
                "what": "beside",
                "path": "layer1",
                "how": "kept",
                "branch": HUGE,
            }
        ],
        [{"what": "copy", "path": "layer4", "how": "kept"}] * 40,
        {"what": "remove"},
        [[]],
    ],
)
def test_hostile_changes_are_refused(tmp_path: Path, changes: Any) -> None:
    model = build("torchvision resnet18")[0]
    rg.save(model, tmp_path)
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"changes": changes}))
    fresh = MODELS["torchvision resnet18"][0]()
    names = [name for name, _ in fresh.named_modules()]
    with pytest.raises(ValueError, match="change"):
        rg.load(tmp_path, fresh)
    assert [name for name, _ in fresh.named_modules()] == names

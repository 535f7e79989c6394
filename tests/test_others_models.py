"""Models from other people's libraries: what is offered is right, and it is most of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import regrow as rg
from regrow.rows import rows_of
from state import outputs, relative_change


class Logits(nn.Module):
    """Only the logits of what a model returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def _hugging_face_resnet() -> Logits:
    sizes: dict[str, Any] = {
        "embedding_size": 16,
        "hidden_sizes": [16, 24, 32, 48],
        "depths": [1, 1, 2, 1],
        "num_labels": 7,
    }
    config = transformers.ResNetConfig(layer_type="basic", **sizes)
    return Logits(transformers.ResNetForImageClassification(config))


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{
        name: lambda name=name: timm.create_model(name, num_classes=7)
        for name in (
            "resnet10t",
            "regnetx_002",
            "mobilenetv2_035",
            "efficientnet_lite0",
            "repvgg_a0",
            "res2net50_14w_8s",
        )
    },
    "transformers resnet": _hugging_face_resnet,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    model.train()(torch.randn(4, 3, 64, 64, dtype=torch.float64))  # running statistics that aren't 0 and 1
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_removing_half_of_every_axis_is_silencing_it(name: str) -> None:
    model, x = build(name), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    structure = rg.analyze(model, x)
    before = rg.measure.parameters(model)
    halves = {axis: range(0, axis.size, 2)[: axis.size // 2] for axis in structure.axes if axis.prunable and axis.exact}
    for axis, units in halves.items():
        axis.silence_(units)
    silent = outputs(model, x)
    for axis, units in halves.items():
        if units:
            rg.prune_(axis, units)
    assert relative_change(silent, outputs(model, x)) < 1e-10
    assert rg.measure.parameters(model) < 0.6 * before


@pytest.mark.parametrize("name", MODELS)
def test_growing_a_quarter_of_every_axis_keeps_the_function(name: str) -> None:
    model, x = build(name), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    structure = rg.analyze(model, x)
    before, size = outputs(model, x), rg.measure.parameters(model)
    rg.grow_(structure, 0.25)
    assert relative_change(before, outputs(model, x)) < 1e-10
    assert rg.measure.parameters(model) > 1.2 * size
    model.train()(x).square().mean().backward()


def _gpt2() -> nn.Module:
    sizes = {"vocab_size": 64, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3}
    return Logits(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **GPT_OFF)))


def _mamba() -> nn.Module:
    sizes = {"vocab_size": 64, "hidden_size": 16, "state_size": 6, "num_hidden_layers": 2, "time_step_rank": 3}
    return Logits(transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, use_cache=False)))


#: No dropout, and token numbers that lie in the vocabulary.
GPT_OFF: dict[str, Any] = {
    **dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0), "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("build_", [_gpt2, _mamba], ids=["gpt2", "mamba"])
def test_new_units_of_weights_that_make_several_things_at_once_learn(build_: Callable[[], nn.Module]) -> None:
    """Of queries and keys in one matrix only one is silent: were both, neither would ever get a gradient."""
    torch.manual_seed(0)
    model, x = build_().double(), torch.randint(64, (2, 8))
    axes = [axis for axis in rg.analyze(model, x).axes if axis.growable and axis.exact]
    before = outputs(model, x)
    edits = {axis: rg.grow_(axis, 2, rg.Random(), generator=torch.Generator().manual_seed(0)) for axis in axes}
    assert relative_change(before, outputs(model, x)) < 1e-10
    model(x).square().mean().backward()
    for axis, edit in edits.items():
        learning = torch.zeros(axis.size, dtype=torch.bool)
        for entry in axis.entries:
            if entry.tensor.grad is not None:
                learning |= rows_of(entry, entry.tensor.grad, axis.size).flatten(1).any(1)
        assert learning[edit.new].all(), axis.name


@dataclasses.dataclass
class Result:
    """A container that torch has not been told of."""

    scores: Tensor


def test_outputs_are_found_in_any_object() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))

        def forward(self, x: Tensor) -> Result:
            return Result(self.layers(x))

    structure = rg.analyze(Wrapped(), torch.randn(2, 3))
    assert [axis.name for axis in structure.axes] == ["layers.0"]
    axes = rg.analyze(_hugging_face_resnet().get_submodule("model"), torch.randn(2, 3, 32, 32)).axes
    assert axes
    assert not any(axis.size == 7 for axis in axes)

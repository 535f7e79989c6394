"""Edited models leave as others do: copied, exported, compiled, as ONNX, and as pretrained models of transformers."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow as rg
from regrow.pretrained import check_pretrained, save_pretrained
from regrow.surgery import BEHIND, BESIDE, GATE

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.norm(self.one(x)).relu())


class PostNorm(nn.Module):
    """A block of which no weights can make the identity, but a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(6, 8), nn.Linear(8, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.two(self.one(x).relu()))


class Listed(nn.Module):
    def __init__(self, block: Callable[[], nn.Module], ends: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.first, self.blocks, self.last = ends[0], nn.ModuleList(block() for _ in range(3)), ends[1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def images() -> nn.Module:
    ends = nn.Conv2d(3, 4, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return Listed(Block, ends)


def rows() -> nn.Module:
    return Listed(PostNorm, (nn.Linear(6, 6), nn.Linear(6, 2)))


def _sized(structure: rg.Structure) -> None:
    rg.grow_(structure["blocks.0.one"], 3)
    rg.prune_(structure["blocks.1.one"], 2, rg.L1())


def _masked(structure: rg.Structure) -> None:
    rg.prune_(structure.weights, 0.5, rg.Magnitude())


def _layer(structure: rg.Structure, name: str) -> Any:
    return next(part for part in (*structure.layers, *structure.cells) if part.name == name)


def _without_a_layer(structure: rg.Structure) -> None:
    rg.prune_([_layer(structure, "blocks.1.norm")], 1, loss=lambda: structure.model(IMAGES).square().mean())


def _with_a_copy(structure: rg.Structure) -> None:
    rg.grow_([cell for cell in structure.cells if cell.name == "blocks.1"], 1)


def _with_one_behind(structure: rg.Structure) -> None:
    rg.grow_([_layer(structure, "first")], 1)


def _with_one_beside(structure: rg.Structure) -> None:
    rg.grow_([_layer(structure, "first")], 1, rg.Deepen(branch="3x3"), parallel=True)


def _with_a_gated_one_beside(structure: rg.Structure) -> None:
    rg.grow_([_layer(structure, "first")], 1, rg.Deepen(branch="same"), parallel=True)


#: What is done to which model, and what its names have then.
EDITS: dict[str, tuple[Callable[[], nn.Module], Tensor, list[Callable[[rg.Structure], None]], tuple[str, ...]]] = {
    "grown and pruned": (images, IMAGES, [_sized], ()),
    "masked": (images, IMAGES, [_masked], ()),
    "a layer removed": (images, IMAGES, [_without_a_layer], ()),
    "a cell copied": (images, IMAGES, [_with_a_copy], ("blocks.3",)),
    "a gated copy": (rows, ROWS, [_with_a_copy], ("blocks.3", GATE)),
    "a layer behind": (images, IMAGES, [_with_one_behind], (BEHIND,)),
    "a branch beside": (images, IMAGES, [_with_one_beside], (BESIDE,)),
    "a gated branch beside": (images, IMAGES, [_with_a_gated_one_beside], (BESIDE, GATE)),
    "all": (images, IMAGES, [_sized, _with_a_copy, _with_one_behind, _with_one_beside, _masked], (BEHIND, BESIDE)),
}


def edited(case: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The model in eval mode with values as after training, its input and output."""
    build, x, edits, names = EDITS[case]
    torch.manual_seed(0)
    model = build()
    structure = rg.analyze(model, x)
    for edit in edits:
        edit(structure)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            new = GATE in name or BEHIND in name or BESIDE in name
            parameter.add_(0.1 * torch.randn_like(parameter) if new else 0)
    assert all(any(name in held for held, _ in model.named_parameters()) for name in names)
    model.train()(x)
    model.eval()
    with torch.no_grad():
        return model, x, model(x)


@pytest.fixture(autouse=True)
def of_others() -> Any:
    """Torch warns of itself where it compiles and exports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


@pytest.mark.parametrize("case", EDITS)
def test_it_is_copied(case: str) -> None:
    model, x, expected = edited(case)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(copied(x), expected)
        for parameter in copied.parameters():
            parameter.add_(1)
        assert torch.equal(model(x), expected)
    structure = rg.analyze(copied, x)
    rg.grow_(structure["blocks.2.one"], 1)
    grown, own = (one.get_parameter("blocks.2.one.bias") for one in (copied, model))
    assert grown.numel() == own.numel() + 1


@pytest.mark.parametrize("case", EDITS)
def test_it_is_exported(case: str) -> None:
    model, x, expected = edited(case)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), expected, rtol=1e-5, atol=1e-6)
    held = io.BytesIO()
    torch.export.save(exported, held)
    held.seek(0)
    torch.testing.assert_close(torch.export.load(held).module()(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", EDITS)
def test_it_is_compiled(case: str) -> None:
    """Forwards and backwards, as a whole."""
    torch._dynamo.reset()
    model, x, _ = edited(case)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for one in (model, compiled):
        model.zero_grad()
        out = one(x)
        out.square().mean().backward()
        found.append((out.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("edit", [_sized, _with_a_copy, _without_a_layer, _with_one_behind, _with_one_beside])
def test_it_is_compiled_again_after_an_edit(edit: Callable[[rg.Structure], None]) -> None:
    torch._dynamo.reset()
    model, x, _ = edited("masked")
    compiled, structure = torch.compile(model, backend="aot_eager"), rg.analyze(model, x)
    with torch.no_grad():
        compiled(x)
    edit(structure)
    if edit in (_with_one_behind, _with_one_beside):
        torch.compiler.reset()  # it doesn't look whether modules have got hooks since it compiled them
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["a layer removed", "a gated copy", "a gated branch beside", "all"])
def test_it_is_written_as_onnx(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x, expected = edited(case)
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# transformers

transformers = pytest.importorskip("transformers")
TOKENS = torch.randint(64, (2, 8), generator=torch.Generator().manual_seed(0))
INPUTS = {"input_ids": TOKENS}


def llama() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tokens: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**tokens, **sizes, **heads)).eval()


def bert() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 64}
    return transformers.BertForMaskedLM(transformers.BertConfig(**sizes, num_attention_heads=3)).eval()


def _mlp(axis: rg.Axis) -> bool:
    return "mlp" in axis.name or "intermediate" in axis.name


def _pruned(number: int, which: Callable[[rg.Axis], bool], layers: str = "") -> Callable[[rg.Structure, Any], None]:
    def edit(structure: rg.Structure, model: Any) -> None:
        for axis in [axis for axis in structure.axes if which(axis) and layers in axis.name]:
            rg.prune_(axis, number, rg.L1())

    return edit


def _grown(number: int) -> Callable[[rg.Structure, Any], None]:
    def edit(structure: rg.Structure, model: Any) -> None:
        for axis in filter(_mlp, structure.axes):
            rg.grow_(axis, number)

    return edit


def _one_layer_less(structure: rg.Structure, model: Any) -> None:
    rg.prune_(structure.cells, 1, loss=lambda: model(TOKENS).logits.square().mean())


def _one_layer_more(structure: rg.Structure, model: Any) -> None:
    rg.grow_(structure.cells[:1], 1)


def _shaped(build: Callable[[], Any], *edits: Callable[[rg.Structure, Any], None]) -> Any:
    model = build()
    for edit in edits:
        edit(rg.analyze(model, TOKENS), model)
    return model


#: What a config can say, and what it says then.
SAID: dict[str, tuple[Callable[[], Any], tuple[Any, ...], dict[str, int]]] = {
    "llama": (llama, (), {"intermediate_size": 48, "num_hidden_layers": 3}),
    "llama, pruned": (llama, (_pruned(10, _mlp),), {"intermediate_size": 38}),
    "llama, grown": (llama, (_grown(5),), {"intermediate_size": 53}),
    "llama, a layer less": (llama, (_one_layer_less,), {"num_hidden_layers": 2}),
    "llama, a layer more": (llama, (_one_layer_more,), {"num_hidden_layers": 4}),
    "llama, half the heads": (
        llama, (_pruned(1, lambda axis: axis.kind == "head"),), {"num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "llama, narrower": (
        llama, (_pruned(8, lambda axis: axis.name == "model.embed_tokens"), _one_layer_less, _pruned(10, _mlp)),
        {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 38},
    ),
    "bert, pruned": (bert, (_pruned(10, _mlp),), {"intermediate_size": 22}),
    "bert, a layer less": (bert, (_one_layer_less,), {"num_hidden_layers": 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_a_config_that_says_the_shape_builds_the_same_model(case: str, tmp_path: Path) -> None:
    build, edits, says = SAID[case]
    model = _shaped(build, *edits)
    before = {key: value for key, value in model.config.to_dict().items() if type(value) is int}
    save_pretrained(model, tmp_path, INPUTS)
    assert {key: value for key, value in model.config.to_dict().items() if type(value) is int} == before
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert {name: getattr(again.config, name) for name in says} == says
    with torch.no_grad():
        assert torch.equal(again.eval()(TOKENS).logits, model(TOKENS).logits)


#: What none can say, and what is told of it.
UNSAID: dict[str, tuple[Callable[[], Any], tuple[Any, ...], str]] = {
    "one layer's neurons": (
        llama, (_pruned(10, _mlp, "layers.1."),),
        r"layers\.1\.mlp\.gate_proj\.weight is 38 × 32 and would be 48 × 32.*"
        r"intermediate_size would have to be 38 for some and 48 for others",
    ),
    "all layers' neurons, differently": (
        llama, (_pruned(10, _mlp), _pruned(3, _mlp, "layers.0.")), r"intermediate_size would have to be",
    ),
    "heads' features, of a factor that is computed once": (
        llama, (_pruned(1, lambda axis: axis.kind == "feature"),),
        r"self_attn\.scaling is 0\.353553 and would be 0\.408248",
    ),
    "heads' features": (
        bert, (_pruned(2, lambda axis: axis.kind == "feature"),), r"query\.weight is 18 × 24 and would be 24 × 24",
    ),
    "one layer's heads": (bert, (_pruned(1, lambda axis: axis.kind == "head", "layer.1."),), r"layer\.1.*query"),
    "a layer behind": (
        llama, (lambda structure, _: rg.grow_([_layer(structure, "model.layers.0.mlp.down_proj")], 1),),
        rf"{BEHIND}.* wouldn't be there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSAID)
def test_what_no_config_says_is_told(case: str, tmp_path: Path) -> None:
    build, edits, message = UNSAID[case]
    model = _shaped(build, *edits)
    with pytest.raises(ValueError, match=message) as caught:
        save_pretrained(model, tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_numbers_that_a_model_would_lose_are_told() -> None:
    model = llama()
    assert check_pretrained(model, INPUTS) == {}
    model.model.layers[1].self_attn.scaling = 0.5
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.scaling is 0\.5 and would be 0\.353553"):
        check_pretrained(model)
    other = llama()
    other.model.rotary_emb.inv_freq[1] = 7
    with pytest.raises(ValueError, match="inv_freq would have other values"):
        check_pretrained(other)
    third = llama()
    third.model.layers[0].register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(ValueError, match="other outputs"):
        check_pretrained(third, INPUTS)


def test_only_models_of_transformers_have_a_config() -> None:
    with pytest.raises(TypeError, match=r"save\(\)"):
        check_pretrained(nn.Linear(2, 2))

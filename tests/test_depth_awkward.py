"""Layers and cells in awkward company: blank examples, lists in any order, counters, caches, frozen parts and folds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
import transformers
from torch import Tensor, nn

import regrow as rg
from regrow.evidence import skipping

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.one(x)))


class Net(nn.Module):
    """A list of residual blocks, run in the order of the list or against it."""

    def __init__(self, number: int = 4, backwards: bool = False, block: Callable[[int], nn.Module] = Residual) -> None:
        super().__init__()
        self.first, self.last, self.backwards = nn.Linear(3, 6), nn.Linear(6, 2), backwards
        self.layers = nn.ModuleList(block(6) for _ in range(number))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in reversed(self.layers) if self.backwards else self.layers:
            x = layer(x)
        return self.last(x)


def net(*args: Any, **kwargs: Any) -> Net:
    torch.manual_seed(0)
    return Net(*args, **kwargs)


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max() / other.detach().abs().max())


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5).eval()


def test_on_zeros_a_copy_is_the_identity_all_the_same() -> None:
    model, x = resnet(), torch.randn(2, 3, 32, 32)
    structure, before = rg.analyze(model, torch.zeros(2, 3, 32, 32)), model(x)
    rg.grow_(structure.cells[0], 1)
    assert relative(model(x), before) < 1e-5


def test_on_small_numbers_tanh_isn_t_taken_for_the_identity() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)).eval()
    structure, before = rg.analyze(model, X * 1e-3), model(X)
    with pytest.raises(rg.NotPermissible, match="no activation like a ReLU"):
        rg.grow_(structure.layers[0], 1, rg.Deepen("identity"))
    rg.grow_(structure.layers[0], 1)
    assert relative(model(X), before) < 1e-5


@pytest.mark.parametrize("in_place", [True, False])
def test_taylor_scores_cells_of_a_net_with_batch_norm_in_train_mode(in_place: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(in_place)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.norm(self.conv(x)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Block(), Block(), nn.Flatten(), nn.Linear(256, 2))
    x = torch.randn(6, 3, 8, 8)
    structure = rg.analyze(model, x)
    buffers = copy.deepcopy(dict(model.named_buffers()))
    found = skipping.first_order([structure.cells[0], *structure.layers[1:3]], lambda: model(x).square().mean())
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    gates = {layer: torch.ones((), requires_grad=True) for layer in found}

    def gate(module: nn.Module, args: tuple, made: Tensor, layer: Any) -> Tensor:
        return args[0].clone() + gates[layer] * (made - args[0].clone())

    hooks = [
        layer.module.register_forward_hook(lambda m, a, r, layer=layer: gate(m, a, r, layer))
        for layer in found
        if not in_place or layer.kind != "cell"
    ]
    loss = model(x).square().mean()
    slopes = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
    for hook in hooks:
        hook.remove()
    for layer, slope in zip(found, slopes, strict=True):
        if slope is not None:
            assert found[layer] == pytest.approx(-float(slope), rel=1e-3, abs=1e-6)
    rg.prune_(structure.cells, 1, loss=lambda: model(x).square().mean())


def test_a_fold_that_makes_a_bias_is_loaded(tmp_path: Any) -> None:
    def build(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        inner = (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        return nn.Sequential(*inner).eval()

    model, x = build(0), torch.randn(2, 3, 8, 8)
    before = model(x)
    rg.prune_(rg.analyze(model, x).layers[1], 1, fold=True)
    rg.save(model, tmp_path)
    assert relative(rg.load(tmp_path, build(1))(x), before) < 1e-4


@pytest.mark.parametrize("backwards", [False, True])
def test_cells_of_a_list_in_any_order(backwards: bool) -> None:
    model = net(backwards=backwards)
    old, before = list(model.layers), model(X)
    structure = rg.analyze(model, X)
    by_name = {cell.name: cell for cell in structure.cells}
    edit = rg.grow_([by_name["layers.2"], by_name["layers.0"]], 1)
    found = [old.index(layer) if layer in old else None for layer in model.layers]
    assert relative(model(X), before) < 1e-6
    if not backwards:
        assert found == [0, None, 1, 2, None, 3]
    edit.undo_()
    assert list(model.layers) == old
    kept = old[1], old[3]
    rg.prune_([by_name["layers.2"], by_name["layers.0"]], 2, rg.Ablation(), loss=lambda: model(X).square().sum())
    assert tuple(layer for layer in model.layers if isinstance(layer, Residual)) == kept


def test_all_cells_of_a_list_of_several_widths_grow() -> None:
    class Widening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = (6, 6, 6, 8, 8, 8)
            self.layers = nn.ModuleList(Block(a, b) for a, b in zip((6, *widths), widths, strict=False))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    class Block(nn.Module):
        def __init__(self, ins: int, outs: int) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(ins, outs), nn.Linear(outs, outs)
            self.same = ins == outs

        def forward(self, x: Tensor) -> Tensor:
            made = self.two(torch.relu(self.one(x)))
            return made + x if self.same else made

    torch.manual_seed(0)
    model, x = Widening(), torch.randn(4, 6)
    before, structure = model(x), rg.analyze(model, x)
    rg.grow_(structure.cells, 1)
    assert relative(model(x), before) < 1e-5


def test_undoing_growth_after_training_leaves_a_sound_optimizer() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    edit = rg.grow_(rg.analyze(model, X).cells[0], 1, optimizer=optimizer)
    model(X).sum().backward()
    optimizer.step()
    edit.measure(X)
    assert len(optimizer.state) == len(list(model.parameters()))
    edit.undo_()
    state = optimizer.state_dict()
    assert len(state["state"]) == len(list(model.parameters()))


def test_indices_of_a_single_block_follow() -> None:
    sizes: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 3, "num_key_value_heads": 3, "vocab_size": 64, "pad_token_id": 0}
    model, ids = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval(), torch.randint(1, 64, (2, 8))
    structure = rg.analyze(model, args=(ids,))
    [layer] = [layer for layer in structure.layers if layer.name == "model.layers.0"]
    rg.grow_(layer, 1, rg.Deepen("copy"))
    blocks: Any = model.model.layers
    assert [block.self_attn.layer_idx for block in blocks] == [0, 1]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        whole = model(ids, use_cache=False).logits
        past = model(ids[:, :5], use_cache=True).cache
        assert torch.allclose(model(ids[:, 5:], cache=past).logits, whole[:, 5:], atol=1e-4)


def test_a_branch_that_would_share_a_cache_says_so() -> None:
    sizes: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 3, "num_key_value_heads": 3, "vocab_size": 64, "pad_token_id": 0}
    model, ids = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval(), torch.randint(1, 64, (2, 8))
    structure = rg.analyze(model, args=(ids,))
    with pytest.warns(UserWarning, match="layer_idx"):
        rg.grow_(structure.cells[0], 1, parallel=True)


def test_other_integers_of_the_list_s_owner_stay() -> None:
    class Named(Net):
        def __init__(self) -> None:
            super().__init__(3)
            self.depth = self.pad_id = self.window = self.beams = self.num_layers = 3

    model = Named()
    rg.grow_(rg.analyze(model, X).cells[0], 1)
    assert (model.depth, model.num_layers, model.pad_id, model.window, model.beams) == (4, 4, 3, 3, 3)


def test_indices_that_begin_with_one_follow() -> None:
    model = net(3)
    for number, layer in enumerate(model.layers, 1):
        layer.layer_id = number  # type: ignore[assignment]
    rg.grow_(rg.analyze(model, X).cells[0], 1)
    assert [layer.layer_id for layer in model.layers] == [1, 2, 3, 4]


def test_a_norm_that_enters_a_model_in_eval_mode_is_in_eval_mode(tmp_path: Any) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()

    model, x = build(), 2 * torch.randn(8, 3, 8, 8)
    structure, before = rg.analyze(model, torch.randn(8, 3, 8, 8)), model(x)
    rg.grow_(structure.layers[0], 1, rg.Deepen(norm=True))
    assert relative(model(x), before) < 1e-4
    assert not any(module.training for module in model.modules())
    rg.save(model, tmp_path)
    assert relative(rg.load(tmp_path, build())(x), before) < 1e-4


@pytest.mark.parametrize(("dims", "norm"), [(1, False), (1, True), (3, False), (3, True)])
def test_a_convolution_over_any_dimensions_is_followed_by_one(dims: int, norm: bool) -> None:
    torch.manual_seed(0)
    convolution = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    pool: nn.Module = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}[dims](1)
    inner = (convolution(3, 8, 3, padding=1), nn.ReLU(), convolution(8, 2, 3, padding=1), pool, nn.Flatten())
    model = nn.Sequential(*inner).eval()
    longer = torch.randn(4, 3, *[6] * dims)
    structure, before = rg.analyze(model, torch.randn(4, 3, *[8] * dims)), model(longer)
    rg.grow_(structure.layers[0], 1, rg.Deepen(norm=norm))
    assert relative(model(longer), before) < 1e-4
    for kind in ("1x1", "3x3", "depthwise", "pool"):
        rg.grow_(structure.layers[0], 1, rg.Deepen(branch=kind), parallel=True)
    assert relative(model(longer), before) < 1e-4


class Counting(Residual):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("runs", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        self.calls += 1
        return super().forward(x)


def test_counters_stay_as_they_were() -> None:
    model = net(2, block=Counting)
    structure = rg.analyze(model, X)
    rg.grow_(structure.cells[0], 1).undo_()
    with pytest.raises(rg.NotPermissible):
        rg.prune_(structure.layers[0], 1, fold=True)
    assert [(int(layer.runs), layer.calls) for layer in model.layers] == [(0, 0)] * 2  # type: ignore[arg-type]


def test_a_fold_that_fails_leaves_modes_alone() -> None:
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(2)]
    model = nn.Sequential(nn.Linear(3, 6), *blocks, nn.Linear(6, 2))
    blocks[0][1].eval()
    structure = rg.analyze(model, X)
    with pytest.raises(rg.NotPermissible):
        rg.prune_(next(layer for layer in structure.layers if layer.name == "1"), 1, fold=True)
    assert not blocks[0][1].training


class Scaled(nn.Module):
    """Layers that go with scales by their numbers, and all that lies between in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Residual(3) for _ in range(4))
        self.scales = (0.5, 1.0, 2.0, 4.0)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for layer, scale in zip(self.layers, self.scales, strict=False):
            x = layer(x) * scale
            found.append(x)
        return (*found, x.sum(1))


def test_a_layer_doesn_t_leave_a_list_that_goes_by_numbers() -> None:
    torch.manual_seed(0)
    model = Scaled()
    with torch.no_grad():
        x = model.layers[0](X) * 0.5 * 1.0
        for layer, scale in ((model.layers[2], 2.0), (model.layers[3], 4.0)):
            x = layer(x) * scale
        structure = rg.analyze(model, X)
        rg.prune_(next(cell for cell in structure.cells if cell.name == "layers.1"), 1)
        assert relative(model(X)[-1], x.sum(1)) < 1e-5


def test_new_layers_of_a_frozen_part_are_trained() -> None:
    model = net()
    model.layers.requires_grad_(False)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}])
    structure = rg.analyze(model, X)
    rg.grow_(next(layer for layer in structure.layers if layer.name == "layers.1.one"), 1, optimizer=optimizer)
    groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    learning = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in learning} == groups[0] | groups[1]
    assert all((id(p) in groups[0]) == (p.ndim > 1) for p in learning)


def test_names_in_the_optimizer_follow() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.named_parameters(), 0.1)
    structure = rg.analyze(model, X)

    def names() -> Iterator[tuple[str, str]]:
        known = {p: name for name, p in model.named_parameters()}
        [group] = optimizer.param_groups
        yield from zip(group["param_names"], (known[p] for p in group["params"]), strict=True)

    rg.grow_(structure.cells[0], 1, optimizer=optimizer)
    assert all(one == other for one, other in names())
    rg.prune_(structure.cells[0], 1, optimizer=optimizer)
    assert all(one == other for one, other in names())


def test_names_with_dashes_are_loaded(tmp_path: Any) -> None:
    def build() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 6))
        for number in range(3):
            model.add_module(f"block-{number}", Residual(6))
        return model

    model = build()
    rg.grow_(rg.analyze(model, X).cells[0], 1)
    rg.save(model, tmp_path)
    assert torch.equal(rg.load(tmp_path, build())(X), model(X))


class Recorder:
    def __init__(self) -> None:
        self.seen = 0

    def note(self, *_: Any) -> None:
        self.seen += 1


def test_hooks_of_a_copy_belong_to_whom_they_did() -> None:
    model, recorder = net(), Recorder()
    model.layers[0].register_forward_hook(recorder.note)
    rg.grow_(rg.analyze(model, X).cells[0], 1)
    recorder.seen = 0
    model(X)
    assert recorder.seen == 2


def test_what_can_t_be_copied_is_named() -> None:
    import threading

    model = net()
    for layer in model.layers:
        layer.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(rg.NotPermissible, match=r"layers\.0 can't be copied"):
        rg.grow_(rg.analyze(model, X).cells[0], 1, rg.Deepen("copy"))


def test_a_model_on_meta_isn_t_cut() -> None:
    with torch.device("meta"):
        model = Net()
    structure = rg.analyze(model, torch.zeros(5, 3, device="meta"))
    with pytest.raises(rg.NotPermissible, match="on meta"):
        rg.prune_(structure.cells[0], 1)


class Passing(nn.Module):
    """A block that returns what it was given beside its output, and a tensor that nobody reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner = torch.relu(self.one(x) + shift)
        return x + self.two(inner), shift, inner


class Handing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = Passing(3), Passing(3), Passing(3)

    def forward(self, x: Tensor) -> Tensor:
        shift = x.mean()
        for block in (self.first, self.second, self.third):
            x, shift, _ = block(x, shift=shift)
        return x


def test_what_a_block_hands_on_is_handed_on_without_it(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = Handing()
    expected = model.third(model.first(X, X.mean())[0], X.mean())[0]
    cell = next(cell for cell in rg.analyze(model, X).cells if cell.name == "second")
    edit = rg.prune_(cell, 1)
    assert torch.equal(model(X), expected)
    rg.save(model, tmp_path)
    assert torch.equal(rg.load(tmp_path, Handing())(X), expected)
    edit.undo_()
    before = model(X)
    rg.grow_(cell, 1)
    assert relative(model(X), before) < 1e-6


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.one(x))
        made = self.two(x)
        made += x
        return self.three(made * x)


def test_what_follows_in_place_works_on_a_copy_of_what_is_handed_on() -> None:
    torch.manual_seed(0)
    model = InPlace()
    x = torch.sigmoid(model.one(X))
    expected = model.three((x + x) * x)
    rg.prune_(rg.analyze(model, X).layers[1], 1)
    assert torch.allclose(model(X), expected)
    model(X).sum().backward()


class Looking(nn.Module):
    """Code that reads a layer's own weights, but only in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.three(self.two(self.one(x)))
        return x * self.two.weight.mean() if self.training else x


def test_a_layer_that_code_reads_stays() -> None:
    model = Looking()
    structure = rg.analyze(model, X)
    with pytest.raises(rg.NotPermissible, match="doesn't run any more"):
        rg.prune_(structure.layers[1], 1)
    assert isinstance(model.two, nn.Linear)

"""Classes, vocabularies and input channels grow where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regrow as rg


class Classifier(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.first(x))).mean((2, 3)))


class LanguageModel(nn.Module):
    """Token and position tables, an attention block, and a head that is tied to the tokens."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 16), nn.Embedding(9, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 11, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.block(self.tokens(tokens) + self.positions(places)))


def test_the_boundary_is_frozen_unless_it_is_asked_for() -> None:
    structure = rg.analyze(Classifier(), torch.rand(2, 3, 6, 6))
    assert not structure.select(kind="output")
    assert not structure.select(kind="input")
    reasons = {(f.name, f.dim): f.reason for f in structure.frozen}
    assert reasons["head.weight", 0] == "is the model's output"
    assert reasons["first.weight", 1] == "fed by the model's input"


def test_of_several_outputs_the_reason_names_the_one_that_freezes() -> None:
    class Cached(Classifier):
        def forward(self, x: Tensor) -> Any:
            inside = torch.relu(self.norm(self.first(x)))
            return {"logits": self.head(inside.mean((2, 3))), "cache": [inside]}

    reasons = {(f.name, f.dim): f.reason for f in rg.analyze(Cached(), torch.rand(2, 3, 6, 6)).frozen}
    assert reasons["head.weight", 0] == "is the model's output 'logits'"
    assert reasons["first.weight", 0] == "is the model's output 'cache'"


class Memory:
    """What a model keeps for its next call, in a class of its own."""

    def __init__(self) -> None:
        self.entries: list[Tensor] = []


class Remembering(Classifier):
    def forward(self, x: Tensor, memory: Memory | None = None) -> Any:
        memory = memory or Memory()
        inside = torch.relu(self.norm(self.first(x)))
        memory.entries.append(inside)
        return {"logits": self.head(torch.stack(memory.entries).sum(0).mean((2, 3))), "memory": memory}


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_a_model_takes_back_may_change(wrapped: bool) -> None:
    """Heads of language models could never leave else, as these return keys and values of all heads."""
    own, x = Remembering(), torch.rand(2, 3, 6, 6)
    model = Wrapper(own) if wrapped else own
    structure = rg.analyze(model, x)
    assert structure.verify().ok
    axis = structure["inner.first" if wrapped else "first"]
    edit = rg.grow_(axis, 3)
    assert edit.measure(x) < 1e-6
    edit.undo_()
    rg.prune_(axis, [0, 1])
    past = model(x)["memory"]
    assert past.entries[0].shape[1] == axis.size
    assert torch.allclose(own(x, past)["logits"], 2 * own(x)["logits"] - own.head.bias, atol=1e-5)


def test_what_is_kept_and_put_out_as_well_is_an_output() -> None:
    class Telling(Remembering):
        def forward(self, x: Tensor, memory: Memory | None = None) -> Any:
            outputs = super().forward(x, memory)
            return {**outputs, "inside": outputs["memory"].entries[-1]}

    frozen = {(f.name, f.dim): f.reason for f in rg.analyze(Telling(), torch.rand(2, 3, 6, 6)).frozen}
    assert "first.weight" in {name for name, dim in frozen if dim == 0}


def test_an_object_that_no_module_takes_is_an_output() -> None:
    class Policy(Classifier):
        def forward(self, x: Tensor, memory: None = None) -> Any:
            inside = torch.relu(self.norm(self.first(x))).mean((2, 3))
            return {"logits": self.head(inside), "policy": torch.distributions.Normal(inside, 1.0)}

    reasons = {(f.name, f.dim): f.reason for f in rg.analyze(Policy(), torch.rand(2, 3, 6, 6)).frozen}
    assert reasons["first.weight", 0] == "is the model's output 'policy'"


def test_a_classifier_learns_new_classes_and_keeps_the_old() -> None:
    torch.manual_seed(0)
    model, x, labels = Classifier(), torch.rand(12, 3, 6, 6), torch.arange(12) % 6
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    F.cross_entropy(model(x), labels % 4).backward()
    optimizer.step()
    structure = rg.analyze(model, x, grow_outputs=True)
    [classes] = structure.select(kind="output")
    model.eval()
    before = model(x)
    edit = rg.grow_(classes, 2, optimizer=optimizer)
    after = model(x)
    assert edit.new == [4, 5]
    assert model.head.out_features == 6
    torch.testing.assert_close(after[:, :4], before)
    assert (after[:, 4:].std(0) > 0).all()
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    assert (model(x).argmax(1) == labels).float().mean() > 0.5  # 12 images of noise, two of them of each new class
    assert set(model(x).argmax(1).tolist()) & {4, 5}


def test_a_new_input_channel_is_ignored_at_first() -> None:
    model, x = Classifier().eval(), torch.rand(2, 3, 6, 6)
    [channels] = rg.analyze(model, x, grow_outputs=True).select(kind="input")
    before = model(x)
    edit = rg.grow_(channels, 1)
    assert model.first.in_channels == 4
    torch.testing.assert_close(model(torch.cat([x, torch.rand(2, 1, 6, 6)], 1)), before)
    edit.undo_()
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_grows_with_its_head(tied: bool) -> None:
    torch.manual_seed(0)
    model, tokens = LanguageModel(tied).eval(), torch.randint(0, 11, (2, 5))
    structure = rg.analyze(model, tokens, grow_outputs=["tokens", "head"])
    found = {axis.name: axis for axis in structure.select() if axis.tags & {"input", "output"}}
    assert set(found) == ({"tokens.entries"} if tied else {"tokens.entries", "head"})
    before = model(tokens)
    for axis in found.values():
        rg.grow_(axis, 3)
    after = model(tokens)
    assert (model.tokens.num_embeddings, model.head.out_features) == (14, 14)
    assert (model.head.weight is model.tokens.weight) is tied
    torch.testing.assert_close(after[..., :11], before)
    new = torch.full((2, 5), 13)
    assert model(new).shape == (2, 5, 14)
    assert not torch.equal(model(new), model(new - 1))
    assert structure.verify().ok


def test_positions_grow_by_name() -> None:
    structure = rg.analyze(LanguageModel(), torch.zeros(2, 9, dtype=torch.long), grow_outputs="positions")
    [positions] = structure.select(kind="input")
    before = structure.model.eval()(torch.zeros(2, 9, dtype=torch.long))
    rg.grow_(positions, 3)
    after = structure.model(torch.zeros(2, 12, dtype=torch.long))
    assert (before.shape, after.shape) == ((2, 9, 11), (2, 12, 11))


def test_the_boundary_only_grows_where_it_is_named() -> None:
    structure = rg.analyze(Classifier(), torch.rand(2, 3, 6, 6), grow_outputs=True)
    edit = rg.grow_(structure, 0.5)
    assert list(edit.sizes) == ["first"]
    [classes] = structure.select(kind="output")
    with pytest.raises(rg.NotPermissible, match="at the model's boundary"):
        rg.prune_(classes, [0])


class Several(nn.Module):
    """Three heads, one of which makes masks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 2, 3)
        self.one, self.other = nn.Linear(8, 4), nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.first(x).relu()
        pooled = h.mean((2, 3))
        return {"one": self.one(pooled), "other": self.other(pooled), "mask": self.up(h)}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (True, ["first.inputs", "one", "other", "up"]),
        ("one", ["one"]),
        ("one.weight", ["one"]),  # its bias goes with it
        ("o*", ["one", "other"]),
        (["up", "first"], ["first.inputs", "up"]),
        ([], []),
        (False, []),
    ],
)
def test_only_what_is_named_grows(asked: bool | str | list[str], found: list[str]) -> None:
    model, x = Several().double().eval(), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    structure = rg.analyze(model, x, grow_outputs=asked)
    axes = [axis for axis in structure if axis.tags & {"input", "output"}]
    assert sorted(axis.name for axis in axes) == sorted(found)
    assert structure.verify().ok
    before = model(x)
    for axis in (a for a in axes if "output" in a.tags):
        rg.grow_(axis, 2)
    after = model(x)
    for name, head in (("one", "one"), ("other", "other"), ("mask", "up")):
        grown = 2 if head in found else 0
        assert after[name].shape[1] == before[name].shape[1] + grown
        torch.testing.assert_close(after[name][:, : before[name].shape[1]], before[name])


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ("haed", ValueError, "grow_outputs='haed' names no module or tensor; there are first, first.weight"),
        (["one", "two*"], ValueError, "grow_outputs='two.'"),
        (3, TypeError, "a bool, a name or a list of names, not 3"),
        ([1], TypeError, "a list of names"),
    ],
)
def test_names_that_nothing_has_are_an_error(asked: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rg.analyze(Several(), torch.rand(2, 3, 6, 6), grow_outputs=asked)


@pytest.mark.parametrize("name", ["tokens", pytest.param("head", marks=pytest.mark.xfail(reason="is the second name"))])
def test_a_shared_weight_is_named_by_any_of_its_names(name: str) -> None:
    structure = rg.analyze(LanguageModel(), torch.randint(0, 11, (2, 5)), grow_outputs=name)
    assert [axis.name for axis in structure.select(kind="output")] == ["tokens.entries"]


def _flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 8), nn.Linear(8, 4))


def _depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(4))


MOVED = pytest.mark.xfail(reason="inputs that are moved before a weight meets them aren't opened")


@pytest.mark.parametrize(
    ("make", "shape", "channels"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)), (3, 6), 1),
        (lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 4)), (2, 5, 6), 2),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)), (2, 3, 6, 6), 1),
        pytest.param(lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)), (2, 5, 6), 2, marks=MOVED),
        pytest.param(lambda: nn.GRU(6, 8, batch_first=True), (2, 5, 6), 2, marks=MOVED),
        pytest.param(_flat, (2, 3, 4, 4), 1, marks=MOVED),
        pytest.param(_depthwise, (2, 3, 6, 6), 1, marks=pytest.mark.xfail(reason="groups at the boundary")),
    ],
)
def test_input_channels_grow_wherever_they_are_read(
    make: Callable[[], nn.Module], shape: tuple[int, ...], channels: int
) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.rand(shape)
    model(x)
    structure = rg.analyze(model.eval(), x, grow_outputs=True)
    [axis] = [a for a in structure if "input" in a.tags]
    before = model(x)
    rg.grow_(axis, 2)
    wider = list(shape)
    wider[channels] = 2
    after = model(torch.cat([x, torch.rand(wider)], channels))
    if axis.exact:
        torch.testing.assert_close(after, before)

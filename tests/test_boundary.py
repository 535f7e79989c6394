"""Classes, vocabularies and input channels grow where that is asked for."""

from __future__ import annotations

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

"""The networks of the tasks: what was published about them, and what of them may change."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow as rg
from regrow.bench.models import GPT, RESNET_WIDTHS, VGG11_WIDTHS, ResNet, mlp, vgg11
from regrow.bench.published import (
    build_mobilenet,
    build_resnet56,
    build_vgg11_gradmax,
    build_vgg16,
    build_wrn28,
)

TEN, HUNDRED, THOUSAND = (SimpleNamespace(channels=3, classes=classes) for classes in (10, 100, 1000))


def example(side: int = 32, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side)


def multiply_adds(network: nn.Module, side: int = 32) -> float:
    return rg.measure.flops(network, example(side, 1)) / 2


def kinds(network: nn.Module, *of: type[nn.Module]) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, of)]


def test_vgg11_for_32x32_images() -> None:
    network = vgg11(VGG11_WIDTHS, 3, 10)
    assert [layer.out_channels for layer in kinds(network, nn.Conv2d)] == list(VGG11_WIDTHS)
    assert rg.measure.parameters(network) == 9_228_362
    assert network(example()).shape == (2, 10)
    assert not kinds(vgg11(VGG11_WIDTHS, 3, 10, batch_norm=False), nn.BatchNorm2d)
    with pytest.raises(ValueError, match="8 convolutions"):
        vgg11([1, 2], 3, 10)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_mlp(batch_norm: bool) -> None:
    network = mlp(5, (7, 6), 3, batch_norm)
    assert network(torch.randn(4, 5)).shape == (4, 3)
    norms = 2 * 7 + 2 * 6 if batch_norm else 7 + 6
    assert rg.measure.parameters(network) == 5 * 7 + 7 * 6 + 6 * 3 + 3 + norms
    names = ["hidden1", "norm1", "activation1", "hidden2", "norm2", "activation2", "output"]
    assert [name for name, _ in network.named_children()] == [n for n in names if batch_norm or "norm" not in n]
    assert [axis.name for axis in rg.analyze(network, torch.randn(4, 5)).axes] == ["hidden1", "hidden2"]


def test_resnets_have_the_published_numbers_of_parameters() -> None:
    as_published = ResNet(RESNET_WIDTHS, RESNET_WIDTHS, 3, 3, 10, padded=True)
    assert rg.measure.parameters(as_published) == 269_722  # "0.27M"
    projected = ResNet(RESNET_WIDTHS, RESNET_WIDTHS, 3, 3, 10)
    more = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert rg.measure.parameters(projected) == 269_722 + more
    assert as_published(example()).shape == projected(example()).shape == (2, 10)
    assert rg.measure.parameters(build_resnet56(TEN, 1, 1, True)) == 853_018  # "0.85M"


def test_shortcuts_of_1x1_let_every_stage_change_and_padding_ties_them() -> None:
    streams = [
        {
            axis.name
            for axis in rg.analyze(ResNet((4, 8, 16), (4, 8, 16), 2, 3, 10, padded=padded), example()).axes
            if "stream" in axis.tags
        }
        for padded in (False, True)
    ]
    assert [len(names) for names in streams] == [3, 1]


@pytest.mark.parametrize("padded", [True, False])
def test_resnets_without_batch_norm_neither_vanish_nor_explode(padded: bool) -> None:
    network = ResNet(RESNET_WIDTHS, RESNET_WIDTHS, 9, 3, 10, batch_norm=False, padded=padded)
    assert not kinds(network, nn.BatchNorm2d)
    with torch.no_grad():
        assert 0.05 < network(example(count=16)).std() < 20


def test_gpt_does_not_see_the_future() -> None:
    network = GPT(symbols=11, positions=12, width=16, heads=2, inside=8, hidden=24, layers=2).eval()
    text = torch.randint(11, (3, 12))
    other = text.clone()
    other[:, 7] = (other[:, 7] + 1) % 11
    with torch.no_grad():
        one, changed = network(text), network(other)
        assert one.shape == (3, 12, 11)
        assert torch.equal(one[:, :7], changed[:, :7])
        assert not torch.allclose(one[:, 7:], changed[:, 7:])
        assert torch.allclose(network(text[:, :5]), one[:, :5], atol=1e-6)


def test_heads_and_hidden_units_of_gpt_may_come_and_go() -> None:
    network = GPT(symbols=11, positions=12, width=16, heads=4, inside=8, hidden=24, layers=1)
    text = torch.randint(11, (2, 12))
    structure = rg.analyze(network, text)
    heads, hidden = structure["blocks.0.attention.heads"], structure["blocks.0.hidden"]
    assert (heads.kind, heads.size, hidden.kind, hidden.size) == ("head", 4, "neuron", 24)
    assert all(axis.growable and axis.prunable and axis.exact for axis in (heads, hidden))
    before = network(text)
    rg.grow_(heads, 2)
    rg.grow_(hidden, 6)
    assert torch.allclose(network(text), before, atol=1e-6)
    block: Any = network.blocks[0]
    assert (block.attention.heads, block.attention.query.out_features, block.hidden.out_features) == (6, 48, 30)
    rg.prune_(heads, 3, rg.L1())
    rg.prune_(hidden, 10, rg.L1())
    assert (block.attention.heads, block.attention.value.out_features, block.hidden.out_features) == (3, 24, 20)
    assert network(text).shape == before.shape


def test_gradmax_vgg11_has_the_published_numbers_of_parameters() -> None:
    assert rg.measure.parameters(build_vgg11_gradmax(TEN, 1, 0.25, False)) == 587_952
    assert rg.measure.parameters(build_vgg11_gradmax(TEN, 1, 1, False)) == 9_263_808
    assert rg.measure.parameters(build_vgg11_gradmax(HUNDRED, 1, 1, False)) == 9_263_808 + 512 * 90 * 9


def test_gradmax_vgg11_strides_and_is_normalised_after_the_activation() -> None:
    network = build_vgg11_gradmax(TEN, 1, 0.125, True)
    convolutions = kinds(network, nn.Conv2d)
    assert [layer.stride[0] for layer in convolutions] == [1, 2, 2, 1, 2, 1, 2, 1, 2]
    assert all(layer.bias is None for layer in convolutions)
    assert not kinds(network, nn.MaxPool2d, nn.Linear)
    order = [type(module) for module in kinds(network, nn.Conv2d, nn.ReLU, nn.BatchNorm2d)]
    assert order == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d] * 8 + [nn.Conv2d]
    assert network(example()).shape == (2, 10)
    assert not kinds(build_vgg11_gradmax(TEN, 1, 0.125, False), nn.BatchNorm2d)


def test_wide_resnet_has_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        million = {k: rg.measure.parameters(build_wrn28(TEN, k, 1, True)) / 1e6 for k in (4, 10)}
    assert million == {4: pytest.approx(5.849, abs=1e-3), 10: pytest.approx(36.479, abs=1e-3)}  # "36.5M"
    assert len(kinds(build_wrn28(TEN, 1, 1, True), nn.Conv2d)) == 1 + 24 + 2  # two shortcuts are convolutions
    assert len(kinds(build_wrn28(TEN, 1, 1, True), nn.BatchNorm2d)) == 25
    assert len(kinds(build_wrn28(TEN, 1, 1, False), nn.BatchNorm2d)) == 13  # but none within a block


def test_wide_resnet_grows_within_its_blocks_only() -> None:
    small, large = (build_wrn28(TEN, 1, fraction, False) for fraction in (0.25, 1.0))
    for (name, one), (_, other) in zip(small.named_parameters(), large.named_parameters(), strict=True):
        ratios = [high // low for low, high in zip(one.shape, other.shape, strict=True)]
        assert ratios[:2] == ([4, 1] if "conv1" in name else [1, 4] if "conv2" in name else [1] * len(ratios[:2]))
    assert small.blocks[0].conv1.weight.shape == (4, 16, 3, 3)  # type: ignore[union-attr]
    assert small(example()).shape == (2, 10)


@pytest.mark.parametrize("build, number", [(build_vgg16, 313_463_808), (build_resnet56, 125_485_696)])
def test_networks_of_polarization_pruning_have_the_published_multiply_adds(build: Any, number: int) -> None:
    network = build(TEN, 1, 1, True)
    assert multiply_adds(network) == number
    assert network(example()).shape == (2, 10)


def test_mobilenet_is_torchvisions_and_changes_within_its_blocks() -> None:
    network = build_mobilenet(THOUSAND, 1, 1, True)
    assert rg.measure.parameters(network) == 3_504_872
    assert multiply_adds(network, 224) == 300_774_272
    for fraction in (0.01, 1 / 6, 0.5):
        structure = rg.analyze(build_mobilenet(TEN, 1, fraction, True), example(64))
        inner = [axis.size for axis in structure.select("*.conv.0.0") if axis.kind == "neuron"]
        channels = [16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160]
        if fraction >= 1 / 6:
            assert inner == [round(6 * fraction * width) for width in channels]
        assert structure["features.18.0"].size == 1280

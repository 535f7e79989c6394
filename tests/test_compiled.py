"""Compiled models: the same numbers, and no more compilations than edits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regrow as rg


def trained(how: str) -> tuple[torch.Tensor, rg.Shaper]:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(6, 8)
    called: nn.Module = torch.compile(model, backend="aot_eager") if how == "wrapped" else model  # type: ignore[assignment]
    if how == "in place":
        model.compile(backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    plan = rg.every(2, rg.Grow(rg.Random(), 2))
    shaper = rg.Shaper(called, optimizer, plan, example=x, generator=torch.Generator().manual_seed(0))
    for _ in range(20):  # torch gives up compiling after eight changes of shapes
        called(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        shaper.step()
    return called(x).detach(), shaper


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_model_is_compiled_again_after_each_edit(how: str) -> None:
    out, shaper = trained(how)
    expected, plain = trained("plain")
    assert torch.equal(out, expected)
    assert (shaper.recompilations, plain.recompilations) == (10, 0)


def test_what_was_done_before_an_action_that_fails_is_followed() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(6, 8)
    model.compile(backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plan = rg.chain(rg.at(1, rg.Grow(rg.Random(), 2)), rg.at(1, rg.Prune(rg.Magnitude(), 100)))
    shaper = rg.Shaper(model, optimizer, plan, example=x)
    with pytest.raises(rg.NotPermissible, match="asked to prune 100"):
        shaper.step()
    assert shaper.recompilations == 1
    assert model(x).shape == (6, 4)

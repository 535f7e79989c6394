"""An analysis finds outputs wherever they are held, and doesn't mind where it is called."""

from __future__ import annotations

import dataclasses
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

import regrow as rg
from refused import Returning, everything, mlp, rows
from state import differences


class Slots:
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Mapped(dict):
    """A dict of a kind that torch doesn't know."""


class Listed(list):
    """A list of a kind that torch doesn't know."""


@dataclasses.dataclass(frozen=True)
class Frozen:
    logits: Tensor
    more: Any = None


Pair = namedtuple("Pair", "logits other")

CONTAINERS: dict[str, Callable[[Tensor], Any]] = {
    "slots": Slots,
    "dict": lambda out: Mapped(logits=out),
    "user dict": lambda out: UserDict(logits=out),
    "list": lambda out: Listed([out]),
    "set": lambda out: {out},
    "frozen": Frozen,
    "named tuple": lambda out: Pair(out, None),
    "nested": lambda out: Frozen(torch.zeros(1), Mapped(deep=[Slots(out)])),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_an_output_is_frozen_in_whatever_it_is_returned(kind: str) -> None:
    structure = rg.analyze(Returning(CONTAINERS[kind]), rows())
    assert [axis.name for axis in structure] == ["first"]
    assert structure.verify().ok


@pytest.fixture
def hooked() -> Iterator[list[str]]:
    """Hooks on all modules of all models, as profilers set them."""
    calls: list[str] = []
    hooks = [
        global_hooks.register_module_forward_pre_hook(lambda module, args: calls.append("before")),
        global_hooks.register_module_forward_hook(lambda module, args, out: calls.append("after")),
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def test_hooks_stay_where_they_are(hooked: list[str]) -> None:
    model = mlp()
    model[0].register_forward_pre_hook(lambda module, args: None)
    model[2].register_full_backward_hook(lambda module, into, out: None)
    model.register_state_dict_post_hook(lambda module, state, prefix, local: None)
    model[4].weight.register_hook(lambda grad: grad)
    before = everything(model)
    assert rg.analyze(model, rows()).verify().ok
    assert differences(before, everything(model)) == []
    with pytest.raises(ValueError, match="doesn't run"):
        rg.analyze(model, rows(5))
    assert differences(before, everything(model)) == []
    assert hooked


@pytest.mark.parametrize(
    "inside", [torch.no_grad, torch.inference_mode, torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_it_doesnt_matter_where_it_is_called(inside: Callable[[], Any]) -> None:
    model = nn.Sequential(nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 4))
    here = rg.analyze(model, rows()[:, None])
    before = everything(model)
    with inside():
        there = rg.analyze(model, rows()[:, None] + 0)
    assert differences(before, everything(model)) == []
    assert [(a.name, a.size, [e.key for e in a.entries]) for a in here] == [
        (a.name, a.size, [e.key for e in a.entries]) for a in there
    ]
    rg.grow_(there["0"], 2)
    rg.prune_(there["0"], [1])
    assert there.verify().ok


def test_an_example_made_in_inference_mode_will_do() -> None:
    with torch.inference_mode():
        x = rows() + 0
    assert rg.analyze(Branching(), x).verify().ok


class Branching(nn.Module):
    """Looks at values, so that it runs on its own device."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu() if bool(x.sum() > -1e9) else self.first(x))


def test_a_model_on_meta_is_analysed_with_buffers_that_have_values() -> None:
    model = mlp().to("meta")
    model.register_buffer("positions", torch.arange(3))
    assert [axis.size for axis in rg.analyze(model, rows())] == [8, 7]


class HooksOnce(nn.Module):
    """Hooks its own layer when it is first called, and keeps in mind that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not getattr(self, "hooked", False):
            self.first.register_forward_hook(lambda module, args, out: self.seen.append(out))
            self.hooked = True
        self.seen.clear()
        self.first(x)
        [seen] = self.seen
        return self.last(seen)


def test_hooks_that_a_first_call_installs_are_gone_again() -> None:
    model, x = HooksOnce(), torch.rand(3, 4)
    structure = rg.analyze(model, x)
    assert [axis.size for axis in structure] == [6]
    assert not model.first._forward_hooks and not hasattr(model, "hooked")
    assert structure.verify().ok
    assert not model.first._forward_hooks and not hasattr(model, "hooked")
    assert model(x).shape == (3, 3)

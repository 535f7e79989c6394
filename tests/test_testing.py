"""Every registered method keeps every law; the laws notice methods that break them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import regrow as rg
from regrow.method import Fresh
from regrow.testing import Law, check_method, laws_of

#: Methods that may decide for nothing, so configured that they don't.
DECIDED = {"senn": {"threshold": None}}
ALL_LAWS = [law for name in rg.list_methods() for law in laws_of(rg.create_method(name, **DECIDED.get(name, {})))]


@pytest.mark.parametrize("law", ALL_LAWS, ids=str)
def test_every_method_keeps_every_law(law: Law) -> None:
    law.check()


#: Methods that break laws by design, so configured that the zoo shows it.
BREAKING = {"firefly": {"new": 0.0}, "net2wider": {}, "splitting": {}, "tiny": {"form": "paper"}}


@pytest.mark.parametrize("method", [name for name in rg.list_methods() if hasattr(rg.create_method(name), "breaks")])
def test_what_a_method_says_it_breaks_it_breaks(method: str) -> None:
    made = rg.create_method(method, **BREAKING[method])
    for rule, reason in made.breaks.items():
        assert reason
        with pytest.raises(AssertionError):
            for law in laws_of(made, broken=True):
                if law.rule.__name__ == rule:
                    law.check()


@dataclass(frozen=True)
class Loud:
    """A grower whose new units speak at once."""

    name: ClassVar[str] = "loud"

    def fresh(self, axis: rg.Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Fresh:
        values = rg.Random().fresh(axis, num, seen, generator)
        for entry in axis.with_role("in"):
            shape = list(entry.tensor.shape)
            shape[entry.dim] = num * int((entry.unit_of >= 0).sum()) // axis.size
            values[entry] = torch.ones(shape)
        return values


@dataclass(frozen=True)
class Dead:
    """A grower whose new units are zero on both sides, and so can never learn."""

    name: ClassVar[str] = "dead"

    def fresh(self, axis: rg.Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Fresh:
        return {}


@dataclass(frozen=True)
class Careless(rg.Random):
    """A grower that draws from the global random state."""

    name: ClassVar[str] = "careless"

    def fresh(self, axis: rg.Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Fresh:
        return {entry: value * torch.rand(()) for entry, value in super().fresh(axis, num, seen, generator).items()}


@pytest.mark.parametrize(
    ("method", "law"),
    [(Loud(), "keeps_the_function"), (Dead(), "reaches_every_new_unit"), (Careless(), "repeats_itself")],
)
def test_the_laws_notice_who_breaks_them(method: Any, law: str) -> None:
    for each in laws_of(method):
        if each.rule.__name__ == law and each.edits == "units":
            with pytest.raises(AssertionError):
                each.check()


def test_a_method_can_declare_what_it_breaks() -> None:
    reasons = {"keeps_the_function": "it speaks at once", "survives_json": "it isn't registered"}
    with pytest.raises(AssertionError, match="kept"):
        check_method(rg.Random(), expected_failures={"keeps_the_function": "it does not"})
    with pytest.raises(AssertionError, match="broken"):
        check_method(Loud())
    check_method(Loud(), expected_failures=reasons)

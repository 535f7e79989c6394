"""What `regrow` has to do with the layers and cells of every model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

import regrow as rg

from .case import SEED, Build, built
from .checks import TOLERANCE, Columns, Wrong, analyzed, difference, reason, shape

#: So many layers, and so many cells, are tried one after another in each way; spread over the whole model.
TRIED = 2

Part = TypeVar("Part")


class DepthChecks:
    """All checks of one model. Each edit is undone, after which the model has to do to the bit what it did."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.case = built(build)

    def all(self) -> dict[str, Callable[[], Columns]]:
        """The checks by name, in order."""
        return {
            "find": self.find,
            "prune_layers": lambda: self._each(self._able("layers", "prunable"), self._prune),
            "grow_layers": lambda: self._each(self._able("layers", "growable"), self._grow),
            "prune_cells": lambda: self._each(self._able("cells", "prunable"), self._prune),
            "grow_cells": lambda: self._each(self._able("cells", "growable"), self._grow),
            "grow_beside": lambda: self._each(self._able("cells", "growable"), self._grow_beside),
            "save": self.save,
        }

    def find(self) -> Columns:
        """What there is."""
        self.structure = analyzed(self.case)
        self.outputs = self.case.evaluate()
        self.state = {name: tensor.clone() for name, tensor in self.case.model.state_dict().items()}
        self.parameters = {name: p.detach().clone() for name, p in self.case.model.named_parameters()}
        found: Columns = {"params": self.case.params}
        for kind in ("layers", "cells"):
            parts = getattr(self.structure, kind)
            found[kind] = len(parts)
            found[f"prunable_{kind}"] = sum(bool(part.prunable) for part in parts)
            found[f"growable_{kind}"] = sum(bool(part.growable) for part in parts)
        return found

    def save(self) -> Columns:
        """One cell or layer more and one less, saved and loaded onto a fresh model."""
        case = built(self.build)
        structure = analyzed(case)
        done = 0
        for action, able in ((rg.grow_, "growable"), (rg.prune_, "prunable")):
            for part in (*structure.cells, *structure.layers):
                if getattr(part, able) and _works(action, part):
                    done += 1
                    break
        if not done:
            raise Wrong("nothing can be grown or pruned")
        fresh = built(self.build, SEED + 1)
        with tempfile.TemporaryDirectory() as folder:
            rg.save(case.model, folder)
            rg.load(folder, fresh.model)
        change = difference(case.evaluate(), fresh.evaluate())
        if change > TOLERANCE:
            raise Wrong(f"the loaded model's output differs by {change:.1e}")
        return {}

    def _able(self, kind: str, able: str) -> Callable[[], list[Any]]:
        return lambda: [part for part in getattr(self.structure, kind) if getattr(part, able)]

    def _each(self, able: Callable[[], Sequence[Any]], check: Callable[[Any], None]) -> Columns:
        """Try some; the first that fails is told, with how many did."""
        failed: list[str] = []
        tried = spread(able(), TRIED)
        for part in tried:
            try:
                check(part)
            except Exception as error:
                failed.append(f"{part.name}: {reason(error)}")
        if failed:
            raise Wrong(f"{len(failed)} of {len(tried)}: {failed[0]}")
        return {}

    def _prune(self, part: rg.Layer) -> None:
        before = self.case.params
        edit = rg.prune_(part, 1)
        try:
            if self.case.params >= before:
                raise Wrong("no parameter left")
            self._usable()
        finally:
            self._undo(edit)

    def _grow(self, part: rg.Layer, **how: Any) -> None:
        before = self.case.params
        edit = rg.grow_(part, 1, **how)
        try:
            if self.case.params <= before:
                raise Wrong("no parameter came")
            outputs = self._usable()
            change = difference(self.outputs, outputs)
            if change > TOLERANCE:
                raise Wrong(f"the output moved by {change:.1e}")
        finally:
            self._undo(edit)

    def _grow_beside(self, part: rg.Layer) -> None:
        self._grow(part, parallel=True)

    def _usable(self) -> list[Tensor]:
        outputs = self.case.evaluate()
        ragged = self.case.ragged
        if [shape(out, ragged) for out in outputs] != [shape(out, ragged) for out in self.outputs]:
            raise Wrong("outputs have other shapes then")
        if not all(bool(out.isfinite().all()) for out in outputs):
            raise Wrong("outputs aren't finite then")
        if not self.case.with_gradient():
            raise Wrong("nothing gets a gradient then")
        return outputs

    def _undo(self, edit: rg.Edit) -> None:
        edit.undo_()
        now = dict(self.case.model.named_parameters())
        if list(now) != list(self.parameters) or not same(list(now.values()), list(self.parameters.values())):
            raise Wrong("undone, the model has other parameters")
        self.case.model.load_state_dict(self.state)  # running statistics moved where gradients were asked for
        if not same(self.outputs, self.case.evaluate()):
            raise Wrong("undone, the model does something else")


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether outputs are equal to the bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def spread(parts: Sequence[Part], number: int) -> list[Part]:
    """So many of these, from the first to the last."""
    if len(parts) <= number:
        return list(parts)
    return [parts[round(i * (len(parts) - 1) / (number - 1))] for i in range(number)]


def _works(action: Callable[..., Any], part: rg.Layer) -> bool:
    try:
        action(part, 1)
    except rg.NotPermissible:
        return False
    return True

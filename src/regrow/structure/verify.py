"""The proof on numbers: removing units equals silencing them, and a fresh unit that sends zero changes nothing.

It runs on copies of the model's tensors, with values that hide nothing: parameters are shaken, so that no scale is
zero, and so are running statistics. What the model's own precision leaves open is looked at again in double precision.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .axis import Axis
from .boundary import with_inputs
from .declared import outdated_sizes
from .example import named_tensors
from .maps import FRESH, PlaceMap, fresh_summed, plan
from .meta import storage_key
from .outputs import outputs_of
from .running import Insides, plain_kernels, untouched
from .trial import Maps, counted

if TYPE_CHECKING:
    from . import Structure

#: Changes above this part of the largest output are none of rounding: many models compute in float32 inside.
TOLERANCE = 1e-4

#: Changes above this, in double precision, are moves: a factor in attention may make little difference.
MOVED = 1e-6

#: Changes above this are none of rounding in any precision that a model may have.
_PLAIN = 0.1

#: The precision that a model has.
_OWN: torch.dtype | None = None

#: What fresh indices hold, by role; where a role isn't named they are as the last unit is.
_FRESH = {"in": 0.0, "tied": 0.0, "shift": 0.0, "scale": 1.0, "mean": 0.0, "var": 1.0}


@dataclass(frozen=True)
class Check:
    """One comparison of two networks that should be the same.

    Attributes:
        axis: The axis's name.
        done: What was done to it.
        change: Largest difference of the outputs, as a part of the largest output.
        exact: Whether the axis is said to be exact; the others may move the output.
        double: Whether the change was measured in double precision.
        error: Why the edited model didn't run, or "".
    """

    axis: str
    done: str
    change: float
    exact: bool
    error: str = ""
    double: bool = False

    @property
    def moved(self) -> bool:
        """Whether the output moved by more than rounding does."""
        return self.change > (MOVED if self.double else TOLERANCE)

    @property
    def ok(self) -> bool:
        """Whether it went as the analysis says."""
        return not self.error and (self.change <= TOLERANCE or not self.exact)


@dataclass(frozen=True)
class Verification:
    """What :meth:`Structure.verify` found; printable."""

    checks: tuple[Check, ...]

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that went otherwise than the analysis says."""
        return tuple(check for check in self.checks if not check.ok)

    @property
    def ok(self) -> bool:
        """Whether all went as the analysis says."""
        return not self.failures

    @property
    def unmoved(self) -> tuple[str, ...]:
        """Axes that are called inexact, and that nothing moved: they may be better than their name."""
        still = {c.axis for c in self.checks if not c.exact and not c.error}
        return tuple(sorted(still - {c.axis for c in self.checks if c.moved}))

    def __str__(self) -> str:
        head = f"{len(self.checks)} checks: {'all right' if self.ok else f'{len(self.failures)} failed'}"
        if self.ok:
            return head
        found = Table("axis", "what was done", "moved by", "why", box=box.SIMPLE)
        for check in self.failures:
            found.add_row(check.axis, check.done, f"{check.change:.1e}", check.error or "it is said to be exact")
        out = io.StringIO()
        Console(file=out, width=110).print(found)
        return "\n".join([head, *(line.rstrip() for line in out.getvalue().splitlines() if line.strip())])


def verify(structure: Structure, args: tuple, kwargs: dict[str, Any], each: bool) -> Verification:
    """See :meth:`Structure.verify`."""
    model = structure.model
    if any(t.is_meta for t in named_tensors(model).values()):
        raise ValueError("the model's weights don't exist (they are on meta), so there are no numbers to compare.")
    with untouched(model):
        model.eval()
        trials = _Trials(structure, args, kwargs)
        groups = [[axis] for axis in structure.axes] if each else _split(structure.axes)
        return Verification(tuple(check for axes in groups for check in trials.checks(axes)))


def _split(axes: Sequence[Axis]) -> list[list[Axis]]:
    """Exact ones and others apart."""
    return [found for found in ([a for a in axes if a.exact], [a for a in axes if not a.exact]) if found]


class _Trials:
    """What is done to the axes, and in which precision that is looked at."""

    def __init__(self, structure: Structure, args: tuple, kwargs: dict[str, Any]) -> None:
        self.random = torch.Generator().manual_seed(len(structure.axes))
        self.numbers = _Numbers(structure, args, kwargs)

    def checks(self, axes: Sequence[Axis]) -> Iterator[Check]:
        """The first half gone, a random half gone, and a unit more."""
        prunable = [axis for axis in axes if axis.prunable and axis.size > 1]
        halves = {a: np.arange(a.size // 2) for a in prunable}
        some = {a: np.sort(torch.randperm(a.size, generator=self.random).numpy()[: a.size // 2]) for a in prunable}
        for done, gone in (("its first half removed", halves), ("a random half removed", some)) if prunable else ():
            yield self._check(axes, done, gone, _without(gone))
        growable = [axis for axis in axes if axis.growable]
        if growable:
            grown = {a: np.append(np.arange(a.size), [FRESH]) for a in growable}
            yield self._check(axes, "a unit added that sends nothing", {}, grown)

    def _check(self, axes: Sequence[Axis], done: str, gone: Maps, maps: Maps) -> Check:
        name, exact = ", ".join(axis.name for axis in axes), all(axis.exact for axis in axes)
        try:
            change, double = self._change(gone, maps, exact)
        except Exception as error:
            return Check(name, done, math.nan, exact, str(error).strip().partition("\n")[0] or type(error).__name__)
        return Check(name, done, change, exact, double=double)

    def _change(self, gone: Maps, maps: Maps, exact: bool) -> tuple[float, bool]:
        """How far the outputs move, and whether that was measured in double precision."""
        try:
            change = self.numbers.change(gone, maps)
        except ValueError:  # half precision overflows early
            if not self.numbers.run_in_double:
                raise
            change = math.nan
        unclear = math.isnan(change) or (change > TOLERANCE if exact else change < _PLAIN)
        if unclear and self.numbers.run_in_double:
            return self.numbers.change(gone, maps, torch.float64), True
        return change, False


class _Numbers:
    """Runs a model with other tensors in place of its own, in its precision or another.

    The values are kept once, in the model's precision; of a large model no more would fit into memory.
    """

    def __init__(self, structure: Structure, args: tuple, kwargs: dict[str, Any]) -> None:
        self.structure, self.args, self.kwargs = structure, args, kwargs
        statistics = {e.name: e.role for axis in structure.axes for e in axis.with_role("mean", "var")}
        random = torch.Generator().manual_seed(0)
        tensors = named_tensors(structure.model)
        self.tensors = {n: _shaken(t, statistics.get(n, ""), random) for n, t in tensors.items()}
        copies = {name: tensor.clone() for name, tensor in self.tensors.items()}
        self._written: frozenset[str] = frozenset()
        self._outputs = {_OWN: self._run(copies, {}, _OWN)}
        # Only what a pass writes to is copied for each, and what is the model's own memory, lest it be written to.
        self._written = frozenset(
            name
            for name, tensor in tensors.items()
            if storage_key(tensor) == storage_key(self.tensors[name])
            or not torch.equal(copies[name], self.tensors[name])
        )

    @cached_property
    def run_in_double(self) -> bool:
        """Whether the model runs in double precision."""
        try:
            self._outputs[torch.float64] = self._run(self.tensors, {}, torch.float64)
        except Exception:
            return False
        return True

    def change(self, gone: Maps, maps: Maps, dtype: torch.dtype | None = _OWN) -> float:
        """How far the outputs of the edited model are from those of the model with silent units."""
        planned = plan(self.structure.axes, maps)
        before = self._run(self._silenced(gone), {}, dtype) if gone else self._outputs[dtype]
        return _difference(before, self._run(self._edited(planned, maps), planned, dtype), maps)

    def _silenced(self, gone: Maps) -> dict[str, Tensor]:
        found = dict(self.tensors)
        for axis, units in gone.items():
            for entry in axis.silencing:
                where = entry.indices(units.tolist())
                found[entry.name] = found[entry.name].index_fill(entry.dim, where, 0.0)
        return found

    def _edited(self, planned: Mapping[tuple[str, int], PlaceMap], maps: Maps) -> dict[str, Tensor]:
        found = dict(self.tensors)
        for (name, dim), place in planned.items():
            if name in found:
                found[name] = found[name].index_select(dim, torch.from_numpy(place.take).to(found[name].device))
        for roles in (("out", "scale", "shift", "mean", "var"), ("tied", "in")):
            for axis, index_map in maps.items():
                for entry in axis.with_role(*roles):
                    fresh = np.isin(planned[entry.key].units_after[entry], np.flatnonzero(index_map == FRESH))
                    where = torch.from_numpy(np.flatnonzero(fresh)).to(found[entry.name].device)
                    if len(where) and entry.role in _FRESH and not entry.nonzero:
                        found[entry.name] = found[entry.name].index_fill(entry.dim, where, _FRESH[entry.role])
        for axis, index_map in maps.items():
            for entry in axis.entries:
                silent = torch.from_numpy(fresh_summed(planned[entry.key], entry, index_map))
                found[entry.name] = found[entry.name].index_fill(entry.dim, silent.to(found[entry.name].device), 0.0)
        return found

    def _given(self, name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        """What a run works on."""
        cast = _cast(tensor, dtype)
        return tensor.clone() if cast is tensor and name in self._written else cast

    def _run(
        self, tensors: Mapping[str, Tensor], planned: Mapping[tuple[str, int], PlaceMap], dtype: torch.dtype | None
    ) -> list[Tensor]:
        model = self.structure.model
        given = {t: self._given(name, tensors[name], dtype) for name, t in named_tensors(model).items()}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.manual_seed(0)
            stack.enter_context(plain_kernels())
            stack.enter_context(counted(planned))
            stack.enter_context(Insides(model).swapped(given))
            for module in model.modules():
                for attribute, size in list(outdated_sizes(module)):
                    setattr(module, attribute, size)
            model.train().eval()  # what a module has kept from earlier passes in eval mode goes
            args, kwargs = copy.deepcopy(with_inputs(_cast((self.args, self.kwargs), dtype), planned))
            return [t.detach() for t in outputs_of(model, model(*args, **kwargs)) if t.is_floating_point()]


def _shaken(tensor: Tensor, role: str, random: torch.Generator) -> Tensor:
    value = tensor.detach()
    if not value.is_floating_point():
        return value
    if not isinstance(tensor, nn.Parameter) and not role:
        return value
    noise = torch.randn(tensor.shape, generator=random).to(value)
    if role == "var":
        return value.abs() * noise.exp().clamp(0.2, 5.0)
    scale = sum(n > 1 for n in tensor.shape) < 2  # small ones, as where a branch starts, would hide the branch
    return value + 0.3 * noise * value.square().mean().sqrt().clamp(min=1.0 if scale else 0.05)


def _cast(values: Any, dtype: torch.dtype | None) -> Any:
    def convert(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.detach().to(dtype) if floating and dtype not in (_OWN, value.dtype) else value

    return pytree.tree_map(convert, values)


def _without(gone: Maps) -> dict[Axis, np.ndarray]:
    return {axis: np.setdiff1d(np.arange(axis.size), units) for axis, units in gone.items()}


def _difference(before: Sequence[Tensor], after: Sequence[Tensor], maps: Maps) -> float:
    """The largest change of any output, as a part of its largest value; of outputs that have grown what was there."""
    grown = any({"output", "input"} & axis.tags for axis in maps)
    if len(before) != len(after):
        raise ValueError(f"the model has {len(after)} outputs then, not {len(before)}")
    worst = 0.0
    for one, other in zip(before, after, strict=True):
        if one.shape != other.shape and not grown:
            raise ValueError(f"an output has shape {tuple(other.shape)} then, not {tuple(one.shape)}")
        other = other[tuple(slice(n) for n in one.shape)]
        change = float((one - other).abs().max() / one.abs().max().clamp(min=1e-12)) if one.numel() else 0.0
        if not np.isfinite(change):
            raise ValueError("an output isn't finite then")
        worst = max(worst, change)
    return worst

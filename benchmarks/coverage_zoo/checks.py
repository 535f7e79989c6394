"""What `regrow` has to do with every model. Each check gives columns of the result, or raises what went wrong."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import regrow as rg

from .case import SEED, Build, Case, built

Columns = dict[str, Any]

#: Larger changes, as a part of the largest output, are none of rounding.
TOLERANCE = 1e-4
#: Seconds that may go into verifying every axis by itself; of detectors, where nothing else tells, more.
VERIFY_EACH = 15.0
VERIFY_DETECTIONS = 60.0
#: A measurement that takes longer than this isn't repeated.
REPEAT_BELOW = 2.0


class Wrong(Exception):
    """A check that failed: what is not as it should be, and what was measured nevertheless."""

    def __init__(self, what: str, found: Columns | None = None) -> None:
        super().__init__(what)
        self.found = found or {}


def reason(error: Exception) -> str:
    """An error in a line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text if isinstance(error, Wrong) else f"{type(error).__name__}: {text}"


@dataclass(frozen=True)
class Chance:
    """Scores that choose units at random, the same ones of an axis every time."""

    name: ClassVar[str] = "chance"

    def score(self, axis: rg.Axis, seen: Mapping[str, Any]) -> Tensor:
        return torch.rand(axis.size, generator=torch.Generator().manual_seed(zlib.crc32(axis.name.encode())))


class Checks:
    """All checks of one model; they share what the unedited model does, and the structure that was found first."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.case = built(build)
        self.structure: rg.Structure | None = None
        self.pruned: Case | None = None

    def all(self) -> dict[str, Callable[[], Columns]]:
        """The checks by name, in order."""
        return {
            "run": self.run,
            "analyze": self.analyze,
            "prune": self.prune,
            "save": self.save,
            "grow": self.grow,
            "verify": self.verify,
        }

    def run(self) -> Columns:
        """The model as it is."""
        self.forward_s = forward_seconds(self.case)
        self.outputs = self.case.evaluate()
        self.learning = built(self.build).with_gradient()
        return {"params": self.case.params, "forward_s": self.forward_s}

    def analyze(self) -> Columns:
        """Find the axes, and how long that takes."""
        structure, seconds = analyzed_twice(self.case)
        self.structure = structure
        return {"analyze_s": seconds, **counts(structure)}

    def prune(self) -> Columns:
        """Half of every axis, in one edit."""
        case = built(self.build)
        axes = [axis for axis in analyzed(case).axes if axis.prunable and axis.size > 1]
        if not axes:
            raise Wrong("nothing can be pruned")
        before = case.params
        rg.prune_(axes, {axis.name: axis.size // 2 for axis in axes}, Chance())
        self.pruned = case
        return self._usable(case, case.evaluate(), {"removed": 1 - case.params / before})

    def save(self) -> Columns:
        """The pruned model, loaded onto a fresh one, gives the same output."""
        if self.pruned is None:
            raise Wrong("nothing was pruned")
        fresh = built(self.build, SEED + 1)
        with tempfile.TemporaryDirectory() as folder:
            rg.save(self.pruned.model, folder)
            rg.load(folder, fresh.model)
        expected, self.pruned = self.pruned.evaluate(), None
        change = difference(expected, fresh.evaluate())
        if change > TOLERANCE:
            raise Wrong(f"the loaded model's output differs by {change:.1e}")
        return {}

    def grow(self) -> Columns:
        """A quarter of every axis, in one edit."""
        case = built(self.build)
        axes = [axis for axis in analyzed(case).axes if axis.growable]
        if not axes:
            raise Wrong("nothing can be grown")
        before, exact = case.params, all(axis.exact for axis in axes)
        rg.grow_(axes, {axis.name: math.ceil(axis.size / 4) for axis in axes}, rg.Random())
        outputs = case.evaluate()
        found: Columns = {"added": case.params / before - 1, "all_exact": exact}
        if not case.ragged:  # detections are chosen among nearly equal scores; units more are verified below
            found["grow_change"] = difference(self.outputs, outputs)
        if exact and found.get("grow_change", 0.0) > TOLERANCE:  # untrained networks may make much of rounding
            found["grow_change"] = difference(built(self.build).evaluate_in_double(), case.evaluate_in_double())
        if exact and found.get("grow_change", 0.0) > TOLERANCE:
            raise Wrong(f"all axes are exact, but the output moved by {found['grow_change']:.1e}", found)
        return self._usable(case, outputs, found)

    def verify(self) -> Columns:
        """On real numbers: all axes at once, then each by itself as far as time allows."""
        if self.structure is None:
            raise Wrong("there is no structure")
        # Where a pass takes long, one example has to do.
        case = self.case if self.forward_s < REPEAT_BELOW else self.case.single()
        found = []
        each = case.ragged and self.forward_s * 6 * len(self.structure) < VERIFY_DETECTIONS
        if not each:
            started = time.perf_counter()
            found = [self.structure.verify(args=case.args, kwargs=case.kwargs, each=False)]
            passes = max(1, len(found[0].checks))
            each = 3 * len(self.structure) * (time.perf_counter() - started) / passes <= VERIFY_EACH
        if each:
            found.append(self.structure.verify(args=case.args, kwargs=case.kwargs, each=True))
        failures = [failure for verification in found for failure in verification.failures]
        return {
            "verify": _failed(failures) if failures else "ok",
            "checks": sum(len(verification.checks) for verification in found),
            "failures": len(failures),
            "moved": sum(not failure.error for failure in failures),
            "unmoved": len(found[-1].unmoved),
            "verified": "each" if each else "together",
        }

    def _usable(self, case: Case, outputs: Sequence[Tensor], found: Columns) -> Columns:
        """``found``, if an edited model still does what it did."""
        if [shape(out, case.ragged) for out in outputs] != [shape(out, case.ragged) for out in self.outputs]:
            raise Wrong("outputs have other shapes then", found)
        if not all(bool(out.isfinite().all()) for out in outputs):
            raise Wrong("outputs aren't finite then", found)
        try:
            lost = sorted(self.learning - case.with_gradient())
        except Exception as error:
            raise Wrong(f"backward: {reason(error)}", found) from error
        if lost:
            raise Wrong(f"{len(lost)} parameters get no finite gradient then, such as {lost[0]}", found)
        return found


def forward_seconds(case: Case) -> float:
    """One pass in eval mode without gradients: the median of three after one that doesn't count."""
    times = []
    with torch.no_grad():
        for _ in range(4):
            started = time.perf_counter()
            case.model(*case.args, **case.kwargs)
            times.append(time.perf_counter() - started)
            if times[0] > REPEAT_BELOW and len(times) == 2:
                break
    return statistics.median(times[1:])


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest change of any output, as a part of that output's largest value.

    Raises:
        Wrong: Shapes differ, or an output isn't finite.
    """
    if [out.shape for out in before] != [out.shape for out in after]:
        raise Wrong("outputs have other shapes then")
    worst = 0.0
    for one, other in zip(before, after, strict=True):
        if one.numel():
            change = float((one - other).abs().max() / one.abs().max().clamp(min=1e-12))
            if not math.isfinite(change):
                raise Wrong("an output isn't finite")
            worst = max(worst, change)
    return worst


def shape(out: Tensor, ragged: bool) -> tuple[int, ...]:
    """An output's shape, without the size that comes from values."""
    return tuple(out.shape[1:] if ragged else out.shape)


def analyzed(case: Case) -> rg.Structure:
    """The structure of a case."""
    return rg.analyze(case.model, args=case.args, kwargs=case.kwargs)


def analyzed_twice(case: Case) -> tuple[rg.Structure, float]:
    """The structure of a case, and the shorter time of two analyses; of one where that takes long."""
    best = math.inf
    while True:
        started = time.perf_counter()
        structure = analyzed(case)
        seconds = time.perf_counter() - started
        if best < math.inf or seconds > REPEAT_BELOW:
            return structure, min(best, seconds)
        best = seconds


def counts(structure: rg.Structure) -> Columns:
    """How many axes there are, of which kinds."""
    axes = structure.axes
    return {
        "axes": len(axes),
        **{f"{kind}s": sum(axis.kind == kind for axis in axes) for kind in ("neuron", "head", "feature")},
        "not_prunable": sum(not axis.prunable for axis in axes),
        "not_growable": sum(not axis.growable for axis in axes),
        "inexact": sum(not axis.exact for axis in axes),
        "frozen": len(structure.frozen),
        "unknown": " ".join(structure.unknown),
    }


def _failed(failures: Sequence[Any]) -> str:
    """The first of some failed checks, for people."""
    first = failures[0]
    names = first.axis if len(first.axis) < 60 else f"{first.axis[:60]}…"
    return f"{names}: {first.done}: {first.error or f'moved by {first.change:.1e}, but is said to be exact'}"

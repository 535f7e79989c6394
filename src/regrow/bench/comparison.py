"""What results say: each arm over its seeds, and beside the arm that it is compared with, seed by seed.

Differences are told with paired t intervals. Where several are looked at in one setting, their p-values are corrected
by Holm's method, which holds the chance of a single wrong claim down whatever depends on what.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy import stats

from .history import Event, number, pair
from .results import Result

LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """One finished run in numbers.

    Attributes:
        score, loss: on held-out or test examples at the end; train_loss: on all training examples.
        area: the mean score over the training, by FLOPs spent: the area under its curve.
        curve: (training FLOPs, score) as measured.
        jump_train, jump_eval: the largest relative rise of the loss at an edit in each mode; None without edits.
        next_train, next_eval: likewise a step of the optimizer on, beside the loss before the edit.
        recovered: the longest number of steps until the minibatch loss was what it had been, of edits after which it
            was; None where there is none.
        edits: how many there were.
        parameters, flops: of the network at the end; FLOPs of a forward pass per example.
        training_flops: spent; edit_flops: of these by what methods look at.
        seconds: of all of the run; edit_seconds: of these in edits.
    """

    score: float
    loss: float
    train_loss: float
    area: float
    curve: tuple[tuple[float, float], ...]
    jump_train: float | None
    jump_eval: float | None
    next_train: float | None
    next_eval: float | None
    recovered: int | None
    edits: int
    parameters: int
    flops: int
    training_flops: float
    edit_flops: float
    seconds: float
    edit_seconds: float


def summary(result: Result) -> Summary:
    """A result in numbers."""
    events: list[Event] = result["events"]
    (end,) = (event for event in events if event["event"] == "end")
    edits = [event for event in events if event["event"] == "edit"]
    behind = [event for event in events if event["event"] == "next"]
    measured = {e["training_flops"]: e["test_accuracy"] for e in events if e["event"] in ("metrics", "end")}
    curve = tuple(sorted(measured.items()))
    recovered = [event["steps"] for event in events if event["event"] == "recovered"]
    return Summary(
        end["test_accuracy"],
        end["test_loss"],
        end["train_loss"],
        _area(curve),
        curve,
        _jump(edits, "loss_train_mode"),
        _jump(edits, "loss_eval_mode"),
        _jump(behind, "loss_train_mode"),
        _jump(behind, "loss_eval_mode"),
        max(recovered, default=None) if edits else None,
        len(edits),
        end["parameters"],
        end["flops"],
        end["training_flops"],
        end["edit_flops"],
        end["seconds"],
        end["edit_seconds"],
    )


def _area(curve: Sequence[tuple[float, float]]) -> float:
    flops, scores = (np.array(column) for column in zip(*curve, strict=True))
    if len(flops) == 1:
        return float(scores[0])
    return float(np.trapezoid(scores, flops) / (flops[-1] - flops[0]))


def _jump(edits: Sequence[Event], mode: str) -> float | None:
    pairs = [pair(event[mode]) for event in edits]
    jumps = [after / before - 1 for before, after in pairs if before and after is not None]
    return max(jumps) if jumps else None


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, nan where there are too few for one."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Student's t interval.

        >>> Interval.of([1.0, 2.0, 3.0])
        Interval(mean=2.0, low=-0.4841377117..., high=4.4841377117...)
        """
        mean = fmean(values)
        if len(values) < 2:
            return cls(mean, math.nan, math.nan)
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Row:
    """An arm on a task.

    Attributes:
        task, arm, setting: which.
        seeds: of the runs that there are.
        runs: these in numbers, in the order of the seeds.
        score: over them.
        against: the arm that it is compared with; "" for none.
        gain: the difference of scores to that, over seeds that both have; None where there is none.
        p: of a paired t test of that difference, corrected over the task's arms of its setting.
        reached: FLOPs at which the score of the large network at full budget was reached, as a part of its own; None
            where it wasn't.
    """

    task: str
    arm: str
    setting: str
    seeds: tuple[int, ...]
    runs: tuple[Summary, ...]
    score: Interval
    against: str
    gain: Interval | None
    p: float | None
    reached: float | None

    def mean(self, name: str) -> float | None:
        """The mean of one of the numbers of a :class:`Summary`; None where a run has none."""
        values = [number(getattr(run, name)) for run in self.runs]
        return None if None in values else fmean(value for value in values if value is not None)

    def worst(self, name: str) -> float | None:
        """The largest of them."""
        values = [value for run in self.runs if (value := number(getattr(run, name))) is not None]
        return max(values, default=None)


FULL = "large, 100%"


def leaderboard(results: Sequence[Result]) -> list[Row]:
    """The arms of a store, by task and setting, the best first. Results of one kind of split belong together."""
    groups: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        groups.setdefault((result["task"], result["arm"]), {})[result["seed"]] = result
    runs = {key: {seed: summary(r) for seed, r in sorted(found.items())} for key, found in groups.items()}
    rows = []
    for (task, arm), found in runs.items():
        one = next(iter(groups[task, arm].values()))
        rival = runs.get((task, one["against"]), {})
        shared = [seed for seed in found if seed in rival]
        differences = [found[seed].score - rival[seed].score for seed in shared]
        rows.append(
            Row(
                task,
                arm,
                one["config"]["setting"],
                tuple(found),
                tuple(found.values()),
                Interval.of([run.score for run in found.values()]),
                one["against"],
                Interval.of(differences) if shared else None,
                _p(differences),
                _reached(list(found.values()), list(runs.get((task, FULL), {}).values())),
            )
        )
    return sorted(_corrected(rows), key=lambda row: (row.task, row.setting, -row.score.mean))


def _p(differences: Sequence[float]) -> float | None:
    """Of a paired t test, two-sided; None where there are too few, or they are all the same."""
    if len(differences) < 2 or stdev(differences) == 0:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _corrected(rows: Sequence[Row]) -> list[Row]:
    corrected: dict[int, float] = {}
    families: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(rows):
        if row.p is not None:
            families.setdefault((row.task, row.setting), []).append(index)
    for members in families.values():
        corrected |= dict(zip(members, holm([rows[index].p or 0.0 for index in members]), strict=True))
    return [Row(**vars(row) | {"p": corrected.get(index)}) for index, row in enumerate(rows)]


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction of p-values.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order, found, highest = sorted(range(len(ps)), key=ps.__getitem__), [0.0] * len(ps), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, ps[index] * (len(ps) - place)))
        found[index] = highest
    return found


def _reached(runs: Sequence[Summary], full: Sequence[Summary]) -> float | None:
    """The mean over runs of where their scores first were what the full-budget network's were in the end."""
    if not full:
        return None
    goal, cost = fmean(run.score for run in full), fmean(run.training_flops for run in full)
    firsts = [_first(run.curve, goal) for run in runs]
    if any(first is None for first in firsts):
        return None
    return fmean(first for first in firsts if first is not None) / cost


def _first(curve: Sequence[tuple[float, float]], goal: float) -> float | None:
    """The FLOPs at which a curve first gets to a score, between the points where it was measured."""
    before: tuple[float, float] | None = None
    for flops, score in curve:
        if score >= goal:
            if before is None or score == before[1]:
                return flops
            return before[0] + (flops - before[0]) * (goal - before[1]) / (score - before[1])
        before = flops, score
    return None


def ranks(rows: Sequence[Row]) -> dict[str, float]:
    """The mean rank of each arm over the tasks that all of them have, 1 for the best; nothing is dropped silently."""
    tasks = sorted({row.task for row in rows})
    by_task: list[dict[str, Any]] = [{row.arm: row.score.mean for row in rows if row.task == task} for task in tasks]
    common = set.intersection(*map(set, by_task)) if by_task else set()
    table = np.array([[-scores[arm] for arm in sorted(common)] for scores in by_task])
    placed = stats.rankdata(table, axis=1).mean(0) if len(common) else []
    return dict(zip(sorted(common), map(float, placed), strict=True))

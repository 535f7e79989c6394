"""Stores as `regrow bench` leaves them, made up: the poster's arms, their curves and edits, and what they cost."""

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from regrow.bench.results import RESULTS_FILE, STORE_FILE
from regrow.bench.suites import PROTOCOL, Arm, poster
from synthetic_runs import WIDTHS, sizes

ARMS = poster().arms
TASK = "cifar10/vgg11"
STEPS, EVALUATIONS, BATCH = 1560, 12, 128
FULL_COST = 3 * STEPS * BATCH * sizes(WIDTHS)["flops"]
OWN_EDITS = 30  # of arms whose methods have schedules of their own
ENVIRONMENT = {
    "regrow": "0.1.0", "torch": "2.14.1", "numpy": "2.4.6", "python": "3.11.7", "system": "Linux x86_64",
    "processor": "AMD EPYC 7B13", "cores": 2, "threads": 1, "gpu": None,
}  # fmt: skip


def write_store(path: Path, results: Iterable[dict[str, Any]] = ()) -> Path:
    """Write a store with these results."""
    path.mkdir(parents=True)
    (path / STORE_FILE).write_text(json.dumps({"protocol": PROTOCOL}))
    (path / RESULTS_FILE).write_text("".join(json.dumps(result) + "\n" for result in results))
    return path


def synthetic_results(
    seeds: Sequence[int] = (0, 1, 2), arms: Sequence[Arm] = ARMS, tasks: Sequence[str] = (TASK,), held_out: bool = True
) -> Iterator[dict[str, Any]]:
    """Results of a grid, seed by seed."""
    for seed in seeds:
        for task in tasks:
            for arm in arms:
                yield synthetic_result(arm, seed, task, held_out)


def some_arms(*names: str) -> list[Arm]:
    """Those of the poster's arms."""
    return [arm for arm in ARMS if arm.name in names]


def synthetic_result(arm: Arm, seed: int = 0, task: str = TASK, held_out: bool = True) -> dict[str, Any]:
    """A result as a worker writes it."""
    return {
        "key": f"{task} | {arm.name} | seed {seed} | {'held' if held_out else 'test'}",
        "protocol": PROTOCOL,
        "task": task,
        "arm": arm.name,
        "against": arm.against,
        "held_out": held_out,
        "seed": seed,
        "config": {"task": task, "setting": arm.setting, "seed": seed, "grow": "random", "prune": "l1", **arm.options},
        "environment": {**ENVIRONMENT, "load": 1.5},
        "events": list(synthetic_events(arm, random.Random(f"{task} {arm.name} {seed} {held_out}"))),
    }


def synthetic_events(arm: Arm, rng: random.Random) -> Iterator[dict[str, Any]]:
    """The events of a run: it is measured after each part of its budget, and edited in between."""
    options, static = arm.options, arm.setting == "static"
    start, end = options["start_fraction"], options["end_fraction"]
    size = end if options.get("size") == "end" else start
    widths = {name: max(1, int(full * (size if static else start))) for name, full in WIDTHS.items()}
    yield {"event": "start", "step": 0, "steps": STEPS, "steps_per_epoch": STEPS // 8} | sizes(widths)
    budget = options["budget"] * FULL_COST
    edits = [] if static else _edits(options)
    moments = [(part / EVALUATIONS, "metrics") for part in range(1, EVALUATIONS)] + [(edit, "edit") for edit in edits]
    skill, jump, step, before = random.Random(arm.name).gauss(0, 0.04) + rng.gauss(0, 0.01), 0.0, 0, 0.0
    harm = 1.5 if "naive" in arm.name else 0.0 if arm.setting == "grow" else 0.4
    for progress, kind in [*sorted(moments), (1.0, "end")]:
        step += max(1, round((progress - before) * budget / (3 * BATCH * sizes(widths)["flops"])))
        before, jump = progress, jump * 0.4
        loss = 2.3 * math.exp(-2.2 * progress) + 0.3 - skill + jump
        if kind == "edit":
            rise = harm * rng.random()
            yield from _edit(arm, step, loss, rise, widths, (end - start) / len(edits))
            jump += rise * loss
            if rise:
                yield {"event": "recovered", "step": step + 40, "edit": step, "steps": rng.randrange(10, 60)}
            continue
        yield {
            "event": kind, "step": step, "train_loss": loss * 0.9, "train_accuracy": math.exp(-loss * 0.8),
            "test_loss": loss * 1.1, "test_accuracy": math.exp(-loss) + 0.02 * rng.random(),
            "training_flops": progress * budget, "progress": progress, "seconds": 700 * progress,
            "edit_flops": 0 if static else 0.03 * progress * budget, "edit_seconds": 3.0,
        } | sizes(widths)  # fmt: skip


def _edits(options: Any) -> list[float]:
    number = OWN_EDITS if options.get("schedule") == "own" else options["events"]
    first, last = options["first"], options["last"]
    return [first + (last - first) * index / max(1, number - 1) for index in range(number)]


def _edit(
    arm: Arm, step: int, loss: float, rise: float, widths: dict[str, int], share: float
) -> Iterator[dict[str, Any]]:
    """What one event does; `widths` is changed in place."""
    exchanged = 0.1 if arm.setting == "constant" else 0.0
    kinds = {"grow": ("grow",), "shrink": ("prune",), "constant": ("prune", "grow")}[arm.setting]
    for kind in kinds:
        old, sign = dict(widths), 1 if kind == "grow" else -1
        for name, full in WIDTHS.items():
            widths[name] = max(1, widths[name] + sign * round(full * (exchanged or abs(share))))
        yield {
            "event": "edit", "step": step, "kind": kind, "method": arm.options[kind].split(":")[0],
            "sizes": {name: [old[name], widths[name]] for name in widths},
            "parameters": [sizes(old)["parameters"], sizes(widths)["parameters"]],
            "flops": [sizes(old)["flops"], sizes(widths)["flops"]],
            "loss_train_mode": [loss, loss * (1 + rise)], "loss_eval_mode": [loss, loss * (1 + 2 * rise)],
            "text": f"{len(widths)} axes",
        }  # fmt: skip

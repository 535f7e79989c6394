"""Run folders as real runs leave them, made up: losses that fall, and networks that change."""

import itertools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTHS = {
    "features.0": 64, "features.4": 128, "features.8": 256, "features.11": 256,
    "features.15": 512, "features.18": 512, "features.22": 512, "features.25": 512,
}  # fmt: skip
STEPS, STEPS_PER_EPOCH, EDIT_EVERY = 1200, 60, 120
START_FRACTION = {"static": 1.0, "grow": 0.25, "shrink": 1.0, "constant": 0.5}
END_FRACTION = {"static": 1.0, "grow": 1.0, "shrink": 0.5, "constant": 0.5}
KINDS = {"static": (), "grow": ("grow",), "shrink": ("prune",), "constant": ("prune", "grow")}
PACE = {"static": 210, "grow": 290, "shrink": 220, "constant": 250}


def write_run(folder: Path, setting: str, *, steps: int = STEPS, **options: Any) -> Path:
    """Write a run folder as a real run does, up to `steps`; with fewer than `STEPS` it is unfinished."""
    config = {"task": "digits/vgg11", "setting": setting, "grow": "random", "prune": "l1", "seed": 0}
    config |= {"batch_norm": True, "versions": {"regrow": "0.1.0", "torch": "2.8.0"}} | options
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "events.jsonl").open("w") as file:
        for event in synthetic_events(setting, random.Random(setting)):
            if event["step"] <= steps:
                file.write(json.dumps(event) + "\n")
    return folder


def synthetic_events(setting: str, rng: random.Random) -> Iterator[dict[str, Any]]:
    """The events of a run whose loss falls, and jumps where its network is edited."""
    widths = {name: int(size * START_FRACTION[setting]) for name, size in WIDTHS.items()}
    yield {"event": "start", "step": 0, "steps": STEPS, "steps_per_epoch": STEPS_PER_EPOCH} | sizes(widths)
    work, jump, metrics = 0.0, 0.0, {}
    for step in range(1, STEPS + 1):
        work += 3 * 64 * sizes(widths)["flops"]
        jump *= 0.97
        loss = 2.2 * math.exp(-step / PACE[setting]) + 0.03 + jump
        if step % 5 == 0:
            yield {"event": "batch", "step": step, "loss": loss * math.exp(rng.gauss(0, 0.25))}
        if step % EDIT_EVERY == 0 and step < STEPS:
            for kind in KINDS[setting]:
                edit = synthetic_edit(kind, setting, step, loss, widths)
                jump += edit["loss_train_mode"][1] - edit["loss_train_mode"][0]
                yield edit
        if step % STEPS_PER_EPOCH == 0:
            test_loss = loss * 1.15 + 0.02
            metrics = {
                "step": step, "epoch": step / STEPS_PER_EPOCH, "train_loss": loss, "test_loss": test_loss,
                "train_accuracy": math.exp(-loss / 2), "test_accuracy": math.exp(-test_loss / 2),
                "learning_rate": 0.05, "training_flops": work, "widths": widths, "seconds": step / 20,
            } | sizes(widths)  # fmt: skip
            yield {"event": "metrics"} | metrics
    yield {"event": "end"} | metrics


def synthetic_edit(kind: str, setting: str, step: int, loss: float, widths: dict[str, int]) -> dict[str, Any]:
    """One edit of all layers; `widths` is changed in place."""
    share = 0.1 if setting == "constant" else abs(END_FRACTION[setting] - START_FRACTION[setting])
    share /= 1 if setting == "constant" else STEPS // EDIT_EVERY - 1
    before, old = dict(widths), sizes(widths)
    for name, full in WIDTHS.items():
        widths[name] += round(full * share) * (1 if kind == "grow" else -1)
    if step + EDIT_EVERY >= STEPS and setting != "constant":
        widths.update({name: int(full * END_FRACTION[setting]) for name, full in WIDTHS.items()})
    new = sizes(widths)
    rise = 1.0 if kind == "grow" else 1.35
    return {
        "event": "edit", "step": step, "epoch": step / STEPS_PER_EPOCH, "kind": kind,
        "method": "random" if kind == "grow" else "l1",
        "sizes": {name: [before[name], widths[name]] for name in widths},
        "parameters": [old["parameters"], new["parameters"]], "flops": [old["flops"], new["flops"]],
        "loss_train_mode": [loss, loss * rise], "loss_eval_mode": [loss * 1.1, loss * 1.1 * rise**2],
        "text": f"{len(widths)} axes, {new['parameters'] - old['parameters']:+,} params",
    }  # fmt: skip


def sizes(widths: dict[str, int]) -> dict[str, Any]:
    """Parameters and FLOPs of 3×3 convolutions of these widths, after one another."""
    channels = [3, *widths.values()]
    parameters = sum(9 * before * after for before, after in itertools.pairwise(channels))
    return {"parameters": parameters, "flops": 2 * 64 * parameters, "widths": dict(widths)}

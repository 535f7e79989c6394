"""What the charts of the report draw: a run as plain lists, ready for JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .history import Event, History, number, pair

MAX_POINTS = 1000
METRICS = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")


def series(history: History) -> dict[str, Any]:
    """Curves, edits and shapes of a run. `work` is training FLOPs, the charts' other horizontal axis.

    Returns:
        `steps` (last step), `metrics`, `batches` (at most `MAX_POINTS`), `edits` and `shapes`, each with
        lists of the same length; None stands for a value that is missing or not finite.
    """
    metrics = _metrics(history)
    batches = _thin([event for event in history.of("batch") if number(event.get("loss")) is not None])
    edits = history.of("edit")
    shapes = history.shapes()
    layers = list(dict.fromkeys(name for shape in shapes for name in shape.widths))
    return {
        "steps": history.last_step,
        "metrics": {
            **_abscissae(metrics, metrics),
            **{key: [number(event.get(key)) for event in metrics] for key in METRICS},
        },
        "batches": {**_abscissae(batches, metrics), "loss": [event["loss"] for event in batches]},
        "edits": {
            **_abscissae(edits, metrics),
            "kind": [str(event.get("kind")) for event in edits],
            "text": [str(event.get("text", "")) for event in edits],
            "train": [pair(event.get("loss_train_mode")) for event in edits],
            "eval": [pair(event.get("loss_eval_mode")) for event in edits],
        },
        "layers": layers,
        "shapes": {
            "step": [shape.step for shape in shapes],
            "widths": [[shape.widths.get(layer, 0) for layer in layers] for shape in shapes],
            "parameters": [shape.parameters for shape in shapes],
            "flops": [shape.flops for shape in shapes],
        },
    }


def _metrics(history: History) -> list[Event]:
    """The measured points, each step once: the end repeats the last epoch's."""
    return list({event["step"]: event for event in history.of("metrics", "end")}.values())


def _abscissae(events: Sequence[Event], metrics: Sequence[Event]) -> dict[str, list[float]]:
    """Step and training FLOPs of events; FLOPs are interpolated between the points that state them."""
    known = {0: 0.0} | {
        event["step"]: event["training_flops"] for event in metrics if number(event.get("training_flops")) is not None
    }
    steps = [event["step"] for event in events]
    return {"step": steps, "work": np.interp(steps, list(known), list(known.values())).tolist()}


def _thin(events: list[Event]) -> list[Event]:
    """At most `MAX_POINTS` events: the extremes of each stretch, so that no jump is lost."""
    if len(events) <= MAX_POINTS:
        return events
    kept: list[Event] = []
    for stretch in np.array_split(np.arange(len(events)), MAX_POINTS // 2):
        ordered = sorted(stretch, key=lambda index: events[index]["loss"])
        kept.extend(events[index] for index in sorted({ordered[0], ordered[-1]}))
    return kept

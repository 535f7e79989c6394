"""What the browser draws of a store."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from .board_content import END, SPLITS, Arm, Board, Content
from .comparison import FULL, Row
from .history import number, pair
from .report import MODES, flat
from .results import Result, history_of
from .series import METRICS, series

MOST_CHARACTERS = 2_000_000  # of the runs that the browser draws
KEPT = (400, 200, 100, 50, 25)  # points, edits and shapes of a run; the most that fit
#: Methods that each setting uses.
USED = {"grow": ("grow",), "shrink": ("prune",), "constant": ("prune", "grow")}


def drawn(content: Content) -> dict[str, Any]:
    """What the browser draws: runs, arms and boards, and tables of what many runs share."""
    configs: dict[str, int] = {}
    environments: dict[str, int] = {}
    arm_of = {run: index for index, arm in enumerate(content.arms) for run in arm.runs}
    runs = []
    for place, result in enumerate(content.results):
        arm = content.arms[arm_of[place]] if place in arm_of else None
        config, environment = (flat(result[key]) for key in ("config", "environment"))
        load = environment.pop("load", None)
        config.pop("seed", None)
        split = f", {SPLITS[result['held_out']]}" if len(content.all("held_out")) > 1 else ""
        run = {
            **{key: result[key] for key in ("key", "task", "seed")},
            "label": f"{result['arm']}, seed {result['seed']}{split}",
            "arm": arm_of.get(place),
            "setting": result["config"]["setting"],
            "split": SPLITS[result["held_out"]],
            "colour": arm.colour if arm else 0,
            "style": arm.style if arm else 0,
            "config": configs.setdefault(json.dumps(config), len(configs)),
            "environment": environments.setdefault(json.dumps(environment), len(environments)),
            "load": load,
        }
        runs.append(run | _drawn(result))
    runs = _fitting(runs)
    rows = {line.arm: line.row for board in content.boards for line in board.lines if line.seed is None}
    return {
        "runs": runs,
        "arms": [_drawn_arm(arm, rows[index], content, runs) for index, arm in enumerate(content.arms)],
        "boards": [
            {
                "arms": [line.arm for line in board.lines if line.seed is None],
                "rivals": _rivals(board, content.arms),
            }
            for board in content.boards
        ],
        "configs": [json.loads(text) for text in configs],
        "environments": [json.loads(text) for text in environments],
    }


def _drawn(result: Result) -> dict[str, Any]:
    """The series of a run, where it ended, and its edits' changes as (layer, units before, units after)."""
    history = history_of(result)
    drawn, edits = series(history), history.of("edit")
    layers = {layer: index for index, layer in enumerate(drawn["layers"])}
    changes = []
    for edit in edits:
        sizes = edit.get("sizes")
        pairs = {name: pair(size) for name, size in sizes.items()} if isinstance(sizes, dict) else {}
        changes.append([[layers[name], *size] for name, size in pairs.items() if name in layers and None not in size])
    del drawn["batches"], drawn["edits"]["text"]
    drawn["edits"] |= {"method": [str(edit.get("method", "")) for edit in edits], "changes": changes}
    end = next(iter(history.of("metrics", "end")[::-1]), {})
    return _short(drawn | {"num_edits": len(edits), "end": {key: end.get(key) for key in END}})


def _short(value: Any) -> Any:
    """Numbers with six significant digits, which is more than a chart shows."""
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_short(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _fitting(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs with as many points as fit on the page."""
    thinned = runs
    for most in KEPT:
        thinned = [_thinned(run, most) for run in runs]
        if len(json.dumps(thinned, separators=(",", ":"))) <= MOST_CHARACTERS:
            break
    return thinned


def _thinned(run: dict[str, Any], most: int) -> dict[str, Any]:
    """At most so many points of each kind, evenly spaced, and the worst edits."""
    kept = {part: _spread(len(run[part]["step"]), most) for part in ("metrics", "shapes", "edits")}
    kept["edits"] = sorted({*kept["edits"], *(place for mode in MODES for place in _worst(run["edits"][mode]))})
    return run | {
        part: {key: [values[place] for place in places] for key, values in run[part].items()}
        for part, places in kept.items()
    }


def _spread(num: int, most: int) -> list[int]:
    return list(range(num)) if num <= most else np.linspace(0, num - 1, most).round().astype(int).tolist()


def _worst(pairs: Sequence[Sequence[float | None]]) -> list[int]:
    """The place of the largest relative rise, if there is one."""
    rises = [(after / before, place) for place, (before, after) in enumerate(pairs) if before and after is not None]
    return [max(rises)[1]] if rises else []


def _drawn_arm(arm: Arm, row: Row, content: Content, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    configs = [content.results[run]["config"] for run in arm.runs]
    methods = {str(config.get(key, "")) for config in configs for key in USED.get(arm.setting, ())}
    return {
        **vars(arm),
        "short": arm.short,
        "split": SPLITS[arm.held_out],
        "find": " ".join([arm.name, arm.setting, *sorted(methods)]).lower(),
        "flops": _short(row.mean("flops")),
        "score": _short([number(value) for value in vars(row.score).values()]),
        "curves": _mean_curves([runs[run]["metrics"] for run in arm.runs]),
    }


def _mean_curves(metrics: Sequence[dict[str, list[float]]]) -> dict[str, Any]:
    """Curves over several runs, where all of them were measured: mean, lowest and highest."""
    works = [run["work"] for run in metrics]
    low, high = max(work[0] for work in works), min(work[-1] for work in works)
    grid = sorted({low, *(work for work in works[0] if low < work < high), high}) if low <= high else []
    curves: dict[str, Any] = {"work": grid}
    for key in METRICS:
        points = [[p for p in zip(run["work"], run[key], strict=True) if p[1] is not None] for run in metrics]
        if not grid or not all(points):
            curves[key] = None
            continue
        table = np.array([np.interp(grid, *np.transpose(known)) for known in points])
        curves[key] = _short(
            {"mean": table.mean(0).tolist(), "low": table.min(0).tolist(), "high": table.max(0).tolist()}
        )
    return curves


def _rivals(board: Board, arms: Sequence[Arm]) -> list[int]:
    """The arms that those of a board are compared with, and the one at full budget, where they are elsewhere."""
    names = dict.fromkeys([*(row.against for row in board.rows), FULL])
    known = {arm.name: i for i, arm in enumerate(arms) if (arm.held_out, arm.task) == (board.held_out, board.task)}
    own = {line.arm for line in board.lines}
    return [known[name] for name in names if name in known and known[name] not in own]

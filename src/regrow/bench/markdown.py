"""The results of a store as a table for a page of text."""

from collections.abc import Sequence

from . import human
from .comparison import Interval, Row, leaderboard
from .results import Result

SETTINGS = ("static", "grow", "shrink", "constant")
HEAD = (
    *("arm", "runs", "score", "beside its baseline", "worst jump, train / eval", "a step on", "FLOPs at the end"),
    *("training FLOPs", "to reach the large network"),
)


def table(results: Sequence[Result]) -> str:
    """A row for each arm, by setting and score: means over seeds, differences seed by seed with 95 % intervals.

    Args:
        results: on one kind of split.
    """
    lines = ["| " + " | ".join(HEAD) + " |", "| --- " * len(HEAD) + "|"]
    rows = sorted(leaderboard(results), key=lambda row: (row.task, SETTINGS.index(row.setting), -row.score.mean))
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row))} |" for row in rows)])


def _cells(row: Row) -> list[str]:
    return [
        row.arm,
        str(len(row.seeds)),
        f"{100 * row.score.mean:.2f} %",
        _difference(row.gain),
        _jumps(row, "jump"),
        _jumps(row, "next"),
        human.count(row.mean("flops")),
        human.count(row.mean("training_flops")),
        "" if row.reached is None else f"{row.reached:.0%}",
    ]


def _jumps(row: Row, name: str) -> str:
    """The largest in train and in eval mode; nothing where nothing was edited."""
    jumps = [row.worst(f"{name}_{mode}") for mode in ("train", "eval")]
    return " / ".join(f"{100 * jump:+.1f} %" for jump in jumps if jump is not None)


def _difference(gain: Interval | None) -> str:
    """In points, with its interval where there are runs enough for one."""
    if gain is None:
        return ""
    interval = f" ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})" if gain.low == gain.low else ""
    return f"{100 * gain.mean:+.2f}{interval}"

"""What a page about a store says."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from . import human
from .board_content import SPLITS, Board, Content
from .comparison import Interval, Row
from .history import number
from .results import Result
from .suites import PROTOCOL

CHANCE = 0.05
NEARLY_ZERO = 1e-6  # of a loss: what rounding leaves, as in board-charts.js


@dataclass(frozen=True)
class Cell:
    """A number of a table as it is sorted and as it is read, and what stands beside it."""

    value: float | None
    text: str
    beside: str = ""

    @classmethod
    def of(cls, value: float | None, say: Callable[[float], str]) -> "Cell":
        return cls(value, human.MISSING if value is None else say(value))


def cells(row: Row) -> list[Cell]:
    """The numbers of a row in the order of the columns in board.html.j2."""
    spent, in_edits, edits = row.mean("training_flops"), row.mean("edit_flops"), row.mean("edits")
    share = in_edits / spent if spent and in_edits is not None and edits else None
    gain = Cell(row.gain.mean, _points(row.gain.mean, "+"), _half(row.gain)) if row.gain else Cell(None, human.MISSING)
    return [
        Cell(row.score.mean, _points(row.score.mean), _half(row.score)),
        Cell.of(row.mean("area"), _points),
        gain,
        Cell.of(row.p, lambda p: f"{p:.3f}" if p >= 0.001 else "< 0.001"),
        Cell.of(row.mean("train_loss"), human.loss),
        Cell.of(row.worst("jump_train"), _relative),
        Cell.of(row.worst("jump_eval"), _relative),
        Cell.of(row.worst("recovered"), "{:,}".format),
        Cell.of(row.mean("parameters"), human.count),
        Cell.of(row.mean("flops"), human.count),
        Cell.of(spent, human.count),
        Cell.of(share, lambda part: f"{100 * part:.1f} %"),
        Cell.of(row.reached, lambda part: f"{100 * part:.0f} %"),
        Cell.of(row.mean("seconds"), "{:,.0f}".format),
    ]


def _points(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.2f}".replace("-", "−")


def _half(interval: Interval) -> str:
    half = number(interval.high - interval.mean)
    return "" if half is None else f"± {100 * half:.2f}"


def _relative(rise: float) -> str:
    """A relative rise with three digits; what is far below a loss's digits is only nearly 0.

    >>> _relative(0.1234), _relative(-0.5), _relative(12.3), _relative(1e-9)
    ('+12.3 %', '−50.0 %', '+1,230 %', '≈ 0')
    """
    if abs(rise) < NEARLY_ZERO:
        return "≈ 0" if rise else "0"
    decimals = max(0, 2 - math.floor(math.log10(100 * abs(rise))))
    return f"{100 * rise:+,.{decimals}f} %".replace("-", "−")


def picture(board: Board, row: Row) -> dict[str, float] | None:
    """Where a difference and the ends of its interval lie in their picture, in percent; 50 is no difference."""
    gains = [other.gain for other in board.rows if other.gain]
    if row.gain is None or not gains:
        return None
    ends = [abs(end) for gain in gains for end in (gain.low, gain.high) if math.isfinite(end)]
    most = min(max(ends, default=math.inf), 1.8 * max(abs(gain.mean) for gain in gains)) or 1.0
    told = {name: row.gain.mean if math.isnan(end) else end for name, end in vars(row.gain).items()}
    return {name: round(50 + 50 * max(-1.0, min(1.0, end / most)), 1) for name, end in told.items()}


def verdict(board: Board) -> str:
    """Which arms differ from what they are compared with by more than chance."""
    best = board.rows[0]
    against = dict.fromkeys(f"“{row.against}”" for row in board.rows if row.against)
    if not against:
        what = "Networks of one size all along: " if board.setting == "static" else ""
        return f"{what}“{best.arm}” has the best score, {_points(best.score.mean)}\u00a0%."
    said = f"Compared seed by seed with {_listed(against)}."
    apart = [row for row in board.rows if row.p is not None and row.p < CHANCE and row.gain]
    if all(row.p is None for row in board.rows):
        return f"{said} There are too few seeds to tell differences from chance."
    if not apart:
        return f"{said} No difference is beyond chance at the 5\u00a0% level."
    parts = [f"“{row.arm}” ({_points(row.gain.mean, '+')})" for row in apart if row.gain]
    return f"{said} Beyond chance at the 5\u00a0% level: {_listed(parts)}."


def heading(content: Content) -> str:
    tasks = content.all("task")
    if not tasks:
        return "No finished run yet"
    subject = tasks[0] if len(tasks) == 1 else human.plural(len(tasks), "task")
    return f"{human.plural(len(content.results), 'run')} on {subject}"


def paragraph(content: Content) -> str:
    """What was run, on what it was measured, where, and what is missing."""
    if content.results:
        tasks, arms, seeds = (content.all(key) for key in ("task", "arm", "seed"))
        said = (
            f"{human.plural(len(arms), 'arm')} on {human.plural(len(tasks), 'task')} ({_listed(tasks)}) with "
            f"{human.plural(len(seeds), 'seed')} ({_listed(map(str, sorted(seeds)))}). "
            f"Scores are measured on {_listed(SPLITS[held_out] for held_out in content.all('held_out'))}, "
            f"by version {PROTOCOL} of the protocol.{_environment(content.results)}"
        )
    else:
        said = f"The store is empty; it is of version {PROTOCOL} of the protocol."
    missing = human.plural(len(content.others), "run")
    return f"{said} {missing} failed, did not finish or were left out." if content.others else said


def _environment(results: Sequence[Result]) -> str:
    """Versions and processors; where they differ all of them."""
    seen: dict[str, dict[str, None]] = {}
    for result in results:
        for key, value in result["environment"].items():
            if value is not None:
                seen.setdefault(key, {})[str(value)] = None
    versions = [f"{key} {_listed(seen[key], 'or')}" for key in ("regrow", "torch", "numpy", "python") if key in seen]
    machines = [*seen.get("gpu", {}), *seen.get("processor", {})]
    cores = f" ({_listed(seen['cores'], 'or')} cores)" if "cores" in seen else ""
    return f" They ran with {_listed(versions)} on {_listed(machines)}{cores}." if versions and machines else ""


def _listed(words: Iterable[str], last: str = "and") -> str:
    words = list(words)
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

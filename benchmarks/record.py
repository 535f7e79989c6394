"""The store of record as tables: what was selected, what was confirmed, and the goals that these are held to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from common import RESULTS

from regrow.bench.cells import cells_of
from regrow.bench.comparison import FULL, Interval, Row, leaderboard
from regrow.bench.markdown import table
from regrow.bench.results import Result, Store
from regrow.bench.suites import CONFIRMATION, NAIVE, SELECTION, get_suite

NAIVE_GROWERS = tuple(f"grow: {name}, naive" for name in NAIVE)
JUMP, FLOPS = 0.01, 0.7


def selection() -> str:
    """The suite's runs on held-out images."""
    return _made(_runs(held_out=True), len(list(cells_of(get_suite("poster")))))


def confirmation() -> str:
    """Its runs on the test set."""
    wanted = cells_of(get_suite("poster"), CONFIRMATION, held_out=False)
    return _made(_runs(held_out=False), len(list(wanted)))


def _made(results: Sequence[Result], wanted: int) -> str:
    made = f"{len(results)} of the {wanted} runs of the suite have been made."
    return f"{made}\n\n{table(results)}" if results else made


def exploration() -> str:
    """What was tried before arms were fixed, beside the baselines with the same seed."""
    tried = list(Store(RESULTS / "exploration").results().values())
    statics = [r for r in _runs(held_out=True) if r["seed"] == 0 and r["config"]["setting"] == "static"]
    return table([*tried, *statics])


def results() -> str:
    """What was confirmed, in short: the selected arms beside the static networks."""
    rows = _rows(held_out=False)
    lines = [
        "| arm | runs | test accuracy | beside | difference (95 %), p | largest jump of the loss, eval mode "
        f"| accuracy of “{FULL}” at |",
        "| --- " * 7 + "|",
    ]
    for row in sorted(rows.values(), key=lambda row: (row.setting != "static", -row.score.mean)):
        gain = "" if row.gain is None else f"{_points(row.gain)}, {_p(row)}"
        jump = row.worst("jump_eval")
        shown = [row.arm, str(len(row.seeds)), f"{row.score.mean:.2%}", row.against, gain]
        shown += [
            "" if jump is None else f"{jump:+.1%}",
            "" if row.reached is None else f"{row.reached:.0%} of its FLOPs",
        ]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def goals() -> str:
    """Each goal, what was measured, and whether it is met."""
    lines = ["| goal | measured | |", "| --- | --- | --- |"]
    for goal, measure in GOALS.items():
        measured, met = measure()
        lines.append(f"| {goal} | {measured} | {'met' if met else 'missed'} |")
    return "\n".join(lines)


def _jumps() -> tuple[str, bool]:
    every = [row for split in (True, False) for row in _rows(held_out=split).values() if row.setting == "grow"]
    naive_rows = [row for row in every if row.arm in NAIVE_GROWERS]
    safe_rows = [row for row in every if row.arm not in NAIVE_GROWERS]
    safe, after = _worst(safe_rows, "jump_eval"), _worst(safe_rows, "next_eval")
    naive = _worst(naive_rows, "jump_eval", "next_eval")
    measured = (
        f"{safe:+.2%} at an edit, {after:+.1%} a step of the optimizer on; the worst of the naive growers {naive:+.0%}"
    )
    return measured, safe <= JUMP


def _worst(rows: Sequence[Row], *names: str) -> float:
    return max(value for row in rows for name in names if (value := row.worst(name)) is not None)


def _confirmed(setting: str) -> tuple[str, bool]:
    row = _selected(setting)
    if row is None or row.gain is None:
        return "not confirmed yet", False
    return f"{row.arm}: {_points(row.gain)}, {_p(row)}, {len(row.seeds)} seeds", (
        row.seeds == CONFIRMATION and row.gain.low > 0
    )


def _reached() -> tuple[str, bool]:
    row = _selected("grow")
    if row is None or row.reached is None:
        return "not reached", False
    return f"{row.arm}: {row.reached:.0%}", row.reached <= FLOPS


GOALS: dict[str, Callable[[], tuple[str, bool]]] = {
    f"growers safe under batch norm: the largest jump of the loss in eval mode is at most {JUMP:.0%}": _jumps,
    "growing, confirmed: the selected arm is above the large static network with the same budget": lambda: _confirmed(
        "grow"
    ),
    f"the accuracy of the large static network at its full budget at no more than {FLOPS:.0%} of its FLOPs": _reached,
    "constant size, confirmed: the selected arm is above the static network of that size": lambda: _confirmed(
        "constant"
    ),
}


def _selected(setting: str) -> Row | None:
    """The confirmation of the arm with the best mean over all seeds of the selection."""
    selected = [r for r in _rows(held_out=True).values() if r.setting == setting and r.seeds == SELECTION]
    best = max(selected, key=lambda row: row.score.mean)
    return _rows(held_out=False).get(best.arm)


def _rows(held_out: bool) -> dict[str, Row]:
    return {row.arm: row for row in leaderboard(_runs(held_out))}


def _runs(held_out: bool) -> list[Result]:
    """The suite's; those by which the learning rate was tuned aside."""
    found = Store(RESULTS / "store").results().values()
    return [r for r in found if r["held_out"] == held_out and not r["arm"].startswith("lr ")]


def _points(gain: Interval) -> str:
    return f"{100 * gain.mean:+.2f} points ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})"


def _p(row: Row) -> str:
    return "" if row.p is None else f"p = {row.p:.1g}"

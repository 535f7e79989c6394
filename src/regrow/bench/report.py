"""One self-contained HTML file that shows runs: what they reached, and how their networks changed."""

import base64
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from . import human
from .errors import InputError
from .history import Event, History, find_runs, last_number, number, pair, read_run
from .series import series
from .store import write_atomically

TEMPLATES = files("regrow.bench") / "templates"
MODES = {"train": "loss_train_mode", "eval": "loss_eval_mode"}
NUM_COLOURS = 8  # --run-0 to --run-7 in report.css
SCORES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")


@dataclass(frozen=True)
class Run:
    """One run as the report speaks of it.

    Attributes:
        history: what was read from its folder.
        label: its name in tables and legends, unique in the report.
        colour: index of its colour; runs that differ by their seed alone share one.
    """

    history: History
    label: str
    colour: int

    @property
    def task(self) -> str:
        return str(self.history.config.get("task", human.MISSING))

    @property
    def setting(self) -> str:
        return str(self.history.config.get("setting", human.MISSING))

    @property
    def status(self) -> str:
        """Empty for a finished run, else how far it came."""
        if self.history.finished:
            return ""
        total = self.history.total_steps
        of_total = "" if total is None else f" of {total:,}"
        return f"not finished: step {self.history.last_step:,}{of_total}"

    @property
    def edits(self) -> list[Event]:
        return self.history.of("edit")

    def score(self, key: str) -> float | None:
        """The last recorded value of a metric."""
        values = [number(event.get(key)) for event in self.history.of("metrics", "end")]
        return next((value for value in reversed(values) if value is not None), None)

    def span(self, key: str) -> tuple[float | None, float | None]:
        """The first and the last recorded value of `parameters` or `flops`."""
        events = self.history.of("start", "metrics", "edit", "end")
        values = [value for event in events if (value := last_number(event.get(key))) is not None]
        return (values[0], values[-1]) if values else (None, None)

    def worst_jump(self, mode: str) -> tuple[float, int] | None:
        """The largest rise of the loss at an edit, and its step; None without edits."""
        jumps = [(jump, edit["step"]) for edit in self.edits if (jump := _jump(edit, mode)) is not None]
        return max(jumps, key=lambda jump: jump[0], default=None)


def write_report(run_folders: Sequence[Path], output: Path) -> Path:
    """Write a report on runs: one HTML file that needs nothing else, not even a network.

    Args:
        run_folders: run folders, or folders that contain run folders at any depth.
        output: the file to write; its folder is created if need be.

    Returns:
        `output`.

    Raises:
        InputError: a folder neither is nor contains a run, or `output` is a folder.
        OSError: `output` cannot be written; a report that was there before is kept.
    """
    output = Path(output)
    if output.is_dir():
        raise InputError(f"{output} is a folder; name the file to write, such as {output / 'report.html'}")
    page = _render(_name_runs([read_run(folder) for folder in find_runs(run_folders)]))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page.encode())
    return output


def _render(runs: Sequence[Run]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": human.count,
        "percent": human.percent,
        "loss": human.loss,
        "change": human.change,
        "plural": human.plural,
    }
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template("report.html.j2").render(
        # Files of this package are the only text that is not escaped.
        asset=lambda name: Markup(asset(name)),
        heading=_heading(runs),
        summary=_summary(runs),
        runs=runs,
        modes=MODES,
        scores=SCORES,
        pair=pair,
        jump=_jump,
        options=_options(runs),
        data={"runs": [_drawn(run) for run in runs]},
        plotly=packed_plotly(),
    )


def _drawn(run: Run) -> dict[str, Any]:
    """What the browser draws of a run."""
    return {"label": run.label, "task": run.task, "colour": run.colour, **series(run.history)}


def asset(name: str) -> str:
    return TEMPLATES.joinpath(name).read_text(encoding="utf-8")


@cache
def packed_plotly() -> str:
    """Plotly's script as the base64 of its gzip, which the browser inflates: 2 MB in place of 5."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _jump(edit: Event, mode: str) -> float | None:
    """How much the loss rose at an edit."""
    before, after = pair(edit.get(MODES[mode]))
    return None if before is None or after is None else after - before


# Names ------------------------------------------------------------------------------------------------------


def _name_runs(histories: Sequence[History]) -> list[Run]:
    """Label runs by what sets them apart, and give them colours."""
    several_tasks = len({history.config.get("task") for history in histories}) > 1
    named = [_name(history.config, several_tasks) or history.folder.name for history in histories]
    labels = [_label(index, named, histories) for index in range(len(named))]
    repeated = Counter(labels)
    families = [label.split(", seed ")[0] for label in labels]
    settings = [history.config.get("setting") for history in histories]
    baselines = [family for family, setting in zip(families, settings, strict=True) if setting == "static"]
    # Colour 0 is neutral: it belongs to the baseline, or to nobody.
    palette = dict.fromkeys([*(baselines[:1] or [None]), *families])
    colours = {family: index and 1 + (index - 1) % (NUM_COLOURS - 1) for index, family in enumerate(palette)}
    return [
        Run(history, label if repeated[label] == 1 else f"{label} ({history.folder})", colours[family])
        for label, family, history in zip(labels, families, histories, strict=True)
    ]


def _name(config: dict[str, Any], with_task: bool) -> str:
    """The setting and the methods that it uses: `grow · random`."""
    task = config.get("task") if with_task else None
    setting = config.get("setting")
    methods = {"static": (), "grow": ("grow",), "shrink": ("prune",)}.get(str(setting), ("grow", "prune"))
    used = " + ".join(str(config[key]) for key in methods if config.get(key))
    return " · ".join(str(part) for part in (task, setting, used) if part)


def _label(index: int, named: Sequence[str], histories: Sequence[History]) -> str:
    """A name, followed by the options in which runs of the same name differ; the seed last."""
    configs = [flat(history.config) for history in histories]
    own = configs[index]
    twins = [config for config, name in zip(configs, named, strict=True) if name == named[index]]
    differing = [key for key in own if any(twin.get(key) != own[key] for twin in twins)]
    differing.sort(key=lambda key: key == "seed")
    return ", ".join([named[index], *(f"{key} {own[key]}" for key in differing)])


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Options by dotted name, as text."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return found


def _options(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Each option with its values: one if all runs share it, else one a run. Those that differ come first."""
    configs = [flat(run.history.config) for run in runs]
    names = dict.fromkeys(name for config in configs for name in config)
    rows = [(name, [config.get(name, human.MISSING) for config in configs]) for name in names]
    shared = [(name, values[:1]) for name, values in rows if len(set(values)) == 1]
    return [row for row in rows if len(set(row[1])) > 1] + shared


# Text -------------------------------------------------------------------------------------------------------


def _heading(runs: Sequence[Run]) -> str:
    tasks = list(dict.fromkeys(run.task for run in runs))
    subject = tasks[0] if len(tasks) == 1 else human.plural(len(tasks), "task")
    return f"{human.plural(len(runs), 'run')} on {subject}"


def _summary(runs: Sequence[Run]) -> str:
    """What the runs reached, how much the edits disturbed them, and what is missing."""
    return " ".join([*_best(runs), *_worst(runs), *_unfinished(runs)])


def _best(runs: Sequence[Run]) -> Iterable[str]:
    """The most accurate run of each task, beside its best rival: the best static or the best edited run."""
    for task in dict.fromkeys(run.task for run in runs):
        scored = [run for run in runs if run.task == task and run.score("test_accuracy") is not None]
        if not scored:
            continue
        best = max(scored, key=_accuracy)
        rivals = [run for run in scored if (run.setting == "static") != (best.setting == "static")]
        sentence = f"On {task} {_achievement(best)}, the best test accuracy"
        if rivals:
            sentence += f"; {_achievement(max(rivals, key=_accuracy))}"
        yield f"{sentence}."


def _accuracy(run: Run) -> float:
    return run.score("test_accuracy") or 0.0


def _achievement(run: Run) -> str:
    accuracy, parameters = human.percent(run.score("test_accuracy")), human.count(run.span("parameters")[1])
    return f"“{run.label}” reached {accuracy} with {parameters} parameters"


def _worst(runs: Sequence[Run]) -> Iterable[str]:
    """The edits, and the largest jump of the loss in each mode."""
    edits = sum(len(run.edits) for run in runs)
    jumps = {mode: [(*jump, run.label) for run in runs if (jump := run.worst_jump(mode))] for mode in MODES}
    worst = [(mode, *max(of_mode)) for mode, of_mode in jumps.items() if of_mode]
    if edits:
        yield f"The networks were edited {human.plural(edits, 'time')}."
    if worst and all(size <= 0 for _, size, _, _ in worst):
        yield "No edit raised the loss."
    elif worst:
        parts = [f"{human.change(size)} in {mode} mode (“{label}”, step {step:,})" for mode, size, step, label in worst]
        yield f"At worst the loss jumped by {' and by '.join(parts)}."


def _unfinished(runs: Sequence[Run]) -> Iterable[str]:
    open_runs = sum(not run.history.finished for run in runs)
    if open_runs:
        yield f"{human.plural(open_runs, 'run')} of {len(runs)} did not finish; its last record counts."

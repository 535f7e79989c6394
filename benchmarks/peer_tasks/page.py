"""The blocks of ``docs/peers.md``: the code as it is, and tables of what was measured."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from common import RESULTS

from . import attention, growing, resnets

Row = Mapping[str, Any]

RESULT = RESULTS / "side_by_side.json"
#: A change of the output below this is rounding.
UNMOVED = 1e-6


def result() -> dict[str, Any]:
    """What was measured side by side."""
    return json.loads(RESULT.read_text())


def blocks() -> dict[str, str]:
    """All blocks of the page, by name."""
    measured = result()
    rows: list[Row] = measured["rows"]
    return {
        "versions": versions(measured),
        "pruning": code(resnets.torch_pruning_halves, resnets.regrow_halves) + pruning(rows),
        "attention": code(attention.heads_of_llama, attention.torch_pruning_thins, attention.regrow_thins)
        + thinning(rows),
        "growing": code(growing.GromoConvnet, growing.gromo_grows, growing.gromo_tries, growing.regrow_grows)
        + grown(rows),
        "coverage": coverage(json.loads((RESULTS / "coverage.json").read_text())["rows"]),
        "growth cost": growth_cost(json.loads((RESULTS / "growth_cost.json").read_text())["rows"]),
    }


def versions(measured: Mapping[str, Any]) -> str:
    """Of what was measured, when and where."""
    named, machine = measured["versions"], measured["machine"]
    shown = ", ".join(f"{name} {named[name]}" for name in ("torch-pruning", "gromo", "torch", "transformers", "regrow"))
    return f"Measured in {measured['date'][:7]} on a CPU ({machine['torch_threads']} thread) with {shown}."


def code(*parts: Callable[..., Any]) -> str:
    """The sources of functions and classes as they were run, but for docstrings and empty lines within."""
    return "```python\n" + "\n\n".join(map(source, parts)) + "\n```\n\n"


def source(part: Callable[..., Any]) -> str:
    """Without docstrings and empty lines."""
    text = textwrap.dedent(inspect.getsource(part))
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    docs = [node.body[0] for node in nodes if ast.get_docstring(node) is not None]
    left_out = {at for doc in docs for at in range(doc.lineno, (doc.end_lineno or doc.lineno) + 1)}
    return "\n".join(line for at, line in enumerate(text.splitlines(), 1) if line.strip() and at not in left_out)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """As Markdown."""
    head = list(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def of_task(rows: Iterable[Row], prefix: str) -> list[Row]:
    """The rows of the tasks whose names begin so."""
    return [row for row in rows if row["task"].startswith(prefix)]


def called(row: Row) -> str:
    """Library and way."""
    return ": ".join(part for part in (row["library"], row["way"]) if part)


def share(part: int, row: Row) -> str:
    """How many of the parameters."""
    return f"{part} of {row['parameters']}"


def restored(row: Row) -> str:
    """Whether it could be saved and loaded."""
    return "yes" if row["restored"] else "no"


def pruning(rows: Iterable[Row]) -> str:
    """The ResNet's table."""
    found = of_task(rows, "resnet")
    head = (
        found[0]["setup"],
        "lines",
        "time, in passes",
        "FLOPs left",
        "parameters that the old optimizer still holds",
        "with their momentum",
        "saved and loaded without a pickle",
    )
    lines = [
        (
            called(row),
            str(row["lines"]),
            f"{row['passes']:.1f}",
            f"{row['flops_left']:.1%}",
            share(row["old_optimizer_holds"], row),
            share(row["carried"], row),
            restored(row),
        )
        for row in found
    ]
    return table(head, lines)


def thinning(rows: Iterable[Row]) -> str:
    """The transformers' table."""
    found = [row for row in rows if row["task"].startswith(("BERT", "Llama"))]
    kept = ("parameters left", "with their momentum", "saved and loaded without a pickle")
    head = (found[0]["setup"], "", "lines", "time, in passes", *kept)
    lines = []
    for row in found:
        begin = (row["task"], called(row), str(row["lines"]))
        if "failed" in row:
            lines.append((*begin, row["failed"], "–", "–", "–"))
            continue
        left = f"{row['passes']:.1f}", f"{row['params_left']:.1%}", share(row["carried"], row), restored(row)
        lines.append((*begin, *left))
    return table(head, lines)


def grown(rows: Iterable[Row]) -> str:
    """The table of networks that grew."""
    found = [row for row in rows if "loss_behind" in row]
    head = (
        "network",
        "",
        "lines: model, growing",
        "time, in passes",
        "largest change, train / eval",
        "new units that learn",
        "gradients, new / old",
        "with their momentum",
        "saved and loaded",
        f"loss {found[0]['behind']} steps on",
    )
    lines = []
    for row in found:
        changes = " / ".join(change(row[f"change_{mode}"]) for mode in ("train", "eval"))
        lines.append(
            (
                row["task"],
                called(row),
                f"{row['model_lines']}, {row['lines']}",
                f"{row['passes']:.1f}",
                changes,
                f"{row['alive']} of {row['asked']}",
                f"{row['gradients']:.2g}",
                share(row["carried"], row),
                {"shapes": "yes", "pickle": "as a pickle", "no": "no"}[row["saved"]],
                f"{row['loss_behind']:.2f} ({row['loss_behind_ungrown']:.2f})",
            )
        )
    return table(head, lines)


def change(value: float) -> str:
    """Of the output, relative to it."""
    return "0" if value < UNMOVED else f"{value:.1g}" if value < 1e-3 else f"{value:.1%}"


def coverage(rows: Iterable[Row]) -> str:
    """How many models of others each library prunes, and how long it takes beside the other."""
    by_name = {row["model"]: row for row in rows}
    lists, steps = (
        next(
            row["by_group"] for name, row in by_name.items() if name.startswith(f"times faster than Torch-Pruning{end}")
        )
        for end in (" to", "'s set-up")
    )
    head = (
        "models of",
        "regrow",
        "Torch-Pruning",
        "regrow's analysis / its list of what can go",
        "regrow's analysis / its set-up and a step",
    )
    lines = [
        (
            name,
            f"{round(row['measured'] * row['run'])} of {row['models']}",
            f"{row['peer']} of {row['models']}",
            times(lists[name]),
            times(steps[name]),
        )
        for name, row in by_name.items()
        if "peer" in row
    ]
    return table(head, lines)


def times(faster: float) -> str:
    """regrow's time over the other's."""
    return f"{1 / faster:.1f}"


def growth_cost(rows: Iterable[Row]) -> str:
    """What growing costs at larger sizes, a line for each network."""
    entered = (("gradmax", "regrow: GradMax"), ("gromo, gradmax", "GroMo: GradMax"), ("gromo, tiny", "GroMo: TINY"))
    by_edit = {(row["model"], row["edit"].replace("gradmax, swap", "gradmax")): row for row in rows}
    networks = dict.fromkeys(row["model"] for row in rows)
    lines = [(network, *(cost(by_edit[network, edit]) for edit, _ in entered)) for network in networks]
    return table(("network", *(name for _, name in entered)), lines)


def cost(row: Row) -> str:
    """In plain passes, and of their peak of memory."""
    return f"{row['times_plain']:.1f} passes, {row['peak_times_plain']:.1f} times the memory"

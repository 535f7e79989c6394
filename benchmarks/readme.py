"""Fill the marked blocks of README and docs: the output of real runs, a real structure, and the measurements.

``python benchmarks/readme.py RUNS`` reads the run folders below RUNS, as ``make run`` leaves them; without RUNS their
table stays as it is.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path
from typing import Any

import record
import torch
import torchvision
from common import RESULTS
from coverage_zoo.rows import read
from coverage_zoo.tables import coverage_tables
from peer_tasks import page as peers
from rich.console import Console

import regrow as rg
from regrow.bench.compare import WIDTH, summary
from regrow.bench.history import find_runs, read_run

ROOT = Path(__file__).parent.parent
COVERAGE = RESULTS / "coverage.json"
SETTINGS = ("static", "grow", "shrink", "constant")


def theory_tests() -> str:
    """The tests that the theory names, each with the file that holds it."""
    page = (ROOT / "docs" / "theory.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    lines = ["| file | tests |", "| --- | --- |"]
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        here = [name for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE) if name in named]
        if here or f"`{path.name}`" in page:
            shown = ", ".join(f"`{name}`" for name in here) or "all of it"
            lines.append(f"| [{path.name}](../tests/{path.name}) | {shown} |")
    return "\n".join(lines)


def run_table(runs: Path) -> str:
    """The table that ``make run`` prints."""
    histories = sorted(map(read_run, find_runs([runs])), key=lambda h: SETTINGS.index(h.config["setting"]))
    out = io.StringIO()
    Console(file=out, width=WIDTH).print(summary(histories))
    return console("\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n"))


def structure_table() -> str:
    """A structure as it prints."""
    torch.manual_seed(0)
    code = "structure = rg.analyze(torchvision.models.resnet18(), torch.zeros(2, 3, 224, 224))\nprint(structure)"
    structure = rg.analyze(torchvision.models.resnet18(), torch.zeros(2, 3, 224, 224))
    return f"```python\n{code}\n```\n\n{console(str(structure))}"


def measured() -> str:
    """One row for each result file: its worst case beside the goal. Coverage has tables of its own."""
    rows = ["| what | goal | measured, the worst case |", "| --- | --- | --- |"]
    elsewhere = ("sparse_linear", "sparse_training", "depth_growth", "depth_coverage", "side_by_side")
    own = {RESULTS / f"{name}.json" for name in elsewhere}
    for path in sorted(set(RESULTS.glob("*.json")) - {COVERAGE} - own):
        result = json.loads(path.read_text())
        if "goal" not in result:  # what has a table of its own
            continue
        held = [row for row in result["rows"] if result["goal"].partition(":")[0] in (row["model"], result["goal"])]
        worst = max(held, key=lambda row: row.get("part_of_goal", row.get("ratio", 0.0)))
        rows.append(f"| {result['question']} | {result['goal']} | {figure(worst)} ({describe(worst)}) |")
    return "\n".join(rows)


def describe(row: dict[str, Any]) -> str:
    return ", ".join(str(row[key]) for key in ("model", "edit", "optimizer") if key in row)


def figure(row: dict[str, Any]) -> str:
    if "shown" in row:
        return row["shown"]
    if "part_of_goal" in row:
        return f"{row['time']['median_ms']:.1f} ms, {row['part_of_goal']:.0%} of the goal"
    return f"{row['ratio']:.2f}"


def console(text: str) -> str:
    return f"```text\n{text}\n```"


def coverage() -> str:
    """What is handled, beside the goals."""
    return coverage_tables(json.loads(COVERAGE.read_text()), read(COVERAGE.with_suffix(".csv")).values())


def fill(page: Path, blocks: dict[str, str]) -> None:
    """Put texts between the marks of a page."""
    text = page.read_text()
    for name, block in blocks.items():
        pattern = re.compile(f"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        text = pattern.sub(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text)
    page.write_text(text)


def batchnorm_growth() -> str:
    """What growth does under batch norm, a row for each form and order of layers."""
    found = json.loads((RESULTS / "batchnorm_growth.json").read_text())
    setup, rows = found["setup"], found["rows"]
    lines = [
        f"{setup['images']:,} images, {setup['epochs']} epochs, {setup['events']} growths from {setup['start']:.0%} of "
        "the channels to all of them, means over seeds:",
        "",
        "| layers | form | seeds | training loss at the end | of the gap closed (least) | largest jump, train / eval "
        "| gradients new / old, median (least to largest) | turned in 20 steps |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        shown = [row["order"], row["form"], str(row["seeds"]), shown_as("{:.3f}", row["train_loss"])]
        if "jump_train_largest" in row:
            shown += [
                f"{shown_as('{:.0%}', row['gap_closed'])} ({shown_as('{:.0%}', row['gap_closed_least'])})",
                " / ".join(shown_as("{:+.1%}", row[f"jump_{mode}_largest"]) for mode in ("train", "eval")),
                f"{shown_as('{:.2g}', row['gradient_ratio_median'])} "
                f"({shown_as('{:.2g}', row['gradient_ratio_least'])} to "
                f"{shown_as('{:.2g}', row['gradient_ratio_largest'])})",
                shown_as("{:.1f}°", row["rotation_degrees"]),
            ]
        lines.append("| " + " | ".join(shown + [""] * (8 - len(shown))) + " |")
    return "\n".join(lines)


def shown_as(form: str, value: float | None) -> str:
    """A number, or that there was none any more."""
    return "lost" if value is None else form.format(value)


def second_moments() -> str:
    """What a growth does to the loss under a late Adam, for both ways to begin."""
    found = json.loads((RESULTS / "second_moments.json").read_text())
    rows = [
        "| method | begins with | largest step / learning rate | loss above not growing: a step on | in 40 steps |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        after, worst = ([row[f"{what}_{mode}"] for mode in ("train", "eval")] for what in ("after_1", "worst"))
        shown = (f"{pair[0]:+.3f} train, {pair[1]:+.3f} eval" for pair in (after, worst))
        rows.append(f"| {row['method']} | {row['begins_with']} | {row['largest_step']:.1f} | {' | '.join(shown)} |")
    return "\n".join(rows)


def sparse_training() -> str:
    """What sparse training reaches, a row for each sparsity and method."""
    lines = ["| sparsity | method | seeds | test accuracy (least to largest) | training loss |", "| --- " * 5 + "|"]
    for row in json.loads((RESULTS / "sparse_training.json").read_text())["rows"]:
        spread = f"{row['test_accuracy_least']:.1%} to {row['test_accuracy_largest']:.1%}"
        name = row["edit"]
        lines.append(
            f"| {row['sparsity']:.0%} | {name} | {row['seeds']} | {row['test_accuracy']:.1%} ({spread}) "
            f"| {row['train_loss']:.4f} |"
        )
    return "\n".join(lines)


def sparse_linear() -> str:
    """How compressed rows compare with dense weights, a row for each size and batch."""
    rows = json.loads((RESULTS / "sparse_linear.json").read_text())["rows"]
    keys = list(rows[0]["ratios"])
    head = " | ".join(f"{float(key):.0%}" for key in keys)
    lines = [f"| linear layer | {head} |", "| --- " * (len(keys) + 1) + "|"]
    for row in rows:
        ratios = " | ".join(f"{row['ratios'][key]:.2f}" for key in keys)
        lines.append(f"| {row['model']} | {ratios} |")
    return "\n".join(lines)


def depth_growth() -> str:
    """What growing depth reaches, a row for each way."""
    lines = ["| network | seeds | steps | parameters | test accuracy | training loss |", "| --- " * 6 + "|"]
    for row in json.loads((RESULTS / "depth_growth.json").read_text())["rows"]:
        lines.append(
            f"| {row['edit']} | {row['seeds']} | {row['steps']:.0f} | {row['params']:,.0f} "
            f"| {row['test_accuracy']:.1%} | {row['train_loss']:.3f} |"
        )
    return "\n".join(lines)


def depth_coverage() -> str:
    """Of how many models layers and cells can change, a row for each library, and where not all that is offered can."""
    rows = json.loads((RESULTS / "depth_coverage.json").read_text())["rows"]
    lines = [
        "| library | models run | of these handled | with layers that can leave | that can be followed | with cells "
        "| that can leave | that can be copied |",
        "| --- " * 8 + "|",
    ]
    for row in rows:
        counts = ("prunable_layers", "growable_layers", "cells", "prunable_cells", "growable_cells")
        shown = [row["model"], f"{row['run']} of {row['models']}", row["handled"], *(row[count] for count in counts)]
        lines.append("| " + " | ".join(map(str, shown)) + " |")
    missed = [f"| {model} | {why} |" for row in rows for model, why in row["missed"].items()]
    if missed:
        lines += [
            "",
            "Offered, but not as it should be, or not at all:",
            "",
            "| model | what |",
            "| --- | --- |",
            *missed,
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?")
    runs = parser.parse_args().runs
    blocks = {"structure": structure_table(), "results": record.results(), "measured": measured()}
    fill(ROOT / "README.md", blocks if runs is None else {**blocks, "run": run_table(runs)})
    fill(ROOT / "docs" / "structure.md", {"coverage": coverage()})
    fill(ROOT / "docs" / "peers.md", peers.blocks())
    fill(ROOT / "docs" / "theory.md", {"theory tests": theory_tests()})
    tables = {"sparse training": sparse_training(), "sparse linear": sparse_linear(), "depth growth": depth_growth()}
    fill(ROOT / "docs" / "granularities.md", {**tables, "depth coverage": depth_coverage()})
    fill(
        ROOT / "docs" / "benchmark.md",
        {name: getattr(record, name)() for name in ("goals", "selection", "confirmation", "exploration")},
    )
    fill(ROOT / "docs" / "methods.md", {"second moments": second_moments(), "growth": batchnorm_growth()})


if __name__ == "__main__":
    main()

"""Fill the README's marked blocks: the output of real runs, a real structure, and the committed measurements.

``python benchmarks/readme.py RUNS`` reads the run folders below RUNS, as ``make run`` leaves them.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path
from typing import Any

import torch
import torchvision
from common import RESULTS
from rich.console import Console

import regrow as rg
from regrow.bench.compare import WIDTH, summary
from regrow.bench.history import find_runs, read_run

ROOT = Path(__file__).parent.parent
SETTINGS = ("static", "grow", "shrink", "constant")


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
    """One row for each result file: its worst case beside the goal."""
    rows = ["| what | goal | measured, the worst case |", "| --- | --- | --- |"]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    runs = parser.parse_args().runs
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, block in {"run": run_table(runs), "structure": structure_table(), "measured": measured()}.items():
        pattern = re.compile(f"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        text = pattern.sub(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text)
    readme.write_text(text)


if __name__ == "__main__":
    main()

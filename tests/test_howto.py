"""The how-to pages run as scripts, and what they print is what their text says."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HOWTO = Path(__file__).parent.parent / "docs" / "howto"
SCRIPTS = sorted(HOWTO.glob("*.py"))
#: One thread, pictures that nobody sees, and nothing from a network or an accelerator.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}
#: Seconds; each takes ten or so on a core of its own.
PATIENCE = 1200


def number(pattern: str, said: str) -> float:
    """The only number that a pattern finds, commas left out; per cent are hundredths."""
    (found,) = re.findall(pattern, said, re.MULTILINE)
    value = float(found.rstrip("%").replace(",", ""))
    return value / 100 if found.endswith("%") else value


def halved(said: str) -> None:
    assert len(re.findall(r"-5\d\.\d % FLOPs; test accuracy", said)) == 4  # three methods, then the one that stays
    assert number(r"trained: test accuracy ([\d.]+%)", said) > 0.5
    assert number(r"20 steps more: test accuracy ([\d.]+%)", said) > 0.6
    assert 0.1 < number(r"([\d.]+%) of the FLOPs", said) <= 0.25
    assert number(r"loaded: ([\d,]+) parameters", said) < 11_181_642 / 3
    assert len(set(re.findall(r"(?:of the FLOPs:|parameters,) test accuracy ([\d.]+%)", said))) == 1  # saved and loaded


def grown(said: str) -> None:
    planned, found = re.findall(r"^loss ([\d.]+)", said, re.MULTILINE)
    assert float(planned) < 0.1 and float(found) < 0.2
    assert number(r"output by an edit: (\S+)", said) < 1e-5
    assert 0.9 < number(r"at (\d+%) of the planned FLOPs", said) <= 1
    assert "asked for 40 new units in 6" in said
    assert len(re.findall(r"^step \d+: 3 axes: \d+ -> \d+ units, \+", said, re.MULTILINE)) == 6  # by the plan


def kept(said: str) -> None:
    assert 0.85 < number(r"^(\d+%) of the FLOPs", said) <= 1
    params, accuracies = zip(*re.findall(r": ([\d,]+) parameters, test accuracy ([\d.]+)%", said), strict=True)
    assert int(params[2].replace(",", "")) <= int(params[0].replace(",", "")) == 1762
    assert float(accuracies[1]) > float(accuracies[0]) - 2 and min(map(float, accuracies)) > 70
    edits = re.findall(r"\((\d+) new, (\d+) gone\).*moved the output by ([\d.]+)", said)
    assert edits and all(float(moved) == 0 for _, gone, moved in edits if gone == "0")
    assert any(float(moved) > 0 for _, gone, moved in edits if gone != "0")


def sparse(said: str) -> None:
    assert number(r"([\d.]+%) of the weights are off", said) == 0.98
    moving, still = re.findall(r"test accuracy ([\d.]+)%, where the masks stay as they were ([\d.]+)%", said)[0]
    assert float(moving) > float(still)
    first, last = re.findall(r"(\d+)% at first, (\d+)% at last", said)[0]
    assert int(last) > int(first)
    assert number(r"^told: (\d+%)", said) > 0.9 > number(r"^not told: (\d+%)", said)
    assert len(re.findall(r"^\d: \d+% sparse, (?:csr|dense), ", said, re.MULTILINE)) == 3
    assert "0.weight: 640 -> 320" in said


def beheaded(said: str) -> None:
    assert said.count("self_attn.heads: 8 heads") == 2
    assert "no LlamaConfig can say what this model is" in said
    first, cut, after, again = map(float, re.findall(r"(?:text|heads|more|loss):? (\d\.\d{3})", said))
    assert first < cut and after < cut and again == after
    assert "4 heads in each layer" in said
    assert "no BertConfig can say what this model is" in said


def of_ones_own(said: str) -> None:
    scores = [float(score) for score in re.findall(r"Redundant\(opposite=True\) \[(.*)\]", said)[0].split(",")]
    assert [unit for unit, score in enumerate(scores) if score == 0] == [1, 3]
    assert re.search(r"^Redundant\(opposite=False\) keeps undoes_bit_for_bit", said, re.MULTILINE)
    assert re.search(r"^Opposite\(\) keeps .*keeps_the_function, reaches_every_new_unit", said, re.MULTILINE)
    assert "laws broken: {'random-keeps_the_function" in said
    assert said.count(", opposite: ") == 4 and said.count(", redundant: ") >= 2
    assert number(r"test accuracy ([\d.]+%)", said) > 0.8


def taught(said: str) -> None:
    assert "{'mylib.swish.default': 2} {'second': 8}" in said
    assert "first.weight, dimension 0: meets mylib.swish.default, for which there is no rule" in said
    assert "9 checks: 6 failed" in said
    assert said.count("6 checks: all right") == 2
    assert "slope has 16 numbers" in said


def resumed(said: str) -> None:
    assert re.findall(r"from step (\d+)", said) == ["0", "0", "25", "100"]
    assert re.findall(r"interrupted at step (\d+)", said) == ["35", "110"]
    assert "equal to the bit" in said
    assert said.count("model.safetensors") == said.count("shape.json") == 2


def shipped(said: str) -> None:
    assert said.count("parametrizations.weight.0.gate") == 3
    assert number(r"largest difference to torch: (\S+)", said) < 1e-3
    assert number(r"test accuracy by onnxruntime: ([\d.]+%)", said) > 0.7
    assert number(r"(\d+%) of them zero", said) == 0.5
    assert number(r"([\d,]+) of 85,066 parameters", said) < 85_066 / 3


def together(said: str) -> None:
    assert len(re.findall(r"^step \d+: 0: ", said, re.MULTILINE)) == 7  # by one process, not by both
    assert number(r"2 processes, one model of \d+ units: accuracy ([\d.]+%)", said) > 0.9


#: What each page has to print.
SAYS: dict[str, Callable[[str], None]] = {
    "plot_halve_a_resnet": halved,
    "plot_keep_the_size": kept,
    "plot_prune_heads": beheaded,
    "plot_resume": resumed,
    "plot_ship_to_onnx": shipped,
    "plot_sparse_training": sparse,
    "plot_start_small": grown,
    "plot_teach_an_op": taught,
    "plot_write_a_method": of_ones_own,
    "several_processes": together,
}


def imported(script: Path) -> set[str]:
    """The libraries that a script imports."""
    found: set[str] = set()
    for node in ast.parse(script.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_every_page_has_something_to_say() -> None:
    assert {script.stem for script in SCRIPTS} == SAYS.keys()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_page_does_what_it_says(script: Path, tmp_path: Path) -> None:
    missing = sorted(name for name in imported(script) if importlib.util.find_spec(name) is None)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *([] if script.stem.startswith("plot_") else torchrun), str(script)]
    here, there = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    there.mkdir()
    environment, pipe = {**ENVIRONMENT, "TMPDIR": str(there)}, subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=here) as begun:
        try:
            said, errors = begun.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            begun.terminate()  # torchrun ends its processes then
            raise
    assert begun.returncode == 0, errors
    SAYS[script.stem](said)
    assert not list(here.iterdir())  # what it writes goes to a folder of its own


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_page_is_short_and_has_a_title(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert len(lines) <= 150
    assert lines[0] == '"""' and set(lines[2]) == {"="} and len(lines[1]) == len(lines[2])
    assert (HOWTO / "README.rst").read_text().startswith("How to\n======\n")

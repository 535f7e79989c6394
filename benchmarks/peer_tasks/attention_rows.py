"""What is measured of the thinned transformers: each library and model in a process of its own, with a time limit."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import interleaved, paired_ratio, summary
from torch import Tensor, nn
from torch.optim import Optimizer

from .attention import (
    BATCH,
    HEADS,
    LR,
    MOMENTUM,
    SIZES,
    TOKENS,
    bert,
    heads_of_bert,
    heads_of_llama,
    llama,
    regrow_thins,
    tokens,
    torch_pruning_thins,
)
from .looks import carried, cpu_seconds, held, lines, mark, moved, shapes, size
from .saving import regrow_saves, torch_pruning_saves

Row = dict[str, Any]
WARMUP = 3

#: Thins a model, and returns the optimizer to go on with, and what a later save needs.
Thins = Callable[[nn.Module, Tensor, Optimizer], tuple[Optimizer, Any]]


@dataclass(frozen=True)
class Case:
    """A model, and how a library thins it.

    Args:
        library: Its name.
        model: Makes the model.
        thins: See :data:`Thins`.
        lines: Lines of code that say how.
        note: What else one should know.
    """

    library: str
    model: Callable[[], nn.Module]
    thins: Thins
    lines: int
    note: str = ""


def torch_prunings(heads: Callable[[Any], dict[nn.Module, int]], kept: Callable[[Any], list[nn.Module]]) -> Thins:
    """Torch-Pruning's side."""
    return lambda model, ids, _: torch_pruning_thins(model, ids, heads(model), kept(model))


def regrows(hidden: str) -> Thins:
    """regrow's side."""

    return lambda model, ids, optimizer: (optimizer, regrow_thins(model, ids, hidden, optimizer))


def _embeddings(model: Any) -> list[nn.Module]:
    return [model.embeddings, model.pooler]


def _ends(model: Any) -> list[nn.Module]:
    return [model.model.embed_tokens, model.lm_head]


def _ends_and_attention(model: Any) -> list[nn.Module]:
    return [*_ends(model), *(block.self_attn for block in model.model.layers)]


GROUPS = HEADS // 2
LLAMA = "Llama"
GROUPED = "Llama, two heads to each key"
_THEIRS = {"bert": lines(torch_pruning_thins, heads_of_bert), "llama": lines(torch_pruning_thins, heads_of_llama)}
_OURS = lines(regrow_thins)

#: Task -> its cases.
CASES: Mapping[str, tuple[Case, ...]] = {
    "BERT": (
        Case("Torch-Pruning", bert, torch_prunings(heads_of_bert, _embeddings), _THEIRS["bert"]),
        Case("regrow", bert, regrows("*.intermediate.dense"), _OURS),
    ),
    LLAMA: (
        Case("Torch-Pruning", lambda: llama(HEADS), torch_prunings(heads_of_llama, _ends), _THEIRS["llama"]),
        Case("regrow", lambda: llama(HEADS), regrows("*.mlp.*"), _OURS),
    ),
    GROUPED: (
        Case("Torch-Pruning", lambda: llama(GROUPS), torch_prunings(heads_of_llama, _ends), _THEIRS["llama"]),
        Case(
            "Torch-Pruning",
            lambda: llama(GROUPS),
            torch_prunings(lambda _: {}, _ends_and_attention),
            lines(torch_pruning_thins),
            "hidden units only",
        ),
        Case("regrow", lambda: llama(GROUPS), regrows("*.mlp.*"), _OURS),
    ),
}


class Training:
    """A transformer in the middle of its training on noise."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.model, self.ids = case.model(), tokens()
        self.optimizer: Optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM)
        for _ in range(WARMUP):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()

    def loss(self) -> Tensor:
        """Of all that is put out."""
        return torch.stack([out.square().mean() for out in self.model(self.ids).values()]).sum()


def thinning_seconds(case: Case) -> float:
    """CPU time of it; the training before doesn't count."""
    training = Training(case)
    return cpu_seconds(lambda: case.thins(training.model, training.ids, training.optimizer))


def pass_seconds(case: Case) -> float:
    """CPU time of a forward and a backward pass."""
    training = Training(case)
    return cpu_seconds(lambda: training.loss().backward())


def facts(case: Case) -> Row:
    """What a thinning leaves, and whether training goes on."""
    training = Training(case)
    model, old = training.model, training.optimizer
    before, params = shapes(model), size(model)
    sizes = [out.shape for out in model(training.ids).values()]
    mark(model, old)
    optimizer, needed = case.thins(model, training.ids, old)
    return {
        "params_left": size(model) / params,
        "outputs_kept": [out.shape for out in model(training.ids).values()] == sizes,
        "parameters": len(before),
        "held": held(model, optimizer),
        "carried": carried(model, optimizer, before),
        "moved": moved(model, optimizer, training.loss),
        "restored": restored(case, training, needed),
    }


def restored(case: Case, training: Training, needed: Any) -> bool:
    """Whether a fresh model becomes the thinned one from what was saved, no module having been pickled."""
    with tempfile.TemporaryDirectory() as folder:
        if case.library == "regrow":
            again = regrow_saves(training.model, case.model(), Path(folder))
        else:
            again = torch_pruning_saves(training.model, needed, case.model(), training.ids, Path(folder) / "saved.pt")
    again.eval(), training.model.eval()
    with torch.no_grad():
        pairs = zip(again(training.ids).values(), training.model(training.ids).values(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)


def one(task: str, number: int, repeats: int, limit: float) -> Row:
    """What a process of its own finds of a case, if it comes to an end within so many seconds of CPU."""
    resource.setrlimit(resource.RLIMIT_CPU, (round(limit), round(limit) + 5))
    case = CASES[task][number]
    times = interleaved({"pass": lambda: pass_seconds(case), "thin": lambda: thinning_seconds(case)}, repeats, warmup=1)
    return {**summary(times["thin"]), "passes": paired_ratio(times["thin"], times["pass"]), **facts(case)}


def attention_rows(script: str, task: str, repeats: int, limit: float) -> list[Row]:
    """A row for each case of a task.

    Args:
        script: Prints :func:`one` as its last line when called with ``--one TASK NUMBER``.
        task: Its name.
        repeats: Of the times.
        limit: Seconds of CPU until a process is ended.
    """
    setup = f"{SIZES['num_hidden_layers']} blocks, {SIZES['hidden_size']} wide, {BATCH} rows of {TOKENS} tokens"
    rows = []
    for number, case in enumerate(CASES[task]):
        row: Row = {"task": task, "library": case.library, "way": case.note, "lines": case.lines, "setup": setup}
        row |= _in_a_process(script, task, number, repeats, limit)
        rows.append(row | {"met": case.library != "regrow" or ("failed" not in row and good(row))})
    return rows


def _in_a_process(script: str, task: str, number: int, repeats: int, limit: float) -> Row:
    """What a process of its own finds, or why it finds nothing."""
    options = ["--one", task, str(number), "--repeats", str(repeats), "--limit", str(limit)]
    done = subprocess.run([sys.executable, "-W", "ignore", script, *options], capture_output=True, text=True)
    if done.returncode == -signal.SIGXCPU:
        return {"failed": f"no end in {limit:.0f} s of CPU"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def good(row: Row) -> bool:
    """Whether training goes on with all momentum, the outputs keep their sizes, and the model can be saved."""
    kept = row["held"] == row["carried"] == row["moved"] == row["parameters"]
    return kept and row["outputs_kept"] and row["restored"]

"""What a growth step costs beside plain forward and backward passes on the same batches, and beside GroMo's.

A growth step is the statistics on N batches, the solving, and the edit. GroMo (``pip install gromo``) is measured in
the same run where it is there. Peaks of memory are of processes of their own.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import interleaved, paired_ratio, seconds, summary, write
from torch import Tensor, nn

import regrow as rg

#: Does the work once and returns how long it took, in seconds.
Step = Callable[[], float]

#: Case -> contestant -> most times the plain passes, and most times their peak of memory.
GOALS = {
    "mlp 784-256-256-10, +32, 64 batches of 128": {"gradmax": (1.5, 1.3)},
    "conv 64-64 3x3 with batch norm at 32x32, +16, 2 batches of 128": {
        "gradmax, naive": (1.5, 1.3),
        "gradmax, swap": (2.0, 1.3),
    },
}


def _perceptron() -> tuple[nn.Module, list[Tensor], Callable[[Tensor, int], Tensor]]:
    torch.manual_seed(0)
    xs, ys = torch.randn(64, 128, 784), torch.randint(10, (64, 128))
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return model, list(xs), lambda out, i: F.cross_entropy(out, ys[i])


def _convolutions() -> tuple[nn.Module, list[Tensor], Callable[[Tensor, int], Tensor]]:
    torch.manual_seed(0)
    xs = torch.randn(2, 128, 64, 32, 32)
    first = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    model = nn.Sequential(first, nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    return model, list(xs), lambda out, i: (out - xs[i]).square().mean()


CASES = dict(zip(GOALS, (_perceptron, _convolutions), strict=True))
UNITS = dict(zip(GOALS, (32, 16), strict=True))


def plain(case: str) -> Step:
    """Forward and backward on all batches."""
    model, xs, loss = CASES[case]()

    def run() -> None:
        for i, x in enumerate(xs):
            loss(model(x), i).backward()
        model.zero_grad()

    return lambda: seconds(run)


def ours(case: str, method: Any) -> Step:
    """One growth; that it is undone again, so that the next one is the same, isn't counted."""
    model, xs, loss = CASES[case]()
    axis = rg.analyze(model, xs[0][:2])["0"]

    def run() -> float:
        batches = iter(enumerate(xs))

        def closure() -> Tensor:
            i, x = next(batches)
            return loss(model(x), i)

        start = time.perf_counter()
        edit = rg.grow_(axis, UNITS[case], method, loss=closure, batches=len(xs))
        taken = time.perf_counter() - start
        edit.undo_()
        return taken

    return run


def gromos(case: str, gradmax: bool) -> Step:
    """The same by GroMo, on a network rebuilt from its classes for each growth, which isn't counted."""
    containers = importlib.import_module("gromo.containers.growing_mlp")
    conv = importlib.import_module("gromo.modules.conv2d_growing_module")
    norms = importlib.import_module("gromo.modules.growing_normalisation")
    device = torch.device("cpu")
    _, xs, loss = CASES[case]()

    def build() -> tuple[nn.Module, Any]:
        if CASES[case] is _perceptron:
            model = containers.GrowingMLP(784, 10, 256, 2, activation=nn.ReLU(), device=device)
            return model, model.layers[1]
        size: dict[str, Any] = {"padding": 1, "input_size": (32, 32), "device": device}
        after = nn.Sequential(norms.GrowingBatchNorm2d(64), nn.ReLU())
        first = conv.RestrictedConv2dGrowingModule(64, 64, 3, use_bias=False, post_layer_function=after, **size)
        second = conv.RestrictedConv2dGrowingModule(64, 64, 3, previous_module=first, allow_growing=True, **size)
        return nn.Sequential(first, second), second

    # What its documentation calls GradMax: no covariance, new units' incoming weights zero.
    options = {"compute_delta": False, "use_covariance": False, "alpha_zero": True, "use_projection": False}
    options["ignore_singular_values"] = True

    def run() -> float:
        model, layer = build()
        start = time.perf_counter()
        layer.init_computation()
        for i, x in enumerate(xs):
            model.zero_grad()
            loss(model(x), i).backward()
            layer.update_computation()
        layer.compute_optimal_updates(maximum_added_neurons=UNITS[case], **(options if gradmax else {}))
        layer.apply_change(scaling_factor=1.0)
        return time.perf_counter() - start

    return run


def contestants(case: str) -> dict[str, Step]:
    """Name -> one growth, or the plain passes."""
    found = {"plain": plain(case)}
    if CASES[case] is _perceptron:
        found["gradmax"] = ours(case, rg.GradMax())
    else:
        found["gradmax, naive"] = ours(case, rg.GradMax("naive"))
        found["gradmax, swap"] = ours(case, rg.GradMax("swap"))
    if importlib.util.find_spec("gromo"):
        found |= {"gromo, gradmax": gromos(case, True), "gromo, tiny": gromos(case, False)}
    return found


def _peak(case: str, name: str) -> float:
    """MiB that a process of its own needs at most."""
    command = [sys.executable, __file__, "--peak", case, name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Measure all, or print one peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each kind (default 5)")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        contestants(given.peak[0])[given.peak[1]]()
        # Not by getrusage: a process starts with the peak of the one that started it.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(float(status["VmHWM"].split()[0]) / 1024)
        return
    rows = []
    for case, goals in GOALS.items():
        times = interleaved(contestants(case), given.repeats, warmup=1)
        peaks = {name: statistics.median(_peak(case, name) for _ in range(3)) for name in times}
        for name in times:
            ratio, peak = paired_ratio(times[name], times["plain"]), peaks[name] / peaks["plain"]
            row: dict[str, Any] = {"model": case, "edit": name, **summary(times[name]), "times_plain": ratio}
            row |= {"peak_mib": peaks[name], "peak_times_plain": peak, "goal": goals.get(name, (None,))[0]}
            row["met"] = name not in goals or (ratio <= goals[name][0] and peak <= goals[name][1])
            if name in goals:
                row["part_of_goal"] = max(ratio / goals[name][0], peak / goals[name][1])
            row["shown"] = f"{ratio:.2f} times, {peak:.2f} times the memory"
            rows.append(row)
    question = "a growth step (statistics, solving, edit) / plain forward and backward passes on the same batches"
    goal = "at most 1.5, whitened under batch norm at most 2, and 1.3 times the memory"
    write("growth_cost", question, goal, rows)


if __name__ == "__main__":
    main()

"""Adam's first steps after a growth: what new units' second moment begins with, zero or the others' mean.

A VGG11 of a quarter of its widths trains on images of CIFAR-10; all its layers grow to four times as many channels in
one edit, as late as Adam's corrections for its beginning are over. The loss on fixed images is compared with that of
the same network which goes on without growing.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS
from growth_runs import Setup
from rich.progress import track
from torch import Tensor, nn

import regrow as rg
from regrow.bench.probe import both_losses
from regrow.carry import DIVISORS

METHODS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "gradmax": {"method": "gradmax", "beyond_rank": "random"},
}
#: Steps before the growth, and after it; late is the number of steps that Adam is told it has made.
BEFORE, AFTER, LATE = 60, 40, 100_000
LEARNING_RATE = 1e-3


class _Training:
    """A network in training, the same for equal seeds."""

    def __init__(self, setup: Setup, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = setup.network("conv-norm-relu", full=False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), LEARNING_RATE)
        self.x, self.y, *_ = setup.load()
        self.structure = rg.analyze(self.model, self.x[:2])
        self.probe = [(self.x[: setup.probe], self.y[: setup.probe])]
        self.order = torch.Generator().manual_seed(seed)
        self.largest_step = 0.0

    def loss(self) -> Tensor:
        index = torch.randint(len(self.x), (128,), generator=self.order)
        return F.cross_entropy(self.model(self.x[index]), self.y[index])

    def step(self) -> None:
        before = [p.detach().clone() for p in self.model.parameters()]
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        moved = (float((p.detach() - b).abs().max()) for p, b in zip(self.model.parameters(), before, strict=True))
        self.largest_step = max(self.largest_step, *moved)

    def make_late(self) -> None:
        """Let Adam's averages be what they would have become, had nothing changed since."""
        for state in self.optimizer.state.values():
            state["exp_avg"] /= 1 - 0.9**BEFORE
            state["exp_avg_sq"] /= 1 - 0.999**BEFORE
            state["step"].fill_(LATE)

    def grow(self, method: dict[str, Any], width: int, zero: bool) -> None:
        state = copy.deepcopy(self.order.get_state())
        amount = {axis.name: axis.size * (width - 1) for axis in self.structure.axes}
        edit = rg.grow_(
            self.structure,
            amount,
            rg.create_method(**method),
            optimizer=self.optimizer,
            generator=torch.Generator().manual_seed(0),
            loss=self.loss,
            batches=4,
        )
        self.order.set_state(state)
        if zero:
            for name, units in edit.units("new").items():
                for entry in self.structure[name].entries:
                    if isinstance(entry.tensor, nn.Parameter):
                        for key in DIVISORS & self.optimizer.state[entry.tensor].keys():
                            moment = self.optimizer.state[entry.tensor][key]
                            moment.index_fill_(entry.dim, entry.indices(units), 0.0)


def _run(setup: Setup, seed: int, method: dict[str, Any] | None, zero: bool) -> dict[str, Any]:
    training = _Training(setup, seed)
    for _ in range(BEFORE):
        training.step()
    training.make_late()
    before = both_losses(training.model, training.probe)
    if method is not None:
        training.grow(method, round(1 / setup.start), zero)
    training.largest_step = 0.0
    losses = []
    for _ in range(AFTER):
        training.step()
        losses.append(both_losses(training.model, training.probe))
    return {"before": before, "losses": losses, "largest_step": training.largest_step / LEARNING_RATE}


def _row(name: str, begins_with: str, runs: list[dict[str, Any]], twins: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = list(zip(runs, twins, strict=True))
    row: dict[str, Any] = {"method": name, "begins_with": begins_with, "seeds": len(runs)}
    row["largest_step"] = max(run["largest_step"] for run in runs)
    for i, mode in enumerate(("train", "eval")):
        row[f"after_1_{mode}"] = statistics.mean(r["losses"][0][i] - t["losses"][0][i] for r, t in pairs)
        worst = [max(a[i] - b[i] for a, b in zip(r["losses"], t["losses"], strict=True)) for r, t in pairs]
        row[f"worst_{mode}"] = statistics.mean(worst)
        row[f"after_{AFTER}_{mode}"] = statistics.mean(r["losses"][-1][i] - t["losses"][-1][i] for r, t in pairs)
    return row


def main() -> None:
    """Run everything and write the differences to the networks that didn't grow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 as parquet files")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    setup = Setup(given.data, images=2560)
    configs = [(None, "")] + [(name, begins) for name in METHODS for begins in ("zero", "mean")]
    found: dict[tuple[str | None, str], list[dict[str, Any]]] = {config: [] for config in configs}
    for seed, config in track([(s, c) for s in range(given.seeds) for c in configs], "runs"):
        method = METHODS[config[0]] if config[0] else None
        found[config].append(_run(setup, seed, method, zero=config[1] == "zero"))
    rows = [_row(name, begins, found[name, begins], found[None, ""]) for name, begins in configs if name]
    question = "What should the second moment of new units begin with under Adam?"
    result = {"question": question, "learning_rate": LEARNING_RATE, "rows": rows}
    (RESULTS / "second_moments.json").write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})


if __name__ == "__main__":
    main()

"""Training runs of several processes, for tests; each returns what it came to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import regrow as rg
import regrow.amounts
from regrow.sharding import gathered

BATCH, STEPS = 12, 50

PLAN = rg.chain(
    rg.at(5, rg.Grow(rg.GradMax(), 3, where="1.one")),
    rg.at(8, rg.Grow(rg.Firefly(steps=3), 1, where="[12].one")),
    rg.at(10, rg.Grow(rg.Random(), 2, where="1.one")),
    rg.at(12, rg.Adapt(rg.Homeostasis(flops=1.3, rate=0.2, margin=0.1), where="[12].one")),
    rg.at(15, rg.Prune(rg.L1(1e-3), 3, where="[12].one")),
    rg.at(20, rg.Grow(rg.Deepen(), 1, where="2", kind="cell")),
    rg.at(25, rg.Prune(rg.Taylor(), 1, kind="cell")),
    rg.at(30, rg.Prune(rg.Magnitude(), 0.3, kind="weight")),
    rg.every(5, rg.Rewire(rg.RigL(), 0.3), start=30, stop=45),
    rg.at(47, rg.Prune(rg.Taylor(), 0.1, kind="weight")),
)


class Block(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 6)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.norm(self.one(x))))


def model(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), *(Block(norm) for _ in range(3)), nn.Linear(6, 3)).double()


def batch(step: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, Tensor]:
    """A process's part of a step's batch."""
    x = torch.randn(BATCH, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x[rank::ranks], (x[:, :3].sin() * x[:, 2:5])[rank::ranks]


def train(
    net: nn.Module,
    rank: int = 0,
    ranks: int = 1,
    start: int = 0,
    stop: int = STEPS,
    state: dict[str, Any] | None = None,
    plan: rg.Plan = PLAN,
) -> tuple[nn.Module, torch.optim.Optimizer, rg.Shaper]:
    """Train for some steps, in a wrapper where there are more processes than one."""
    optimizer = make_optimizer(net)
    wrapper: nn.Module = DistributedDataParallel(net) if ranks > 1 else net
    shaper = rg.Shaper(wrapper, optimizer, plan, example=batch(0)[0])
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        shaper.load_state_dict(state["shaper"])
    learn(net, wrapper, optimizer, shaper, rank, ranks, start, stop)
    return net, optimizer, shaper


def learn(
    net: nn.Module,
    wrapper: nn.Module,
    optimizer: torch.optim.Optimizer,
    shaper: rg.Shaper,
    rank: int = 0,
    ranks: int = 1,
    start: int = 0,
    stop: int = STEPS,
) -> None:
    """The loop itself."""
    for step in range(start, stop):
        x, y = batch(step, rank, ranks)

        def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
            return (net(x) - y).square().mean()

        ((wrapper(x) - y).square().mean() + shaper.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        shaper.step(loss)


def trained(rank: int, ranks: int, folder: Path, norm: bool) -> None:
    """Leave the weights of each process behind."""
    net, optimizer, shaper = train(model(norm), rank, ranks)
    torch.save(net.state_dict(), folder / f"{rank}.pt")
    state = {"steps": shaper.steps, "state": [dict(v) for v in optimizer.state.values()]}
    torch.save(state, folder / f"optimizer {rank}.pt")


def once(method: Any) -> rg.Plan:
    """One edit by a method, with some steps before it and behind."""
    action = rg.Grow if hasattr(method, "fresh") else rg.Prune
    return rg.at(5, action(method, 2, where="[12].one"))


def edited(rank: int, ranks: int, folder: Path, method: Any) -> None:
    """Leave behind what one edit and some steps made of the weights."""
    net, _, shaper = train(model(), rank, ranks, stop=8, plan=once(method))
    assert len(shaper.structure.edits) == 1
    torch.save(net.state_dict(), folder / f"{rank}.pt")


def shard(net: nn.Module) -> None:
    """As users do: each block, and what is left."""
    for block in list(net.children())[1:-1]:
        fully_shard(block)
    fully_shard(net)


SHARDED = rg.chain(*(plan for plan in PLAN.plans if not isinstance(next(plan.entries())[0].method, rg.L1)))


def sharded(rank: int, ranks: int, folder: Path, adam: bool) -> None:
    """Train a sharded model; leave the whole of it behind."""
    net = model()
    shard(net)
    optimizer = make_optimizer(net, adam)
    shaper = rg.Shaper(net, optimizer, SHARDED, example=batch(0)[0], shard=shard)
    learn(net, net, optimizer, shaper, rank, ranks)
    whole = {name: gathered(t) for name, t in net.state_dict().items()}
    torch.save(whole, folder / f"{rank}.pt")


def alone(adam: bool) -> dict[str, Tensor]:
    """The same by one process."""
    net = model()
    optimizer = make_optimizer(net, adam)
    learn(net, net, optimizer, rg.Shaper(net, optimizer, SHARDED, example=batch(0)[0]))
    return net.state_dict()


def make_optimizer(net: nn.Module, adam: bool = False) -> torch.optim.Optimizer:
    if adam:
        return torch.optim.AdamW(net.parameters(), 0.01)
    return torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)


def begun(rank: int, ranks: int, folder: Path) -> None:
    """Train half the way and save as the first process does."""
    net, optimizer, shaper = train(model(), rank, ranks, stop=23)
    if rank == 0:
        rg.save(net, folder)
        torch.save({"optimizer": optimizer.state_dict(), "shaper": shaper.state_dict()}, folder / "training.pt")


def ended(rank: int, ranks: int, folder: Path) -> None:
    """Go on from there, by any number of processes."""
    state = torch.load(folder / "training.pt", weights_only=True)
    net, _, _ = train(rg.load(folder, model()), rank, ranks, start=23, state=state)
    torch.save(net.state_dict(), folder / f"{rank}.pt")


def timed(rank: int, ranks: int, folder: Path) -> None:
    """Prune to a latency; each process has a clock of its own."""
    units = {"now": 0}

    def latency(structure: rg.Structure, removed: Any) -> float:
        units["now"] = sum(map(len, removed.values()))
        return (1.0 + 0.3 * rank) * (24 - units["now"]) / 24

    regrow.amounts.latency_without = latency
    net = model()
    wrapper, optimizer = DistributedDataParallel(net), make_optimizer(net)
    plan = rg.at(1, rg.Prune(rg.Magnitude(), rg.Budget(latency=0.7), where="[12].one"))
    (edit,) = rg.Shaper(wrapper, optimizer, plan, example=batch(0)[0]).step()
    torch.save({"sizes": edit.sizes}, folder / f"{rank}.pt")


def dying(rank: int, ranks: int, folder: Path) -> None:
    """The last process dies in the middle; what becomes of the first one is left behind."""
    net = model()
    try:
        train(net, rank, ranks, stop=8)
        if rank == ranks - 1:
            os._exit(1)
        train(net, rank, ranks, start=8)
    except Exception as error:
        (folder / f"{rank}.error").write_text(f"{type(error).__name__}: {error}")
        os._exit(0)


def _begin(number: int, work: Callable[..., None], ranks: int, folder: Path, given: tuple) -> None:
    torch.set_num_threads(1)
    place = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=place, rank=number, world_size=ranks)
    try:
        work(number, ranks, folder, *given)
    finally:
        dist.destroy_process_group()


def launch(work: Callable[..., None], ranks: int, folder: Path, *given: Any, survive: bool = False) -> None:
    """Run something in several processes at once."""
    (folder / "meeting").unlink(missing_ok=True)
    context: Any = mp.start_processes(  # type: ignore[attr-defined]
        _begin, (work, ranks, folder, given), ranks, join=False, start_method="fork"
    )
    if not survive:
        while not context.join():
            pass
        return
    for process in context.processes:
        process.join(60)
        assert process.exitcode is not None

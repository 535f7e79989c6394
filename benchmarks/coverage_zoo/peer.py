"""Torch-Pruning on the same models, as its documentation says to use it; what one would have to tell it isn't told."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regrow.structure.example import tensors_in

from .case import Build, Case, built
from .checks import Columns, Wrong, shape

RATIO, LEAST_REMOVED = 0.5, 0.01


def peer_checks(build: Build, limit: float) -> Columns:
    """Half of all channels removed: graph, pruning, forward, the same shapes, backward; and how long it takes."""
    found: Columns = {}
    try:
        with time_limit(limit):
            found["peer_list_s"] = _listing_seconds(build)
            _prune(build, found)
        found["peer"] = "ok"
    except Exception as error:
        found["peer"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return found


def warm_up() -> None:
    """What is imported and made only once isn't counted."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    _graph(Case(net, (torch.zeros(1, 3, 8, 8),)))


class OutOfTime(Exception):
    """It took too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Inside, Python code is interrupted after so many seconds."""

    def interrupt(*_: Any) -> None:
        raise OutOfTime(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _listing_seconds(build: Build) -> float:
    """From the model to the list of what can be removed."""
    case = built(build).single()
    ignored = _classifier(case)
    started = time.perf_counter()
    list(_graph(case).get_all_groups(ignored_layers=ignored))
    return time.perf_counter() - started


def _prune(build: Build, found: Columns) -> None:
    import torch_pruning as tp

    case = built(build).single()
    ignored, before = _classifier(case), case.params
    shapes = [shape(out, case.ragged) for out in case.evaluate()]
    started = time.perf_counter()
    pruner = tp.pruner.MagnitudePruner(
        case.model,
        _example(case),
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=ignored,
        output_transform=_differentiable,
    )
    found["peer_setup_s"] = time.perf_counter() - started
    pruner.step()
    found["peer_step_s"] = time.perf_counter() - started
    found["peer_removed"] = 1 - case.params / before
    outputs = case.run()
    if [shape(out, case.ragged) for out in outputs] != shapes:
        raise Wrong("outputs have other shapes then")
    torch.stack([out.square().sum() for out in outputs if out.requires_grad]).sum().backward()
    if found["peer_removed"] <= LEAST_REMOVED:
        raise Wrong("nothing was removed")


def _graph(case: Case) -> Any:
    import torch_pruning as tp

    return tp.DependencyGraph().build_dependency(
        case.model, _example(case), output_transform=_differentiable, verbose=False
    )


def _example(case: Case) -> Any:
    return case.kwargs or case.args


def _differentiable(outputs: Any) -> list[Tensor]:
    return [out for out in tensors_in(outputs) if out.requires_grad]


def _classifier(case: Case) -> list[nn.Module]:
    """Layers that have as many outputs as the model has: classes, or a vocabulary."""
    outputs = case.evaluate()
    sizes = {out.shape[dim] for out in outputs for dim in (1, -1) if out.ndim > abs(dim)}
    return [
        module
        for module in case.model.modules()
        if (isinstance(module, nn.Linear) and module.out_features in sizes)
        or (isinstance(module, nn.Conv2d) and module.out_channels in sizes)
    ]

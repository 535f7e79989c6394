"""Edits as plain values for any logger; and what the adapters share: penalties as gradients, numbers from metrics.

::

    writer = SummaryWriter()  # TensorBoard
    hook = log_to(by_scalar(writer.add_scalar))
    hook = log_to(wandb.log)
    hook = log_to(mlflow.log_metrics)
    hook = log_to(trackio.log)
    shaper = rg.Shaper(model, optimizer, plan, example=x, after_edit=hook)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..edit import Edit
from ..shaper import Shaper


def as_dict(edit: Edit) -> dict[str, Any]:
    """An edit as JSON may hold it.

    Returns:
        "step", "action", "method", "kind", "sizes" by name, "params" and "flops", each of these [before, after], and
        "text", one line about it.
    """
    return {
        "step": edit.step,
        "action": edit.action,
        "method": edit.method,
        "kind": edit.kind,
        "sizes": {name: list(sizes) for name, sizes in edit.sizes.items()},
        "params": list(edit.params),
        "flops": [float(flops) for flops in edit.flops],
        "text": str(edit),
    }


def scalars(edit: Edit, prefix: str = "regrow/") -> dict[str, float]:
    """The numbers after an edit: parameters, FLOPs, and the size of all that it changed, by name.

    >>> import torch, regrow as rg
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> scalars(rg.grow_(rg.analyze(net, torch.zeros(2, 4))["0"], 4))
    {'regrow/params': 86.0, 'regrow/flops': 288.0, 'regrow/size/0': 12.0}
    """
    totals = {f"{prefix}params": float(edit.params[1]), f"{prefix}flops": float(edit.flops[1])}
    return totals | {f"{prefix}size/{name}": float(after) for name, (_, after) in edit.sizes.items()}


def log_to(log: Callable[..., object], values: Callable[[Edit], Mapping[str, Any]] = scalars) -> Callable[[Edit], None]:
    """What a Shaper or an adapter takes as ``after_edit``: logs each edit.

    Args:
        log: Called as ``log(values, step=step)``, as ``wandb.log``, ``mlflow.log_metrics`` and ``trackio.log`` are;
            for loggers of single numbers see :func:`by_scalar`.
        values: Makes of an edit what is logged.
    """

    def after_edit(edit: Edit) -> None:
        log(dict(values(edit)), step=edit.step)

    return after_edit


def by_scalar(add_scalar: Callable[[str, float, int], object]) -> Callable[..., None]:
    """For :func:`log_to`, of a logger that takes one number at a time.

    Args:
        add_scalar: Called as ``add_scalar(name, value, step)``, as ``SummaryWriter().add_scalar``.
    """

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            add_scalar(name, value, step)

    return log


def add_penalty(shaper: Shaper, scaler: Any = None) -> None:
    """Add the gradient of a Shaper's penalty to the gradients, as if it had been part of one loss.

    Args:
        shaper: Whose penalty it is.
        scaler: The gradient scaler by which the loss is scaled, if there is one.
    """
    penalty = shaper.penalty()
    if not penalty.requires_grad:
        return
    held = [p for p in shaper.model.parameters() if p.requires_grad]
    # By backward() the hooks of distributed training would take these for the gradients of the batch.
    found = torch.autograd.grad(penalty if scaler is None else scaler.scale(penalty), held, allow_unused=True)
    for parameter, grad in zip(held, found, strict=True):
        if grad is not None:
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad


def numbers_in(metrics: Mapping[str, Any]) -> dict[str, float | Tensor]:
    """What of some metrics conditions of a plan may look at."""
    numbers = {name: v for name, v in metrics.items() if isinstance(v, (int, float, Tensor)) and name != "closure"}
    return {name: v for name, v in numbers.items() if not isinstance(v, Tensor) or v.numel() == 1}

"""A plan in a loop of Accelerate's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
except ImportError as error:
    raise ImportError('regrow.loops.accelerate needs Accelerate: pip install "regrow[accelerate]"') from error

from ..actions import Action
from ..edit import Edit
from ..plan import Plan
from ..shaper import Shaper
from ..shapes import SHAPE_FILE, shape_of, take_shape_


class AccelerateShaper:
    """A Shaper for what an Accelerator has prepared, which counts steps of the optimizer, not batches.

    ::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        shaper = AccelerateShaper(accelerator, model, optimizer, plan, example=x)
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(x), y)
                accelerator.backward(loss + shaper.penalty())
                optimizer.step()
                optimizer.zero_grad()
                shaper.step(lambda: F.cross_entropy(model(x), y), loss=loss)

    ``accelerator.save_state`` and ``load_state`` keep its state too, and restore shapes before weights. Where layers
    have come or gone, give the fresh model its shape before its optimizer is made: ``take_shape_(model, folder)``.

    Args:
        accelerator: That prepared the model and the optimizer.
        model, optimizer: As they were prepared, or before.
        plan, example, generator, before_edit, after_edit: As for :class:`regrow.Shaper`.

    Attributes:
        shaper: The Shaper.

    Raises:
        TypeError, ValueError: As for :class:`regrow.Shaper`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizer,
        plan: Plan,
        *,
        example: Any,
        generator: torch.Generator | None = None,
        before_edit: Callable[[Action], object] | None = None,
        after_edit: Callable[[Edit], object] | None = None,
    ) -> None:
        self.accelerator = accelerator
        self._given = (uncompiled(model), unwrapped_optimizer(optimizer), plan)
        self._options = {"generator": generator, "before_edit": before_edit, "after_edit": after_edit}
        self._example = example
        self.shaper = self._made()
        accelerator.register_save_state_pre_hook(self._save_shape)
        accelerator.register_load_state_pre_hook(self._load_shape)
        accelerator.register_for_checkpointing(self)

    def _made(self) -> Shaper:
        return Shaper(*self._given, example=self._example, **self._options)

    @property
    def steps(self) -> int:
        """Steps of the optimizer so far."""
        return self.shaper.steps

    def penalty(self) -> Tensor:
        """What to add to the loss of each batch, as :meth:`regrow.Shaper.penalty`."""
        return self.shaper.penalty()

    def step(self, closure: Callable[[], Tensor] | None = None, **reported: float | Tensor) -> list[Edit]:
        """As :meth:`regrow.Shaper.step`, where the optimizer has stepped; nothing while gradients accumulate."""
        return self.shaper.step(closure, **reported) if self.accelerator.sync_gradients else []

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`regrow.Shaper.state_dict`."""
        return self.shaper.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As :meth:`regrow.Shaper.load_state_dict`."""
        self.shaper.load_state_dict(state)

    def _save_shape(self, _: Any, __: Any, folder: str) -> None:
        if self.accelerator.is_main_process:
            (Path(folder) / SHAPE_FILE).write_text(json.dumps(shape_of(self.shaper.model), indent=1))

    def _load_shape(self, _: Any, folder: str) -> None:
        model = self.shaper.model
        before = list(model.parameters())
        take_shape_(model, folder)
        if [id(p) for p in before] != [id(p) for p in model.parameters()]:  # the optimizer has others
            raise ValueError(
                "layers came or went in this run: call take_shape_(model, folder) of a fresh model before its "
                "optimizer is made."
            )
        self.shaper = self._made()  # what was analysed had other sizes
        self.shaper._company.follow()


def uncompiled(model: nn.Module) -> nn.Module:
    """The module inside a compiled one."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def unwrapped_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer that an Accelerator has wrapped: the one that has parameters' states and hooks."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer

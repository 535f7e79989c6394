"""A plan in PyTorch Lightning's Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

try:
    import pytorch_lightning as pl
except ImportError as error:
    raise ImportError('regrow.loops.lightning needs PyTorch Lightning: pip install "regrow[lightning]"') from error

from ..actions import Action
from ..edit import Edit
from ..plan import Plan
from ..saving import reshape_ as reshape_by_tensors
from ..shaper import Shaper
from ..shapes import shape_of, take_shape_
from .events import add_penalty, numbers_in

P = TypeVar("P", bound=pl.LightningModule)


class RegrowCallback(pl.Callback):
    """Runs a plan on a LightningModule, or a part of it, and its optimizer.

    ::

        trainer = pl.Trainer(callbacks=[RegrowCallback(plan, example=x)])
        trainer.fit(module, loader)
        trainer.fit(module, loader, ckpt_path="last.ckpt")  # a fresh module gets its shapes back first

    The plan counts steps of the optimizer, however many batches each accumulates. The gradient of penalties is added
    once for each; with manual optimization, add ``callback.shaper.penalty()`` to the loss instead. Conditions look at
    "loss", the mean over the batches of a step, and at all that the module has logged.

    Args:
        plan: Made by :func:`regrow.every`, :func:`regrow.at` and :func:`regrow.chain`.
        example: As for :class:`regrow.Shaper`; by default the module's ``example_input_array``.
        module: The name of the part that changes, as "model"; by default the whole module.
        optimizer: Which of the module's optimizers trains it.
        closure: Returns the loss of the LightningModule on a batch, for methods that look at it; by default
            ``training_step`` runs again on the step's last batch, and logs nothing.
        options: More arguments of :class:`regrow.Shaper`, as ``generator``, ``before_edit`` and ``after_edit``.

    Attributes:
        shaper: The Shaper, from the start of fitting on.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        example: Any = None,
        module: str = "",
        optimizer: int = 0,
        closure: Callable[[Any, Any], Tensor] | None = None,
        generator: torch.Generator | None = None,
        before_edit: Callable[[Action], object] | None = None,
        after_edit: Callable[[Edit], object] | None = None,
    ) -> None:
        self.plan, self.example, self.module, self.optimizer = plan, example, module, optimizer
        self.closure = closure
        self._options = {"generator": generator, "before_edit": before_edit, "after_edit": after_edit}
        self.shaper: Shaper | None = None
        self._resumed: dict[str, Any] | None = None  # the state of the Shaper that is to go on
        self._stepped, self._owed = 0, False  # steps that were seen, whether the coming gradients lack the penalty's
        self._losses: list[Tensor] = []

    @property
    def state_key(self) -> str:
        """Under what a checkpoint keeps the state: several callbacks may be about several parts."""
        return f"{type(self).__qualname__}[{self.module}]"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Have the shapes of a checkpoint restored before its weights are loaded."""
        own = pl_module.on_load_checkpoint

        def shaped(checkpoint: dict[str, Any]) -> None:
            state = checkpoint.get("callbacks", {}).get(self.state_key)
            if state:
                take_shape_(self._part(pl_module), state["shape"])
            own(checkpoint)

        # Of callbacks no hook comes between reading a checkpoint and loading its weights; of modules this one does.
        vars(pl_module)["on_load_checkpoint"] = shaped

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        vars(pl_module).pop("on_load_checkpoint", None)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the Shaper; fitting the same module again goes on with the plan.

        Raises:
            ValueError: There is no example, or as for :class:`regrow.Shaper`.
        """
        example = pl_module.example_input_array if self.example is None else self.example
        if example is None:
            raise ValueError("RegrowCallback needs an example: give it example=, or the module example_input_array.")
        part, before = self._part(pl_module), self.shaper
        if self._resumed is None and before is not None and before.model is part:
            self._resumed = before.state_dict()
        # The wrapper of distributed training follows edits; it is around the whole module.
        around: Any = trainer.strategy.model
        model, optimizer = part if self.module else around, trainer.optimizers[self.optimizer]
        wrapper = around if self.module and isinstance(around, DistributedDataParallel) else None
        given = {"example": example, "wrapper": wrapper, **self._options}
        self.shaper = Shaper(model, optimizer, self.plan, **given)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on where a checkpoint was, now that the optimizer does."""
        if self._resumed is not None:
            self._running.load_state_dict(self._resumed)
        self._resumed, self._stepped, self._losses = None, trainer.global_step, []

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Gradients are about to start from zero."""
        self._owed = pl_module.automatic_optimization

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Add the gradient of the penalty, before those of the step's batches."""
        if self._owed:
            add_penalty(self._running, _scaler(trainer))
            self._owed = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Step the Shaper, if the optimizer has stepped."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)  # Lightning has divided it
        if trainer.global_step == self._stepped:
            return
        self._stepped = trainer.global_step
        waiting = any(True for _ in self.plan.waiting())
        reported = numbers_in(trainer.callback_metrics) if waiting else {}
        if self._losses:
            reported["loss"] = torch.stack(self._losses).mean()
        self._losses = []
        self._running.step(lambda: self._loss(trainer, pl_module, batch, batch_idx), **reported)

    def state_dict(self) -> dict[str, Any]:
        """The shape of the model, and the state of the Shaper."""
        if self.shaper is None:
            return {}
        shape = shape_of(self.shaper.model)
        return {"module": self.module, "shape": shape, "shaper": self.shaper.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there when fitting starts."""
        self._resumed = state_dict["shaper"] if state_dict else None

    @property
    def _running(self) -> Shaper:
        assert self.shaper is not None, "fitting has begun"
        return self.shaper

    def _part(self, pl_module: pl.LightningModule) -> nn.Module:
        return pl_module.get_submodule(self.module)

    def _loss(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> Tensor:
        with trainer.precision_plugin.train_step_context(), _quiet(pl_module):
            if self.closure is not None:
                made = self.closure(pl_module, batch)
            elif len(inspect.signature(pl_module.training_step).parameters) > 1:
                made = pl_module.training_step(batch, batch_idx)
            else:
                made = pl_module.training_step(batch)
        loss, scaler = made["loss"] if isinstance(made, Mapping) else made, _scaler(trainer)
        return loss if scaler is None else scaler.scale(loss)  # gradients in float16 would vanish


def _scaler(trainer: pl.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


@contextmanager
def _quiet(pl_module: pl.LightningModule) -> Iterator[None]:
    """What the module logs now is not a part of its training."""
    vars(pl_module)["log"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(pl_module)["log"]


def reshape_(pl_module: P, checkpoint: Mapping[str, Any]) -> P:
    """Give a fresh LightningModule the shapes in a checkpoint, for ``load_from_checkpoint`` without a Trainer.

    ::

        def on_load_checkpoint(self, checkpoint):
            reshape_(self, checkpoint)

    Args:
        pl_module: It is changed in place and returned.
        checkpoint: As Lightning has it in memory.

    Raises:
        ValueError: It belongs to another model.
    """
    states = checkpoint.get("callbacks", {}).items()
    found = [state for key, state in states if key.startswith(f"{RegrowCallback.__qualname__}[") and state]
    for state in found:
        take_shape_(pl_module.get_submodule(state["module"]), state["shape"])
    return pl_module if found else reshape_by_tensors(pl_module, checkpoint["state_dict"])

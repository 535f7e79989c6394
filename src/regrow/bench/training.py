"""A network, its optimizer and its Shaper on their way through a run.

Minibatches, learning rate and events are functions of the step, or of the FLOPs that have been spent; everything else
that moves is in the checkpoint. So a run that was ended at any moment ends with the numbers of an uninterrupted one.
"""

import itertools
import math
import time
from typing import Any

import torch
from torch import Tensor

import regrow as rg

from ..plan import Action
from .arrays import Data
from .errors import InputError
from .images import Minibatches, generator
from .options import Settled
from .probe import both_losses, evaluate, evaluating
from .progress_bar import progress_bar
from .protocol import make_plan
from .recovery import Meter, Recovery
from .store import RunFolder
from .tasks import get_task

PROBE_IMAGES = 500  # of the training set, on which the loss is measured around each edit
PART = 2000  # training examples on which loss and accuracy are measured before the end, with a budget
AHEAD = 7919  # steps between the batches that a method looks at beside the step's own
EXAMPLE_IMAGES = 2  # for the analysis: two, that the batch dimension be seen as such
BACKWARD_FACTOR = 3  # a training step costs about three forward passes


class Training:
    """A network, its optimizer and its Shaper on their way through a run."""

    def __init__(self, options: Settled, dataset: Data) -> None:
        """Build everything as it is before the first step.

        Raises:
            InputError: the plan cannot be made.
        """
        self.options, self.dataset = options, dataset
        task = get_task(options.task)
        self.batches = Minibatches(dataset, options.batch_size, options.seed, task.padding, task.flip)
        self.total = options.epochs * self.batches.per_epoch
        self.probe = list(dataset.evaluation(dataset.train.first(PROBE_IMAGES)))
        self.example, _ = next(iter(dataset.evaluation(dataset.train.first(EXAMPLE_IMAGES))))
        self.model = self._build(options.built_fraction)
        structure = rg.analyze(self.model, self.example)
        ends, end_flops = self._end()
        self.plan = make_plan(options, structure, ends, self.total, end_flops)
        self.step, self.training_flops, self.seconds = 0, 0, 0.0
        self.meter, self.recovery = Meter(), Recovery()
        self.watched: dict[str, Any] = {}  # the last edit, until the step behind it is done
        self._attach()
        self.may_spend = self._budget()

    def _build(self, fraction: float) -> torch.nn.Module:
        """A fresh network at a fraction of the full widths."""
        options = self.options
        network = get_task(options.task).build(self.dataset, options.width, fraction, options.batch_norm)
        return network.to(options.device)

    def _end(self) -> tuple[dict[str, int], float]:
        """Sizes of the axes at the end of the setting, and FLOPs, from a network that is built so."""
        with torch.random.fork_rng([]):
            final = rg.analyze(self._build(self.options.end_fraction), self.example)
        return {axis.name: axis.size for axis in final.axes}, final.flops()

    def _budget(self) -> float | None:
        """FLOPs that may be spent: a part of what the epochs cost at the largest size of the setting."""
        options = self.options
        if options.budget is None:
            return None
        with torch.random.fork_rng([]):
            largest = self._build(max(options.start_fraction, options.end_fraction))
        flops = rg.measure.flops(largest, self.example) // len(self.example)
        return options.budget * BACKWARD_FACTOR * flops * options.batch_size * self.total

    @property
    def progress(self) -> float:
        """Which part of the training is done, from 0 to 1."""
        return self.step / self.total if self.may_spend is None else self.training_flops / self.may_spend

    def _attach(self) -> None:
        """An optimizer and a Shaper for the network as it is now."""
        options = self.options
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), options.lr, options.momentum, weight_decay=options.weight_decay
        )
        self.shaper = rg.Shaper(
            self.model,
            self.optimizer,
            self.plan,
            example=self.example,
            generator=generator(options.seed, "edits"),
            before_edit=self._before_edit,
            after_edit=self._after_edit,
        )
        self.flops = self._count_flops()

    def finish(self, folder: RunFolder) -> None:
        """Train from where the folder's newest checkpoint is, or from the beginning, to the end."""
        self.folder = folder
        state = folder.resume()
        if state is not None:
            self.load_state_dict(state)
        else:
            self._record("start", steps=self.total, steps_per_epoch=self.batches.per_epoch, **self._shape())
        self._began = time.monotonic() - self.seconds
        with progress_bar(f"{self.options.task} {self.options.setting}", self.progress) as show:
            while self.progress < 1:
                before, rate = self.progress, cosine(self.options.lr, self.progress)
                self.step += 1
                loss = self._train_step(rate)
                self._after_step(loss, before)
                show(self.progress, loss)
        with folder.writing("the trained network"):
            rg.save(self.model, folder.path)
        self._record("end", **self._metrics())

    def _train_step(self, rate: float) -> float:
        """One optimizer step, and the edits that are due after it; the minibatch loss."""
        inputs, targets = self.batches.at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        loss = self._loss(inputs, targets)
        (loss + self.shaper.penalty()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.training_flops += BACKWARD_FACTOR * self.flops * len(targets)
        if recovered := self.recovery.after_step(self.step, loss.item()):
            self._record("recovered", edit=recovered[0], steps=recovered[1])
        self._shape_step(inputs, targets)
        return loss.item()

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.dataset.measure.loss(self.model(inputs), targets)

    def _shape_step(self, inputs: Tensor, targets: Tensor) -> None:
        """Let the Shaper act; what its methods compute for that counts as training."""
        more = itertools.count()

        def closure() -> Tensor:
            """The step's own batch first, then others."""
            number = next(more)
            return self._loss(*(self.batches.at(self.step + AHEAD * number) if number else (inputs, targets)))

        if not self.shaper.due:
            self.shaper.step(closure, progress=self.progress)
            return
        before = self.meter.flops
        with self.meter:
            self.shaper.step(closure, progress=self.progress)
        self.training_flops += self.meter.flops - before

    def _after_step(self, loss: float, before: float) -> None:
        """Record and save what is due."""
        if not math.isfinite(loss):
            raise InputError(f"the loss is {loss} at step {self.step}; train with a lower --lr than {self.options.lr}")
        if self.watched and self.step > self.watched["edit"]:
            self._record_a_step_on()
        if self.step % self.options.log_every == 0:
            self._record("batch", loss=loss)
        if self._is_measured(before):
            self._record("metrics", **self._metrics())
        if self.step % self.options.checkpoint_every == 0 or self.progress >= 1:
            self.folder.save(self.step, self.state_dict())

    def _record_a_step_on(self) -> None:
        """What the first step behind an edit has made of the loss: some edits do their harm there."""
        watched, self.watched = self.watched, {}
        losses = both_losses(self.model, self.probe, self.dataset.measure)
        pairs = [[before, after] for before, after in zip(watched["before"], losses, strict=True)]
        self._record("next", edit=watched["edit"], loss_train_mode=pairs[0], loss_eval_mode=pairs[1])

    def _is_measured(self, before: float) -> bool:
        """Whether loss and accuracy are measured now: after each epoch, or after each part of a budget."""
        if self.may_spend is None:
            return self.step % self.batches.per_epoch == 0
        parts = self.options.evaluations
        return self.progress < 1 and math.floor(self.progress * parts) > math.floor(before * parts)

    def _before_edit(self, action: Action) -> None:
        self._action = action
        with self.meter.paused():
            self._losses_before = both_losses(self.model, self.probe, self.dataset.measure)
        self._cost_before = (rg.measure.parameters(self.model), self.flops)

    def _after_edit(self, edit: rg.Edit) -> None:
        with self.meter.paused():
            self._record_edit(edit)

    def _record_edit(self, edit: rg.Edit) -> None:
        self.flops = self._count_flops()
        self.recovery.edited(self.step)
        if not self.watched:  # of several edits at a step the first has the losses before
            self.watched = {"edit": self.step, "before": list(self._losses_before)}
        after = both_losses(self.model, self.probe, self.dataset.measure)
        train_mode, eval_mode = zip(self._losses_before, after, strict=True)
        parameters, flops = zip(self._cost_before, (rg.measure.parameters(self.model), self.flops), strict=True)
        self._record(
            "edit",
            epoch=self.step / self.batches.per_epoch,
            kind=edit.action,
            method=self._action.method.name,
            sizes={name: list(sizes) for name, sizes in edit.sizes.items()},
            parameters=list(parameters),
            flops=list(flops),
            loss_train_mode=list(train_mode),
            loss_eval_mode=list(eval_mode),
            text=str(edit),
        )

    def _count_flops(self) -> int:
        """FLOPs of a forward pass, per example."""
        return rg.measure.flops(self.model, self.example) // len(self.example)

    def _shape(self) -> dict[str, Any]:
        """The size of the network, in the words of the events."""
        widths = {axis.name: axis.size for axis in self.shaper.structure.axes}
        return {"parameters": rg.measure.parameters(self.model), "flops": self.flops, "widths": widths}

    def _metrics(self) -> dict[str, Any]:
        """Loss and accuracy on training and test examples in eval mode, and what they cost.

        With a budget the training examples are a part of them before the end.
        """
        data, some = self.dataset, self.may_spend is not None and self.progress < 1
        with evaluating(self.model):
            train, test = (
                evaluate(self.model, data.evaluation(examples), data.measure)
                for examples in (data.train.first(PART if some else None), data.test)
            )
        return {
            "epoch": self.step / self.batches.per_epoch,
            "train_loss": train[0],
            "train_accuracy": train[1],
            "test_loss": test[0],
            "test_accuracy": test[1],
            "learning_rate": cosine(self.options.lr, self.progress),
            "training_flops": self.training_flops,
            **self._shape(),
            "seconds": time.monotonic() - self._began,
            "progress": self.progress,
            "edit_flops": self.meter.flops,
            "edit_seconds": self.meter.seconds,
        }

    def _record(self, event: str, **content: Any) -> None:
        self.folder.record({"event": event, "step": self.step, **content})

    def state_dict(self) -> dict[str, Any]:
        """All that moves during a run, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "shaper": self.shaper.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "step": self.step,
            "training_flops": self.training_flops,
            "seconds": time.monotonic() - self._began,
            "meter": self.meter.state_dict(),
            "recovery": self.recovery.state_dict(),
            "watched": self.watched,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what `state_dict` described; the network takes on the sizes that it had."""
        rg.reshape_(self.model, state["model"])
        self.model.load_state_dict(state["model"])
        self._attach()
        self.optimizer.load_state_dict(state["optimizer"])
        self.shaper.load_state_dict(state["shaper"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self.step, self.training_flops = state["step"], state["training_flops"]
        self.seconds = state["seconds"]
        self.meter.load_state_dict(state["meter"])
        self.recovery.load_state_dict(state["recovery"])
        self.watched = state["watched"]


def cosine(peak: float, progress: float) -> float:
    """Half a cosine from `peak` to 0 over the training.

    >>> [round(cosine(1.0, step / 3), 4) for step in range(3)]
    [1.0, 0.75, 0.25]
    """
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

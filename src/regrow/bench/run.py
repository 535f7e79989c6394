"""One run: train a network while a plan changes its shape, recording all of it in a folder.

A run may be ended at any moment, by Ctrl-C or `kill -9`. The same call then continues it and ends with the
very numbers of an uninterrupted run ("seconds" apart): minibatches and learning rate are functions of the
step, and everything else that moves is in the checkpoint.
"""

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional as F

import regrow as rg

from ..plan import Action
from .errors import InputError
from .history import CONFIG_FILE
from .images import Dataset, Minibatches, generator
from .options import Options, Settled
from .probe import both_losses, evaluate, evaluating
from .protocol import make_plan
from .store import RunFolder
from .tasks import get_task

logger = logging.getLogger(__name__)

PROBE_IMAGES = 500  # of the training set, on which the loss is measured around each edit
EXAMPLE_IMAGES = 2  # for the analysis: two, that the batch dimension be seen as such
BACKWARD_FACTOR = 3  # a training step costs about three forward passes


def run(options: Options) -> Path:
    """Do a run, or what is left of it.

    Returns:
        The run's folder.

    Raises:
        InputError: an option, the data or the folder cannot be used; one sentence says why.
        NotPermissible: an edit of the plan cannot be.
    """
    settled = options.settled()
    if (settled.out / CONFIG_FILE).exists():
        # Before the data is read, for that may take long. A new folder is made after it, for that may fail.
        with RunFolder(settled.out, settled.config()) as folder:
            if folder.finished:
                logger.info("%s is finished; nothing to do", folder.path)
                return settled.out
    dataset = _load(settled)
    with reproducible(settled):
        training = Training(settled, dataset.to(torch.device(settled.device)))
        with RunFolder(settled.out, settled.config()) as folder:
            training.finish(folder)
    return settled.out


def _load(options: Settled) -> Dataset:
    """The data set, with its training set cut to `--limit`."""
    dataset = get_task(options.task).load(options.data, options.limit)
    if options.limit is not None:
        dataset = Dataset(dataset.train.first(options.limit), dataset.test, dataset.classes)
    if len(dataset.train) < options.batch_size:
        raise InputError(
            f"--batch-size {options.batch_size} is more than the {len(dataset.train)} training images; make it smaller"
        )
    return dataset


@contextmanager
def reproducible(options: Settled) -> Iterator[None]:
    """Seed and settings under which the same options give the same numbers; the caller's are restored."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # cuBLAS reads this when it is first used, and is deterministic only with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(options.seed)
        torch.use_deterministic_algorithms(True)
        if options.threads:
            torch.set_num_threads(options.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


class Training:
    """A network, its optimizer and its Shaper on their way through a run."""

    def __init__(self, options: Settled, dataset: Dataset) -> None:
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
        self.plan = make_plan(options, structure, self._end_sizes(), self.total)
        self.step, self.training_flops, self.seconds = 0, 0, 0.0
        self._attach()

    def _build(self, fraction: float) -> torch.nn.Module:
        """A fresh network at a fraction of the full widths."""
        options = self.options
        network = get_task(options.task).build(self.dataset, options.width, fraction, options.batch_norm)
        return network.to(options.device)

    def _end_sizes(self) -> dict[str, int]:
        """Sizes of the axes at the end of the setting, from a network that is built so."""
        with torch.random.fork_rng([]):
            final = self._build(self.options.end_fraction)
        return {axis.name: axis.size for axis in rg.analyze(final, self.example).axes}

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
        with _progress(self.options, self.total, self.step) as show:
            while self.step < self.total:
                self.step += 1
                loss = self._train_step()
                self._after_step(loss)
                show(self.step, loss)
        with folder.writing("the trained network"):
            rg.save(self.model, folder.path)
        self._record("end", **self._metrics())

    def _train_step(self) -> float:
        """One optimizer step, and the edits that are due after it; the minibatch loss."""
        images, labels = self.batches.at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(self.options.lr, self.step, self.total)
        self.model.train()
        loss = F.cross_entropy(self.model(images), labels)
        (loss + self.shaper.penalty()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.training_flops += BACKWARD_FACTOR * self.flops * len(labels)
        self.shaper.step(lambda: F.cross_entropy(self.model(images), labels))
        return loss.item()

    def _after_step(self, loss: float) -> None:
        """Record and save what is due."""
        if not math.isfinite(loss):
            raise InputError(f"the loss is {loss} at step {self.step}; train with a lower --lr than {self.options.lr}")
        if self.step % self.options.log_every == 0:
            self._record("batch", loss=loss)
        if self.step % self.batches.per_epoch == 0:
            self._record("metrics", **self._metrics())
        if self.step % self.options.checkpoint_every == 0 or self.step == self.total:
            self.folder.save(self.step, self.state_dict())

    def _before_edit(self, action: Action) -> None:
        self._action = action
        self._losses_before = both_losses(self.model, self.probe)
        self._cost_before = (rg.measure.parameters(self.model), self.flops)

    def _after_edit(self, edit: rg.Edit) -> None:
        self.flops = self._count_flops()
        train_mode, eval_mode = zip(self._losses_before, both_losses(self.model, self.probe), strict=True)
        parameters, flops = zip(self._cost_before, (rg.measure.parameters(self.model), self.flops), strict=True)
        self._record(
            "edit",
            epoch=self.step / self.batches.per_epoch,
            kind="grow" if isinstance(self._action, rg.Grow) else "prune",
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
        """Loss and accuracy on the whole training and test sets in eval mode, and what they cost."""
        with evaluating(self.model):
            train, test = (
                evaluate(self.model, self.dataset.evaluation(images))
                for images in (self.dataset.train, self.dataset.test)
            )
        return {
            "epoch": self.step / self.batches.per_epoch,
            "train_loss": train[0],
            "train_accuracy": train[1],
            "test_loss": test[0],
            "test_accuracy": test[1],
            "learning_rate": cosine(self.options.lr, self.step, self.total),
            "training_flops": self.training_flops,
            **self._shape(),
            "seconds": time.monotonic() - self._began,
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


def cosine(peak: float, step: int, total: int) -> float:
    """Half a cosine from `peak` to 0; steps are counted from 1.

    >>> [round(cosine(1.0, step, 3), 4) for step in (1, 2, 3)]
    [1.0, 0.75, 0.25]
    """
    return peak * 0.5 * (1 + math.cos(math.pi * (step - 1) / total))


@contextmanager
def _progress(options: Settled, total: int, done: int) -> Iterator[Any]:
    """A progress bar on standard error, where that is a terminal; gives `show(step, loss)`."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"{options.task} {options.setting}", total=total, completed=done, loss="")
        yield lambda step, loss: progress.update(bar, completed=step, loss=f"loss {loss:.4f}")

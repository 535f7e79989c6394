"""A plan in the Trainer of Hugging Face's transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    from .accelerate import unwrapped_optimizer
except ImportError as error:
    needed = 'pip install "regrow[transformers,accelerate]"'
    raise ImportError(f"regrow.loops.transformers needs transformers and Accelerate: {needed}") from error

from ..actions import Action
from ..distributed import wrapper_of
from ..edit import Edit
from ..plan import Plan
from ..shaper import Shaper
from ..shapes import SHAPE_FILE, shape_of, take_shape_
from .events import add_penalty, numbers_in

#: What is beside a checkpoint's weights: their shapes as :func:`regrow.save` writes them, and the Shaper's state.
SHAPER_FILE = "shaper.pt"


class RegrowCallback(TrainerCallback):
    """Runs a plan on the model of a Trainer and its optimizer.

    ::

        trainer = Trainer(model, args, train_dataset=data, callbacks=[RegrowCallback(plan, example=x)])
        trainer.train()
        trainer.train(resume_from_checkpoint=True)  # a fresh model gets its shapes back first

    The plan counts steps of the optimizer, however many batches each accumulates. The gradient of penalties is added
    once for each. Conditions look at "loss", the mean over the batches of a step, and at all that the Trainer logs.

    Checkpoints are found in ``args.output_dir``; for one elsewhere, set ``args.resume_from_checkpoint`` too. With a
    ``model_init`` a run can't be resumed: there is no moment at which the new model could get its shapes.

    Args:
        plan: Made by :func:`regrow.every`, :func:`regrow.at` and :func:`regrow.chain`.
        example: The model's input, or a tuple of its positional inputs, as for :class:`regrow.Shaper`.
        closure: Returns the loss of the model on the inputs of the step's last batch, for methods that look at it; by
            default the loss that the model itself returns on them.
        generator, before_edit, after_edit: As for :class:`regrow.Shaper`.

    Attributes:
        shaper: The Shaper, from the start of training on.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        example: Any,
        closure: Callable[[Any, Mapping[str, Any]], Tensor] | None = None,
        generator: torch.Generator | None = None,
        before_edit: Callable[[Action], object] | None = None,
        after_edit: Callable[[Edit], object] | None = None,
    ) -> None:
        self.plan, self.example, self.closure = plan, example, closure
        self._options = {"generator": generator, "before_edit": before_edit, "after_edit": after_edit}
        self.shaper: Shaper | None = None
        self._folder: Path | None = None  # the checkpoint whose weights were loaded last
        self._batches: list[tuple[tuple, dict[str, Any], Tensor | None]] = []  # of the present step
        self._training, self._metrics = False, {}
        self._handle: Any = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the shapes of a checkpoint restored before its weights are loaded."""
        model = kwargs.get("model")
        if isinstance(model, nn.Module):
            # No event comes before that, but a model's own hook does.
            model.register_load_state_dict_pre_hook(
                lambda module, held, prefix, _, __, ___, ____, errors: self._take_shape(args, module, held, errors)
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the Shaper, and go on where a checkpoint was.

        Raises:
            ValueError: The Shaper's state isn't beside the checkpoint, or as for :class:`regrow.Shaper`.
        """
        model, optimizer = kwargs["model"], unwrapped_optimizer(kwargs["optimizer"])
        wrapped = wrapper_of(model) or model
        self.shaper = Shaper(wrapped, optimizer, self.plan, example=self.example, **self._options)
        if state.global_step:
            path = None if self._folder is None else self._folder / SHAPER_FILE
            if path is None or not path.is_file():
                raise ValueError(f"no {SHAPER_FILE} is beside the checkpoint: it was saved without a RegrowCallback.")
            self.shaper.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._batches, self._metrics = [], {}
        if self._handle is not None:
            self._handle.remove()
        self._handle = model.register_forward_hook(self._see, with_kwargs=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the gradient of the penalty, before those of the step's batches."""
        self._training, self._batches = True, []
        add_penalty(self._running, getattr(kwargs["optimizer"], "scaler", None))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Step the Shaper: the optimizer has, and gradients are gone."""
        self._training = False
        losses = [loss for _, _, loss in self._batches if loss is not None]
        reported = dict(self._metrics)
        if losses:
            # Losses that are told how many tokens the step has are shares of its loss already.
            shares = all("num_items_in_batch" in given for _, given, _ in self._batches)
            reported["loss"] = torch.stack(losses).sum() / (1 if shares else len(losses))
        scaler = getattr(kwargs["optimizer"], "scaler", None)
        closure = (lambda: self._loss(kwargs["model"], scaler)) if self._batches else None
        self._running.step(closure, **reported)
        self._batches = []

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Conditions may look at what is logged."""
        self._metrics |= numbers_in(logs or {})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the shapes and the Shaper's state into the checkpoint."""
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        if self.shaper is None or not state.is_world_process_zero or not folder.is_dir():
            return
        (folder / SHAPE_FILE).write_text(json.dumps(shape_of(self.shaper.model), indent=1))
        torch.save(self.shaper.state_dict(), folder / SHAPER_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model as it was."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    @property
    def _running(self) -> Shaper:
        assert self.shaper is not None, "training has begun"
        return self.shaper

    def _see(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Note what the model is trained on; evaluation and the Shaper run it too."""
        if self._training and module.training and torch.is_grad_enabled():
            loss = _loss_in(output)
            self._batches.append((args, kwargs, None if loss is None else loss.detach()))

    def _loss(self, model: Any, scaler: Any) -> Tensor:
        args, kwargs, _ = self._batches[-1]
        kwargs = {name: value for name, value in kwargs.items() if name != "num_items_in_batch"}
        loss = _loss_in(model(*args, **kwargs)) if self.closure is None else self.closure(model, kwargs)
        if loss is None:
            raise ValueError("the model returns no loss: give RegrowCallback a closure, which does.")
        return loss if scaler is None else scaler.scale(loss)  # gradients in float16 would vanish

    def _take_shape(self, args: TrainingArguments, model: nn.Module, held: Any, errors: list[str]) -> None:
        found = next((folder for folder in _checkpoints(args) if _holds(folder, held)), None)
        if found is not None:
            take_shape_(model, found)
            self._folder, own = found, model.state_dict().keys()
            if own - held.keys() and held.keys() - own:  # the Trainer would only warn, and go on with random weights
                errors.append(
                    f"{found} has weights under other names than the model: save_pretrained renames those of "
                    f"{type(model).__name__}, and the Trainer doesn't rename them back (transformers issue 43701)."
                )
        elif any(name in held and held[name].shape != t.shape for name, t in model.state_dict().items()):
            errors.append(
                f"the model has other shapes, and no checkpoint with these weights is in {args.output_dir}: name it in "
                "TrainingArguments(resume_from_checkpoint=…)."
            )


def _loss_in(output: Any) -> Tensor | None:
    """The loss in what a model returned, where the Trainer looks for it."""
    if isinstance(output, Mapping):
        loss = output.get("loss")
    else:
        loss = output[0] if isinstance(output, (tuple, list)) and output else None
    return loss if isinstance(loss, Tensor) and loss.ndim == 0 else None


def _checkpoints(args: TrainingArguments) -> Iterator[Path]:
    """The folders of checkpoints that have shapes: the one that is named, then the newest first."""
    named = [Path(args.resume_from_checkpoint)] if args.resume_from_checkpoint else []
    saved = [p for p in Path(args.output_dir or ".").glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    for folder in [*named, *sorted(saved, key=lambda p: -int(p.name.rpartition("-")[2]))]:
        if (folder / SHAPE_FILE).is_file():
            yield folder


def _holds(folder: Path, held: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint's weights are these: shapes alone wouldn't tell which single weights are off."""
    left = set(held)
    try:
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                for name in set(file.keys()) & left:
                    if not torch.equal(file.get_tensor(name), held[name].cpu()):
                        return False
                    left.remove(name)
    except (OSError, SafetensorError):
        return False
    return not left

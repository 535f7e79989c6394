"""A Shaper changes the shapes of a model's parameters while an optimizer changes their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from .actions import Action
from .agreement import agreed
from .carry import check_state
from .distributed import Company
from .edit import Edit
from .masks import hold_masks, masked, watch
from .measure import parameters
from .method import Method
from .mirrors import check_mirrors, follow_
from .overhearing import Ear
from .pace import attach, has_paces
from .performing import Performer, looks_at_loss, sees_gradients
from .plan import Plan, Until, When, as_plan
from .progress import Ages, Progress, numbers
from .structure import Axis, Structure, analyze
from .targets import Targets

#: The parts of a method that act while training.
_TRAINING = ("penalty", "project", "welcome")
#: And those that act on single weights.
_WITH_WEIGHTS = ("penalty_weights",)


class Shaper:
    """Runs a plan on a model and its optimizer, in any training loop.

    ::

        shaper = rg.Shaper(model, optimizer, plan, example=x)
        for x, y in loader:
            loss = F.cross_entropy(model(x), y) + shaper.penalty()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            for edit in shaper.step():
                print(edit)

    Args:
        model: Any module, compiled or not, or one in :class:`torch.nn.parallel.DistributedDataParallel`, which follows.
            All processes make the same edits: what methods see is averaged over them, and they draw the same numbers.
        optimizer: Its optimizer; its state follows every edit.
        plan: Made by :func:`regrow.every`, :func:`regrow.at`, :func:`regrow.when`, :func:`regrow.until` and
            :func:`regrow.chain`; or a method with a schedule of its own.
        example: The model's input, or a tuple of its positional inputs, of batch size 2 or more.
        generator: Where randomness comes from; by default one seeded by torch's initial seed.
        copies: Copies of the model that follow its edits, as :class:`torch.optim.swa_utils.AveragedModel` for running
            averages of its weights. They don't follow when one is undone.
        shard: For models under ``fully_shard``: shards the plain model again after an edit, as was done before.
        wrapper: For a model that is a part of what is wrapped in DistributedDataParallel: the wrapper.
        before_edit, after_edit: Called with each action before it is done, and with each edit after it.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: The model doesn't run on the example, a copy or the optimizer's state has other shapes, or an action
            of the plan matches no axis; in a model whose layers have changed already that is said at the first step,
            unless a run goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        plan: Plan | Method,
        *,
        example: Any,
        generator: torch.Generator | None = None,
        copies: Sequence[nn.Module] = (),
        shard: Callable[[nn.Module], object] | None = None,
        wrapper: nn.Module | None = None,
        before_edit: Callable[[Action], object] | None = None,
        after_edit: Callable[[Edit], object] | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"a Shaper takes a torch.optim.Optimizer, not {type(optimizer).__name__}.")
        plan = as_plan(plan)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator is a torch.Generator, not {generator!r}.")
        check_state(optimizer)
        self._company = Company(model, optimizer, shard, wrapper)
        self.model, self.optimizer, self.plan = self._company.model, optimizer, plan
        training = [a for a, _ in plan.entries() if any(hasattr(a.method, part) for part in _parts_of(a))]
        self._trains = bool(training)
        if self._company.sharded and training:
            names = ", ".join(sorted({action.method.name for action in training}))
            raise TypeError(f"penalties aren't computed on sharded weights ({names}); choose other methods.")
        self.generator = generator or torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        with self._company.deciding():  # on the first process's example, and with its randomness
            self.structure: Structure = analyze(self.model, agreed(example))
            self.generator.set_state(agreed(self.generator.get_state()))
            self._targets = Targets(self.structure, plan)
        self.before_edit, self.after_edit = before_edit, after_edit
        self._copies = [copied.module if isinstance(copied, AveragedModel) else copied for copied in copies]
        for copied in self._copies:
            check_mirrors(copied, self.model)
        self.steps = 0
        if has_paces(optimizer):
            attach(optimizer)
        self._progress, self._ages = Progress(), Ages()
        self._performer = Performer(optimizer, self.generator, self._targets, self._progress, self._ages)
        if any(masked(self.model)) or any(action.kind == "weight" for action, _ in plan.entries()):
            hold_masks(self.model, optimizer)
            watch(optimizer, self._watch)
        self._ear, self._hears = Ear(self.model), any(looks_at_loss(action) for action, _ in plan.entries())
        self._listen()

    def _listen(self) -> None:
        """Hear the loss of the coming step, where something looks at it then."""
        if not self._hears:
            return
        coming = self.plan.due(self.steps + 1, self._progress.possibly(self.plan))
        if any(map(looks_at_loss, coming)) and not self._company.compiled:
            self._ear.listen()

    def _watch(self) -> None:
        """Keep gradients, before masks hide some, of weights that the coming call of :meth:`step` will look at."""
        self._performer.held.clear()
        self._targets.follow()
        for action in self._due_at(self.steps + 1, self._progress.possibly(self.plan)):
            for weights in self._targets[action] if sees_gradients(action) else ():
                self._performer.held.keep(weights)

    def _due_at(self, step: int, holds: Callable[[When | Until], bool]) -> list[Action]:
        """What the plan has due at a step, behind what has waited for gradients until then."""

        def held(part: When | Until) -> bool:  # by then nothing had ended that is over now
            return isinstance(part, When)

        waiting = [a for late in self._progress.late for a in self.plan.due(late, held) if sees_gradients(a)]
        return [*waiting, *self.plan.due(step, holds)]

    def whole(self) -> AbstractContextManager[nn.Module]:
        """Inside, a model under ``fully_shard`` and its optimizer's state are plain ones, to be saved or looked at.

        ::

            with shaper.whole() as model:
                if dist.get_rank() == 0:
                    rg.save(model, "run/")
        """
        return self._company.whole()

    @property
    def recompilations(self) -> int:
        """How often the model has had to be compiled again, by :func:`torch.compile`, since its shapes had changed."""
        return self._company.resets

    @property
    def due(self) -> bool:
        """Whether the next call of :meth:`step` will edit, if conditions that the plan waits for hold then."""
        return any(True for _ in self.plan.due(self.steps + 1, self._progress.possibly(self.plan)))

    def penalty(self) -> Tensor:
        """What the plan's methods add to the loss of the coming step: a scalar, zero when there is nothing.

        A method's penalty holds from the first step to the last at which its action is due, or until its plan ends.
        """
        terms = []
        for method, axes in self._active("penalty"):
            terms += [method.penalty(part) for part in _parts(method, axes)]
        terms += [method.penalty_weights(weights) for method, weights in self._active("penalty_weights")]
        return sum(terms[1:], terms[0]) if terms else torch.zeros(())

    def _active(self, part: str) -> list[tuple[Any, list[Any]]]:
        """Each method with that part once, with all that its actions still have before them."""
        found: list[tuple[Any, list[Any]]] = []
        entries = self.plan.entries(self._progress.possibly(self.plan)) if self._trains else ()
        for action, last in entries:
            if not hasattr(action.method, part) or part not in _parts_of(action):
                continue
            if last is not None and last <= self.steps:
                continue
            known = next((axes for method, axes in found if method == action.method), None)
            if known is None:
                found.append((action.method, known := []))
            known += [target for target in self._targets[action] if target not in known]
        return found

    def step(self, closure: Callable[[], Tensor] | None = None, **reported: float | Tensor) -> list[Edit]:
        """Count a training step and do what the plan has due there; call it after the optimizer's step.

        Methods that look at the loss look at that of the step itself, by what the model was given since the last call
        and the gradients that came back to its outputs. A closure returns it where that isn't enough: for more batches,
        where the model is compiled or isn't called as a whole, under a gradient scaler, and for methods that compare
        losses. To methods that weigh the loss (Firefly, SENN) it is enough with ``loss=``.

        What looks at gradients of single weights looks at those of the step itself. If the optimizer took none, as when
        a gradient scaler skips it, or an edit of the same step changed their shapes, that waits for the next one.

        Args:
            closure: Returns the loss, as in ``optimizer.step(closure)``.
            reported: Numbers that conditions of the plan look at, as ``loss=loss``.

        Returns:
            The edits that were made, in order.

        Raises:
            NotPermissible: An action can't be done; nothing of that action has been done then.
        """
        for method, axes in self._active("project"):
            for part in _parts(method, axes):
                method.project(part)
        if not self.steps:
            self._targets.require()
        self._targets.follow()
        self.steps += 1
        due = self._due_at(self.steps, self._holding(reported))
        self._progress.late = []
        value = numbers({"loss": reported["loss"]})["loss"] if "loss" in reported else None
        self._performer.heard, self._performer.knows_value = self._ear.taken(value), value is not None
        edits: list[Edit] = []
        try:
            with self._company.deciding() if due else nullcontext():
                self._edit(due, closure, edits)
        finally:  # what was done before an action that can't be stays done
            if edits:
                self._company.follow()
            self._performer.held.clear()
            self._performer.heard = None
            self._listen()
        return edits

    def _edit(self, due: Sequence[Action], closure: Callable[[], Tensor] | None, edits: list[Edit]) -> None:
        """Do the actions of a step, and note what comes of them."""
        for action in due:
            if not self._targets[action]:
                continue  # all of it has left the model
            if self.before_edit is not None:
                self.before_edit(action)
            edit = self._performer.perform(action, closure, self.steps)
            if edit is not None:
                edit.step = self.steps
                edits.append(edit)
                self._follow(edit)
                if self.after_edit is not None:
                    self.after_edit(edit)

    def _holding(self, reported: Mapping[str, float | Tensor]) -> Callable[[When | Until], bool]:
        """Tells of parts of the plan that wait for a condition whether it holds at this step."""
        if not any(True for _ in self.plan.waiting()):
            return self._progress.possibly(self.plan)
        sizes = {"params": float(parameters(self.model)), "flops": float(self.structure.flops())}
        seen = self._company.mean(numbers(reported))
        return self._progress.holding(self.plan, {**seen, **sizes, "step": float(self.steps)})

    def _follow(self, edit: Edit) -> None:
        """Let copies follow, note when units came, and let methods welcome them."""
        for copied in self._copies:
            follow_(copied, self.model, edit)
        self._targets.follow()
        if edit.kind != "unit":
            return
        for name, sizes in edit.sizes.items():
            axis, new = self.structure[name], edit.units("new")[name]
            self._ages.follow(axis, sizes, new, edit.units("removed")[name], self.steps)
            for method, axes in self._active("welcome") if new else ():
                if axis in axes:
                    method.welcome(axis, new, *([axes] if getattr(method, "jointly", False) else []))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed Shaper needs beside the model and the plan: the step, the random state, and units' ages."""
        return {
            "steps": self.steps,
            "generator": self.generator.get_state(),
            "births": self._ages.state_dict(self.structure.axes),
            "progress": self._progress.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the Shaper of ``state`` was; the model must have the shapes that it had there.

        Raises:
            ValueError: A key is missing or unknown, or the step is no step.
        """
        if set(state) != _STATE:
            known, given = ", ".join(sorted(_STATE)), ", ".join(map(str, state))
            raise ValueError(f"a Shaper's state has the keys {known}, not {given}.")
        steps = state["steps"]
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"steps is a whole number that isn't negative, not {steps!r}.")
        self.generator.set_state(state["generator"].cpu())
        if has_paces(self.optimizer):
            attach(self.optimizer)
        self.steps = steps
        self._progress.load_state_dict(state["progress"])
        self._ages.load_state_dict(self.structure.axes, state["births"])
        self._listen()


_STATE = {"steps", "generator", "births", "progress"}


def _parts_of(action: Action) -> tuple[str, ...]:
    return _WITH_WEIGHTS if action.kind == "weight" else _TRAINING


def _parts(method: Any, axes: list[Axis]) -> list[Any]:
    """What a method is given that acts while training: each axis, or all of them jointly."""
    return [axes] if getattr(method, "jointly", False) else axes

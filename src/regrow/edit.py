"""A structural edit that has been made: what it changed, what it costs, and how it is undone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer

from .carry import Follower, followers, kept_masks, plan_resets, resets, warn_of_reset
from .errors import NotPermissible
from .structure import Structure
from .structure.outputs import outputs_of
from .structure.running import untouched
from .transaction import Transaction, Write


class Past(Protocol):
    """What an edited tensor and its followers were."""

    def check(self, name: str, tensor: Tensor) -> None:
        """Whether a tensor still is as the edit left it.

        Raises:
            NotPermissible: It isn't.
        """
        ...

    def before(self, tensor: Tensor) -> Tensor:
        """The tensor as it was before the edit, with the present values of what stayed."""
        ...

    def follower_before(self, follower: Follower) -> Tensor:
        """What mirrors it, likewise."""
        ...


@dataclass(eq=False)
class Edit:
    """A structural edit that has been applied.

    Attributes:
        action: "grow" or "prune"; "adapt" where units came and went; "rewire" where as many single weights came as
            went.
        method: The name of the method that made or chose the units; "" where they were named.
        sizes: Axis name -> number of units (before, after); of single weights how many of each parameter are on.
        params: Parameters of the model (before, after); of single weights those that are on.
        flops: FLOPs of a forward pass on the analysed example (before, after).
        kind: "unit", "weight" for single weights, "layer" or "cell".
        step: Of the :class:`regrow.Shaper` that made it; None where none did.
    """

    structure: Structure = field(repr=False)
    action: str
    method: str
    sizes: dict[str, tuple[int, int]]
    params: tuple[int, int]
    flops: tuple[float, float]
    _new: dict[str, Any] = field(repr=False)
    _removed: dict[str, Any] = field(repr=False)
    _optimizer: Optimizer | None = field(repr=False)
    _past: dict[str, Past] = field(repr=False)
    _bookkeeping: list[Write] = field(repr=False, default_factory=list)
    kind: str = "unit"
    step: int | None = None
    # The structure counts edits by these: it must not keep alive what old edits hold for their undoing.
    _token: object = field(repr=False, default_factory=object)

    @property
    def new(self) -> Any:
        """Indices of the new units: a list; for an edit of several axes a dict by axis name.

        Of single weights it is a tensor of flat indices, by the name of their parameter where there are several.
        """
        return self._by_axis(self._new)

    @property
    def removed(self) -> Any:
        """Indices that the removed units had: a list; for an edit of several axes a dict by axis name."""
        return self._by_axis(self._removed)

    def units(self, which: str) -> dict[str, Any]:
        """The "new" or the "removed" by name, for one axis or tensor as for several."""
        return dict(self._new if which == "new" else self._removed)

    def _by_axis(self, units: dict[str, Any]) -> Any:
        return dict(units) if len(units) > 1 else next(iter(units.values()))

    @torch.no_grad()
    def undo_(self) -> None:
        """Take the edit back: what stayed keeps its present values, what left returns as it was.

        Straight after the edit this restores model, gradients and optimizer bit for bit.

        Raises:
            NotPermissible: It has been undone already, a later edit hasn't, or the model was changed elsewhere.
        """
        self._check_newest("undone")
        for name, past in self._past.items():
            past.check(name, self.structure.tensor(name))
        edited = {self.structure.tensor(name) for name in self._past}
        unable = {} if self._optimizer is None else resets(self._optimizer, edited)
        if self._optimizer is not None:
            warn_of_reset(self._optimizer, unable.values())
        with Transaction() as writes:
            writes.planned += [write.reversed() for write in reversed(self._bookkeeping)]
            writes.run()
            if self._optimizer is not None and unable:
                plan_resets(writes, self._optimizer, unable)
                writes.run()
            masks = kept_masks(self.structure.model)
            for name, past in self._past.items():
                tensor = self.structure.tensor(name)
                grad = tensor.grad
                for follower in followers(tensor, self._optimizer, masks):
                    before = past.follower_before(follower)
                    if follower.key == "grad":
                        grad = before
                    else:
                        follower.plan(writes, before)
                writes.tensor(tensor, past.before(tensor), grad)
            writes.run()
        self.structure.edits.remove(self._token)

    @torch.no_grad()
    def measure(self, *args: Any, **kwargs: Any) -> float:
        """Largest absolute change of the output by this edit, by two forward passes in the model's mode.

        Raises:
            NotPermissible: It has been undone, or a later edit hasn't.
        """
        self._check_newest("measured")
        after = self._outputs({}, args, kwargs)
        past = {name: past.before(self.structure.tensor(name)) for name, past in self._past.items()}
        attributes = [write.reversed() for write in reversed(self._bookkeeping)]
        with Transaction() as writes:
            writes.planned += attributes
            try:
                writes.run()
                before = self._outputs(past, args, kwargs)
            finally:
                writes.take_back()
        deeper = self.kind in ("layer", "cell")  # a cache has an entry for each layer
        pairs = zip(after, before, strict=not deeper)
        return max(float((a - b).abs().max()) for a, b in pairs if not deeper or a.shape == b.shape)

    def _outputs(self, tensors: dict[str, Tensor], args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
        model = self.structure.model
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        with untouched(model):
            out = functional_call(model, buffers | tensors, args, kwargs)
        return outputs_of(model, out)

    def _check_newest(self, what: str) -> None:
        edits = self.structure.edits
        if self._token not in edits:
            raise NotPermissible(f"this edit can't be {what}, it was undone before: {self}.")
        later = len(edits) - 1 - edits.index(self._token)
        if later:
            raise NotPermissible(f"only the newest edit can be {what}; {later} came after this one ({self}).")

    def __str__(self) -> str:
        if len(self.sizes) == 1:
            ((name, (before, after)),) = self.sizes.items()
            head = f"{name}: {before:,} -> {after:,}"
        else:
            before, after = (sum(pair[i] for pair in self.sizes.values()) for i in (0, 1))
            of = {"unit": "axes", "weight": "tensors"}.get(self.kind, "places")
            head = f"{len(self.sizes)} {of}: {before:,} -> {after:,} {self.kind}s"
        if self.kind == "weight":
            changed = sum(len(found) for which in (self._new, self._removed) for found in which.values())
            return f"{head}, {self.params[1] - self.params[0]:+,} params, {changed:,} changed"
        if self.action == "adapt":
            came, went = (sum(map(len, which.values())) for which in (self._new, self._removed))
            head += f" ({came:,} new, {went:,} gone)"
        flops = 100 * (self.flops[1] / self.flops[0] - 1) if self.flops[0] else 0.0
        return f"{head}, {self.params[1] - self.params[0]:+,} params, {flops:+.1f} % FLOPs"

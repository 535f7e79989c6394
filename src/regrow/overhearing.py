"""The loss of a training step, for methods that look at it, from what the step itself did.

Methods look at the loss's gradients, and these are the gradients of ``Σ outputs·∂L/∂outputs`` on the step's own batch:
what the model was given and what came back to its outputs is all that has to be kept of a step. The model is called
again on it, with its weights as the step has left them. The loss's value isn't seen; who reports it tells it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from .structure.example import tensors_in


@dataclass
class _Call:
    """One call of the model: what it was given, and the loss's gradient for each output that it has reached."""

    args: tuple
    kwargs: dict[str, Any]
    autocast: tuple[str, torch.dtype | None, bool]
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def note(self, place: int, gradient: Tensor) -> None:
        seen = gradient.detach()
        self.gradients[place] = self.gradients[place] + seen if place in self.gradients else seen.clone()

    def loss(self, model: nn.Module) -> Tensor:
        device, dtype, enabled = self.autocast
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            outputs = tensors_in(model(*self.args, **self.kwargs))
        terms = [(outputs[place] * gradient).float().sum() for place, gradient in self.gradients.items()]
        return torch.stack(terms).sum()


class Ear:
    """Hears, while it listens, the calls of a model and the gradients of its outputs.

    A copy of the model, or one that is loaded, takes none of it along.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model, self._calls, self._handles = model, list[_Call](), list[RemovableHandle]()

    def __reduce__(self) -> tuple[Any, ...]:
        return Ear, ()

    def listen(self) -> None:
        """Hear from now on, and forget what was heard."""
        self._calls.clear()
        if self._model is not None and not self._handles:
            self._handles.append(self._model.register_forward_hook(self._hear, with_kwargs=True))

    def taken(self, value: float | None = None) -> Callable[[], Tensor] | None:
        """What was heard, as a loss that has this value; None if nothing was. Then it is deaf again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        calls = [call for call in self._calls if call.gradients]
        self._calls = []
        if self._model is None or not calls:
            return None
        model: nn.Module = self._model

        def loss() -> Tensor:
            heard = torch.stack([call.loss(model) for call in calls]).sum()
            return heard if value is None else heard + (value - heard.detach())

        return loss

    def _hear(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], returned: Any) -> None:
        if not torch.is_grad_enabled() or model is not self._model:
            return
        outputs = tensors_in(returned)
        if not any(out.requires_grad for out in outputs):
            return
        device = outputs[0].device.type
        autocast = False
        with contextlib.suppress(RuntimeError):  # of a device without autocast
            autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else None
        args, kwargs = pytree.tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, (args, kwargs))
        call = _Call(args, kwargs, (device, dtype, autocast))
        self._calls.append(call)
        for place, out in enumerate(outputs):
            if out.requires_grad:
                out.register_hook(lambda gradient, place=place, call=call: call.note(place, gradient))

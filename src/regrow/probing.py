"""Runs of a model on which changes of its tree are checked: on its example, and so that nothing of them stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .errors import NotPermissible
from .evidence import looking
from .observing import Seen, observed
from .starts import TOLERANCE, relative_distance
from .structure import Structure
from .structure.example import named_tensors
from .structure.outputs import outputs_of


class Probe:
    """A model's example, with random numbers where that is constant: on zeros nearly everything is the identity."""

    def __init__(self, structure: Structure) -> None:
        self.model = structure.model
        if any(tensor.is_meta for tensor in named_tensors(self.model).values()):
            raise NotPermissible("the model is on meta: layers and cells are edited where numbers are; move it there.")
        device = next((t.device for t in named_tensors(self.model).values()), None)
        plain = pytree.tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, structure._example)
        self._example = pytree.tree_map(_varied, plain)
        try:
            usable = all(bool(out.isfinite().all()) for out in self.outputs())
        except Exception:  # of a model that nobody here wrote, on inputs that it may not be meant for
            usable = False
        if not usable:
            self._example = plain

    def outputs(self) -> list[Tensor]:
        """What the model puts out in eval mode, as far as these are numbers with fractions."""
        with self._running(), torch.no_grad():
            return [t for t in outputs_of(self.model, self._run()) if t.is_floating_point()]

    def seen(self, module: nn.Module) -> Seen:
        """What a module is given and returns."""
        return observed(module, self.outputs)

    def check_learns(self) -> None:
        """Gradients pass: nothing that works in place overwrites what another call needs.

        Raises:
            RuntimeError: They don't.
        """
        learned = [p for p in self.model.parameters() if p.requires_grad]
        with self._running():
            outputs = [t for t in outputs_of(self.model, self._run()) if t.requires_grad]
            if outputs and learned:
                torch.autograd.grad([t.sum() for t in outputs], learned, allow_unused=True)

    def _run(self) -> Any:
        args, kwargs = self._example
        return self.model(*args, **kwargs)

    @contextmanager
    def _running(self) -> Iterator[None]:
        counters = [(vars(m), {k: v for k, v in vars(m).items() if type(v) in _PLAIN}) for m in self.model.modules()]
        with looking(self.model):
            try:
                self.model.eval()
                yield
            finally:
                for held, before in counters:
                    held.update(before)


_PLAIN = (bool, int, float)


def _varied(value: Any) -> Any:
    """Random numbers for a tensor of one number with fractions."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() < 2:
        return value
    if bool((value != value.flatten()[0]).any()):
        return value
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)


def check_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Whether a model puts out what it should. A cache, or a list of layers' outputs, may have more entries or fewer.

    Raises:
        NotPermissible: It doesn't.
    """
    fewer, more = sorted((found, expected), key=len)
    others = iter(more)
    nearest = 0.0
    for one in fewer:
        far = [_distance(one, other) for other in _until_near(one, others)] if len(fewer) < len(more) else []
        nearest = far[-1] if far else _distance(one, next(others, one.new_zeros(())))
        if not nearest <= 10 * TOLERANCE:
            raise NotPermissible(f"the model would put out something else, by {nearest:.1g}")


def _until_near(one: Tensor, others: Iterator[Tensor]) -> Iterator[Tensor]:
    """Tensors up to the first that is near one."""
    for other in others:
        yield other
        if _distance(one, other) <= 10 * TOLERANCE:
            return


def _distance(one: Tensor, other: Tensor) -> float:
    return relative_distance(one, other) if one.shape == other.shape else float("inf")

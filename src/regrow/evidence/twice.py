"""How running statistics and biases move between two versions of a network, by running both on the same batches."""

from __future__ import annotations

import contextlib
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from .normalisation import NORMS


@contextlib.contextmanager
def called_again(model: nn.Module, silent: Mapping[str, Tensor], moments: Shifts) -> Iterator[None]:
    """Whenever the model is called, it is called a second time with these tensors and the same random numbers.

    Where not the model but parts of it are called from outside, as by the training step of a module, they are.

    Raises:
        ValueError: Nothing of the model was called.
    """
    state: list[Any] = []

    def before(_: nn.Module) -> None:
        state[:] = _random_state()

    def after(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        now = _random_state()
        moments.again = True
        try:
            _set_random_state(state)
            with torch.no_grad():
                functional_call(module, _within(model, module, silent), args, kwargs)
        finally:
            _set_random_state(now)
            moments.again = False
            moments.forget()

    with _calls_from_outside(model, before, after):
        yield


@dataclass(frozen=True)
class Call:
    """A call of a model, or of a part of it: what it was given, and autocast's dtype where that was on."""

    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    autocast: torch.dtype | None

    def again(self, device: str) -> None:
        """Make it once more, without gradients."""
        with torch.no_grad(), torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            self.module(*self.args, **self.kwargs)


@contextlib.contextmanager
def remembered(model: nn.Module, device: str) -> Iterator[list[Call]]:
    """Yields the calls of a model that are made inside, in order.

    Raises:
        ValueError: Nothing of the model was called.
    """
    calls: list[Call] = []

    def remember(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        calls.append(Call(module, args, kwargs, dtype))

    with _calls_from_outside(model, lambda _: None, remember):
        yield calls


@contextlib.contextmanager
def _calls_from_outside(
    model: nn.Module,
    before: Callable[[nn.Module], None],
    after: Callable[[nn.Module, tuple, dict[str, Any]], None],
) -> Iterator[None]:
    """Tells of calls of the model or of its parts that aren't made by the model itself, nor by what is told.

    Raises:
        ValueError: There was none, though nothing else went wrong.
    """
    depth, seen = [0], [False]

    def enter(module: nn.Module, _: tuple) -> None:
        depth[0] += 1
        if depth[0] == 1:
            before(module)

    def leave(module: nn.Module, args: tuple, kwargs: dict[str, Any], _: Any) -> None:
        if depth[0] == 1:  # what is called within is deeper
            seen[0] = True
            after(module, args, kwargs)
        depth[0] -= 1

    hooks = [module.register_forward_pre_hook(enter, prepend=True) for module in model.modules()]
    hooks += [module.register_forward_hook(leave, with_kwargs=True) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if not seen[0]:
        raise ValueError("the loss calls neither the model that is edited nor a part of it; compute it from the model.")


def _within(model: nn.Module, part: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a model by their names in a part of it."""
    path = next(path for path, module in model.named_modules() if module is part)
    start = f"{path}." if path else ""
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _random_state() -> list[Any]:
    return [torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None]


def _set_random_state(state: Sequence[Any]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


class Shifts(TorchDispatchMode):
    """The means that biases lead to and the moments of what norms get, in a run of the model and in one again.

    Where the run again is of the network as it will be, it goes on with biases and running statistics as they will be:
    what comes behind gets what it will get.

    Args:
        tensors: The model's, by name.
        biases: Names of those that change.
        silent: What is in place of tensors in the run again.
        backwards: Whether the run again is of the network as it was.

    Attributes:
        again: Whether the run again is on.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        biases: Collection[str],
        silent: Mapping[str, Tensor],
        backwards: bool = False,
    ) -> None:
        super().__init__()
        self.again, self._backwards = False, backwards
        self._tensors, self._names = tensors, {tensor: name for name, tensor in tensors.items()}
        self._biases = {tensor: name for held in (tensors, silent) for name, tensor in held.items() if name in biases}
        self._first: dict[str, deque[Tensor]] = defaultdict(deque)  # what was seen and not yet seen again, by tensor
        self._shifts: dict[str, list[Tensor]] = defaultdict(list)
        self._variances: dict[str, list[Tensor]] = defaultdict(list)  # before and after

    def moved(self) -> dict[str, Tensor]:
        """The tensors as they will be, by name."""
        shifted = {n: (t := self._tensors[n]) + torch.stack(s).mean(0).to(t) for n, s in self._shifts.items()}
        scaled = {n: (t := self._tensors[n]) * _ratio(torch.stack(v).mean(0)).to(t) for n, v in self._variances.items()}
        return {name: tensor.detach() for name, tensor in (shifted | scaled).items()}

    def forget(self) -> None:
        """A run that goes another way the second time leaves nothing behind."""
        self._first.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        norm = NORMS.get(func)
        if norm is not None and all(isinstance(a, Tensor) and a in self._names for a in args[3:5]):
            now = self._norm(args[0], args[3], args[4])
            if not norm.by_batch(*args):
                args = (*args[:3], *now, *args[5:])
        out = func(*args, **(kwargs or {}))
        bias = next((a for a in args if isinstance(a, Tensor) and a in self._biases), None)
        if bias is not None and func is torch.ops.aten._to_copy.default:  # autocast's
            self._biases[out] = self._biases[bias]
        elif bias is not None and func in _ADDING:
            return self._added(self._biases[bias], out, _ADDING[func])
        return out

    def _norm(self, x: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """See a norm's input; its running statistics as they will be."""
        key, moments = self._names[mean], torch.stack(_moments(x, 1))
        first = self._seen_before(key, moments)
        if first is None:
            return mean, variance
        before, after = (moments, first) if self._backwards else (first, moments)
        shift, variances = after[0] - before[0], torch.stack([before[1], after[1]])
        self._shifts[key].append(shift)
        self._variances[self._names[variance]].append(variances)
        if self._backwards:
            return mean, variance
        return mean + shift.to(mean), variance * _ratio(variances).to(variance)

    def _added(self, bias: str, out: Tensor, dim: int) -> Tensor:
        """What came of adding a bias, with the mean that it had."""
        mean, _ = _moments(out, dim)
        first = self._seen_before(bias, mean)
        if first is None:
            return out
        self._shifts[bias].append(first - mean)
        shape = [1] * out.ndim
        shape[dim] = -1
        return out + (first - mean).reshape(shape).to(out)

    def _seen_before(self, key: str, moments: Tensor) -> Tensor | None:
        """What the first run saw there, in the run again."""
        if not self.again:
            self._first[key].append(moments)
            return None
        return self._first[key].popleft() if self._first[key] else None


def _ratio(variances: Tensor) -> Tensor:
    """After over before; one, where nothing varied."""
    before, after = variances
    return torch.where(before > 0, after / before, 1.0)


def _moments(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and variance over all dimensions but one."""
    over = [d for d in range(x.ndim) if d != dim % x.ndim]
    variance, mean = torch.var_mean(x.detach().to(torch.promote_types(x.dtype, torch.float32)), over, correction=0)
    return mean, variance


#: Operators that add a bias, with the dimension that it is along.
_ADDING = {torch.ops.aten.convolution.default: 1, torch.ops.aten.addmm.default: -1, torch.ops.aten.add.Tensor: -1}

"""Models that several processes train together: all make the same edits, and wrappers follow them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from .agreement import averaged_number, together
from .errors import NotPermissible
from .sharding import is_sharded, shard_, sharding_group, unshard_
from .structure.accepted import uncompiled


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in wrappers, of several processes or of ``torch.compile``, or itself."""
    while isinstance(inner := uncompiled(model), DistributedDataParallel):
        model = inner.module
    return inner


def wrapper_of(model: nn.Module) -> DistributedDataParallel | None:
    """The wrapper of several processes around a model that was given without it, where there is one.

    A model doesn't know its wrapper, and callbacks of some training loops aren't given it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    # isinstance would ask each object for its class, and some of torch's warn then.
    around = (found for found in gc.get_objects() if issubclass(type(found), DistributedDataParallel))
    return next((found for found in around if unwrapped(found) is unwrapped(model)), None)


def check_alone(target: Any) -> None:
    """Whether what is to be edited belongs to a model that no wrapper of several processes has its hands on.

    Raises:
        NotPermissible: One has: its processes would go on with sums of gradients that aren't each other's.
    """
    part = next(iter(target), None) if isinstance(target, (list, tuple)) else target
    model = getattr(getattr(part, "structure", part), "model", None)
    if isinstance(model, nn.Module) and wrapper_of(model) is not None:
        raise NotPermissible(
            "the model is in a DistributedDataParallel, which goes by the shapes that it had when it was wrapped; give "
            "the wrapper to a Shaper, or edit the model before it is wrapped."
        )


def _parallel(model: nn.Module) -> DistributedDataParallel | None:
    """The wrapper of several processes around a model, where there is one."""
    model = uncompiled(model)
    return model if isinstance(model, DistributedDataParallel) else None


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


class Company:
    """The processes that train copies of a model, or parts of it, together; a single one where there is no wrapper.

    Args:
        model: In a wrapper, under ``fully_shard``, or neither.
        optimizer: Its optimizer.
        shard: Shards the plain model as was done before.
        wrapper: What the model is a part of, where it isn't the whole of what is wrapped.

    Attributes:
        model: The model itself.
        sharded: Whether each process has a part of it.
        resets: How often what ``torch.compile`` had made was forgotten.

    Raises:
        TypeError: It is sharded, and there is no ``shard``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        shard: Callable[[nn.Module], object] | None = None,
        wrapper: nn.Module | None = None,
    ) -> None:
        self.sharded = is_sharded(model)
        if self.sharded and shard is None:
            raise TypeError("for a model under fully_shard pass shard=, a function that shards the plain model again.")
        self.wrapper, self._given = _parallel(model if wrapper is None else wrapper), model
        if wrapper is not None and all(module is not unwrapped(model) for module in wrapper.modules()):
            raise TypeError("wrapper= is a DistributedDataParallel that the model is a part of; it isn't in this one.")
        self.resets = 0
        self.model = unwrapped(model)
        self._optimizer, self._shard = optimizer, shard
        group = self.wrapper.process_group if self.wrapper is not None else None
        group = sharding_group(model) if self.sharded else group
        self._group = group if group is not None and dist.get_world_size(group) > 1 else None

    @property
    def compiled(self) -> bool:
        """Whether :func:`torch.compile` has its hands on the model."""
        return _is_compiled(self._given)

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """Inside, a sharded model and its optimizer's state are plain ones, of which each process has all."""
        if self.sharded:
            unshard_(self.model, self._optimizer)
        try:
            yield self.model
        finally:
            if self.sharded and self._shard is not None:
                shard_(self.model, self._optimizer, self._shard)

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        """Inside, the model is whole on each process, and all decide alike."""
        with self.whole(), together(self._group):
            yield

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The means of numbers over processes."""
        with together(self._group):
            return {name: averaged_number(value) for name, value in sorted(values.items())}

    def follow(self) -> None:
        """Let wrappers follow an edit; what is compiled for other shapes is forgotten, or torch gives up compiling."""
        if self.wrapper is not None:
            remake_(self.wrapper)
        if self.compiled:
            torch.compiler.reset()
            self.resets += 1


def remake_(wrapper: DistributedDataParallel) -> None:
    """Let a wrapper go by the present parameters of its module, in place: whoever has it, has it still.

    It knows the gradients' sizes from when it was made. Hooks on it, and communication hooks, stay.
    """
    held: Any = wrapper
    hooks = {name: vars(held)[name] for name in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")}
    communication, training = list(held._comm_hooks), held.training
    options = {name: getattr(held, name) for name in _OPTIONS}
    options["bucket_cap_mb"] = held.bucket_bytes_cap / 2**20
    module = held.module
    held.__init__(module, init_sync=False, **options)
    held.train(training)
    vars(held).update(hooks)
    for hook, state in communication:
        held.register_comm_hook(state, hook)


#: The newer of two names of the same option, where torch has it.
_BUFFERS = "forward_sync_buffers" if hasattr(DistributedDataParallel, "broadcast_buffers") else "broadcast_buffers"
_OPTIONS = (
    *("device_ids", "output_device", "dim", _BUFFERS, "process_group", "find_unused_parameters"),
    *("gradient_as_bucket_view", "static_graph", "mixed_precision", "skip_all_reduce_unused_params"),
)

"""Models in :class:`torch.nn.parallel.DistributedDataParallel`: the wrapper follows edits of what it wraps."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in a wrapper, or itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def group_of(model: nn.Module) -> Any:
    """The group of processes that train copies of a model; None where it is no more than one."""
    if not isinstance(model, DistributedDataParallel) or dist.get_world_size(model.process_group) == 1:
        return None
    return model.process_group


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

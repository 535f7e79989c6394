"""Run a model so that nothing of it stays: modes, random states, attributes, parameters and buffers are as before."""

from __future__ import annotations

import contextlib
import copy
import gc
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as global_hooks


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, mode flags and every random state are as before.

    Cyclic garbage waits until the end: looking for it among all the small objects of a trace takes a fifth of the time.
    """
    flags = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        collecting = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collecting:
                gc.enable()
            for module, training in flags:
                module.training = training
            random.setstate(python)
            np.random.set_state(numpy)


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})


@contextlib.contextmanager
def swapped(model: nn.Module, tensors: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Inside, the model has other tensors in place of its parameters and buffers; ties stay ties.

    Whatever attributes its modules are given meanwhile, by the code that runs too, they are as before afterwards.
    """
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    stores: list[dict[str, Any]] = [s for module in model.modules() for s in (module._parameters, module._buffers)]
    before = [dict(store) for store in stores]
    try:
        for store in stores:
            store.update({key: tensors[t] for key, t in store.items() if t is not None})
        for module, held in attributes:
            vars(module).update(_with_others(held, tensors))
            kept = {k: v for k, v in vars(module).items() if type(v) in _KEPT and k not in _OWN}
            vars(module).update({k: copy.copy(v) for k, v in kept.items()})
        yield
    finally:
        for module, held in attributes:
            vars(module).clear()
            vars(module).update(held)
        for store, items in zip(stores, before, strict=True):
            store.clear()
            store.update(items)


@contextlib.contextmanager
def module_stack(stack: list[nn.Module]) -> Iterator[None]:
    """Keep in ``stack`` the modules whose forward is running, outermost first.

    After an error those stay that were running then.
    """

    def leave(module: nn.Module, *_: Any) -> None:
        while stack and stack.pop() is not module:
            """A module that failed, and whose error was caught, was left without notice."""

    hooks = [
        global_hooks.register_module_forward_pre_hook(lambda module, _: stack.append(module)),
        global_hooks.register_module_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention and recurrent layers show as the plain calls that they are made of."""
    # torch.backends.mkldnn.flags would also set TF32, which warns on machines that have none.
    mkldnn, fast_path = torch._C._get_mkldnn_enabled(), torch.backends.mha.get_fastpath_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(mkldnn)
        torch.backends.mha.set_fastpath_enabled(fast_path)


#: What a forward pass may put things into.
_KEPT = (dict, list, set, OrderedDict)
#: What torch keeps on every module.
_OWN = frozenset(vars(nn.Module()))


def _with_others(attributes: dict[str, Any], tensors: Mapping[Tensor, Tensor]) -> dict[str, Any]:
    """Lists and tuples of parameters that modules keep beside the parameters, as recurrent layers do."""
    found = {}
    for name, held in attributes.items():
        if type(held) in (list, tuple) and any(isinstance(t, Tensor) and t in tensors for t in held):
            found[name] = type(held)(tensors.get(t, t) if isinstance(t, Tensor) else t for t in held)
    return found

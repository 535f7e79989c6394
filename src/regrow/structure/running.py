"""Run a model so that nothing of it stays: modes, random states, attributes, parameters and buffers are as before."""

from __future__ import annotations

import contextlib
import copy
import gc
import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType
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
    with torch.inference_mode(False), torch.random.fork_rng(devices=_cuda_devices(model)):
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

    Whatever attributes, hooks and submodules its modules, and objects that these keep, are given meanwhile, by the code
    that runs too, they are as before afterwards.
    """
    modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    attributes = [(holder, dict(vars(holder))) for holder in (*modules, *_objects_of(modules))]
    stores: list[dict[str, Any]] = [s for module in modules for s in (module._parameters, module._buffers)]
    own = [held for m in modules for key, held in vars(m).items() if key in _OWN and isinstance(held, dict)]
    before = [dict(held) for held in own]
    try:
        for store in stores:
            store.update({key: tensors[t] for key, t in store.items() if t is not None})
        for holder, held in attributes:
            vars(holder).update(_with_others(held, tensors))
            kept = {k: v for k, v in vars(holder).items() if type(v) in _KEPT and k not in _OWN}
            vars(holder).update({k: copy.copy(v) for k, v in kept.items()})
        yield
    finally:
        for holder, held in attributes:
            vars(holder).clear()
            vars(holder).update(held)
        for held, items in zip(own, before, strict=True):
            held.clear()
            held.update(items)


def _objects_of(modules: Iterable[nn.Module]) -> list[Any]:
    """Objects that modules keep as plain attributes, as configurations and caches: code may write to them."""
    held = (v for module in modules for k, v in vars(module).items() if k not in _OWN and not isinstance(v, _NO_STATE))
    return list({id(v): v for v in held if isinstance(getattr(v, "__dict__", None), dict)}.values())


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
    """Attention, recurrent layers and compiled code show as the plain calls that they are made of, without warnings."""
    # torch.backends.mkldnn.flags would also set TF32, which warns on machines that have none.
    mkldnn, fast_path = torch._C._get_mkldnn_enabled(), torch.backends.mha.get_fastpath_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch.backends.mha.set_fastpath_enabled(False)
    # Only who has compiled something has loaded the compiler.
    compiler = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    try:
        with sdpa_kernel(SDPBackend.MATH), compiler, warnings.catch_warnings():
            # What torch says of an edited model is no news: either it is refused, or all that it tells of follows.
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._set_mkldnn_enabled(mkldnn)
        torch.backends.mha.set_fastpath_enabled(fast_path)


#: What a forward pass may put things into.
_KEPT = (dict, list, set, OrderedDict)
#: What has no attributes that code writes to while it runs.
_NO_STATE = (Tensor, nn.Module, type, FunctionType, MethodType)
#: What torch keeps on every module.
_OWN = frozenset(vars(nn.Module()))


def _with_others(attributes: dict[str, Any], tensors: Mapping[Tensor, Tensor]) -> dict[str, Any]:
    """Lists and tuples of parameters that modules keep beside the parameters, as recurrent layers do."""
    found = {}
    for name, held in attributes.items():
        if type(held) in (list, tuple) and any(isinstance(t, Tensor) and t in tensors for t in held):
            found[name] = type(held)(tensors.get(t, t) if isinstance(t, Tensor) else t for t in held)
    return found

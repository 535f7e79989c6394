"""Run a model so that nothing of it stays: modes, random states, attributes, parameters and buffers are as before."""

from __future__ import annotations

import contextlib
import copy
import gc
import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as global_hooks


@contextlib.contextmanager
def untouched(model: nn.Module, garbage_waits: bool = True) -> Iterator[None]:
    """Whatever happens inside, mode flags and every random state are as before.

    Args:
        model: Whose flags.
        garbage_waits: Whether cyclic garbage waits until the end: looking for it among all the small objects of a trace
            takes a fifth of the time.
    """
    flags = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.inference_mode(False), torch.random.fork_rng(devices=_cuda_devices(model)):
        collecting = gc.isenabled() and garbage_waits
        if collecting:
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


class Insides:
    """What a model's modules, and the objects that these keep, hold: found once, for all runs of an analysis."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        tensors = {t for m in self.modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None}
        self.stores: list[dict[str, Any]] = [
            vars(m)[kind] for m in self.modules for kind in ("_parameters", "_buffers")
        ]
        self.own = [
            held for m in self.modules for key, held in vars(m).items() if key in _OWN and isinstance(held, dict)
        ]
        self.holders = [vars(holder) for holder in (*self.modules, *_objects_of(self.modules))]
        self.written = [(held, names) for held in self.holders if (names := _written(held))]
        self.listed = [(held, names) for held in self.holders if (names := _listing(held, tensors))]

    @contextlib.contextmanager
    def swapped(self, tensors: Mapping[Tensor, Tensor]) -> Iterator[None]:
        """Inside, the model has other tensors in place of its parameters and buffers; ties stay ties.

        Whatever attributes, hooks and submodules its modules, and objects that these keep, are given meanwhile, by the
        code that runs too, they are as before afterwards.
        """
        before = [(held, dict(held)) for held in (*self.holders, *self.own)]
        try:
            for store in self.stores:
                store.update({key: tensors[t] for key, t in store.items() if t is not None})
            for held, names in self.listed:
                held.update({name: type(held[name])(tensors.get(t, t) for t in held[name]) for name in names})
            for held, names in self.written:
                held.update({name: copy.copy(held[name]) for name in names})
            yield
        finally:
            for held, items in before:
                held.clear()
                held.update(items)


def _written(held: Mapping[str, Any]) -> list[str]:
    """The attributes that a forward pass may put things into."""
    return [name for name, value in held.items() if type(value) in _KEPT and name not in _OWN]


def _listing(held: Mapping[str, Any], tensors: Collection[Tensor]) -> list[str]:
    """Lists and tuples of parameters that modules keep beside the parameters, as recurrent layers do."""
    lists = {name: value for name, value in held.items() if type(value) in (list, tuple)}
    return [name for name, value in lists.items() if any(isinstance(t, Tensor) and t in tensors for t in value)]


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
def plain_kernels() -> Iterator[bool]:
    """Attention, recurrent layers and compiled code show as the plain calls that they are made of, without warnings.

    Yields whether plain calls by themselves may be made with mkldnn's kernels.
    """
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
            yield mkldnn
    finally:
        torch._C._set_mkldnn_enabled(mkldnn)
        torch.backends.mha.set_fastpath_enabled(fast_path)


def plain_call(func: Any, args: tuple, kwargs: dict[str, Any], mkldnn: bool) -> Any:
    """Make a call that is no composed one any more, with the faster kernels if there are."""
    torch._C._set_mkldnn_enabled(mkldnn)
    try:
        return func(*args, **kwargs)
    finally:
        torch._C._set_mkldnn_enabled(False)


#: What a forward pass may put things into.
_KEPT = (dict, list, set, OrderedDict)
#: What has no attributes that code writes to while it runs.
_NO_STATE = (Tensor, nn.Module, type, FunctionType, MethodType)
#: What torch keeps on every module.
_OWN = frozenset(vars(nn.Module()))

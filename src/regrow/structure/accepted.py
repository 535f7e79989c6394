"""What an analysis accepts, and what it says of a model that doesn't run.

All is checked before anything is touched. Compiled models need no check, as they run as written; nor do layers whose
quantised weights are no parameters: they are calls without a rule, so what meets them is frozen.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from ..patterns import means
from .axis import holder, read_as
from .example import Example, named_tensors
from .running import Insides, plain_kernels

#: Wrappers that keep their own view of the parameters, by the end of their classes' names.
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel")


class NoOutput(ValueError):
    """A model returned no tensor."""


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that was given to :func:`torch.compile`, whose parameters these are, or itself."""
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return model


def check_model(model: nn.Module) -> None:
    """Refuse what can't be analysed or edited.

    Raises:
        ValueError: A part of the model is of a kind whose tensors can't change their sizes.
    """
    for name, module in model.named_modules():
        what = f"{name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
        if any(is_lazy(t) for t in [*module.parameters(recurse=False), *module.buffers(recurse=False)]):
            raise ValueError(f"{what} is lazy and has no shape yet; run it once before it is analysed.")
        if isinstance(module, torch.jit.ScriptModule) and [*module.parameters(), *module.buffers()]:
            raise ValueError(
                f"{what} is scripted or traced by torch.jit, which leaves no code to follow sizes through; analyse "
                "and edit the module that it was made from, and script it afterwards."
            )
        if type(module).__name__ in _WRAPPERS and hasattr(module, "module"):
            raise ValueError(
                f"{what} wraps a model and keeps a view of its parameters; analyse its .module, and wrap that again "
                "after an edit."
            )
    _check_tensors(model)


def _check_tensors(model: nn.Module) -> None:
    named = named_tensors(model)
    for name, tensor in named.items():
        if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            raise ValueError(
                f"{name} is a {type(tensor).__name__}, which holds other tensors; analyse it before its "
                "weights are quantised, sharded or otherwise wrapped."
            )
        if tensor.is_inference():
            raise ValueError(
                f"{name} was made in inference mode, where torch makes tensors that can't be changed; make the model "
                "outside of it, or under torch.no_grad()."
            )
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} is laid out as {tensor.layout}; make it dense (to_dense) before the analysis.")
    # Buffers may exist without the parameters, as positions do in models that are built on meta.
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing and len(missing) < len(list(model.parameters())):
        raise ValueError(
            f"{missing[0]} and {len(missing) - 1} other parameters are on meta while the rest has values, as in a "
            "model that is offloaded or half loaded; load all of it, or put all of it on meta."
        )
    packed = [name for name, module in model.named_modules() if hasattr(module, "_packed_params")]
    if packed and not any(t.is_floating_point() for t in named.values()):
        raise ValueError(
            f"all weights are quantised and packed ({', '.join(map(repr, packed[:3]))}), so nothing can change its "
            "size; analyse and edit the model before it is quantised."
        )


def check_opened(model: nn.Module, opened: Any) -> None:
    """Refuse names of what may grow at the boundary that nothing has.

    Raises:
        TypeError: It is no bool, name or list of names.
        ValueError: A name or pattern matches no module with tensors, and no tensor.
    """
    if isinstance(opened, bool):
        return
    patterns = [opened] if isinstance(opened, str) else opened
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f"grow_outputs is a bool, a name or a list of names, not {opened!r}.")
    held = [
        *(name for name, _ in model.named_parameters(remove_duplicate=False)),
        *(name for name, _ in model.named_buffers(remove_duplicate=False)),
    ]
    tensors = dict.fromkeys(name for tensor in held for name in (tensor, read_as(tensor)))
    names = dict.fromkeys(name for tensor in tensors for name in (holder(tensor), tensor))
    for pattern in patterns:
        if not any(means(pattern, name) for name in names):
            known = ", ".join(name for name in names if name)
            raise ValueError(f"grow_outputs={pattern!r} names no module or tensor; there are {known or 'none'}.")


def check_example(args: tuple, kwargs: dict[str, Any]) -> None:
    """Refuse an example that shows nothing.

    Raises:
        TypeError: The arguments aren't a tuple and a dict.
        ValueError: A tensor is empty, or sparse.
    """
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise TypeError(f"args is a tuple and kwargs a dict, not {type(args).__name__} and {type(kwargs).__name__}.")
    for tensor in (leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)):
        if tensor.numel() == 0:
            raise ValueError(f"the example is empty (shape {tuple(tensor.shape)}); give one with a batch of two.")
        if tensor.layout != torch.strided:
            raise ValueError(f"the example is laid out as {tensor.layout}; give a dense one (to_dense).")


def check_outputs(found: Sequence[object], out: Any) -> None:
    """Refuse a model in whose outputs no tensor is found: these have to keep their sizes.

    Raises:
        NoOutput: There is none.
    """
    if not found:
        raise NoOutput(
            f"the model returned no tensor that the analysis can find, but {_short(out)}; its output has to be a "
            "tensor, or an object that holds tensors as items or attributes."
        )


def explained(model: nn.Module, args: tuple, kwargs: dict[str, Any], tracing: Exception) -> ValueError:
    """What to raise where a model couldn't be traced: its own error if it has one, or regrow's."""
    shapes = ", ".join(_shapes((args, kwargs))) or "without tensors"
    for training in (False, True):
        error = _own_error(model, args, kwargs, training)
        if error is not None:
            mode = "train" if training else "eval"
            found = ValueError(
                f"the model doesn't run on the example ({shapes}) in {mode} mode: {_described(error)}. Give an example "
                f"that model.{mode}() runs on."
            )
            found.__cause__ = error
            return found
    found = ValueError(
        f"the model runs on the example ({shapes}), but its calls couldn't be followed: {_described(tracing)}. "
        "This is a limit of regrow; part of the model may still be analysed by itself."
    )
    found.__cause__ = tracing
    return found


def _own_error(model: nn.Module, args: tuple, kwargs: dict[str, Any], training: bool) -> Exception | None:
    """What goes wrong when the model just runs, on copies of its tensors."""
    example = Example.of(args, kwargs, any(p.is_meta for p in model.parameters()))
    model.train(training)
    with torch.no_grad(), plain_kernels(), Insides(model).swapped(example.stand_ins(model)):
        try:
            model(*example.args, **example.kwargs)
        except Exception as error:
            return error
    return None


def _described(error: BaseException) -> str:
    """An error with its kind and the last line outside torch and regrow that it came from."""
    lines = str(error).strip().splitlines() or [""]
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    where = f", at {Path(own[-1].filename).name}:{own[-1].lineno} ({own[-1].name})" if own else ""
    return f"{type(error).__name__}: {lines[0]}{where}"


_LIBRARIES = (Path(torch.__file__).parent, Path(__file__).parent)


def _is_library(file: str) -> bool:
    return any(Path(file).is_relative_to(library) for library in _LIBRARIES)


def _shapes(given: Any) -> Iterator[str]:
    for leaf in pytree.tree_leaves(given):
        if isinstance(leaf, Tensor):
            yield f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"


def _short(value: Any) -> str:
    with contextlib.suppress(Exception):
        text = repr(value)
        return text if len(text) < 60 else f"a {type(value).__name__}"
    return f"a {type(value).__name__}"

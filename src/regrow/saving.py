"""A model and its shape on disk: ``model.safetensors`` and ``shape.json``, no pickle.

``shape.json`` holds the modules that have left and entered, the size of every tensor, the integers that modules keep,
and the masks of single weights; loading puts them onto a freshly built model, then fills it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .masks import mask_of, masked, place_of, set_mask
from .packing import packed, unpacked
from .replaying import as_json, from_json, replay
from .structure.declared import outdated_sizes
from .structure.example import named_tensors
from .structure.integers import Integer, integers
from .surgery import history
from .transaction import Transaction

FORMAT = 1
MODEL_FILE, SHAPE_FILE = "model.safetensors", "shape.json"
#: What a shape may need beside its masks, which are smaller than the tensors, in bytes; and its largest integer.
MOST_BYTES, MOST_INTEGER = 2**24, 2**63
M = TypeVar("M", bound=nn.Module)


def save(model: nn.Module, folder: str | Path) -> None:
    """Write ``model.safetensors`` and ``shape.json`` into a folder, which is made if need be.

    Raises:
        TypeError: It is no module.
        OSError: The folder can't be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"save takes a torch.nn.Module, not {type(model).__name__}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().contiguous().cpu() for name, t in named_tensors(model).items()}
    shape = {
        "format": FORMAT,
        "tensors": {name: list(t.shape) for name, t in tensors.items()},
        "sizes": {name: sizes for name, m in model.named_modules() if (sizes := _sizes(m))},
        "masks": {name: packed(mask) for name, mask in _masks(model)},
        "changes": as_json(history(model)),
    }
    # Each file is complete or absent under its name, whenever the process dies.
    for name, write in (
        (MODEL_FILE, lambda path: path.write_bytes(serialize(tensors, {"shape": json.dumps(shape)}))),
        (SHAPE_FILE, lambda path: path.write_text(json.dumps(shape, indent=1))),
    ):
        part = folder / f"{name}.part"
        write(part)
        part.replace(folder / name)


def load(folder: str | Path, fresh_model: M) -> M:
    """Give a freshly built model the shapes and values that :func:`save` wrote.

    Args:
        folder: The folder that was saved to.
        fresh_model: A model as it was constructed first; it is changed in place and returned.

    Raises:
        ValueError: A file is missing or damaged, or belongs to another model. The model is unchanged then.
    """
    folder = Path(folder)
    shape = _read_shape(folder)
    try:
        with safe_open(folder / MODEL_FILE, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            inner = (file.metadata() or {}).get("shape")
    except Exception as error:  # torch has its own for dtypes and shapes that it doesn't know
        raise ValueError(f"{folder / MODEL_FILE} can't be read: {error}") from error
    held = {name: list(t.shape) for name, t in tensors.items()}
    if held != shape["tensors"] and inner is not None:
        # Whoever saved over an older model may have been killed between the two files.
        shape = _checked_shape(inner, folder / MODEL_FILE)
    if held != shape["tensors"]:
        raise ValueError(f"{folder / MODEL_FILE} doesn't hold the tensors that {SHAPE_FILE} lists.")
    changes = from_json(shape["changes"])
    with Transaction() as writes:
        with torch.random.fork_rng([]):  # modules that enter draw values, which are overwritten
            replay(writes, fresh_model, changes, sum(math.prod(size) for size in shape["tensors"].values()))
        masks = _unpacked(shape, dict(fresh_model.named_parameters()), folder / SHAPE_FILE)
        _plan_reshape(writes, fresh_model, named_tensors(fresh_model), tensors, shape["sizes"])
        writes.run()
        tensors = _as_in(named_tensors(fresh_model), tensors)
        with torch.no_grad():
            for name, tensor in named_tensors(fresh_model).items():
                tensor.copy_(tensors[name])
        for module, attribute, _ in list(masked(fresh_model)):
            set_mask(module, attribute, None)
        for name, mask in masks.items():
            set_mask(*place_of(fresh_model, name), mask.to(named_tensors(fresh_model)[name].device))
    return fresh_model


def reshape_(model: M, state_dict: Mapping[str, Tensor], sizes: Mapping[str, Mapping[str, int]] | None = None) -> M:
    """Give a freshly built model the sizes in a state dict, so that ``load_state_dict`` fits; values are zero.

    Args:
        state_dict: Tensors by name, as ``model.state_dict()`` of the reshaped model has them.
        sizes: Integers by module and attribute, where shapes alone don't tell them.

    Raises:
        ValueError: The names are not the model's. The model is unchanged then.
    """
    # A state dict lists a shared tensor under all its names.
    own = _persistent(model)
    shared = model.state_dict().keys() - own.keys()
    with Transaction() as writes:
        _plan_reshape(writes, model, own, {n: t for n, t in state_dict.items() if n not in shared}, sizes or {})
        writes.run()
    return model


def _persistent(model: nn.Module) -> dict[str, Tensor]:
    """What of the model's tensors a state dict holds."""
    kept = set(model.state_dict(keep_vars=True))
    return {name: tensor for name, tensor in named_tensors(model).items() if name in kept}


def _sizes(module: nn.Module) -> dict[str, int]:
    return {integer.name: integer.value for integer in integers(module)}


def _masks(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The masks of a model's parameters by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for module, attribute, parameter in masked(model):
        mask = mask_of(module, attribute)
        assert mask is not None
        yield names[parameter], mask


def _unpacked(shape: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], path: Path) -> dict[str, Tensor]:
    found = {}
    for name, text in shape["masks"].items():
        if name not in parameters or name not in shape["tensors"]:
            raise ValueError(f"{path} has a mask for {name}, which is no parameter of this model.")
        try:
            found[name] = unpacked(text, shape["tensors"][name])
        except ValueError as error:
            raise ValueError(f"{path} is damaged: of the mask of {name}, {error}") from error
    return found


def _read_shape(folder: Path) -> dict[str, Any]:
    path = folder / SHAPE_FILE
    try:
        size, most = path.stat().st_size, MOST_BYTES + (folder / MODEL_FILE).stat().st_size
        with path.open("rb") as file:
            held = file.read(min(size, most) + 1)
        if len(held) > min(size, most):
            raise ValueError(f"{path} is too large to be the shape of {MODEL_FILE}.")
        return _checked_shape(held.decode(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def _checked_shape(text: str, path: Path) -> dict[str, Any]:
    try:
        shape = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    if not isinstance(shape, dict) or shape.get("format") != FORMAT:
        raise ValueError(f"{path} isn't a shape of format {FORMAT}; it was written by another version or program.")
    tensors, sizes, masks = shape.get("tensors"), shape.get("sizes"), shape.get("masks")
    if (
        set(shape) != {"format", "tensors", "sizes", "masks", "changes"}
        or not _is_table(masks, lambda text: isinstance(text, str))
        or not _is_table(tensors, _is_shape)
        or not _is_table(sizes, _is_sizes)
    ):
        raise ValueError(f"{path} is damaged: it doesn't hold the tensors' shapes, and the modules' sizes and changes.")
    return shape


def _is_table(table: Any, allowed: Callable[[Any], bool]) -> bool:
    return isinstance(table, dict) and all(allowed(value) for value in table.values())


def _is_size(value: Any) -> bool:
    return type(value) is int and abs(value) < MOST_INTEGER


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(_is_size(n) and n >= 0 for n in value)


def _is_sizes(value: Any) -> bool:
    return _is_table(value, _is_size)


def _plan_reshape(
    writes: Transaction,
    model: nn.Module,
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, Mapping[str, int]],
) -> None:
    """Check everything, then plan and make the writes that give the model's own tensors and modules these sizes."""
    modules = dict(model.named_modules())
    _check_tensors(own, tensors)
    changed = _changed_sizes(modules, sizes)
    depthwise = [m for m in modules.values() if isinstance(m, _ConvNd) and _is_depthwise(m)]
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            writes.tensor(own[name], own[name].detach().new_zeros(tensor.shape), None)
    writes.run()
    for integer, value in changed:
        writes.item(vars(integer.holder), integer.attribute, integer.attribute_with(value))
        writes.run()  # the next may lie in the same tuple
    for module in depthwise if not sizes else ():
        writes.attribute(module, "groups", module.weight.shape[0])
    writes.run()
    for name, module in modules.items():
        try:
            outdated = list(outdated_sizes(module))
        except Exception as error:  # as of no heads
            raise ValueError(f"these sizes don't fit {name or 'the model'}: {error}") from error
        for attribute, size in outdated:
            writes.attribute(module, attribute, size)


def _check_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise ValueError(f"these tensors belong to another model: {', '.join(odd[:4])} is in one of them only.")
    for name, tensor in tensors.items():
        if own[name].is_meta:
            raise ValueError(f"{name} is on the meta device and can hold no values; build the model on a real one.")
        if tensor.ndim != own[name].ndim:
            raise ValueError(f"{name} has {own[name].ndim} dimensions in the model and {tensor.ndim} in the file.")


def _as_in(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as those of the model are, so that nothing can fail once the first is copied."""
    found = {}
    for name, tensor in tensors.items():
        dtype = own[name].dtype
        try:
            if (dtype.is_floating_point, dtype.is_complex) != (tensor.is_floating_point(), tensor.is_complex()):
                raise TypeError("numbers of one kind don't become those of another")
            found[name] = tensor.to(dtype)
        except (RuntimeError, TypeError) as error:  # of dtypes that torch can only store
            raise ValueError(
                f"{name} is of {dtype} in the model and of {tensor.dtype} in the file: {error}."
            ) from error
    return found


def _changed_sizes(
    modules: Mapping[str, nn.Module], sizes: Mapping[str, Mapping[str, int]]
) -> list[tuple[Integer, int]]:
    """The integers that differ from the model's, with their new values."""
    changed = []
    for name, named in sizes.items():
        kept = integers(modules[name]) if name in modules else ()
        known = {integer.name: integer for integer in kept}
        for key, value in named.items():
            if key not in known:
                raise ValueError(f"the file sets the size {name}.{key}, which the model doesn't have.")
            if known[key].value != value:
                changed.append((known[key], value))
    return changed


def _is_depthwise(module: _ConvNd) -> bool:
    """A convolution with one channel a group has as many groups as channels, whatever their number."""
    return 1 < module.groups == module.out_channels == module.in_channels

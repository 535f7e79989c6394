"""A model and its shape on disk: ``model.safetensors`` and ``shape.json``, no pickle.

``shape.json`` holds the modules that have left and entered, the size of every tensor, the integers that modules keep,
and the masks of single weights; loading puts them onto a freshly built model, then fills it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from .shapes import SHAPE_FILE, checked_shape, make_shape, plan_reshape, put_masks, shape_of
from .structure.accepted import uncompiled
from .structure.example import named_tensors
from .transaction import Transaction

MODEL_FILE = "model.safetensors"
#: What a shape may need beside its masks, which are smaller than the tensors, in bytes.
MOST_BYTES = 2**24
M = TypeVar("M", bound=nn.Module)


def save(model: nn.Module, folder: str | Path) -> None:
    """Write ``model.safetensors`` and ``shape.json`` into a folder, which is made if need be.

    Raises:
        TypeError: It is no module.
        OSError: The folder can't be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"save takes a torch.nn.Module, not {type(model).__name__}.")
    model = uncompiled(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().contiguous().cpu() for name, t in named_tensors(model).items()}
    shape = shape_of(model)
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
    model = uncompiled(fresh_model)
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
        shape = checked_shape(inner, folder / MODEL_FILE)
    if held != shape["tensors"]:
        raise ValueError(f"{folder / MODEL_FILE} doesn't hold the tensors that {SHAPE_FILE} lists.")
    with Transaction() as writes:
        masks = make_shape(writes, model, shape, tensors, folder / SHAPE_FILE)
        tensors = _as_in(named_tensors(model), tensors)
        with torch.no_grad():
            for name, tensor in named_tensors(model).items():
                tensor.copy_(tensors[name])
        put_masks(model, masks)
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
        plan_reshape(writes, model, own, {n: t for n, t in state_dict.items() if n not in shared}, sizes or {})
        writes.run()
    return model


def _persistent(model: nn.Module) -> dict[str, Tensor]:
    """What of the model's tensors a state dict holds."""
    kept = set(model.state_dict(keep_vars=True))
    return {name: tensor for name, tensor in named_tensors(model).items() if name in kept}


def _read_shape(folder: Path) -> dict[str, Any]:
    path = folder / SHAPE_FILE
    try:
        size, most = path.stat().st_size, MOST_BYTES + (folder / MODEL_FILE).stat().st_size
        with path.open("rb") as file:
            held = file.read(min(size, most) + 1)
        if len(held) > min(size, most):
            raise ValueError(f"{path} is too large to be the shape of {MODEL_FILE}.")
        return checked_shape(held.decode(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


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

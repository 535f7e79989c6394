"""The shape of a model as plain values, and models that take the shape of another one of their kind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
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
SHAPE_FILE = "shape.json"
#: The largest integer in a shape.
MOST_INTEGER = 2**63
M = TypeVar("M", bound=nn.Module)


def shape_of(model: nn.Module) -> dict[str, Any]:
    """What :func:`regrow.save` writes as ``shape.json``: plain values, of which no tensor's values are a part."""
    return {
        "format": FORMAT,
        "tensors": {name: list(tensor.shape) for name, tensor in named_tensors(model).items()},
        "sizes": {name: sizes for name, module in model.named_modules() if (sizes := _sizes(module))},
        "masks": {name: packed(mask) for name, mask in _masks(model)},
        "changes": as_json(history(model)),
    }


def take_shape_(model: M, shape: Mapping[str, Any] | str | Path) -> M:
    """Give a model the shape that another of its kind had; values of tensors that change shape are zero then.

    Args:
        model: Freshly built, or one whose layers have changed in the same way so far.
        shape: What :func:`shape_of` returned, or a folder that has it as ``shape.json``.

    Raises:
        ValueError: It belongs to another model, or is damaged. The model is unchanged then.
    """
    path = Path(shape) / SHAPE_FILE if isinstance(shape, (str, Path)) else Path("the checkpoint")
    held = checked_shape(_text_of(shape), path)
    own = shape_of(model)
    if own == held:
        return model
    known = len(own["changes"])
    if held["changes"][:known] != own["changes"]:
        raise ValueError("layers of this model have changed in another way; build it afresh.")
    tensors = {name: torch.empty(size, device="meta") for name, size in held["tensors"].items()}
    with Transaction() as writes:
        rest = {**held, "changes": held["changes"][known:]}
        put_masks(model, make_shape(writes, model, rest, tensors, path))
    return model


def _text_of(shape: Mapping[str, Any] | str | Path) -> str:
    if not isinstance(shape, (str, Path)):
        return json.dumps(shape)
    try:
        return (Path(shape) / SHAPE_FILE).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{Path(shape) / SHAPE_FILE} can't be read: {error}") from error


def make_shape(
    writes: Transaction, model: nn.Module, shape: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Give a model the layers and sizes of a checked shape.

    Args:
        tensors: By name; their shapes count.
        path: Where the shape is from, for messages.

    Returns:
        The masks that it has, by the names of parameters.

    Raises:
        ValueError: It is damaged, or another model's.
    """
    most = sum(math.prod(size) for size in shape["tensors"].values())
    with torch.random.fork_rng([]):  # modules that enter draw values, which are overwritten
        replay(writes, model, from_json(shape["changes"]), most)
    masks = _unpacked(shape, dict(model.named_parameters()), path)
    plan_reshape(writes, model, named_tensors(model), tensors, shape["sizes"])
    writes.run()
    return masks


def put_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Give a model these masks, and no others."""
    for module, attribute, _ in list(masked(model)):
        set_mask(module, attribute, None)
    for name, mask in masks.items():
        set_mask(*place_of(model, name), mask.to(named_tensors(model)[name].device))


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


def checked_shape(text: str, path: Path) -> dict[str, Any]:
    """A shape as it is written.

    Raises:
        ValueError: It is none, or of another format.
    """
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


def plan_reshape(
    writes: Transaction,
    model: nn.Module,
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, Mapping[str, int]],
) -> None:
    """Plan to give tensors, and the integers that count them, other sizes.

    Raises:
        ValueError: The tensors are not the model's.
    """
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

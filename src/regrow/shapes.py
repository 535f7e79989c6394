"""The shape of a model as plain values, and models that take the shape of another one of their kind."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from .edit import Edit
from .masks import mask_of, masked, place_of, set_mask
from .packing import packed
from .remap import mapped
from .replaying import as_json, from_json, replay
from .saving import FORMAT, SHAPE_FILE, _checked_shape, _masks, _plan_reshape, _sizes, _unpacked
from .structure.example import named_tensors
from .surgery import history
from .transaction import Transaction

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
    held = _checked_shape(_text_of(shape), path)
    own = shape_of(model)
    if own == held:
        return model
    known = len(own["changes"])
    if held["changes"][:known] != own["changes"]:
        raise ValueError("layers of this model have changed in another way; build it afresh.")
    with Transaction() as writes:
        with torch.random.fork_rng([]):  # modules that enter draw values, which are overwritten
            most = sum(math.prod(size) for size in held["tensors"].values())
            replay(writes, model, from_json(held["changes"][known:]), most)
        masks = _unpacked(held, dict(model.named_parameters()), path)
        tensors = {name: torch.empty(size, device="meta") for name, size in held["tensors"].items()}
        _plan_reshape(writes, model, named_tensors(model), tensors, held["sizes"])
        writes.run()
        for module, attribute, _ in list(masked(model)):
            set_mask(module, attribute, None)
        for name, mask in masks.items():
            set_mask(*place_of(model, name), mask.to(named_tensors(model)[name].device))
    return model


def _text_of(shape: Mapping[str, Any] | str | Path) -> str:
    if not isinstance(shape, (str, Path)):
        return json.dumps(shape)
    try:
        return (Path(shape) / SHAPE_FILE).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{Path(shape) / SHAPE_FILE} can't be read: {error}") from error


@torch.no_grad()
def follow_(copy: nn.Module, model: nn.Module, edit: Edit) -> None:
    """Let a copy of a model, as the averages of its weights are, follow an edit of it.

    What stayed keeps the copy's values. New units, layers and weights have the model's own.

    Args:
        copy: Of the shape that the model had before the edit.
        model: After it.
        edit: The newest of the model.

    Raises:
        ValueError: The copy had another shape. It is unchanged then.
    """
    before = {tensor: tensor.detach().clone() for tensor in named_tensors(copy).values()}
    take_shape_(copy, shape_of(model))
    present = named_tensors(model)
    for name, tensor in named_tensors(copy).items():
        now, old, past = present[name], before.get(tensor), edit._past.get(name)
        maps = getattr(past, "maps", None)
        if old is None or (maps is None and old.shape != tensor.shape):
            tensor.copy_(now)
        elif maps is None:
            tensor.copy_(old)
        else:
            stayed = mapped(torch.ones_like(old, dtype=torch.bool), maps, fill=False)
            tensor.copy_(torch.where(stayed, mapped(old, maps, fill=0), now.to(old.device)))
    for module, attribute, parameter in masked(copy):
        mask = mask_of(module, attribute)
        if mask is not None:
            parameter.mul_(mask)

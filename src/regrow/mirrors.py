"""Copies of a model that follow its edits, as running averages of its weights are."""

from __future__ import annotations

import torch
from torch import nn

from .edit import Edit
from .masks import mask_of, masked
from .remap import mapped
from .shapes import shape_of, take_shape_
from .structure.example import named_tensors


def check_mirrors(copy: nn.Module, model: nn.Module) -> None:
    """A copy has the shapes of its model.

    Raises:
        ValueError: It hasn't.
    """
    own, other = ({name: t.shape for name, t in named_tensors(m).items()} for m in (copy, model))
    odd = [name for name in {**own, **other} if own.get(name) != other.get(name)]
    if odd:
        raise ValueError(
            f"a copy that is to follow the model differs from it in {odd[0]}; copy the model as it is now."
        )


@torch.no_grad()
def follow_(copy: nn.Module, model: nn.Module, edit: Edit) -> None:
    """Let a copy of a model, as the averages of its weights are, follow an edit of it.

    What stayed keeps the copy's values. New units, layers and weights have the model's own.

    Args:
        copy: Of the shape that the model had before the edit.
        model: After it.
        edit: The newest of the model.
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

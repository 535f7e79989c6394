"""What `regrow inspect` looks at: a model, and the input that it is run on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..bench.errors import InputError

BATCH = 2  # with one example, sizes that come from the batch would be taken for others


@dataclass(frozen=True)
class Request:
    """What the user says of the example.

    Attributes:
        shape: of the model's main input, batch included.
        image_size: height and width of images; models that depend on it are built for it.
    """

    shape: tuple[int, ...] | None = None
    image_size: int | None = None

    @classmethod
    def read(cls, shape: str | None, image_size: int | None) -> Request:
        """From the options as they are typed.

        Raises:
            InputError: what is no shape, or has no batch.

        >>> Request.read("2,3,64,64", None).shape
        (2, 3, 64, 64)
        """
        if image_size is not None and image_size < 1:
            raise InputError(f"--image-size is {image_size}, but must be at least 1")
        if shape is None:
            return cls(None, image_size)
        try:
            sizes = tuple(int(part) for part in shape.replace("x", ",").split(","))
        except ValueError:
            raise InputError(f"--input {shape} is not a shape; write it like 2,3,224,224") from None
        if min(sizes) < 1:
            raise InputError(f"--input {shape} has a size below 1")
        if sizes[0] < BATCH:
            raise InputError(f"--input {shape}: its first size is the batch, which must be at least {BATCH}")
        return cls(sizes, image_size)


@dataclass(frozen=True)
class Subject:
    """A model with its example.

    Attributes:
        name: what the user asked for.
        samples: in the example; None where nothing says which dimension is the batch.
    """

    name: str
    model: nn.Module
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    samples: int | None = BATCH

    @property
    def shapes(self) -> str:
        """The example for people: ``2×3×224×224``."""
        leaves = [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]
        return ", ".join("×".join(map(str, leaf.shape)) for leaf in leaves)


def numbers(*shape: int) -> Tensor:
    """Normally distributed numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def tokens(vocabulary: int, *shape: int) -> Tensor:
    """Indices into a vocabulary, as different as it allows."""
    return (torch.arange(math.prod(shape)) % max(1, vocabulary)).reshape(shape)

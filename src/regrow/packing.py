"""Masks as text: a bit for each weight, in base 64."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def packed(mask: Tensor) -> str:
    """A mask's bits, row by row.

    >>> packed(torch.tensor([[True, False], [True, True]]))
    'sA=='
    """
    return base64.b64encode(np.packbits(mask.detach().cpu().numpy()).tobytes()).decode()


def unpacked(text: str, shape: Sequence[int]) -> Tensor:
    """The mask of that shape.

    Raises:
        ValueError: The text isn't one of :func:`packed`, or is one of another size.
    """
    size = math.prod(shape)
    length = (size + 7) // 8
    if len(text) != (length + 2) // 3 * 4:
        raise ValueError(f"it isn't as long as a mask of shape {tuple(shape)} is.")
    try:
        held = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except binascii.Error as error:
        raise ValueError(f"it isn't base 64: {error}") from error
    if len(held) != length:
        raise ValueError(f"it isn't as long as a mask of shape {tuple(shape)} is.")
    return torch.from_numpy(np.unpackbits(held, count=size).astype(bool)).reshape(tuple(shape))

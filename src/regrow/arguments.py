"""Checks of arguments that all edits share."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


def check_arguments(optimizer: Any, generator: Any, loss: Any, batches: Any) -> None:
    """Whether these are what edits take.

    Raises:
        TypeError, ValueError: One isn't.
    """
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is a torch.optim.Optimizer, not {type(optimizer).__name__}.")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is a torch.Generator, not {generator!r}.")
    if loss is not None and not callable(loss):
        raise TypeError("loss is a callable without arguments that returns a scalar tensor.")
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise ValueError(f"batches is a positive integer, not {batches!r}.")

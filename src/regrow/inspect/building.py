"""Building models that take no memory."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Inside, parameters of new modules have shapes but neither values nor memory.

    Buffers are as always: the analysis may need their values, as those of a table of positions. That is why this
    isn't ``torch.device("meta")``, under which constructors that look at their own buffers fail, too.

    >>> with parameters_on_meta():
    ...     norm = nn.BatchNorm1d(3)
    >>> norm.weight.device.type, norm.running_var.tolist()
    ('meta', [1.0, 1.0, 1.0])
    """
    # One parameter that is registered twice stays one.
    copies = WeakIdKeyDictionary()

    def move(module: nn.Module, name: str, parameter: nn.Parameter) -> Any:
        if type(parameter) is not nn.Parameter or parameter.is_meta:
            return None  # as it is
        if parameter not in copies:
            copies[parameter] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        return copies[parameter]

    hook = register_module_parameter_registration_hook(move)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside, libraries keep their advice on training and weights to themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

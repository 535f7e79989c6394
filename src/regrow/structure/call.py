"""One call of a trace."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import nn

from .meta import tensors_among


class Call:
    """One ATen call: its arguments by their schema names, what it returned, and where it was made.

    Attributes:
        operator: The operator's name with its namespace, as ``"aten::convolution"``.
        name: The same without it, as ``"convolution"``.
        tensors: All tensors among the arguments, in order.
        outputs: Those that it returned.
    """

    def __init__(self, op: Any, args: tuple, kwargs: dict, out: Any, module: nn.Module | None) -> None:
        self.op, self.out, self.module = op, out, module
        self.operator, self.name, names = _signature(op)
        self.arguments: dict[str, Any] = {**kwargs, **dict(zip(names, args, strict=False))}
        self.tensors, self.outputs = tensors_among(self.arguments.values()), tensors_among([out])

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def get(self, argument: str, default: Any = None) -> Any:
        return self.arguments.get(argument, default)

    @property
    def copies(self) -> bool:
        """Whether it does no more than copy."""
        return self.name in _COPIES


_COPIES = {"clone", "contiguous", "alias", "detach"}


@lru_cache(maxsize=4096)
def _signature(op: Any) -> tuple[str, str, tuple[str, ...]]:
    """An operator's name with and without its namespace, and the names of its arguments: torch makes them anew each
    time that it is asked."""
    schema = op._schema
    return schema.name, schema.name.partition("::")[2], tuple(spec.name for spec in schema.arguments)

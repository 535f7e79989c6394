"""The modules of a model as nested rows, in execution order, each with its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..structure import Structure
from .order import Order


@dataclass(frozen=True)
class Cell:
    """One dimension of one tensor.

    ``index`` numbers it on the page; ``state`` is "moves" (all of it, with some axis), "partly" or "still".
    """

    index: int
    size: int
    state: str


@dataclass(frozen=True)
class Tensor:
    """One parameter or buffer of a module.

    ``tied`` is the name that the analysis knows a shared tensor by, where that is another one.
    """

    attribute: str
    name: str
    cells: tuple[Cell, ...]
    trainable: bool
    tied: str = ""


@dataclass(frozen=True)
class Integer:
    """A Python integer that follows some axis."""

    index: int
    label: str
    value: int


@dataclass
class Row:
    """One module, or one tensor of a module that has others inside.

    Attributes:
        label: the last part of the path.
        path: the module's name, empty for the model.
        type: the class of the module; empty for a tensor.
        tensors: shown on this row.
        integers: of the module.
        rows: what is inside, in execution order.
        deep: whether anything inside has tensors; then the module's own are rows as well.
        parameters: of the module with all that is inside.
        output: shape of what the module returned.
        times: how often it was called.
        idle: whether it holds nothing and does nothing: an identity, or dropout out of training.
    """

    label: str
    path: str
    type: str = ""
    about: str = ""
    tensors: tuple[Tensor, ...] = ()
    integers: tuple[Integer, ...] = ()
    rows: tuple[Row, ...] = ()
    deep: bool = False
    parameters: int = 0
    output: str = ""
    times: int = 0
    idle: bool = False

    @property
    def folds(self) -> bool:
        """Whether there is anything inside worth seeing."""
        return not all(row.idle for row in self.rows)

    def walk(self) -> Iterator[Row]:
        """This row, and all inside."""
        yield self
        for row in self.rows:
            yield from row.walk()


@dataclass
class Numbering:
    """The numbers that the page knows tensor dimensions and integers by, and what is known of them."""

    cells: dict[tuple[str, int], Cell] = field(default_factory=dict)
    integers: dict[str, Integer] = field(default_factory=dict)


class Tree:
    """Builds the rows of a model."""

    def __init__(self, structure: Structure, order: Order, numbering: Numbering) -> None:
        self.model, self.order, self.numbering = structure.model, order, numbering
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        self.known_as = {id(tensor): name for name, tensor in named}
        self.paths = {module: path for path, module in self.model.named_modules()}
        self.integers: dict[str, list[Integer]] = {}
        for key, integer in numbering.integers.items():
            self.integers.setdefault(self._path_of(key), []).append(integer)

    def row(self, module: nn.Module, label: str) -> Row:
        """The row of a module with all that is inside."""
        path = self.paths[module]
        children = [
            (name, child) for name, child in module.named_children() if self.paths.get(child) == _at(path, name)
        ]
        tensors = self._tensors(module, path)
        rows = [(self._start(child), self.row(child, name)) for name, child in children]
        deep = any(each.tensors for _, row in rows for each in row.walk())
        if deep:
            rows += [(self.order.read(t.tied or t.name), Row(t.attribute, t.name, tensors=(t,))) for t in tensors]
        rows.sort(key=lambda timed: timed[0])
        visit = self.order.visit(module)
        integers = tuple(self.integers.get(path, ()))
        return Row(
            label=label,
            path=path,
            type=type(module).__name__,
            about=_about(module),
            tensors=() if deep else tensors,
            integers=integers,
            rows=tuple(row for _, row in rows),
            deep=deep,
            parameters=sum(p.numel() for p in module.parameters()),
            output="×".join(map(str, visit.output or ())),
            times=visit.times,
            idle=not (tensors or integers or visit.calls) and all(row.idle for _, row in rows),
        )

    def _start(self, module: nn.Module) -> int:
        """When anything of a module first ran: containers are never called themselves."""
        times = [self.order.visit(m).first for m in module.modules()]
        path = self.paths[module]
        reads = [self.order.read(_at(path, name)) for name, _ in [*module.named_parameters(), *module.named_buffers()]]
        return min(times + reads)

    def _tensors(self, module: nn.Module, path: str) -> tuple[Tensor, ...]:
        held: dict[str, Any] = {**module._parameters, **module._buffers}
        found = []
        for attribute, tensor in held.items():
            if tensor is None or tensor.ndim == 0:
                continue
            name = _at(path, attribute)
            known_as = self.known_as[id(tensor)]
            cells = tuple(self.numbering.cells[known_as, dim] for dim in range(tensor.ndim))
            trainable = isinstance(tensor, nn.Parameter)
            found.append(Tensor(attribute, name, cells, trainable, known_as if known_as != name else ""))
        return tuple(found)

    def _path_of(self, key: str) -> str:
        """The innermost module that an integer's name begins with."""
        known = set(self.paths.values())
        parts = key.split(".")
        return next(p for end in range(len(parts) - 1, -1, -1) if (p := ".".join(parts[:end])) in known)


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _about(module: nn.Module) -> str:
    """What a module says of itself, if it can."""
    try:
        return " ".join(module.extra_repr().split())
    except Exception:  # other people's code
        return ""

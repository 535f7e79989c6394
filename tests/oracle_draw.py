"""Builds programs, one operation after the other; what is free to choose is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TypeVar

import torch
from torch import Tensor

from oracle_graphs import BlockSpec, Held, Kept, Part, Program, Size, Spec, Step, run_step

#: So many labels are decided by trial at most.
LABELS = 14

#: Of layers that are made where no value fits.
WIDTHS = (2, 3, 4, 6)

Item = TypeVar("Item")
Choice = Callable[[int], int]  # of so many, one


class OutOfLabels(Exception):
    """A part needs more labels than are left."""


class Builder:
    """Adds blocks to a program; runs each step at once, to know all shapes.

    Attributes:
        flat: The values that blocks may read and the output will.
    """

    def __init__(self, choose: Choice, time: int = 2) -> None:
        self.program = Program(time=time)
        self.choose = choose
        self.left = LABELS
        self.values: list[Tensor] = [torch.randn(2, time, self.program.features, dtype=torch.float64)]
        self.flat = [0]
        self.read: set[int] = set()
        self.start()

    def start(self) -> None:
        """A new block."""
        self.block, self.holder = BlockSpec(), SimpleNamespace()
        self.program.blocks.append(self.block)

    def held(self, name: str, value: int) -> Held:
        """An integer of the block."""
        while self.block.held.get(name, value) != value:
            name += "_too"
        self.block.held[name] = value
        setattr(self.holder, name, value)
        return Held(name)

    def param(self, *shape: int, labelled: Sequence[int] = (), kind: str = "weight") -> str:
        """A new parameter of the block."""
        self.left -= sum(shape[dim] for dim in labelled)
        if self.left < 0:
            raise OutOfLabels
        name = f"p_{chr(ord('a') + len(self.block.params))}"
        self.block.params[name] = Spec(shape, tuple(labelled), kind)
        setattr(self.holder, name, torch.rand(shape, dtype=torch.float64))
        return name

    def emit(self, op: str, *inputs: int, params: Sequence[str] = (), args: tuple = ()) -> int:
        """A step; the number of its first output."""
        step = Step(op, inputs, tuple(params), args)
        self.block.steps.append(step)
        self.values += (out := run_step(self.holder, step, self.values))
        self.read.update(inputs)
        return len(self.values) - len(out)

    def shape(self, value: int) -> tuple[int, ...]:
        return tuple(self.values[value].shape)

    def width(self, value: int) -> int:
        return self.values[value].shape[-1]

    def one_of(self, options: Sequence[Item]) -> Item:
        return options[self.choose(len(options))]

    def linear(self, value: int, width: int, labelled: bool = True) -> int:
        """A layer whose rows are labels, or the output's."""
        weight = self.param(width, self.width(value), labelled=(0,) if labelled else ())
        return self.emit("linear", value, params=(weight, self.param(width)))

    def base(self, fits: Callable[[int], bool] = lambda width: True) -> int:
        """A hidden flat value of a fitting width, which is made if need be."""
        fitting = [v for v in self.flat[1:] if fits(self.width(v)) and self.width(v) <= 16]
        widths = [w for w in WIDTHS if fits(w) and w <= self.left]
        if fitting and (not widths or self.choose(4)):
            return self.one_of(fitting)
        if not widths:
            raise OutOfLabels
        made = self.linear(self.one_of(self.flat), self.one_of(widths))
        return self.emit("tanh", made) if self.choose(2) else made

    def apart(self, value: int, groups: int, name: str = "heads") -> int:
        """The last dimension in two."""
        inside = self.width(value) // groups
        style = self.choose(8)
        pair: tuple[Size, Size]
        if style == 0:
            pair = ((groups, -1), (-1, inside))[self.choose(2)]
        elif style < 4:
            pair = self.held(name, groups), -1
        elif style == 4:
            pair = -1, self.held("inside", inside)
        elif style == 5:
            count = self.held(name, groups)
            pair = count, Part(2, count)
        else:
            pair = self.held(name, groups), self.held("inside", inside)
        return self.emit("view", value, args=((Kept(0), Kept(1), *pair),))

    def together(self, value: int) -> int:
        """The last two dimensions in one."""
        total = self.shape(value)[2] * self.shape(value)[3]
        match self.choose(12):
            case 0:
                return self.emit("view", value, args=((-1, Kept(1), total),))
            case 1:
                return self.emit("view", value, args=((Kept(0), Kept(1), self.held("width", total)),))
        return self.emit("view", value, args=((Kept(0), Kept(1), -1),))

    def finish(self) -> Program:
        """Read all that nothing has read, and add it up."""
        self.start()
        total = None
        for value in (v for v in self.flat[1:] if v not in self.read):
            out = self.linear(value, 2, labelled=False)
            total = out if total is None else self.emit("add", total, out)
        return self.program


def divisors(width: int) -> list[int]:
    """What a width can be divided by, 1 and itself left out."""
    return [n for n in range(2, width) if width % n == 0]


def composite(width: int) -> bool:
    """Whether a width can be divided."""
    return bool(divisors(width))

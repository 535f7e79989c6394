"""Small networks as programs: a list of steps, each a call or two of torch, that a reference interpreter can run too.

A flat value is ``(batch, time, features)``. Steps stand in blocks; a block is a module with its own parameters and its
own integers. Sizes handed to calls are literal, inferred, integers of the module, or told from a tensor's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Kept(NamedTuple):
    """The size of one of the input's dimensions."""

    dim: int


class Held(NamedTuple):
    """An integer that the block holds."""

    name: str


class Part(NamedTuple):
    """The size of one of the input's dimensions, divided."""

    dim: int
    by: int | Held


class SizeOf(NamedTuple):
    """The size of one dimension of a parameter of the block."""

    parameter: str
    dim: int


Size = int | Kept | Held | Part | SizeOf


class Step(NamedTuple):
    """One operation on the values numbered ``inputs``."""

    op: str
    inputs: tuple[int, ...]
    params: tuple[str, ...] = ()
    args: tuple[Any, ...] = ()


def outputs(step: Step) -> int:
    """How many values a step gives."""
    match step.op:
        case "split":
            return len(step.args[0])
        case "chunk" | "packed_linear":
            return step.args[0]
        case "unbind":
            return step.args[1]
    return 1


class Spec(NamedTuple):
    """A parameter: ``labelled`` dimensions are decided by trial; the others are fixed, or follow what they meet."""

    shape: tuple[int, ...]
    labelled: tuple[int, ...] = ()
    kind: str = "weight"  # "weight", "scale", "mean" or "var"; the last two are buffers


@dataclass
class BlockSpec:
    """A module: steps, parameters, integers."""

    steps: list[Step] = field(default_factory=list)
    params: dict[str, Spec] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)


@dataclass(repr=False)
class Program:
    """Blocks in the order in which they run; the last value is the output."""

    blocks: list[BlockSpec] = field(default_factory=list)
    time: int = 2
    features: int = 3

    def specs(self) -> Iterator[tuple[str, Spec]]:
        """All parameters under the names that they have in the network."""
        for number, block in enumerate(self.blocks):
            for name, spec in block.params.items():
                yield f"{path(number)}.{name}", spec

    def steps(self) -> Iterator[tuple[int, Step]]:
        """All steps with the numbers of their blocks."""
        for number, block in enumerate(self.blocks):
            for step in block.steps:
                yield number, step

    def labels(self) -> list[tuple[str, int, int]]:
        """What is decided by trial: tensor, dimension, index."""
        return [(name, d, i) for name, spec in self.specs() for d in spec.labelled for i in range(spec.shape[d])]

    def example(self, batch: int = 3, seed: int = 0) -> Tensor:
        """An input."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, self.time, self.features, generator=generator, dtype=torch.float64)

    def __str__(self) -> str:
        """As pseudo-code."""
        lines, value = [], 0
        for number, block in enumerate(self.blocks):
            lines.append(f"{path(number)}: {block.held or ''}")
            lines += [f"  {name}: {spec.shape} labelled {spec.labelled}" for name, spec in block.params.items()]
            for step in block.steps:
                count = outputs(step)
                names = ", ".join(f"v{value + 1 + i}" for i in range(count))
                given = ", ".join([*(f"v{i}" for i in step.inputs), *step.params, *map(str, step.args)])
                lines.append(f"  {names} = {step.op}({given})")
                value += count
        return "\n".join(lines)

    __repr__ = __str__


def path(block: int) -> str:
    """A block's name in its network: without digits, so that no two blocks are taken for repetitions of one."""
    return f"blocks.{chr(ord('a') + block)}"


class Block(nn.Module):
    """Runs its steps on the values so far."""

    def __init__(self, spec: BlockSpec, generator: torch.Generator) -> None:
        super().__init__()
        self._spec = spec
        for name, integer in spec.held.items():
            setattr(self, name, integer)
        for name, parameter in spec.params.items():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            match parameter.kind:
                case "mean":
                    self.register_buffer(name, 0.3 * drawn)
                case "var":
                    self.register_buffer(name, 0.5 + drawn.abs())
                case "scale":
                    setattr(self, name, nn.Parameter(1 + 0.3 * drawn))
                case _:
                    setattr(self, name, nn.Parameter(drawn * 0.8))

    def forward(self, values: list[Tensor]) -> list[Tensor]:
        known = list(values)
        for step in self._spec.steps:
            known += run_step(self, step, known)
        return known[len(values) :]


class Net(nn.Module):
    """A program as a network."""

    def __init__(self, program: Program, seed: int = 0) -> None:
        super().__init__()
        self._program = program
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ModuleDict(
            {path(i).rpartition(".")[2]: Block(spec, generator) for i, spec in enumerate(program.blocks)}
        )

    @property
    def program(self) -> Program:
        """The program; as an attribute it would hold integers that could be taken for sizes."""
        return self._program

    def values(self, x: Tensor) -> list[Tensor]:
        """Everything that is computed on the way to the output, which is the last."""
        values = [x]
        for block in self.blocks.values():
            values += block(values)
        return values

    def forward(self, x: Tensor) -> Tensor:
        return self.values(x)[-1]


def run_step(holder: Any, step: Step, values: Sequence[Tensor]) -> list[Tensor]:
    """One step; parameters and integers are attributes of ``holder``."""
    inputs = [values[i] for i in step.inputs]
    params = [getattr(holder, name) for name in step.params]
    sizes = _Sizes(holder, inputs[0])
    out = _TORCH[step.op](sizes, *inputs, *params, *step.args)
    return list(out) if isinstance(out, (list, tuple)) else [out]


class _Sizes(NamedTuple):
    """Tells sizes from shapes and from integers."""

    holder: Any
    tensor: Tensor

    def __call__(self, size: Size) -> int:
        match size:
            case Kept(dim):
                return self.tensor.shape[dim]
            case Held(name):
                return getattr(self.holder, name)
            case Part(dim, by):
                return self.tensor.shape[dim] // self(by)
            case SizeOf(parameter, dim):
                return getattr(self.holder, parameter).shape[dim]
        return size


def _conv1d(sizes: _Sizes, x: Tensor, w: Tensor, b: Tensor, groups: Size) -> Tensor:
    return F.conv1d(x.transpose(1, 2), w, b, padding=1, groups=sizes(groups)).transpose(1, 2)


def _batch_norm(sizes: _Sizes, x: Tensor, w: Tensor, b: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x.transpose(1, 2), mean, var, w, b).transpose(1, 2)


def _group_norm(sizes: _Sizes, x: Tensor, w: Tensor, b: Tensor, groups: Size) -> Tensor:
    return F.group_norm(x.transpose(1, 2), sizes(groups), w, b).transpose(1, 2)


def _attention(sizes: _Sizes, q: Tensor, k: Tensor, v: Tensor, shared: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=shared)


def _packed_linear(sizes: _Sizes, x: Tensor, w: Tensor, b: Tensor, count: int) -> list[Tensor]:
    return [F.linear(x, part, shift) for part, shift in zip(w.chunk(count), b.chunk(count), strict=True)]


def _directed(sizes: _Sizes, x: Tensor, w: Tensor, g: Tensor) -> Tensor:
    """A weight norm by hand."""
    return F.linear(x, w * (g / w.norm(dim=1, keepdim=True)))


def _part_in_place(sizes: _Sizes, x: Tensor, start: Size | None, stop: Size | None) -> Tensor:
    first, last = (None if size is None else sizes(size) for size in (start, stop))
    out = x.clone()
    out[..., first:last] *= 2
    return out


def _slice(sizes: _Sizes, x: Tensor, dim: int, start: Size | None, stop: Size | None, step: int) -> Tensor:
    first, last = (None if size is None else sizes(size) for size in (start, stop))
    return x[(slice(None),) * dim + (slice(first, last, step),)]


_TORCH: Mapping[str, Callable[..., Any]] = {
    "linear": lambda s, x, w, b: F.linear(x, w, b),
    "linear_back": lambda s, x, w: x @ w,
    "conv1d": _conv1d,
    "grouped": lambda s, x, w: torch.einsum("btgi,goi->btgo", x, w),
    "batch_norm": _batch_norm,
    "layer_norm": lambda s, x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
    "group_norm": _group_norm,
    "packed_linear": _packed_linear,
    "joined_linear": lambda s, x, w, v: F.linear(x, torch.cat([w, v])),
    "directed": _directed,
    "table": lambda s, x, w: x + w[: x.shape[-1]],
    "norm": lambda s, x: F.normalize(x, dim=-1),
    "largest": lambda s, x, dim, keep: x.amax(dim, keepdim=keep),
    "where": lambda s, x, y: torch.where(x > 0, x, y),
    "add_in_place": lambda s, x, y: x.clone().add_(y),
    "part_in_place": _part_in_place,
    "add": lambda s, x, y: x + y,
    "mul": lambda s, x, y: x * y,
    "scaled": lambda s, x, w: x * w,
    "shifted": lambda s, x, w: x + w,
    "tanh": lambda s, x: torch.tanh(x),
    "sigmoid": lambda s, x: torch.sigmoid(x),
    "softmax": lambda s, x, dim: x.softmax(dim),
    "sum": lambda s, x, dim, keep: x.sum(dim, keepdim=keep),
    "mean": lambda s, x, dim, keep: x.mean(dim, keepdim=keep),
    "by_size": lambda s, x, y, dim: x * y.shape[dim] ** -0.5,
    "by_number": lambda s, x, number: x * number,
    "cat": lambda s, *xs: torch.cat(xs[:-1], xs[-1]),
    "chunk": lambda s, x, count, dim: x.chunk(count, dim),
    "split": lambda s, x, parts, dim: x.split([s(n) for n in parts], dim),
    "view": lambda s, x, shape: x.reshape([s(n) for n in shape]),
    "permute": lambda s, x, order: x.permute(order),
    "flip": lambda s, x, dim: x.flip(dim),
    "roll": lambda s, x, by, dim: x.roll(by, dim),
    "repeat": lambda s, x, times: x.repeat(times),
    "repeat_interleave": lambda s, x, times, dim: x.repeat_interleave(times, dim),
    "slice": _slice,
    "select": lambda s, x, dim, index: x.select(dim, index),
    "unbind": lambda s, x, dim, count: x.unbind(dim),
    "expand": lambda s, x, dim, times: x.unsqueeze(dim).expand([-1] * dim + [times] + [-1] * (x.ndim - dim)),
    "stack": lambda s, x, y, dim: torch.stack([x, y], dim),
    "glu": lambda s, x: F.glu(x, -1),
    "pad": lambda s, x, before, after: F.pad(x, (before, after)),
    "outer": lambda s, x, y: x[..., :, None] * y[..., None, :],
    "low_rank": lambda s, x, w, v: F.linear(x, w @ v),
    "centred": lambda s, x, w: F.linear(x, w - w.mean(1, keepdim=True)),
    "gram": lambda s, x: x.mT @ x,
    "matmul": lambda s, x, y: x @ y,
    "matmul_t": lambda s, x, y: x @ y.transpose(-2, -1),
    "attention": _attention,
    "fused": lambda s, q, k, v: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v)[0],
}
OPS = tuple(_TORCH)

_OUT_IN: tuple[tuple[str, ...], ...] = (("out", "in"), ("shift",))
_SCALE: tuple[tuple[str, ...], ...] = (("scale",), ("shift",))

#: What each dimension of each parameter does to the units along it; dimensions of size 1 do nothing.
ROLES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "linear": _OUT_IN,
    "linear_back": (("in", "out"),),
    "conv1d": _OUT_IN,
    "grouped": (("", "out", "in"),),
    "batch_norm": (*_SCALE, ("mean",), ("var",)),
    "layer_norm": _SCALE,
    "group_norm": _SCALE,
    "scaled": (("scale",), ("scale",)),
    "shifted": (("shift",), ("shift",)),
    "low_rank": (("out",), ("", "in")),
    "centred": (("out", "in"),),
    "packed_linear": _OUT_IN,
    "joined_linear": (("out", "in"), ("out", "in")),
    "directed": (("out", "in"),),
}


def roles_of(program: Program) -> dict[tuple[str, int], set[str]]:
    """What parameters do to the units along their dimensions, where that is clear."""
    found: dict[tuple[str, int], set[str]] = {}
    for block, step in program.steps():
        for name, roles in zip(step.params, ROLES.get(step.op, ()), strict=False):
            for dim, role in enumerate(roles):
                if role:
                    found.setdefault((f"{path(block)}.{name}", dim), set()).add(role)
    return found

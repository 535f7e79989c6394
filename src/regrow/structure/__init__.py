"""What may change in a model: :func:`analyze` finds its axes from the calls that it really makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..patterns import means
from .accepted import NoOutput, check_example, check_model, check_opened, check_outputs, explained, uncompiled
from .assemble import Frozen, Reasons, assemble, without_immovable
from .axis import KINDS, TAGS, Axis, Count, Entry, Verdict
from .boundary import Boundary
from .depth import Cell, Layer, find_depth
from .example import Example, named_tensors, tensors_in
from .journal import Journal
from .labels import Source
from .outputs import outputs_of, part_of
from .prove import Proof
from .relations import Relations
from .rules import rule_of
from .running import Insides, untouched
from .sizes import SizeMode
from .solve import solve
from .spans import record
from .table import table
from .tied import tie
from .trace import Trace, run
from .trial import Trials
from .verify import Verification, verify
from .weights import Weights, find_weights

__all__ = [
    "Axis",
    "Cell",
    "Count",
    "Entry",
    "Frozen",
    "Layer",
    "Structure",
    "UnknownName",
    "Verdict",
    "Verification",
    "Weights",
    "analyze",
]


class UnknownName(KeyError, ValueError):
    """No axis, or more than one, answers to a name."""

    def __str__(self) -> str:
        return str(self.args[0])


class Structure:
    """The axes of a model, in execution order, and what is frozen. Follows every edit and undo.

    Attributes:
        model: The model itself.
        axes: What may grow and shrink.
        weights: The parameters whose single weights may be off, in execution order.
        frozen: What of the tensors' dimensions is in no axis, with the reason.
        unknown: Calls without a rule -> how often they were made; what they touched is frozen.
    """

    def __init__(
        self,
        model: nn.Module,
        axes: tuple[Axis, ...],
        frozen: tuple[Frozen, ...],
        trace: Trace,
        example: tuple[tuple, dict[str, Any]],
        opened: bool | str | Sequence[str] = False,
    ) -> None:
        self._opened = opened
        self.model, self.axes, self.frozen = model, axes, frozen
        self.weights = find_weights(model, trace)
        self._found_depth: tuple[tuple[Layer, ...], tuple[Cell, ...]] | None = None  # until the next edit
        self._depth_before: dict[tuple[str, nn.Module], Any] = {}
        self._example = example
        self.unknown = dict(trace.unknown)
        self._flops = trace.flops
        self.edits: list[object] = []  # applied and not undone, oldest first
        self.analysis = object()  # another one where the model was analysed again, since it has other layers
        for part in (*axes, *self.weights):
            part.structure = self

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Modules with parameters that may leave, or be followed by a new one, in execution order."""
        return self._depth()[0]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Blocks of modules that repeat, in execution order, those that change shapes last."""
        return self._depth()[1]

    def _depth(self) -> tuple[tuple[Layer, ...], tuple[Cell, ...]]:
        if self._found_depth is None:
            layers, cells = find_depth(record(self.model, *self._example))
            self._found_depth = tuple(map(self._same, layers)), tuple(map(self._same, cells))
        return self._found_depth

    def _same(self, part: Any) -> Any:
        """A layer or cell as the object that it was before, if it was there."""
        part.structure = self
        known = self._depth_before.setdefault((part.kind, part.module), part)
        vars(known).update(vars(part))
        return known

    def __getitem__(self, name: str) -> Axis:
        """The axis of that name, or the only one that a module or tensor of that name produces.

        Raises:
            UnknownName: (a KeyError and a ValueError) no axis answers, or several do; all are listed.
        """
        for axis in self.axes:
            if axis.name == name:
                return axis
        found = [axis for axis in self.axes if name in axis.producers]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownName(
                f"{name!r} is ambiguous: it produces {', '.join(a.name for a in found)}; name one of these."
            )
        raise UnknownName(f"no axis is called {name!r}; there are {', '.join(a.name for a in self.axes) or 'none'}.")

    def __iter__(self) -> Iterator[Axis]:
        return iter(self.axes)

    def __len__(self) -> int:
        return len(self.axes)

    def select(self, pattern: str = "*", kind: str | None = None) -> tuple[Any, ...]:
        """The axes whose name matches a shell-style pattern, in execution order.

        Args:
            kind: Only those that are of this kind, or have this tag: "neuron", "head", "feature", "group",
                "stream", "embedding" or "output". For "weight", "layer" and "cell" the matching of :attr:`weights`,
                :attr:`layers` and :attr:`cells` instead.

        Raises:
            ValueError: There is no such kind.
        """
        if kind in ("weight", "layer", "cell"):
            parts: tuple[Any, ...] = getattr(self, f"{kind}s")
            return tuple(part for part in parts if part.is_called(pattern))
        if kind is not None and kind not in (*KINDS, *TAGS):
            known = ", ".join((*KINDS, "weight", "layer", "cell", *sorted(TAGS)))
            raise ValueError(f"there is no kind {kind!r} of axis; kinds are {known}.")
        return tuple(a for a in self.axes if means(pattern, a.name) and kind in (None, a.kind, *a.tags))

    def flops(self, shapes: Mapping[str, Sequence[int]] | None = None) -> float:
        """FLOPs (2 × multiply-adds) of one forward pass on the analysed example.

        Args:
            shapes: Of all tensors by name, in place of the present ones.
        """
        if shapes is None:
            shapes = {name: tensor.shape for name, tensor in named_tensors(self.model).items()}
        return self._flops.total(shapes)

    def flops_per(self, name: str, dim: int | None = None) -> float:
        """The part of :meth:`flops` that goes with each element of a tensor, or with each index of a dimension."""
        return self._flops.per_element.get(name, 0.0) if dim is None else self._flops.per_index.get((name, dim), 0.0)

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of that name, as it is now."""
        path, _, attribute = name.rpartition(".")
        return getattr(self.model.get_submodule(path), attribute)

    def run_example(self) -> Any:
        """Run the model on the example that it was analysed on, on the device where its weights are now."""
        device = next((t.device for t in named_tensors(self.model).values()), None)
        moved = pytree.tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, self._example)
        return self.model(*moved[0], **moved[1])

    def verify(
        self, x: Any = None, *, args: tuple | None = None, kwargs: dict[str, Any] | None = None, each: bool = True
    ) -> Verification:
        """Compare on real numbers what the analysis promises, in eval mode, on copies of the model's tensors.

        Of each axis the first half of its units and a random half are removed, and compared with the model in which
        they are silent; and a unit is added that sends nothing.

        Args:
            x, args, kwargs: Inputs as :func:`analyze` takes them; by default the example that was analysed.
            each: Each axis by itself; else all exact axes together, and all others, in a few passes.

        Returns:
            What was found: ``ok``, ``failures``, and a table when printed.

        Raises:
            ValueError: The model's weights don't exist.

        >>> import torch, regrow as rg
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> print(rg.analyze(net, torch.rand(2, 4)).verify())
        3 checks: all right
        """
        if x is None and args is None and kwargs is None:
            return verify(self, *self._example, each)
        return verify(self, _positional(x, args), kwargs or {}, each)

    def __str__(self) -> str:
        return table(self)


def analyze(
    model: nn.Module,
    x: Any = None,
    *,
    args: tuple | None = None,
    kwargs: dict[str, Any] | None = None,
    grow_outputs: bool | str | Sequence[str] = False,
) -> Structure:
    """Find every axis of a model along which units may come and go.

    The model runs a few times on the example, in eval and in train mode, without computing: on the meta device
    where it allows that, on its own device otherwise. It is left as it was: values, buffers, attributes, modes,
    gradients, hooks and random states.

    Args:
        model: Any module; of a compiled one it is the one that was compiled.
        x: Its input, or a tuple of positional inputs; the batch should hold at least two examples.
        args, kwargs: The inputs of a model that takes more, in place of ``x``.
        grow_outputs: Whether what the user meets may grow as well: classes, a vocabulary (also of an embedding that
            is tied to a head), input channels. All of these for True, else those of the modules or tensors with
            these names. They are axes with the tag "output" or "input", which only grow where they are named.

    Raises:
        TypeError: The model is no module, or there is no example.
        ValueError: The model doesn't run on the example (the cause is chained), the example is empty, or the model is
            of a kind that can't be edited: lazy, scripted, wrapped, half loaded, or quantised altogether.

    >>> import torch, regrow as rg
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> [(axis.name, axis.size) for axis in rg.analyze(net, torch.zeros(2, 4)).axes]
    [('0', 8)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"analyze takes a torch.nn.Module, not {type(model).__name__}.")
    model = uncompiled(model)
    if x is not None and args is not None:
        raise TypeError("analyze takes x or args, not both.")
    if x is None and args is None and not kwargs:
        raise TypeError("analyze needs an example: analyze(model, x) or analyze(model, args=(…), kwargs={…}).")
    positional, kwargs = _positional(x, args), {} if kwargs is None else kwargs
    check_example(positional, kwargs)
    check_model(model)
    check_opened(model, grow_outputs)
    with untouched(model):
        analysis = _trace(model, positional, kwargs, Boundary(grow_outputs))
        axes, reasons = analysis.prove()
    axes, frozen = without_immovable(axes, reasons)
    return Structure(model, axes, frozen, analysis.trace, (positional, kwargs), grow_outputs)


def _positional(x: Any, args: tuple | None) -> tuple:
    return args if args is not None else x if isinstance(x, tuple) else () if x is None else (x,)


class _Analysis:
    """A first trace and what follows from it."""

    def __init__(self, model: nn.Module, example: Example, boundary: Boundary, with_sizes: bool) -> None:
        self.model, self.example = model, example
        self.insides = Insides(model)
        self.journals: dict[bool, tuple[Journal, list[tuple[int, ...]]]] = {
            False: (Journal(), []),
            True: (Journal(), []),
        }
        self.trace = Trace(rule_of, example.on_meta, Relations(), self.journals[False][0], boundary)
        self.trace.buffers = {name for name, _ in model.named_buffers()}
        self.trace.module_names = {module: name for name, module in model.named_modules()}
        tensors = example.stand_ins(model)
        for name, tensor in named_tensors(model).items():
            self.trace.add_source(name, tensors[tensor])
        for number, tensor in enumerate(example.tensors):
            self.trace.add_input(number, tensor)
        if with_sizes:
            self.trace.sizes = SizeMode(
                lambda tensor: self.trace.of(tensor).fields,
                lambda fld, dim, size: tie(self.trace, fld, dim, size),
            )
        returned: Any = None  # of the last mode
        for training, (journal, shapes) in self.journals.items():
            model.train(training)
            self.trace.count_flops, self.trace.journal = not training, journal
            returned = run(self.trace, self.insides, example.args, example.kwargs, tensors)
            self.trace.reads.forget_unread(tensors_in(returned), tensors.values())
            parts = part_of(returned)
            shapes.extend(self._put_out(out, parts.get(id(out), "")) for out in outputs_of(model, returned))
        check_outputs([*self.journals[False][1], *self.journals[True][1]], returned)
        self.trace.relations.join_parts()
        self.trace.relations.join_integers()

    def _put_out(self, out: Tensor, part: str) -> tuple[int, ...]:
        """Freeze an output, but for what may grow; its shape, with -1 there."""
        opened = [f for f in self.trace.of(out).fields if self.trace.opened(f)]
        for fld in opened:
            self.trace.relations.note_kind(fld.labels, "output")
        fixed = [f for f in self.trace.of(out).fields if f not in opened]
        self.trace.relations.freeze(fixed, f"is the model's output{part}")
        growing = {d for f in opened for d in f.dims}
        return tuple(-1 if d in growing else n for d, n in enumerate(out.shape))

    def prove(self) -> tuple[tuple[Axis, ...], Reasons]:
        """The axes that stand the trials, and why other indices can't change."""
        trials = Trials(self.insides, self.example, self.trace, self.journals)
        axes = Proof(trials, self._solved(), self._joined).run()
        return tuple(axes), self.reasons

    def _solved(self) -> tuple[Axis, ...]:
        axes, self.reasons = assemble(self.model, self.trace, solve(self.trace.relations))
        return axes

    def _joined(self, pairs: Iterable[tuple[Source, Source]]) -> tuple[Axis, ...]:
        for one, other in pairs:
            short, long = (np.arange(source.start, source.start + source.size) for source in (one, other))
            self.trace.relations.equate(np.tile(short, len(long) // len(short)), long, apart=True)
        return self._solved()


def _trace(model: nn.Module, args: tuple, kwargs: dict[str, Any], boundary: Boundary) -> _Analysis:
    """On meta if possible: no arithmetic, no memory; code that looks at values needs the real device."""

    def trace(on_meta: bool, with_sizes: bool) -> _Analysis:
        example = Example.of(args, kwargs, on_meta)
        found = _Analysis(model, example, boundary, with_sizes)
        return _Analysis(model, example, boundary, with_sizes) if boundary.met else found

    for on_meta in (True, False):
        for with_sizes in (True, False):  # code that looks at the type of an integer may not take a subclass
            try:
                return trace(on_meta, with_sizes)
            except NoOutput:
                raise
            except Exception as error:
                last = error
    raise explained(model, args, kwargs, last)

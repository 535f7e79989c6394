"""What may change in a model: :func:`analyze` finds its axes from the calls that it really makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from .assemble import Frozen, assemble, without_immovable
from .axis import KINDS, TAGS, Axis, Count, Entry, Verdict
from .example import Example, named_tensors, tensors_in
from .journal import Journal
from .prove import Proof
from .relations import Relations, Source
from .rules import rule_of
from .running import untouched
from .solve import solve
from .table import table
from .trace import Trace, run
from .trial import Trials

__all__ = ["Axis", "Count", "Entry", "Frozen", "Structure", "UnknownName", "Verdict", "analyze"]


class UnknownName(KeyError, ValueError):
    """No axis, or more than one, answers to a name."""

    def __str__(self) -> str:
        return str(self.args[0])


class Structure:
    """The axes of a model, in execution order, and what is frozen. Follows every edit and undo.

    Attributes:
        model: The model itself.
        axes: What may grow and shrink.
        frozen: Tensor dimensions that may not, with the reason.
        unknown: Calls without a rule -> how often they were made; what they touched is frozen.
    """

    def __init__(self, model: nn.Module, axes: tuple[Axis, ...], frozen: tuple[Frozen, ...], trace: Trace) -> None:
        self.model, self.axes, self.frozen = model, axes, frozen
        self.unknown = dict(trace.unknown)
        self._flops = dict(trace.flops)
        self.edits: list[object] = []  # applied and not undone, oldest first
        for axis in axes:
            axis.structure = self

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

    def select(self, pattern: str = "*", kind: str | None = None) -> tuple[Axis, ...]:
        """The axes whose name matches a shell-style pattern, in execution order.

        Args:
            kind: Only those that are of this kind, or have this tag: "neuron", "head", "feature", "group",
                "stream", "embedding" or "output".

        Raises:
            ValueError: There is no such kind.
        """
        if kind is not None and kind not in (*KINDS, *TAGS):
            raise ValueError(f"there is no kind {kind!r} of axis; kinds are {', '.join((*KINDS, *sorted(TAGS)))}.")
        return tuple(a for a in self.axes if fnmatchcase(a.name, pattern) and kind in (None, a.kind, *a.tags))

    def flops(self, sizes: Mapping[str, int] | None = None) -> float:
        """FLOPs (2 × multiply-adds) of one forward pass on the analysed example.

        Args:
            sizes: Numbers of elements of all tensors by name, in place of the present ones.
        """
        if sizes is None:
            sizes = {name: tensor.numel() for name, tensor in named_tensors(self.model).items()}
        booked = {name: share for name, share in self._flops.items() if name is not None}
        return self._flops.get(None, 0.0) + sum(share * sizes[name] for name, share in booked.items())

    def flops_per_element(self, name: str) -> float:
        """The part of :meth:`flops` that goes with each element of one tensor."""
        return self._flops.get(name, 0.0)

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of that name, as it is now."""
        path, _, attribute = name.rpartition(".")
        return getattr(self.model.get_submodule(path), attribute)

    def __str__(self) -> str:
        return table(self)


def analyze(
    model: nn.Module, x: Any = None, *, args: tuple | None = None, kwargs: dict[str, Any] | None = None
) -> Structure:
    """Find every axis of a model along which units may come and go.

    The model runs a few times on the example, in eval and in train mode, without computing: on the meta device
    where it allows that, on its own device otherwise. It is left as it was: values, buffers, attributes, modes,
    gradients, hooks and random states.

    Args:
        model: Any module.
        x: Its input, or a tuple of positional inputs; the batch should hold at least two examples.
        args, kwargs: The inputs of a model that takes more, in place of ``x``.

    Raises:
        TypeError: The model is no module, or there is no example.
        ValueError: The model doesn't run on the example (the cause is chained), or the example is empty.

    >>> import torch, regrow as rg
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> [(axis.name, axis.size) for axis in rg.analyze(net, torch.zeros(2, 4)).axes]
    [('0', 8)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"analyze takes a torch.nn.Module, not {type(model).__name__}.")
    if x is not None and args is not None:
        raise TypeError("analyze takes x or args, not both.")
    if x is None and args is None and not kwargs:
        raise TypeError("analyze needs an example: analyze(model, x) or analyze(model, args=(…), kwargs={…}).")
    if any(is_lazy(p) for p in [*model.parameters(), *model.buffers()]):
        raise ValueError("the model has lazy layers without a shape yet; run it once before it is analysed.")
    positional = args if args is not None else x if isinstance(x, tuple) else () if x is None else (x,)
    if any(leaf.numel() == 0 for leaf in pytree.tree_leaves((positional, kwargs)) if isinstance(leaf, Tensor)):
        raise ValueError("the example is empty; give one with a batch of two.")
    with untouched(model):
        analysis = _trace(model, positional, kwargs or {})
        axes, frozen = analysis.prove()
    axes, frozen = without_immovable(axes, frozen)
    return Structure(model, axes, frozen, analysis.trace)


class _Analysis:
    """A first trace and what follows from it."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.model, self.example = model, example
        self.journals: dict[bool, tuple[Journal, list[tuple[int, ...]]]] = {
            False: (Journal(), []),
            True: (Journal(), []),
        }
        self.trace = Trace(rule_of, example.on_meta, Relations(), self.journals[False][0])
        self.trace.module_names = {module: name for name, module in model.named_modules()}
        tensors = example.stand_ins(model)
        for name, tensor in named_tensors(model).items():
            self.trace.add_source(name, tensors[tensor])
        for tensor in example.tensors:
            self.trace.add_input(tensor)
        for training, (journal, shapes) in self.journals.items():
            model.train(training)
            self.trace.count_flops, self.trace.journal = not training, journal
            for out in tensors_in(run(self.trace, model, example.args, example.kwargs, tensors)):
                self.trace.relations.freeze(self.trace.of(out).fields, "is the model's output")
                shapes.append(tuple(out.shape))
        self.trace.relations.join_parts()

    def prove(self) -> tuple[tuple[Axis, ...], tuple[Frozen, ...]]:
        """The axes that stand the trials."""
        trials = Trials(self.model, self.example, self.trace, self.journals)
        axes = Proof(trials, self._solved(), self._joined).run()
        return tuple(axes), self.frozen

    def _solved(self) -> tuple[Axis, ...]:
        axes, self.frozen = assemble(self.model, self.trace, solve(self.trace.relations))
        return axes

    def _joined(self, pairs: Iterable[tuple[Source, Source]]) -> tuple[Axis, ...]:
        for one, other in pairs:
            self.trace.relations.equate(
                np.arange(one.start, one.start + one.size), np.arange(other.start, other.start + other.size)
            )
        return self._solved()


def _trace(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> _Analysis:
    """On meta if possible: no arithmetic, no memory; code that looks at values needs the real device."""
    try:
        return _Analysis(model, Example.of(args, kwargs, on_meta=True))
    except Exception as on_meta:
        try:
            return _Analysis(model, Example.of(args, kwargs, on_meta=False))
        except Exception as error:
            raise ValueError(f"the model doesn't run on the example: {error}") from on_meta

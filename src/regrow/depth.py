"""Layers and cells that leave a model or enter it: one edit, which the optimizer, integers and the structure follow."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .branches import Branch, Built
from .copies import branch_beside, follower_of, identity_copy
from .edit import Edit
from .errors import NotPermissible
from .flips import alive_parameters, mask_write
from .folding import plan_fold, producer_of
from .following import plan_groups, plan_structure
from .masks import mask_of, masked, place_of
from .numbering import items_of, numbered_by, plan_numbers
from .observing import Seen, hooked
from .probing import Probe, check_same
from .structure import Layer, Structure
from .surgery import Change, first_of, given_to, plan_history, with_first
from .transaction import Transaction


def remove(
    structure: Structure, layers: Sequence[Layer], optimizer: Optimizer | None, method: str = "", fold: bool = False
) -> Edit:
    """Take layers or cells out: the input of each takes its output's place.

    Args:
        fold: Whether what feeds them does what they did from now on, in eval mode.

    Raises:
        NotPermissible: A layer can't be left out, or folded.
    """
    for layer in layers:
        if not layer.prunable and not fold:
            raise NotPermissible(f"{layer.name} can't be removed: {layer.prunable.reason}.")
    chosen = [layer for layer in layers if not any(layer.name.startswith(f"{other.name}.") for other in layers)]
    sizes = {layer.name: (1, 0) for layer in chosen}
    with _Surgery(structure, optimizer) as surgery:
        for layer in chosen:
            surgery.remove(layer, fold)
        return surgery.finished("prune", method, sizes, chosen[0].kind)


def deepen(
    structure: Structure,
    layers: Sequence[Layer],
    amount: int,
    method: Any,
    optimizer: Optimizer | None,
    seed: int,
    name: str = "",
) -> Edit:
    """Put new layers behind layers, and copies behind cells, that start as the identity.

    A cell that changes shapes is followed by a copy of one that keeps its output's, or else by a residual branch.

    Args:
        method: With ``followers``, what may follow a layer, the best first, and ``norm``.
        seed: Of new layers' random values.
    """
    sizes = {layer.name: (1, 1 + amount) for layer in layers}
    with _Surgery(structure, optimizer) as surgery:
        for layer in layers:
            for number in range(amount):
                surgery.follow(layer, method.followers(layer), method.norm, seed + number)
        return surgery.finished("grow", name, sizes, layers[0].kind)


def add_beside(
    structure: Structure,
    layers: Sequence[Layer],
    amount: int,
    branch: str,
    optimizer: Optimizer | None,
    seed: int,
    name: str = "",
) -> Edit:
    """Add branches beside modules, ``f(x) + g(x)``, where g is zero at first."""
    sizes = {layer.name: (1, 1 + amount) for layer in layers}
    with _Surgery(structure, optimizer) as surgery:
        for layer in layers:
            for number in range(amount):
                surgery.add_beside(layer, branch, seed + number)
        return surgery.finished("grow", name, sizes, layers[0].kind)


class _Surgery:
    """Changes of a model's tree that are taken back if anything fails, or kept with all that follows."""

    def __init__(self, structure: Structure, optimizer: Optimizer | None) -> None:
        self.structure, self.model, self.optimizer = structure, structure.model, optimizer
        self.probe = Probe(structure)
        self.writes, self.changes = Transaction(), []  # type: tuple[Transaction, list[Change]]
        self.sources: dict[nn.Parameter, nn.Parameter] = {}  # of new parameters, whose group they enter
        self.before = (alive_parameters(structure), structure.flops())
        self.parameters = list(self.model.parameters())
        self.masks = {p: (module, mask_of(module, attribute)) for module, attribute, p in masked(self.model)}
        if optimizer is not None:
            held = {p for group in optimizer.param_groups for p in group["params"]}
            if held.isdisjoint(self.parameters):
                raise ValueError(f"this {type(optimizer).__name__} holds none of the model's parameters.")

    def __enter__(self) -> _Surgery:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.writes.take_back()

    def remove(self, layer: Layer, fold: bool) -> None:
        """Take a layer out."""
        seen = self.probe.seen(layer.module)
        length = len(seen.returned) if isinstance(seen.returned, tuple) else 0
        more, biased = bool(seen.kwargs) or len(seen.args) != 1, ""

        def skip(module: nn.Module, args: tuple, kwargs: dict[str, Any], returned: Any) -> Any:
            return with_first(returned, given_to(args, kwargs).clone())

        if fold:
            expected = self.probe.outputs()
            producer = producer_of(layer)
            bias = plan_fold(self.writes, layer, producer, seen.args, seen.kwargs, self.optimizer)
            self.writes.run()
            if bias is not None:
                like = list(layer.module.parameters(recurse=False)) or list(producer.parameters(recurse=False))
                self.sources[bias] = like[-1]
                biased = next(name for name, module in self.model.named_modules() if module is producer)
        else:
            with hooked(layer.module, skip):
                expected = self.probe.outputs()
        change = Change(
            "remove", layer.name, "place", length=length, given_more=more, passed=layer.passed, biased=biased
        )
        ways = [dataclasses.replace(change, how=how) for how in self._ways(layer.name, "place")]
        self._first_that_fits([*ways, dataclasses.replace(change, copied=True)], None, expected)

    def follow(self, layer: Layer, followers: Sequence[str], norm: bool, seed: int) -> None:
        """Put the first behind a layer that keeps the function."""
        seen = self.probe.seen(layer.module)
        why: NotPermissible | None = None
        for follower in followers:
            try:
                copied = identity_copy(layer, self._key(layer.name), seen) if follower == "copy" else None
                if copied is not None:
                    return self._enter_copy(*copied)
                kind = "residual" if follower == "copy" else follower
                return self._insert(layer, follower_of(layer, kind, norm), seed, seen)
            except NotPermissible as error:
                why = error
            except (RuntimeError, ValueError, TypeError, IndexError) as error:  # of code that nobody here wrote
                why = NotPermissible(f"{follower!r} can't follow {layer.name}: {error}.")
        raise why or NotPermissible(f"nothing can follow {layer.name}.")

    def _enter_copy(self, change: Change, made: nn.Module, source: nn.Module) -> None:
        self._note_sources(made, source)
        ways = [dataclasses.replace(change, how=how) for how in self._ways(change.path, "kept")]
        self._first_that_fits(ways, made, self.probe.outputs())

    def add_beside(self, layer: Layer, kind: str, seed: int) -> None:
        """Add a branch beside a module."""
        if kind == "same":
            return self._enter(Change("beside", layer.name, "kept", gated=True), seed, layer)
        branch = branch_beside(layer, kind, self.probe.seen(layer.module))
        return self._enter(Change("beside", layer.name, "kept", branch=branch), seed, layer)

    def _insert(self, layer: Layer, branch: Branch, seed: int, seen: Seen) -> None:
        self._enter(Change("behind", layer.name, "kept", branch=branch), seed, layer, first_of(seen.returned))

    def _enter(self, change: Change, seed: int, layer: Layer, data: Tensor | None = None) -> None:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            made = change.new_module(self.model)
        assert made is not None
        if data is not None and isinstance(made, Built):
            made.calibrate(data)
        self._note_sources(made, layer.module)
        self._first_that_fits([change], made, self.probe.outputs())

    def _ways(self, path: str, last: Any) -> list[Any]:
        """How a module may leave or enter, the best first."""
        parent = self.model.get_submodule(path.rpartition(".")[0])
        first = (
            "list" if isinstance(parent, nn.ModuleList) else "sequential" if isinstance(parent, nn.Sequential) else ""
        )
        return [first, last] if first else [last]

    def _key(self, path: str) -> str:
        """A name that no sibling has."""
        holder, _, key = path.rpartition(".")
        taken = self.model.get_submodule(holder)._modules
        return next(name for number in range(1, len(taken) + 2) if (name := f"{key}_{number}") not in taken)

    def _note_sources(self, made: nn.Module, source: nn.Module) -> None:
        """What each new parameter is like: the one of that name, or the first with as many dimensions, or itself."""
        originals = dict(source.named_parameters())
        for name, parameter in made.named_parameters():
            like = [p for p in originals.values() if p.ndim == parameter.ndim]
            self.sources[parameter] = originals.get(name, like[0] if like else parameter)

    def _first_that_fits(self, ways: Sequence[Change], made: nn.Module | None, expected: list[Tensor]) -> None:
        """Make the first of several changes after which the model puts out what it should.

        Raises:
            NotPermissible: None does.
        """
        why: Exception | None = None
        for change in ways:
            attempt = Transaction()
            try:
                self._plan(attempt, change, made)
                calls: list[int] = []
                with hooked(made, lambda *_, calls=calls: calls.append(1)):
                    found = self.probe.outputs()
                if made is not None and len(calls) != 1:
                    raise NotPermissible(f"it would run {len(calls)} times")
                check_same(found, expected)
                self.probe.check_learns()
            except Exception as error:
                attempt.take_back()
                why = error
                continue
            self.writes.done += attempt.done
            self.changes.append(change)
            self._warn_of_number(change)
            self._rename()
            return
        raise NotPermissible(f"{ways[0].path} can't be changed: {why}.") from why

    def _plan(self, attempt: Transaction, change: Change, made: nn.Module | None) -> None:
        holder = change.path.rpartition(".")[0]
        parent = self.model.get_submodule(holder)
        before = items_of(parent)
        change.plan(attempt, self.model, made)
        attempt.run()
        if change.how == "list":
            units = {(id(count.owner), count.attribute) for axis in self.structure.axes for count in axis.counts}
            plan_numbers(attempt, self.model, holder, before, items_of(parent), units)
            attempt.run()

    def _plan_masks(self) -> None:
        """A weight that two modules share keeps its mask when the one leaves that the mask is kept by."""
        stay = set(self.model.modules())
        orphans = {parameter: mask for parameter, (module, mask) in self.masks.items() if module not in stay}
        for name, parameter in self.model.named_parameters():
            if parameter in orphans:
                self.writes.planned.append(mask_write(*place_of(self.model, name), orphans[parameter]))

    def _warn_of_number(self, change: Change) -> None:
        """A copy that isn't in the list of what it copies has its number, and would share its place in a cache."""
        if change.how != "kept" or change.what == "remove" or change.branch is not None:
            return
        parent = self.model.get_submodule(change.path.rpartition(".")[0])
        numbers = numbered_by(items_of(parent)) if isinstance(parent, nn.ModuleList) else []
        if numbers:
            warnings.warn(
                f"the copy at {change.path} has that one's {' and '.join(numbers)}: where the model keeps a cache of "
                "past keys, both would write to the same place; run it without one (use_cache=False).",
                stacklevel=6,
            )

    def _rename(self) -> None:
        """Items of a list are numbered anew: what was found of the structure goes by its present names."""
        names = {module: name for name, module in self.model.named_modules()}
        for part in (*self.structure.layers, *self.structure.cells):
            if names.get(part.module, part.name) != part.name:
                self.writes.attribute(part, "name", names[part.module])
        self.writes.run()

    def finished(self, action: str, method: str, sizes: dict[str, tuple[int, int]], kind: str) -> Edit:
        """Let the optimizer and the structure follow, and make it an edit."""
        plan_history(self.writes, self.model, self.changes)
        if self.optimizer is not None:
            plan_groups(self.writes, self.optimizer, self.parameters, self.model, self.sources)
        self._plan_masks()
        self.writes.run()
        try:
            plan_structure(self.writes, self.structure)
        except ValueError as error:  # code reads what has left, if only in train mode
            raise NotPermissible(f"the model doesn't run any more then: {error}") from error
        self.writes.run()
        params, flops = (self.before[0], alive_parameters(self.structure)), (self.before[1], self.structure.flops())
        new = {name: list(range(before, after)) for name, (before, after) in sizes.items()}
        removed = {name: list(range(after, before)) for name, (before, after) in sizes.items()}
        edit = Edit(
            self.structure,
            action,
            method,
            sizes,
            params,
            flops,
            new,
            removed,
            self.optimizer,
            {},
            self.writes.done,
            kind,
        )
        self.structure.edits.append(edit._token)
        return edit

"""What follows a change of a model's tree: the groups of its optimizer, and its structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .structure import Axis, Structure, Weights, analyze
from .transaction import Transaction, Write


def plan_groups(
    writes: Transaction,
    optimizer: Optimizer,
    before: Sequence[nn.Parameter],
    model: nn.Module,
    sources: Mapping[nn.Parameter, nn.Parameter],
) -> None:
    """New parameters enter the group of what they are like; those that left leave theirs, with their state.

    A group that is in the model's order stays so: an optimizer that is built of the changed model can load its state.

    Args:
        before: The parameters that the model had.
        sources: What each new one is like. Where the optimizer doesn't train that, it is the nearest that it does
            train, of as many dimensions if there is one: a new layer of a frozen part learns.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    after = list(names)
    gone = set(before) - set(after)
    trained = {p for group in optimizer.param_groups for p in group["params"]} - gone
    homes = {p: sources[p] if sources[p] in trained else _nearest(p, after, trained) for p in sources if p in names}
    was, order = ({p: number for number, p in enumerate(ps)} for ps in (before, after))
    for group in optimizer.param_groups:
        held = set(group["params"])
        entering = [p for p in after if p not in held and homes.get(p) in held and p.requires_grad]
        if entering or held & gone:
            kept = [p for p in group["params"] if p not in gone]
            places = [was.get(p, -1) for p in group["params"]]
            params = kept + entering
            if places == sorted(places) and all(p in order for p in kept):
                params.sort(key=order.__getitem__)
            known = dict(zip(group["params"], group.get("param_names", ()), strict=False))
            writes.item(group, "params", params)
            if "param_names" in group:
                writes.item(group, "param_names", [names.get(p, known.get(p, "")) for p in params])
    for parameter in gone:
        if parameter in optimizer.state:
            writes.planned.append(_without_state(optimizer, parameter))
    writes.planned += [_with_state(optimizer, parameter) for parameter in homes]


def _nearest(
    parameter: nn.Parameter, order: Sequence[nn.Parameter], trained: Collection[nn.Parameter]
) -> nn.Parameter | None:
    """Of the parameters that are trained the nearest with as many dimensions, or nearly as many."""
    places = {p: number for number, p in enumerate(order)}
    near = [p for p in order if p in trained]
    own = places[parameter]
    return min(near, key=lambda p: (abs(p.ndim - parameter.ndim), abs(places[p] - own)), default=None)


def _with_state(optimizer: Optimizer, parameter: nn.Parameter) -> Write:
    """Taken back, a new parameter leaves with the state that it has got."""
    held: list[Any] = []

    def write(there: bool) -> None:
        if there and held:
            optimizer.state[parameter] = held.pop()
        elif not there and parameter in optimizer.state:
            held.append(optimizer.state.pop(parameter))

    return Write(write, True, False)


def _without_state(optimizer: Optimizer, parameter: nn.Parameter) -> Write:
    def write(state: Any) -> None:
        if state is None:
            optimizer.state.pop(parameter, None)
        else:
            optimizer.state[parameter] = state

    return Write(write, None, optimizer.state[parameter])


def plan_structure(writes: Transaction, structure: Structure) -> None:
    """Analyse the model as it is now; axes and weights that are still there stay the same objects."""
    args, kwargs = structure._example
    new = analyze(structure.model, args=args, kwargs=kwargs, grow_outputs=structure._opened)
    for kind, places in (("axes", _places_of_axis), ("weights", _places_of_weights)):
        kept = []
        for part, old in _matched(getattr(structure, kind), getattr(new, kind), places):
            writes.planned.append(_contents(old, dict(vars(part), structure=structure)))
            kept.append(old)
        setattr(new, kind, tuple(kept))
    structure._found_depth = None
    kept = {"edits": structure.edits, "_depth_before": structure._depth_before}
    writes.planned.append(_contents(structure, vars(new) | kept))


def _matched(
    known: Sequence[Any], found: Sequence[Any], places: Callable[[Any], Iterable[Hashable]]
) -> Iterator[tuple[Any, Any]]:
    """What was found, each with the known one that has most places in common with it, or else with itself.

    Names don't tell: those of a list's items are numbers, which change when one leaves.
    """
    left = {place: part for part in known for place in places(part)}
    for part in found:
        shared = Counter(left[place] for place in places(part) if place in left)
        old = shared.most_common(1)[0][0] if shared else part
        left = {place: other for place, other in left.items() if other is not old}
        yield part, old


def _places_of_axis(axis: Axis) -> list[Hashable]:
    return [(id(entry.tensor), entry.dim) for entry in axis.entries]


def _places_of_weights(weights: Weights) -> list[Hashable]:
    return [id(weights.tensor)]


def _contents(target: Any, contents: dict[str, Any]) -> Write:
    """Sets all attributes of an object."""

    def write(held: dict[str, Any]) -> None:
        vars(target).clear()
        vars(target).update(held)

    return Write(write, contents, dict(vars(target)))

"""Models of transformers, saved so that ``from_pretrained`` builds the same model from the config alone.

Such a model is built by its class from the integers of its config, which says one size for all layers. What edits have
made is compared with what the class builds: every tensor's shape, every number that modules keep (as the factor that
attention multiplies by, computed once from the size of a head), and buffers that aren't saved.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .structure.example import tensors_in

#: How many integers of a config may have changed, and how many ways to change some are followed further.
MOST_CHANGES, WIDTH = 4, 4

#: Where two models differ in a tensor: its shape in the one and in the other, None where there is no such tensor.
_Differences = dict[str, tuple[tuple[int, ...] | None, tuple[int, ...] | None]]


def save_pretrained(
    model: nn.Module, folder: str | Path, inputs: Mapping[str, Any] | None = None, **options: Any
) -> None:
    """Write a model of transformers for ``from_pretrained``, with a config that says the sizes that it has now.

    The model's own config stays as it is. Masks are not saved: the weights that they have off are zero.

    Args:
        folder: Made if need be.
        inputs: As for :func:`check_pretrained`.
        options: For the model's own ``save_pretrained``.

    Raises:
        TypeError: It is no model of transformers.
        ValueError: No config of its kind can say what the model is; :func:`regrow.save` saves any. Nothing is written.
    """
    held: Any = model
    changes = check_pretrained(model, inputs)
    kept = [(holder, attribute, vars(holder)[attribute]) for holder, attribute in _places(held.config, changes)]
    try:
        for (holder, attribute, _), value in zip(kept, changes.values(), strict=True):
            vars(holder)[attribute] = value
        held.save_pretrained(folder, **options)
    finally:
        for holder, attribute, value in kept:
            vars(holder)[attribute] = value


def check_pretrained(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Whether a model of transformers can be built again from a config.

    Args:
        inputs: Of the model, by name; if given, the outputs in eval mode are compared too.

    Returns:
        The integers that its config has to have instead of those that it has.

    Raises:
        TypeError: It is no model of transformers.
        ValueError: None can say what the model is.
    """
    config = getattr(model, "config", None)
    if not callable(getattr(model, "save_pretrained", None)) or not hasattr(config, "to_dict"):
        raise TypeError(
            f"only models of transformers are built from a config; save a {type(model).__name__} by save()."
        )
    changes, wrong = _fitted(model)
    if wrong:
        raise ValueError(f"no {type(config).__name__} can say what this model is: {_said(model, wrong, changes)}.")
    real = inputs is not None or bool(_unsaved(model))  # on meta there are no values
    built = _built(model, changes, "cpu" if real else "meta")
    assert built is not None
    odd = [*_odd_numbers(model, built, changes), *(_odd_buffers(model, built) if real else ())]
    if inputs is not None and not odd and not _same_outputs(model, built, inputs):
        odd.append("on these inputs it has other outputs")
    if odd:
        more = f"; and {len(odd) - 2} more" if len(odd) > 2 else ""
        said = f"{'; '.join(odd[:2])}{more}"
        raise ValueError(f"a {type(model).__name__} that is built from its config would differ: {said}.")
    return changes


def _fitted(model: Any) -> tuple[dict[str, int], _Differences]:
    """Changes of a model's config by which no tensor has another shape, or else as few as can be, and those tensors.

    Different ones may fit the shapes: half as many heads, or heads half as wide. Those are taken that fit all numbers.
    """
    start: tuple[dict[str, int], _Differences] = {}, _differing(model, _built(model, {}, "meta"))
    closest, open_, fitting = start, [start], [start] if not start[1] else []
    for _ in range(MOST_CHANGES):
        found = [(trial, wrong) for one in open_ for trial, wrong in _trials(model, *one)]
        found.sort(key=lambda one: _dimensions(one[1]))
        closest = found[0] if found and _dimensions(found[0][1]) < _dimensions(closest[1]) else closest
        fitting += [one for one in found if not one[1]]
        for one in fitting:
            built = _built(model, one[0], "meta")
            if built is not None and not any(_odd_numbers(model, built, one[0])):
                return one
        open_ = [one for one in found if one[1]][:WIDTH]
    return fitting[0] if fitting else closest


def _trials(
    model: Any, changes: Mapping[str, int], wrong: _Differences
) -> Iterator[tuple[dict[str, int], _Differences]]:
    """One change more, where that makes fewer dimensions wrong."""
    for name, value in sorted(_candidates(model.config, changes, wrong)):
        trial = {**changes, name: value}
        built = _built(model, trial, "meta")
        left = wrong if built is None else _differing(model, built)
        if _dimensions(left) < _dimensions(wrong):
            yield trial, left


def _candidates(config: Any, changes: Mapping[str, int], wrong: _Differences) -> set[tuple[str, int]]:
    """Integers of a config that could make a dimension what it is: those that divide what it would be."""
    pairs = {pair for own, built in wrong.values() if own and built for pair in zip(own, built, strict=False)}
    found = set()
    for name, value in _integers(config):
        now = changes.get(name, value)
        for own, built in pairs:
            if own != built and now > 1 and built % now == 0 and own * now % built == 0:
                found.add((name, own * now // built))
    return found


def _integers(config: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    """By name, also of configs within the config."""
    for attribute, value in vars(config).items():
        if type(value) is int and not attribute.startswith("_"):
            yield prefix + attribute, value
        elif hasattr(value, "to_dict"):
            yield from _integers(value, f"{prefix}{attribute}.")


def _places(config: Any, names: Mapping[str, int]) -> Iterator[tuple[Any, str]]:
    for name in names:
        *within, attribute = name.split(".")
        holder = config
        for part in within:
            holder = vars(holder)[part]
        yield holder, attribute


def _built(model: Any, changes: Mapping[str, int], device: str) -> nn.Module | None:
    """A model as its class builds it from the config with changes; None where it can't."""
    config = copy.deepcopy(model.config)
    for (holder, attribute), value in zip(_places(config, changes), changes.values(), strict=True):
        vars(holder)[attribute] = value
    try:
        with torch.random.fork_rng([]), torch.device(device):
            return type(model)(config)
    except Exception:  # of a constructor that nobody here wrote
        return None


def _differing(model: nn.Module, built: nn.Module | None) -> _Differences:
    own, other = ({n: tuple(t.shape) for n, t in m.state_dict().items()} if m else {} for m in (model, built))
    return {n: (own.get(n), other.get(n)) for n in {**own, **other} if own.get(n) != other.get(n)}


def _dimensions(wrong: _Differences) -> int:
    """How many dimensions differ; a tensor that is only in one differs in more than all that it could have."""
    total = 0
    for own, built in wrong.values():
        alike = own is not None and built is not None and len(own) == len(built)
        total += sum(a != b for a, b in zip(own, built, strict=True)) if alike else 10  # type: ignore[arg-type]
    return total


def _said(model: Any, wrong: _Differences, changes: Mapping[str, int]) -> str:
    """Which tensors differ, and what the config would have to say."""
    lines = []
    for name, (own, built) in list(wrong.items())[:2]:
        ways = [f"is {_size(own)}" if own is not None else "isn't there"]
        ways.append(f"would be {_size(built)}" if built is not None else "wouldn't be there")
        lines.append(f"{name} {' and '.join(ways)}")
    if len(wrong) > 2:
        lines.append(f"so it is with {len(wrong) - 2} more")
    held, wanted = {**dict(_integers(model.config)), **changes}, {}  # type: tuple[dict[str, int], dict[str, set[int]]]
    sizes = {size for _, built in wrong.values() for size in built or ()}
    for name, value in sorted(_candidates(model.config, changes, wrong), key=lambda found: held[found[0]] not in sizes):
        wanted.setdefault(name, set()).add(value)
    alike: dict[str, list[str]] = {}
    for name, values in wanted.items():
        listed = " or ".join(map(str, sorted(values)))
        alike.setdefault(f"would have to be {listed} for some and {held[name]} for others", []).append(name)
    lines += [f"{' or '.join(names)} {what}" for what, names in list(alike.items())[:1]]
    return "; ".join(lines)


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a number"


def _odd_numbers(model: Any, built: nn.Module, changes: Mapping[str, int]) -> Iterator[str]:
    """The numbers that modules keep, and would not.

    But for copies of integers of the config that nothing reads, or an edit would have changed them.
    """
    others, held = dict(built.named_modules()), dict(_integers(model.config))
    copies = {(held[name], value) for name, value in changes.items()}
    for path, module in model.named_modules():
        other = others.get(path)
        if other is None or type(other) is not type(module):
            yield f"{path} is a {type(module).__name__}"
            continue
        for name, value in vars(module).items():
            there = vars(other).get(name)
            if type(value) not in (int, float) or name.startswith("_") or there == value or (value, there) in copies:
                continue
            yield f"{path}.{name} is {value:.6g} and would be {there if there is None else format(there, '.6g')}"


def _unsaved(model: nn.Module) -> dict[str, Tensor]:
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


def _odd_buffers(model: nn.Module, built: nn.Module) -> Iterator[str]:
    """The buffers that aren't saved and would have other values."""
    others = _unsaved(built)
    for name, buffer in _unsaved(model).items():
        other = others.get(name)
        if other is None or other.shape != buffer.shape or not torch.equal(other, buffer.detach().cpu()):
            yield f"{name} would have other values"


@torch.no_grad()
def _same_outputs(model: nn.Module, built: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether both compute the same in eval mode, once they have the same values."""
    like = next(model.parameters())
    built.load_state_dict(model.state_dict())
    built.to(like.device, like.dtype).eval()
    training = [module for module in model.modules() if module.training]
    try:
        one, other = (tensors_in(dict(m.eval()(**inputs))) for m in (model, built))
    finally:
        for module in training:
            module.training = True
    return len(one) == len(other) and all(torch.allclose(a, b, 1e-4, 1e-5) for a, b in zip(one, other, strict=True))

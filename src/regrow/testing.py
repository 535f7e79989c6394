"""The laws that every method keeps, for methods in the registry and for those of outsiders.

::

    @pytest.mark.parametrize("law", rg.testing.laws_of(MyMethod()), ids=str)
    def test_my_method(law):
        law.check()

or :func:`check_method`, which checks all of them at once.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .edit import Edit
from .masks import masks_on
from .method import create_method, method_config
from .operations import grow_, prune_
from .pruning.magnitude import Magnitude
from .structure import Axis, Structure, analyze

#: What a method edits: units, single weights that go off or come on, or layers that leave or enter.
Edits = Literal["units", "weights on", "weights off", "layers in", "layers out"]

#: The output may move by this much, relative to its largest value: float32 adds in another order.
TOLERANCE = 1e-5


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.inner(x)).mean((2, 3)))


class _Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 5, 3, stride=2)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(12 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.relu(self.first(x))], 1)
        y = torch.cat([x[:, :, ::2, ::2][:, :, :3, :3], self.second(x)], 1)
        return self.head(torch.relu(self.norm(y)).flatten(1))


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(147, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5))


def _chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 4, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 5),
    )


#: The law zoo: name -> a function that builds the network for inputs of shape (N, 3, 7, 7).
ZOO: Mapping[str, Callable[[], nn.Module]] = {
    "perceptron": _perceptron,
    "chain": _chain,
    "residual": _Residual,
    "dense": _Dense,
}


@dataclass
class Trial:
    """A network of the zoo after two training steps, with its optimizer and its structure."""

    model: nn.Module
    x: Tensor
    optimizer: torch.optim.Optimizer
    structure: Structure

    @classmethod
    def of(cls, name: str, edits: Edits) -> Trial:
        """A fresh trial; the same at each call. Where weights are to come on, half of them are off."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model, x = ZOO[name](), torch.randn(6, 3, 7, 7)
        trial = cls(model, x, torch.optim.Adam(model.parameters(), 1e-3, amsgrad=True), analyze(model, x))
        if edits == "weights on":
            prune_(trial.structure.weights, 0.5, Magnitude(), optimizer=trial.optimizer)
        trial.train()
        trial.train()
        return trial

    def train(self) -> None:
        """One step."""
        self.optimizer.zero_grad()
        self.model(self.x).square().mean().backward()
        self.optimizer.step()

    def edit(self, method: Any, edits: Edits, seed: int = 0) -> Edit:
        """What the method does to all that it can: a quarter more, or a third fewer units or weights; or one layer."""
        generator = torch.Generator().manual_seed(seed)
        target: Any = self.structure if edits == "units" else self.structure.weights
        grows = hasattr(method, "fresh") if edits == "units" else edits in ("weights on", "layers in")
        perform, amount = (grow_, 0.25) if grows else (prune_, 0.3)
        if edits in ("layers in", "layers out"):
            target = [la for la in self.structure.layers if (la.growable if grows else la.prunable)]
            amount = 1
        loss = lambda: self.model(self.x).square().mean()  # noqa: E731
        return perform(target, amount, method, optimizer=self.optimizer, generator=generator, loss=loss)

    def outputs(self) -> list[Tensor]:
        """What a copy puts out in eval and in train mode."""
        found = []
        for training in (False, True):
            model = copy.deepcopy(self.model).train(training)
            with torch.no_grad():
                found.append(model(self.x))
        return found

    def state(self) -> dict[str, Any]:
        """Everything an undo must restore, as copies."""
        found: dict[str, Any] = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            found[f"{name}.grad"] = None if parameter.grad is None else parameter.grad.clone()
            for key, value in self.optimizer.state[parameter].items():
                found[f"{name}.{key}"] = value.clone() if isinstance(value, Tensor) else value
        for name, module in self.model.named_modules():
            found |= {f"{name}.{key}.mask": mask.clone() for key, mask in masks_on(module).items()}
            found[f"{name}.attributes"] = {k: v for k, v in vars(module).items() if isinstance(v, (int, tuple))}
        return found


def keeps_the_function(method: Any, name: str, edits: Edits) -> None:
    """Growth doesn't move the output on exact axes, in eval and in train mode."""
    trial = Trial.of(name, edits)
    before = trial.outputs()
    trial.edit(method, edits)
    for old, new in zip(before, trial.outputs(), strict=True):
        moved, size = float((new - old).abs().max()), float(old.abs().max())
        assert moved <= TOLERANCE * size, f"the output, {size:.3g} at most, moved by {moved:.3g}"


def reaches_every_new_unit(method: Any, name: str, edits: Edits) -> None:
    """Each new unit gets a gradient, in its incoming or its outgoing weights; of new weights some in each tensor."""
    trial = Trial.of(name, edits)
    edit = trial.edit(method, edits)
    trial.optimizer.zero_grad()
    trial.model(trial.x).square().mean().backward()
    for part, new in edit.units("new").items():
        if edits == "units":
            for unit in new:
                assert _gradient(trial.structure[part], unit) > 0, f"unit {unit} of {part} gets no gradient"
        else:
            gradient = trial.structure.tensor(part).grad
            assert gradient is not None
            assert bool(gradient.flatten()[new].any()) or not len(new), f"no new weight of {part} gets a gradient"


def _gradient(axis: Axis, unit: int) -> float:
    total = 0.0
    for entry in axis.with_role("in", "out", "tied"):
        if entry.tensor.grad is not None:
            total += float(entry.tensor.grad.index_select(entry.dim, entry.indices([unit])).abs().sum())
    return total


def undoes_bit_for_bit(method: Any, name: str, edits: Edits) -> None:
    """Editing and undoing restores parameters, buffers, gradients, optimizer state and sizes."""
    trial = Trial.of(name, edits)
    before = trial.state()
    trial.edit(method, edits).undo_()
    _assert_same(before, trial.state())


def grows_and_prunes_to_the_identity(method: Any, name: str, edits: Edits) -> None:
    """Pruning the units or weights that were just grown leaves what there was."""
    trial = Trial.of(name, edits)
    before = trial.state()
    edit = trial.edit(method, edits)
    by_name = {weights.name: weights for weights in trial.structure.weights}
    for part, new in edit.units("new").items():
        target = trial.structure[part] if edits == "units" else by_name[part]
        if len(new):
            prune_(target, new, optimizer=trial.optimizer)
    _assert_same(before, trial.state())


def keeps_what_is_off_at_zero(method: Any, name: str, edits: Edits) -> None:
    """Weights that went off stay zero while training, momentum, second moments and weight decay notwithstanding."""
    trial = Trial.of(name, edits)
    trial.edit(method, edits)
    for _ in range(3):
        trial.train()
    for weights in trial.structure.weights:
        assert not bool(weights.tensor[~weights.mask].any()), f"a weight of {weights.name} came back"


def keeps_identities(method: Any, name: str, edits: Edits) -> None:
    """Parameters stay the same objects, with their names, hooks, types and requires_grad, and training goes on."""
    trial = Trial.of(name, edits)
    parameters = dict(trial.model.named_parameters())
    traits = {n: (id(p), p.dtype, p.device, p.requires_grad) for n, p in parameters.items()}
    seen: list[str] = []
    handles = [p.register_hook(lambda grad, n=n: seen.append(n)) for n, p in parameters.items()]
    trial.edit(method, edits)
    now = dict(trial.model.named_parameters())
    assert {n: (id(p), p.dtype, p.device, p.requires_grad) for n, p in now.items()} == traits
    trial.train()
    assert set(seen) == set(traits)
    for handle in handles:
        handle.remove()


def repeats_itself(method: Any, name: str, edits: Edits) -> None:
    """The same seed gives the same edit, and the global random state is untouched."""
    one, other = Trial.of(name, edits), Trial.of(name, edits)
    random = torch.get_rng_state()
    one.edit(method, edits, seed=5)
    torch.manual_seed(torch.initial_seed() + 1)
    moved = torch.get_rng_state()
    other.edit(method, edits, seed=5)
    untouched = torch.equal(moved, torch.get_rng_state())
    torch.set_rng_state(random)
    assert untouched
    _assert_same(one.state(), other.state())


def survives_json(method: Any, name: str, edits: Edits) -> None:
    """Its configuration goes through JSON and back."""
    assert create_method(**json.loads(json.dumps(method_config(method)))) == method


def _assert_same(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    assert before.keys() == after.keys()
    for key, old in before.items():
        same = torch.equal(old, after[key]) if isinstance(old, Tensor) else old == after[key]
        assert same, f"{key} differs"


@dataclass(frozen=True)
class Law:
    """One law for one method on one network."""

    method: Any
    network: str
    rule: Callable[[Any, str, Edits], None]
    edits: Edits = "units"

    def check(self) -> None:
        """Raises AssertionError where the method breaks the law."""
        self.rule(self.method, self.network, self.edits)

    def __str__(self) -> str:
        of = "" if self.edits == "units" else f"-{self.edits.replace(' ', '_')}"
        return f"{self.method.name}-{self.rule.__name__}-{self.network}{of}"


_FOR_ALL = (undoes_bit_for_bit, keeps_identities, repeats_itself, survives_json)
_FOR_GROWERS = (keeps_the_function, reaches_every_new_unit, grows_and_prunes_to_the_identity)


#: Networks in which nothing can be edited so: every layer of the perceptron makes another size.
_WITHOUT = frozenset({("layers out", "perceptron")})


def laws_of(method: Any, broken: bool = False) -> list[Law]:
    """Every law that a method must keep, each on every network of the zoo.

    Args:
        method: An instance. Its class may say in ``breaks`` which laws it breaks by design: name -> the reason.
        broken: The laws that it says it breaks, instead.
    """
    breaks = getattr(method, "breaks", {})
    return [
        Law(method, network, rule, edits)
        for edits, rules in _rules_of(method)
        for rule in rules
        for network in ZOO
        if (rule.__name__ in breaks) == broken and (edits, network) not in _WITHOUT
    ]


def _rules_of(method: Any) -> Iterator[tuple[Edits, tuple[Callable[[Any, str, Edits], None], ...]]]:
    """What the method edits, with the laws for it."""
    if hasattr(method, "fresh"):
        yield "units", (*_FOR_ALL, *_FOR_GROWERS)
    elif hasattr(method, "score"):
        yield "units", _FOR_ALL
    if hasattr(method, "followers"):
        yield "layers in", (undoes_bit_for_bit, repeats_itself, survives_json, keeps_the_function)
    if hasattr(method, "score_layers"):
        yield "layers out", (undoes_bit_for_bit, repeats_itself, survives_json)
    if hasattr(method, "score_weights"):
        yield "weights off", (*_FOR_ALL, keeps_what_is_off_at_zero)
    if hasattr(method, "score_absent"):
        yield "weights on", (*_FOR_ALL, *_FOR_GROWERS, keeps_what_is_off_at_zero)


def check_method(method: Any, expected_failures: Mapping[str, str] | None = None) -> None:
    """Check every law on a method.

    Args:
        method: An instance, with the configuration to check.
        expected_failures: Names of laws that it breaks by design -> the reason, beside those that its class says.

    Raises:
        AssertionError: It breaks a law, or keeps one that it is expected to break.

    >>> import regrow as rg
    >>> rg.testing.check_method(rg.L1())
    """
    expected = {**getattr(method, "breaks", {}), **(expected_failures or {})}
    broken = {}
    for law in (*laws_of(method), *laws_of(method, broken=True)):
        try:
            law.check()
        except Exception as error:
            broken[str(law)] = (law.rule.__name__, f"{type(error).__name__}: {error}")
    unexpected = {name: message for name, (rule, message) in broken.items() if rule not in expected}
    assert not unexpected, f"laws broken: {unexpected}"
    kept = set(expected) - {rule for rule, _ in broken.values()}
    assert not kept, f"expected to be broken, but kept: {', '.join(sorted(kept))}"

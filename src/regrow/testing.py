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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .edit import Edit
from .method import create_method, method_config
from .operations import grow_, prune_
from .structure import Axis, Structure, analyze

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
    def of(cls, name: str) -> Trial:
        """A fresh trial; the same at each call."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model, x = ZOO[name](), torch.randn(6, 3, 7, 7)
        trial = cls(model, x, torch.optim.Adam(model.parameters(), 1e-3, amsgrad=True), analyze(model, x))
        trial.train()
        trial.train()
        return trial

    def train(self) -> None:
        """One step."""
        self.optimizer.zero_grad()
        self.model(self.x).square().mean().backward()
        self.optimizer.step()

    def edit(self, method: Any, seed: int = 0) -> Edit:
        """What the method does to all axes that it can edit: a quarter more, or a third fewer units."""
        generator = torch.Generator().manual_seed(seed)
        perform, amount = (grow_, 0.25) if hasattr(method, "fresh") else (prune_, 0.3)
        loss = lambda: self.model(self.x).square().mean()  # noqa: E731
        return perform(self.structure, amount, method, optimizer=self.optimizer, generator=generator, loss=loss)

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
            found[f"{name}.attributes"] = {k: v for k, v in vars(module).items() if isinstance(v, (int, tuple))}
        return found


def keeps_the_function(method: Any, name: str) -> None:
    """Growth doesn't move the output on exact axes, in eval and in train mode."""
    trial = Trial.of(name)
    before = trial.outputs()
    trial.edit(method)
    for old, new in zip(before, trial.outputs(), strict=True):
        assert float((new - old).abs().max()) <= TOLERANCE * float(old.abs().max())


def reaches_every_new_unit(method: Any, name: str) -> None:
    """Each new unit gets a gradient, in its incoming or its outgoing weights."""
    trial = Trial.of(name)
    edit = trial.edit(method)
    trial.optimizer.zero_grad()
    trial.model(trial.x).square().mean().backward()
    for axis_name, units in edit.units("new").items():
        axis = trial.structure[axis_name]
        for unit in units:
            assert _gradient(axis, unit) > 0, f"unit {unit} of {axis_name} gets no gradient"


def _gradient(axis: Axis, unit: int) -> float:
    total = 0.0
    for entry in axis.with_role("in", "out", "tied"):
        if entry.tensor.grad is not None:
            total += float(entry.tensor.grad.index_select(entry.dim, entry.indices([unit])).abs().sum())
    return total


def undoes_bit_for_bit(method: Any, name: str) -> None:
    """Editing and undoing restores parameters, buffers, gradients, optimizer state and sizes."""
    trial = Trial.of(name)
    before = trial.state()
    trial.edit(method).undo_()
    _assert_same(before, trial.state())


def grows_and_prunes_to_the_identity(method: Any, name: str) -> None:
    """Pruning the units that were just grown leaves what there was."""
    trial = Trial.of(name)
    before = trial.state()
    edit = trial.edit(method)
    for axis_name, units in edit.units("new").items():
        prune_(trial.structure[axis_name], units, optimizer=trial.optimizer)
    _assert_same(before, trial.state())


def keeps_identities(method: Any, name: str) -> None:
    """Parameters stay the same objects, with their names, hooks, types and requires_grad, and training goes on."""
    trial = Trial.of(name)
    parameters = dict(trial.model.named_parameters())
    traits = {n: (id(p), p.dtype, p.device, p.requires_grad) for n, p in parameters.items()}
    seen: list[str] = []
    handles = [p.register_hook(lambda grad, n=n: seen.append(n)) for n, p in parameters.items()]
    trial.edit(method)
    now = dict(trial.model.named_parameters())
    assert {n: (id(p), p.dtype, p.device, p.requires_grad) for n, p in now.items()} == traits
    trial.train()
    assert set(seen) == set(traits)
    for handle in handles:
        handle.remove()


def repeats_itself(method: Any, name: str) -> None:
    """The same seed gives the same edit, and the global random state is untouched."""
    one, other = Trial.of(name), Trial.of(name)
    random = torch.get_rng_state()
    one.edit(method, seed=5)
    torch.manual_seed(torch.initial_seed() + 1)
    moved = torch.get_rng_state()
    other.edit(method, seed=5)
    untouched = torch.equal(moved, torch.get_rng_state())
    torch.set_rng_state(random)
    assert untouched
    _assert_same(one.state(), other.state())


def survives_json(method: Any, name: str) -> None:
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
    rule: Callable[[Any, str], None]

    def check(self) -> None:
        """Raises AssertionError where the method breaks the law."""
        self.rule(self.method, self.network)

    def __str__(self) -> str:
        return f"{self.method.name}-{self.rule.__name__}-{self.network}"


_FOR_ALL = (undoes_bit_for_bit, keeps_identities, repeats_itself, survives_json)
_FOR_GROWERS = (keeps_the_function, reaches_every_new_unit, grows_and_prunes_to_the_identity)


def laws_of(method: Any, broken: bool = False) -> list[Law]:
    """Every law that a method must keep, each on every network of the zoo.

    Args:
        method: An instance. Its class may say in ``breaks`` which laws it breaks by design: name -> the reason.
        broken: The laws that it says it breaks, instead.
    """
    rules = (*_FOR_ALL, *_FOR_GROWERS) if hasattr(method, "fresh") else _FOR_ALL
    breaks = getattr(method, "breaks", {})
    return [Law(method, network, rule) for rule in rules for network in ZOO if (rule.__name__ in breaks) == broken]


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

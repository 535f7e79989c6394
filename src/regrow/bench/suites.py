"""Suites: which tasks are run by which arms, and with which seeds.

An *arm* is what is compared: options of a run beside those that its task fixes. The budget of each arm is told in
training FLOPs; see docs/benchmark.md for what is fixed, what is measured, and how it is compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import InputError
from .options import make_method
from .tasks import unknown

PROTOCOL = 1
#: Seeds by which arms are selected, on held-out training examples, and fresh ones by which claims are confirmed.
SELECTION = (0, 1, 2)
CONFIRMATION = tuple(range(100, 108))

#: What grown and shrunk networks may spend, as a part of what the large one costs for all of its epochs.
GROWN_BUDGET = 0.7

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """What is compared on a task.

    Attributes:
        name: unique in its suite.
        setting: "static", "grow", "shrink" or "constant".
        options: of the run, beside its task's.
        against: the arm that it is compared with, seed by seed.
    """

    name: str
    setting: str
    options: Options = field(default_factory=dict)
    against: str = ""


@dataclass(frozen=True)
class Suite:
    """What `regrow bench` runs.

    Attributes:
        name: under which it is known.
        tasks: what each task fixes for all arms.
        arms: what is compared.
        seeds: for selection.
    """

    name: str
    tasks: Mapping[str, Options]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = SELECTION


_SUITES: dict[str, Callable[[], Suite]] = {}


def register_suite(function: Callable[[], Suite]) -> Callable[[], Suite]:
    """Make a suite known under its name."""
    _SUITES[function().name] = function
    return function


def list_suites() -> list[str]:
    """Names of the suites, sorted."""
    return sorted(_SUITES)


def get_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        InputError: there is none; the message names those that are.
    """
    if name not in _SUITES:
        raise InputError(unknown("suite", name, list_suites()))
    return _SUITES[name]()


def statics(start: float, end: float, parts: tuple[float, ...] = (0.5, GROWN_BUDGET, 1.0)) -> list[Arm]:
    """The baselines: networks of the large and of the small size all along, each on its own cosine."""
    fractions = {"start_fraction": start, "end_fraction": end}
    large = [Arm(f"large, {part:.0%}", "static", {**fractions, "size": "end", "budget": part}) for part in parts]
    small = Arm(f"small, {GROWN_BUDGET:.0%}", "static", {**fractions, "size": "start", "budget": GROWN_BUDGET})
    return [*large, small]


def half() -> Arm:
    """The baseline of shrinking: a network of half the widths all along."""
    fractions = {"start_fraction": 0.5, "end_fraction": 1.0, "size": "start", "budget": GROWN_BUDGET}
    return Arm(f"half, {GROWN_BUDGET:.0%}", "static", fractions)


def _grow(name: str, method: str, fixed: Options, **more: Any) -> Arm:
    return Arm(f"grow: {name}", "grow", {**fixed, "grow": method, **more}, f"large, {GROWN_BUDGET:.0%}")


def _shrink(name: str, method: str, fixed: Options, **more: Any) -> Arm:
    return Arm(f"shrink: {name}", "shrink", {**fixed, "prune": method, **more}, f"half, {GROWN_BUDGET:.0%}")


def _constant(name: str, prune: str, grow: str, fixed: Options, **more: Any) -> Arm:
    return Arm(f"constant: {name}", "constant", {**fixed, "prune": prune, "grow": grow, **more}, "large, 100%")


def entered(suite: Suite, text: str) -> Suite:
    """A suite with arms for somebody's method in each setting that it can take part in.

    Args:
        text: as `--grow` and `--prune` take it: NAME, PACKAGE.MODULE:CLASS, either with options behind another colon.

    Raises:
        InputError: there is no such method, or it neither grows nor prunes.
    """
    method = make_method(text, "any")
    arms = []
    if hasattr(method, "fresh"):
        arms += [_grow(text, text, GROWING), _constant(f"l1 + {text}", "l1", text, HOLDING)]
    if hasattr(method, "score"):
        arms += [_shrink(text, text, SHRINKING, ranking="global")]
        arms += [_constant(f"{text} + gradmax", text, SAFE["gradmax"], HOLDING)]
    if not arms:
        raise InputError(f"{text} has neither fresh() nor score(), so it can't grow or prune units")
    return replace(suite, arms=(*suite.arms, *arms))


#: The poster's growers as it had them under batch norm, and as they are made safe for it.
NAIVE = {
    "random": "random:zero=incoming,distribution=uniform,scale=0.5",
    "gradmax": "gradmax:batch_norm=naive,beyond_rank=random",
    "gradmax-optim": "gradmax-optim:batch_norm=naive,beyond_rank=random",
    "firefly": "firefly:form=official",
}
SAFE = {
    "random": "random",
    "gradmax": "gradmax:beyond_rank=random",
    "gradmax-optim": "gradmax-optim:beyond_rank=random",
    "firefly": "firefly",
}
PRUNERS = {"l1": "l1", "polarization": "polarization", "magnitude": "magnitude", "taylor": "taylor"}

#: What both directions share: a quarter of the widths grows to all of them, all shrink to half.
GROWING = {"start_fraction": 0.25, "end_fraction": 1.0, "first": 0.1, "last": 0.5, "events": 6, "budget": GROWN_BUDGET}
SHRINKING = {"start_fraction": 1.0, "end_fraction": 0.5, "first": 0.3, "last": 0.7, "events": 6, "budget": GROWN_BUDGET}
HOLDING = {"start_fraction": 1.0, "end_fraction": 1.0, "first": 0.1, "last": 0.6, "events": 6, "budget": 1.0}

#: What came of looking for better times, on one seed: few steps, the first at once, the last late. A network has half
#: of its widths for most of the budget, since steps are cheap then, and all of them while the learning rate falls.
IN_STEPS = {**GROWING, "first": 0.03, "last": 0.85, "events": 3, "pace": 0.5}
EARLY = {**SHRINKING, "first": 0.05, "last": 0.3}
HALF_IN_TURN = {**HOLDING, "order": "alternate", "events": 1, "first": 0.03, "last": 0.6, "exchange": 0.5}


def growing() -> list[Arm]:
    """Growing by each method, as the poster had it and safe under batch norm, and by schedules of methods' own."""
    return [
        *(_grow(name, method, GROWING) for name, method in SAFE.items()),
        *(_grow(f"{name}, naive", method, GROWING) for name, method in NAIVE.items()),
        *(_grow(f"{name}, in 3 steps", method, IN_STEPS) for name, method in SAFE.items()),
        _grow("homeostasis", "homeostasis:period=25,rate=0.2,grace=50", {**GROWING, "last": 0.6}, schedule="own"),
        _grow(
            "homeostasis, slower", "homeostasis:period=150,rate=0.1,grace=50", {**GROWING, "last": 0.85}, schedule="own"
        ),
        _grow("north", "north", {**GROWING, "last": 0.6}, schedule="own"),
    ]


def shrinking() -> list[Arm]:
    """Pruning by each method, and a network of half the widths all along."""
    return [
        half(),
        *(_shrink(name, method, SHRINKING, ranking="global") for name, method in PRUNERS.items()),
        _shrink("taylor, early", PRUNERS["taylor"], EARLY, ranking="global"),
        _shrink("homeostasis", "homeostasis:period=25,rate=0.1", SHRINKING, schedule="own"),
    ]


def holding() -> list[Arm]:
    """Pruning and growing at once: each combination, orders, degrees, and one method that does both."""
    pairs = [("l1", "random"), ("l1", "gradmax"), ("polarization", "gradmax")]
    arms = [_constant(f"{prune} + {grow}", PRUNERS[prune], SAFE[grow], HOLDING) for prune, grow in pairs]
    l1, gradmax = PRUNERS["l1"], SAFE["gradmax"]
    return [
        *arms,
        _constant("l1 + gradmax, naive", l1, NAIVE["gradmax"], HOLDING),
        _constant("l1 + firefly", l1, SAFE["firefly"], HOLDING),
        _constant("gradmax + l1 (grows first)", l1, gradmax, HOLDING, order="grow-prune"),
        _constant("l1 + gradmax, in turn", l1, gradmax, HOLDING, order="alternate"),
        _constant("l1 + gradmax, 20 %", l1, gradmax, HOLDING, exchange=0.2),
        _constant("l1 + gradmax, half in turn", l1, gradmax, HALF_IN_TURN),
        _constant("magnitude + random, half in turn", PRUNERS["magnitude"], SAFE["random"], HALF_IN_TURN),
        _constant("homeostasis", l1, "homeostasis:period=50", HOLDING, schedule="own"),
    ]


@register_suite
def poster() -> Suite:
    """The poster's experiment: growing, shrinking and constant size on CIFAR-10, by all of its methods and ours."""
    fixed = {"width": 0.25, "limit": 25_000, "validation": 5_000, "epochs": 8, "threads": 1, "lr": 0.05}
    arms = (*statics(0.25, 1.0), *growing(), *shrinking(), *holding())
    return Suite("poster", {"cifar10/vgg11": fixed}, arms)


@register_suite
def tuning() -> Suite:
    """The learning rate of the large network all along, which is then frozen for all arms of the poster's suite."""
    fixed = {"width": 0.25, "limit": 25_000, "validation": 5_000, "epochs": 8, "threads": 1}
    sizes = {"start_fraction": 0.25, "end_fraction": 1.0, "size": "end", "budget": 1.0}
    arms = tuple(Arm(f"lr {rate:g}", "static", {**sizes, "lr": rate}) for rate in (0.025, 0.05, 0.1, 0.2))
    return Suite("tuning", {"cifar10/vgg11": fixed}, arms, seeds=(0,))


@register_suite
def exploration() -> Suite:
    """By which the times of `IN_STEPS`, `EARLY` and `HALF_IN_TURN` were found, on one seed."""

    def grow(name: str, method: str, first: float, last: float, **more: Any) -> Arm:
        return _grow(name, method, {**GROWING, "first": first, "last": last}, **more)

    gradmax, slow = SAFE["gradmax"], "homeostasis:period=200,rate=0.1,grace=50"
    three = [(name, name) for name in ("random", "net2wider")]
    three += [("gradmax", gradmax), ("tiny", "tiny:beyond_rank=random")]
    arms = (
        *(*statics(0.25, 1.0), half()),
        grow("random .1-.8", "random", 0.1, 0.8),
        grow("gradmax .1-.8", gradmax, 0.1, 0.8),
        grow("random .03-.7", "random", 0.03, 0.7),
        grow("north .8", "north", 0.1, 0.8, schedule="own"),
        grow("gradmax .03-.8 12", gradmax, 0.03, 0.8, events=12),
        grow("random .03-.9", "random", 0.03, 0.9),
        grow("random .03-.7 pace .5", "random", 0.03, 0.7, pace=0.5),
        grow("homeostasis 200", slow, 0.1, 0.8, schedule="own"),
        grow("gradmax .03-.7", gradmax, 0.03, 0.7),
        grow("random .02-.6 pace .7", "random", 0.02, 0.6, pace=0.7),
        *(_grow(f"{name} 3 .03-.85 pace .5", method, IN_STEPS) for name, method in three),
        _constant("magnitude + random, turn 50", "magnitude", "random", HALF_IN_TURN),
        _shrink("taylor early", "taylor", EARLY, ranking="global"),
    )
    return replace(poster(), name="exploration", arms=arms, seeds=(0,))


@register_suite
def smoke() -> Suite:
    """Whether everything works, in minutes: three small tasks, arms of each kind."""
    fixed = {"epochs": 4, "validation": 200, "threads": 1, "evaluations": 4}
    tasks = dict.fromkeys(("digits/mlp", "spirals/mlp", "teacher/mlp"), fixed)
    chosen = ("grow: gradmax", "grow: homeostasis", "shrink: l1", "constant: l1 + gradmax")
    arms = [arm for arm in (*growing(), *shrinking(), *holding()) if arm.name in (*chosen, f"half, {GROWN_BUDGET:.0%}")]
    large = statics(0.25, 1.0, (GROWN_BUDGET, 1.0))[:2]
    return Suite("smoke", tasks, (*large, *arms), seeds=(0,))

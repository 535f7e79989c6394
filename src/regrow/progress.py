"""What a plan's run has to remember: what conditions have noted, sizes at the start of schedules, and units' ages."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .actions import Action, Grow, Toward
from .errors import NothingToDo
from .plan import Plan, Until, When
from .structure import Axis


class Progress:
    """How far a plan has got, beside the step that it is at; all of it is plain values."""

    def __init__(self) -> None:
        self.firsts: dict[str, dict[str, int]] = {}  # sizes when a schedule was due first, by its action's place
        self.conditions: dict[str, dict[str, Any]] = {}  # what each has noted, by its number in the plan
        self.memories: dict[str, dict[str, Any]] = {}  # what methods that choose have noted, by their actions' places
        self.late: list[int] = []  # steps at which gradients were to be looked at, but the optimizer took none

    def state_dict(self) -> dict[str, Any]:
        """A copy of it as plain values."""
        return copy.deepcopy(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Raises:
            ValueError: A key is missing or unknown.
        """
        if set(state) != set(vars(self)):
            raise ValueError(f"progress has the keys {', '.join(vars(self))}, not {', '.join(map(str, state))}.")
        vars(self).update(copy.deepcopy({name: state[name] for name in vars(self)}))

    def holding(self, plan: Plan, seen: Mapping[str, float]) -> Callable[[When | Until], bool]:
        """Which of the parts of a plan that wait for a condition have it at a step; each is asked once.

        Args:
            seen: "step", and whatever else conditions look at.

        Raises:
            ValueError: A condition looks at what there isn't.
        """
        found: dict[int, bool] = {}
        for number, part in enumerate(plan.waiting()):
            memory = self.conditions.setdefault(str(number), {})
            if isinstance(part, Until):
                memory["ended"] = memory.get("ended", False) or part.condition.holds(seen, memory)
                found[id(part)] = memory["ended"]
            else:
                in_time = seen["step"] > part.start and (part.stop is None or seen["step"] <= part.stop)
                found[id(part)] = in_time and part.condition.holds(seen, memory)
        return lambda part: found[id(part)]

    def possibly(self, plan: Plan) -> Callable[[When | Until], bool]:
        """What may hold at the coming step: what waits for a condition may act, and what has ended has."""
        parts = enumerate(plan.waiting())
        ended = {id(part) for number, part in parts if self.conditions.get(str(number), {}).get("ended")}
        return lambda part: isinstance(part, When) or id(part) in ended

    def memory(self, action: Action) -> dict[str, Any]:
        """What the method of an action has noted, for it to note more."""
        return self.memories.setdefault(repr((action.method.name, *action.place)), {})

    def amount(self, action: Action, parts: Sequence[Any]) -> Any:
        """The amount of an action at a step: for a schedule what is still to go or come, by what there was at first.

        Raises:
            NothingToDo: All of that is done.
        """
        if not isinstance(action.amount, Toward):
            return action.amount
        now = {part.name: getattr(part, "size", 1) for part in parts}
        first = self.firsts.setdefault(repr(action.place), now)
        fraction = action.amount.fraction
        if isinstance(action, Grow):
            gains = {name: round((1 + fraction) * first.get(name, size)) - size for name, size in now.items()}
            gains = {name: gain for name, gain in gains.items() if gain > 0}
            if not gains:
                raise NothingToDo("nothing to grow: what the schedule wants is there.")
            return gains
        number = sum(now.values()) - round((1 - fraction) * sum(first.values()))
        if number <= 0:
            raise NothingToDo("nothing to prune: what the schedule wants has gone.")
        return number


class Ages:
    """The steps at which units came, of axes that have grown."""

    def __init__(self) -> None:
        self._births: dict[Axis, list[int]] = {}

    def young(self, axes: Sequence[Axis], least: int) -> dict[str, list[int]]:
        """The units of each axis that came at a later step than this."""
        found = {}
        for axis in axes:
            born = self._births.get(axis, ())
            if len(born) == axis.size:  # else the axis was edited elsewhere
                found[axis.name] = [unit for unit, step in enumerate(born) if step and step > least]
        return {name: units for name, units in found.items() if units}

    def follow(self, axis: Axis, sizes: tuple[int, int], new: Sequence[int], removed: Sequence[int], step: int) -> None:
        """Note that units came and went at a step."""
        before, after = sizes
        born = self._births.get(axis, [])
        kept = born if len(born) == before else [0] * before
        gone, arrived = set(removed), set(new)
        old = iter(step for unit, step in enumerate(kept) if unit not in gone)
        self._births[axis] = [step if unit in arrived else next(old) for unit in range(after)]

    def state_dict(self, axes: Sequence[Axis]) -> dict[str, list[int]]:
        """By the names of the axes that there are."""
        return {axis.name: list(self._births[axis]) for axis in axes if axis in self._births}

    def load_state_dict(self, axes: Sequence[Axis], state: Mapping[str, Sequence[int]]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        by_name = {axis.name: axis for axis in axes}  # of one unit there is no axis
        self._births = {by_name[name]: list(born) for name, born in state.items() if name in by_name}


def numbers(reported: Mapping[str, float | Tensor]) -> dict[str, float]:
    """What a training loop reports, as plain numbers."""
    return {
        name: float(value.detach()) if isinstance(value, Tensor) else float(value) for name, value in reported.items()
    }

"""What of a structure the actions of a plan are about, also in a model that gets other layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .actions import WHOLE, Action, Adapt, Grow, Prune
from .amounts import named
from .plan import Plan
from .structure import Structure
from .surgery import history
from .unit_operations import GROWS, PRUNES


class Targets:
    """The axes, weights, layers or cells of each action of a plan.

    Raises:
        ValueError: An action matches nothing.
    """

    def __init__(self, structure: Structure, plan: Plan) -> None:
        self._structure, self._plan, self._analysis = structure, plan, structure.analysis
        # Of a run that goes on, all that an action is about may have left.
        self._found = {
            a.place: self._left(a) if history(structure.model) else self.matching(a) for a, _ in plan.entries()
        }
        for action, _ in plan.entries():
            self._check_protect(action)

    def __getitem__(self, action: Action) -> list[Any]:
        return self._found[action.place]

    def require(self) -> None:
        """Each action is about something.

        Raises:
            ValueError: One is about nothing.
        """
        for action, _ in self._plan.entries():
            if not self[action]:
                self.matching(action)

    def follow(self) -> None:
        """Look again, where the model has been analysed again since it has other layers."""
        if self._analysis is self._structure.analysis:
            return
        self._analysis = self._structure.analysis
        for action in {action.place: action for action, _ in self._plan.entries()}.values():
            self._found[action.place] = self._left(action)

    def _left(self, action: Action) -> list[Any]:
        """What an action is about, if there is anything any more."""
        try:
            return self.matching(action)
        except ValueError:
            return []

    def matching(self, action: Action) -> list[Any]:
        """What an action is about now.

        Raises:
            ValueError: There is nothing.
        """
        if action.kind in WHOLE:
            found = list(self._structure.select(action.where, kind=action.kind))
            kind, known = f"{action.kind}s", self._structure.select(kind=action.kind)
        else:
            kinds, verdicts = _ABLE[type(action)]
            of_kind = self._structure.select(kind=action.kind)
            known = tuple(
                a
                for a in of_kind
                if (action.kind or a.kind in kinds or a.name == action.where)
                and any(getattr(a, able) for able in verdicts)
            )
            found = [axis for axis in self._structure.select(action.where) if axis in known]
            kind = f"{' or '.join(verdicts)} {action.kind or ' or '.join(kinds)} axis"
        if not found:
            names = ", ".join(part.name for part in known) or "none"
            raise ValueError(f"where={action.where!r} matches no {kind}; there are: {names}.")
        return list(named(action.amount, found)) if isinstance(action.amount, Mapping) else found

    def _check_protect(self, action: Action) -> None:
        for pattern in action.protect if action.kind in WHOLE and not history(self._structure.model) else ():
            if not any(part.is_called(pattern) for part in self._structure.select(kind=action.kind)):
                raise ValueError(f"protect={pattern!r} matches no {action.kind}s.")


#: The kinds of axes that an action is about by default, and what they have to be.
_ABLE: dict[type[Action], tuple[tuple[str, ...], tuple[str, ...]]] = {
    Grow: (GROWS, ("growable",)),
    Prune: (PRUNES, ("prunable",)),
    Adapt: (PRUNES, ("prunable", "growable")),
}

"""What the dimensions of tensors do to the units that lie along them."""

from __future__ import annotations

from collections.abc import Collection

from .labels import Source
from .trace import Trace

#: Of several roles the first counts.
_ORDER = ("tied", "in", "out", "scale", "shift", "mean", "var")


def roles(trace: Trace, parameters: Collection[str]) -> dict[int, str]:
    """Role by the first label of a source; "tied" where one weight both produces and consumes the units.

    Args:
        parameters: Names of the tensors that are parameters: a mask that is a buffer does nothing to units by itself.
    """
    bases, beneath = trace.relations.bases, trace.sources.beneath
    found: dict[int, str] = {}
    for labels, role in trace.relations.roles:
        for source in beneath(bases(labels)):
            found[source.start] = _joined(found.get(source.start), role)
    for one, other, multiplied in trace.relations.computed:
        sources = beneath(bases(one)), beneath(bases(other))
        factors = [s for s in (*sources[0], *sources[1]) if multiplied and trace.numel_of(s.tensor) == s.size]
        _share(*sources, multiplied, found, parameters)
        if any(s not in factors for s in (*sources[0], *sources[1])):
            # One number for each unit, times all that makes it, is a scale of it.
            found.update({s.start: "scale" for s in factors if found.get(s.start) == "out" and s.tensor in parameters})
    return found


def _joined(known: str | None, role: str) -> str:
    if known is None or known == role:
        return role
    return "tied" if {known, role} == {"in", "out"} else min(known, role, key=_ORDER.index)


def _share(
    one: list[Source], other: list[Source], multiplied: bool, found: dict[int, str], parameters: Collection[str]
) -> None:
    """A weight that is computed from two is what both are, though a scale stays that of what produces units.

    Of a parameter and a buffer that it is multiplied by it is only the parameter.
    """
    role = next((found[s.start] for s in (*one, *other) if s.start in found), None)
    if role is None:
        return
    for source in (*one, *other):
        if multiplied and role == "out" and found.get(source.start) == "scale":
            continue
        if not multiplied or source.tensor in parameters:
            found[source.start] = _joined(found.get(source.start), role)
        elif any(s.tensor in parameters for s in (*one, *other)):
            found.pop(source.start, None)

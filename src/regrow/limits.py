"""What an edit of units must respect: sizes that are multiples, smallest and largest ones, and what stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .patterns import means
from .structure import Axis


@dataclass(frozen=True)
class Limits:
    """What an edit must respect.

    Args:
        round_to: New sizes are multiples of this; growing adds a few more for it, pruning takes a few less.
        min_size, max_size: What each new size is at least and at most.
        protect: Names or patterns of axes that stay as they are; for a single axis, units that stay; or, by the name
            of each axis, units that stay.
    """

    round_to: int = 1
    min_size: int | None = None
    max_size: int | None = None
    protect: str | tuple[str, ...] | tuple[int, ...] | Mapping[str, Sequence[int]] = ()

    def __post_init__(self) -> None:
        for name in ("round_to", "min_size", "max_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is a positive integer, not {value!r}.")
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise ValueError(f"min_size is at most max_size, but {self.min_size} is more than {self.max_size}.")
        if isinstance(self.protect, Mapping):
            return
        protect = (self.protect,) if isinstance(self.protect, str) else tuple(self.protect)
        if len({isinstance(p, str) for p in protect}) > 1:
            raise TypeError(f"protect holds names of axes or indices of units, not both: {protect}.")
        object.__setattr__(self, "protect", protect)

    def spares(self, axis: Axis) -> bool:
        """Whether the axis as a whole is protected."""
        if isinstance(self.protect, Mapping):
            return False
        return any(isinstance(p, str) and means(p, axis.name) for p in self.protect)

    def protected_units(self, axis: Axis) -> list[int]:
        """Units of this axis that must stay."""
        if isinstance(self.protect, Mapping):
            return axis.check_units(self.protect.get(axis.name, ()))
        return axis.check_units(p for p in self.protect if not isinstance(p, str))

    def most(self, axis: Axis) -> int:
        """How many units the axis may gain."""
        return 2**31 if self.max_size is None else max(0, self.max_size - axis.size)

    def rounded_up(self, size: int) -> int:
        """The next multiple of ``round_to``."""
        return -(-size // self.round_to) * self.round_to

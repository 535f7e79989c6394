"""Net2DeeperNet: a new layer, or a copy of a cell, that starts as the identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..branches import KINDS
from ..method import register
from ..structure import Cell, Layer


@register
@dataclass(frozen=True)
class Deepen:
    """A layer is followed by a new one, a cell by a copy of itself; both compute the identity at first.

    Behind a layer with an activation φ for which φ(φ(x)) = φ(x), as a ReLU, the new layer is φ and a layer whose kernel
    is the identity; elsewhere it is ``x + W₂φ(W₁x)`` with W₂ zero. The copy of a cell has the last weights of what it
    adds zero, or is behind a gate ``x + a·(f(x) − x)`` with a = 0 where there are none.

    Args:
        layer: What follows a layer: "identity", "residual", "copy" (of the layer), or "auto": the identity if the
            function is kept by it, else a residual one.
        norm: Whether a batch norm follows an identity in images, with statistics and scales under which it changes
            nothing in eval mode.
        branch: What is added beside a module, ``f(x) + g(x)``, where that is asked for: "same" (a copy behind a gate),
            "1x1", "3x3", "depthwise" or "pool"; all are zero at first.

    Raises:
        TypeError: An option is of the wrong kind.
        ValueError: An option is none of what is said above.

    Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer" (ICLR 2016).
    """

    name: ClassVar[str] = "deepen"
    layer: Literal["auto", "identity", "residual", "copy"] = "auto"
    norm: bool = False
    branch: str = "same"

    def __post_init__(self) -> None:
        if self.layer not in ("auto", "identity", "residual", "copy"):
            raise ValueError(f"layer is 'auto', 'identity', 'residual' or 'copy', not {self.layer!r}.")
        if not isinstance(self.norm, bool):
            raise TypeError(f"norm is True or False, not {self.norm!r}.")
        if self.branch not in KINDS:
            raise ValueError(f"branch is {' or '.join(map(repr, KINDS))}, not {self.branch!r}.")

    def followers(self, layer: Layer) -> list[str]:
        """What may follow a layer, the best first; "copy" for a cell."""
        if isinstance(layer, Cell):
            return ["copy"]
        return ["identity", "residual"] if self.layer == "auto" else [self.layer]

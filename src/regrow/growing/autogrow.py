"""AutoGrow: cells are added row by row for as long as that lowers the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..method import Suggestion, register
from ..structure import Cell, Layer
from .deepen import Deepen


@register
@dataclass(frozen=True)
class AutoGrow(Deepen):
    """Rows of cells, as the stages of a ResNet, are deepened in turn; a row is done when its last cell didn't help.

    Each time that it is due, it looks at the loss. If a row was deepened and the loss isn't lower than before that by
    ``threshold``, relative, the row is done. Then the next row that isn't done gets a copy of its last cell, or, with
    ``when="plateau"``, only if the loss isn't lower by ``threshold`` than when it was due before.

    Args:
        threshold: How much lower is lower, as a fraction.
        when: "periodic": at every due step; "plateau": where the loss has stopped falling.
        layer, norm, branch: As for :class:`regrow.Deepen`.

    Raises:
        ValueError: An option is none of what is said above.

    Wen et al., "AutoGrow: Automatic Layer Growing in Deep Convolutional Networks" (KDD 2020), whose p-AutoGrow is
    periodic and c-AutoGrow waits; they look at the validation accuracy and start new layers at random, here they start
    as the identity.
    """

    name: ClassVar[str] = "autogrow"
    threshold: float = 0.01
    when: Literal["periodic", "plateau"] = "periodic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.threshold) and 0 <= self.threshold < 1):
            raise ValueError(f"threshold is a fraction from 0 to below 1, not {self.threshold!r}.")
        if self.when not in ("periodic", "plateau"):
            raise ValueError(f"when is 'periodic' or 'plateau', not {self.when!r}.")

    def schedule(self) -> Suggestion:
        """One more cell every 200 steps, as long as that helps."""
        return Suggestion(200, 1, options={"kind": "cell"})

    def choose(self, layers: Sequence[Layer], loss: float, memory: dict[str, Any]) -> list[Layer]:
        """The cells to copy now, from what is remembered of earlier times; ``memory`` is updated.

        >>> memory = {}
        >>> AutoGrow().choose([], 1.0, memory)
        []
        """
        before = memory.get("loss")
        memory["loss"] = loss
        if self.when == "plateau" and (before is None or self._is_lower(loss, before)):
            return []
        done = memory.setdefault("done", [])
        grown, at_growth = memory.get("row"), memory.get("at_growth", math.inf)
        if grown is not None and not self._is_lower(loss, at_growth):
            done.append(grown)
        rows: dict[str, Layer] = {}
        for layer in layers:
            if not isinstance(layer, Cell) or layer.keeps_shape:
                rows[layer.name.rpartition(".")[0]] = layer  # the last of its row stays
        names = list(rows)
        start = names.index(grown) + 1 if grown in names else 0
        left = [name for name in names[start:] + names[:start] if name not in done]
        memory["row"], memory["at_growth"] = (left[0] if left else None), loss
        return [rows[left[0]]] if left else []

    def _is_lower(self, loss: float, before: float) -> bool:
        return loss < before * (1 - self.threshold)

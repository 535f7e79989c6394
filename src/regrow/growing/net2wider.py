"""Net2WiderNet: new units are copies of old ones, and each sends a part of what the old one sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import NotPermissible
from ..method import Grown, register
from ..rows import rows_of, take
from ..structure import Axis, Entry
from .forms import check_choice, filled_up


@register
@dataclass(frozen=True)
class Net2Wider:
    """Copies of randomly chosen old units, which share with them what these sent.

    A copy has all that makes the old unit: its incoming weights, its biases, a norm's scale, shift and running
    statistics. So it sends the same, and the function stays as it is in either mode as long as the outgoing weights of
    the two add up to the old ones: ``w = f·w + (1 − f)·w``. With f = ½, as in the paper, both would get the same
    gradients and stay the same for ever, unless dropout or noise tells them apart; the paper adds a little noise then,
    which changes the function. Here each outgoing weight is split in a ratio f of its own instead: then the gradients
    ∂L/∂w_in = Σ f·w·δ of the two differ in their directions at the first step, and the function is kept all the same.

    Each unit is copied once at most, so an axis is at most doubled at a time: a third copy is that of a copy. A copy of
    a unit that is dead is as dead: those that got no gradient at the last backward pass, where that is still there, are
    copied last. The groups of a grouped convolution and the units in them can't grow so in one edit.

    Args:
        spread: How far apart f may be: it is uniform on ½ ± spread/2. With 0 copies send one half each, and stay the
            same as long as training doesn't draw random numbers.
        beyond: What happens where more units are asked for than there are to copy: "error", or "random": the rest read
            at random and send nothing yet.

    Raises:
        ValueError: An option is none of what is said above.

    Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer" (ICLR 2016). There units are
    chosen with replacement.
    """

    name: ClassVar[str] = "net2wider"
    breaks: ClassVar[Mapping[str, str]] = {
        "grows_and_prunes_to_the_identity": "what an old unit sent, it and its copy send together",
    }
    spread: float = 0.5
    beyond: Literal["error", "random"] = "error"

    def __post_init__(self) -> None:
        check_choice("beyond", self.beyond, Literal["error", "random"])
        if not (math.isfinite(self.spread) and 0 <= self.spread <= 1):
            raise ValueError(f"spread is a number from 0 to 1, not {self.spread!r}.")

    def fresh(self, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Grown:
        """Copies of ``num`` of the units, and what these send from now on.

        Raises:
            NotPermissible: There are fewer units, or one weight both makes and reads them, or what reads them is
                divided by its own length, so that its parts don't add up.
        """
        check_can_be_shared(axis)
        if num > axis.size and self.beyond == "error":
            raise NotPermissible(
                f"asked for {num} new units in {axis.name}, whose {axis.size} units are copied once at most; grow it "
                "in several goes, or let the others be random with beyond='random'."
            )
        copied = min(num, axis.size)
        order = torch.randperm(axis.size, generator=generator, device=generator.device).tolist()
        chosen = sorted(order, key=_dead(axis).tolist().__getitem__)[:copied]
        units: dict[Entry, Tensor] = {}
        old: dict[Entry, Tensor] = {}
        for entry in axis.entries:
            rows = rows_of(entry, entry.tensor.detach(), axis.size)
            units[entry] = take({entry: rows}, chosen)[entry]
            if entry.role == "in":
                kept = units[entry] * self._parts(units[entry], generator)
                old[entry] = rows.clone()
                old[entry][chosen] = 2 * kept  # half of which a unit with a copy keeps
                units[entry] = units[entry] - kept
        return Grown(filled_up(axis, units, num, generator), old, copies=chosen)

    def _parts(self, like: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(like.shape, generator=generator, device=generator.device)  # the same on every device
        return (0.5 + self.spread * (drawn - 0.5)).to(like)


def _dead(axis: Axis) -> Tensor:
    """Which units got no gradient at the last backward pass, as far as the parameters still have one."""
    pairs = [(entry, entry.tensor.grad) for entry in axis.with_role("out", "in") if entry.tensor.is_leaf]
    found = [rows_of(e, grad, axis.size).flatten(1).any(1).cpu() for e, grad in pairs if grad is not None]
    return ~torch.stack(found).any(0) if found else torch.zeros(axis.size, dtype=torch.bool)


def check_can_be_shared(axis: Axis) -> None:
    """What a unit sends can be shared between it and a copy.

    Raises:
        NotPermissible: It can't.
    """
    made = {(entry.name, entry.dim) for entry in axis.with_role("out")}
    for entry in axis.with_role("in", "out", "tied"):
        if entry.role == "tied" or (entry.role == "in" and (entry.name, entry.dim) in made):
            reason = f"{entry.name} both makes and reads them"
        elif entry.role == "in" and entry.nonzero:
            reason = f"{entry.name}, which reads them, is divided by its own length"
        elif entry.summed is not None and bool(entry.summed.any()):
            reason = f"what {entry.name} makes of them is added up with no weight between"
        else:
            continue
        raise NotPermissible(
            f"units of {axis.name} can't share what they send with copies: {reason}; leave that axis out (protect=), "
            "or grow it by Random."
        )

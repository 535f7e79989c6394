"""SENN: new units where, and when, a natural gradient would lower the loss faster with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..agreement import averaged_number
from ..errors import NotPermissible
from ..evidence import Needs
from ..evidence.natural import Natural, Seen
from ..evidence.passage import Passage
from ..method import Fresh, Suggestion, register
from ..rows import expanded, laid_out, number_of, row_shape, take
from ..structure import Axis, Entry
from .scaling import mean_norm, scaled
from .silent import calibrated


@register
@dataclass(frozen=True)
class SENN:
    """Width, where and for as long as it is worth it: by what a natural gradient would win with new units.

    The natural expansion score η = gᵀF⁻¹g is the rate at which a natural gradient lowers the loss, and twice what it
    wins where the loss is quadratic. With the Kronecker-factored Fisher matrix of the layers that read an axis's units
    it is the sum of the squared canonical correlations of what they read with the gradients at what they put out, from
    0 to the number of outputs (:mod:`regrow.evidence.natural`). Of new units it is Δη that counts, what they explain of
    what the present ones leave: for the rest a natural gradient on old weights is enough. The Fisher matrix is taken in
    blocks, so η of a network is a sum over its axes. The best candidate of all axes joins the units, then the next best
    beside it, while ::

        η + Δη > threshold · η   and   Δη · loss / (the loss when this was due first) > least

    As η can't exceed the number of outputs, without a step of the optimizer no more units come than
    :meth:`most_additions` says. What a plan asks for is the most that an axis gains at a time; where it is given by
    name, it is what comes.

    New units have outgoing weights of zero, and incoming ones as long as those of old units; norms know them already,
    and the function stays the same in either mode. Up to half of the candidates are the closed form for a linear map
    between, with both signs: C^(−½)·u, with C the covariance of what the incoming weights see and u the left singular
    vectors of C^(−½)·M·S^(−½), where M is the growth matrix of what is left of the gradients
    (:class:`regrow.evidence.Growth`) and S the gradients' second moment. The others are drawn at random. Shifts bring
    the mean of what activations get to zero, or, for those at random, to within a deviation of it. All are judged with
    all that lies between.

    Scores on the examples that something was learned from flatter it: with as many features as positions all is
    explained. So every second example only judges, and what the best candidate would win with the gradients of other
    examples is taken off. What is less than chance brings isn't seen, so take enough examples: at least a few times as
    many as the layers have units, in larger batches or more of them. It costs about one and a half times what GradMax
    does.

    Args:
        threshold: By which factor η has to grow with each unit, 1 or more; None: as many units come as were asked for,
            where they win most.
        least: How much of the loss a unit has to win, relative to that when the action was due first. Of a squared
            error with one output, Δη is the part that is won.
        damping: Of the Fisher matrix's factors, relative to the features' mean squares and to the mean eigenvalue of S.
        candidates: How many there are in an axis; twice as many as units are asked for, if that is more.
        held_out: Whether every second example only judges. False is the paper's score, which flatters.

    Raises:
        TypeError: An option is of the wrong kind.
        ValueError: An option is none of what is said above.

    Mitchell, Menzenbach, Kersting and Mundt, "Self-Expanding Neural Networks" (2023). They ascend Δη from random
    starts, add layers too, and have thresholds of 2 for a regression and 1.03 for MNIST in their code.
    """

    name: ClassVar[str] = "senn"
    weighs_loss: ClassVar[bool] = True
    leaves_out: ClassVar[bool] = True
    threshold: float | None = 1.02
    least: float = 0.01
    damping: float = 1e-3
    candidates: int = 32
    held_out: bool = True

    def __post_init__(self) -> None:
        if self.threshold is not None and not (math.isfinite(self.threshold) and self.threshold >= 1):
            raise ValueError(f"threshold is None or a number of at least 1, not {self.threshold!r}.")
        if not (math.isfinite(self.least) and self.least >= 0):
            raise ValueError(f"least is a number that isn't negative, not {self.least!r}.")
        if not (math.isfinite(self.damping) and self.damping > 0):
            raise ValueError(f"damping is a positive number, not {self.damping!r}.")
        if isinstance(self.candidates, bool) or not isinstance(self.candidates, int) or self.candidates < 1:
            raise ValueError(f"candidates is a positive integer, not {self.candidates!r}.")
        if not isinstance(self.held_out, bool):
            raise TypeError(f"held_out is True or False, not {self.held_out!r}.")

    @property
    def needs(self) -> Needs:
        """Candidates for each axis."""
        return {"proposals": lambda axis, generator: Proposals(axis, self, generator)}

    def schedule(self) -> Suggestion:
        """Every 100 steps, on four batches: a quarter of its size at most for each axis."""
        return Suggestion(100, 0.25, options={"batches": 4})

    def most_additions(self, score: float, bound: float) -> float:
        """How many units can come before the optimizer takes a step: ln(bound/score)/ln(threshold), or fewer by least.

        Args:
            score: η as it is.
            bound: What it can't exceed: the number of outputs of all that reads units.

        >>> SENN(threshold=2.0, least=0.0).most_additions(0.5, 10.0)
        4
        >>> SENN(threshold=2.0, least=0.5).most_additions(0.0, 3.0)
        6
        """
        if score >= bound or self.threshold is None:
            return 0 if score >= bound else math.inf
        by_factor = math.log(bound / score) / math.log(self.threshold) if score > 0 and self.threshold > 1 else math.inf
        by_least = (bound - score) / self.least if self.least else math.inf
        fewest = min(by_factor, by_least)
        return fewest if fewest == math.inf else math.floor(fewest)

    def settle(
        self,
        gains: Mapping[Axis, int],
        most: Mapping[Axis, int],
        free: bool,
        seen: Mapping[Axis, Any],
        memory: dict[str, Any],
    ) -> dict[Axis, int]:
        """How many units each axis gains: the best of all candidates joins, one after the other, while that helps.

        Args:
            gains: How many were asked for: the most of each axis, or as many if they were asked for by name.
            most: How many each may gain.
            free: Whether there may be fewer.
            seen: What was gathered about each axis.
            memory: The loss when this was first called is noted here.

        Raises:
            NotPermissible: There are fewer candidates than were asked for by name.
        """
        proposals: dict[Axis, Proposals] = {axis: seen[axis]["proposals"] for axis in gains}
        for axis, each in proposals.items():
            each.propose(gains[axis])
        left = _part_left(proposals, memory)
        while True:
            open_ = {a: each.gain for a, each in proposals.items() if len(each.chosen) < min(gains[a], most[a])}
            axis = max(open_, key=lambda a: open_[a], default=None)
            if axis is None or (free and not self._helps(proposals, open_[axis], left)):
                return {axis: len(each.chosen) for axis, each in proposals.items() if each.chosen}
            proposals[axis].choose()

    def _helps(self, proposals: Mapping[Axis, Proposals], gain: float, left: float) -> bool:
        if self.threshold is None:
            return math.isfinite(gain)
        score = sum(each.contest.score for each in proposals.values())
        return gain * left > self.least and score + gain > self.threshold * score

    def fresh(self, axis: Axis, num: int, seen: Mapping[str, Any], generator: torch.Generator) -> Fresh:
        """The ``num`` candidates of an axis that were chosen, or the best.

        Raises:
            NotPermissible: There are fewer.
        """
        return seen["proposals"].fresh(num)


class Proposals:
    """Gathers what candidates for an axis's growth are made of, and lets them compete.

    Args:
        axis: Whose they are.
        config: The method.
        generator: Where random ones come from.

    Attributes:
        contest: The candidates' that haven't been chosen.
        chosen: Those that have, in order.
        gain: What the best that is left adds to the score, less what chance brings; less than any number without one.
    """

    contest: Contest
    gain: float

    def __init__(self, axis: Axis, config: SENN, generator: torch.Generator) -> None:
        self.axis, self.config, self.generator = axis, config, generator
        self.natural = Natural(axis, config.damping, config.held_out)
        self.units: dict[Entry, Tensor] = {}
        self.chosen: list[int] = []

    def add(self, passage: Passage) -> None:
        """See one batch."""
        self.natural.add(passage)

    def agree(self) -> None:
        """Average over processes."""
        self.natural.agree()

    def propose(self, number: int) -> None:
        """Make candidates, for so many units to be chosen, and let them begin to compete."""
        self.units = _units(self.natural, max(self.config.candidates, 2 * number), self.generator)
        self.contest = Contest(self.natural.beside(self.units), self.config.damping, number_of(self.units))
        self._look()

    def choose(self) -> None:
        """Let the best that is left join the units.

        Raises:
            NotPermissible: None that is left sends anything.
        """
        if not math.isfinite(self.gain):
            raise NotPermissible(
                f"only {len(self.chosen)} new units of {self.axis.name} would send anything; ask for no more, or raise "
                f"SENN(candidates={self.config.candidates})."
            )
        self.chosen.append(self.contest.take(self._best))
        self._look()

    def _look(self) -> None:
        gains, chance = self.contest.gains()
        self._best = int(gains.argmax()) if len(gains) else -1
        self.gain = float(gains[self._best]) - chance if len(gains) else -math.inf

    def fresh(self, number: int) -> Fresh:
        """So many of the best, those that were chosen first; their statistics are those of the last batch."""
        if not self.units:
            self.propose(number)
        while len(self.chosen) < number:
            self.choose()
        units = take(self.units, self.chosen[:number])
        return laid_out(self.axis, calibrated(self.natural.passages[-1], units))


class Contest:
    """Candidates for new units of an axis, and how much each would add to the natural expansion score.

    Args:
        seen: For each that reads the units.
        damping: Of the factors of the Fisher matrix, relative to their own sizes.
        number: Of candidates.

    Attributes:
        score: η, which grows as candidates are taken.
        bound: What it can't exceed.
        left: The candidates that haven't been taken.
    """

    def __init__(self, seen: Sequence[Seen], damping: float, number: int) -> None:
        begun = [each.begun(damping) for each in seen]
        self.score = sum(whole.gain(old, factor) for whole, old, factor in begun)
        self.bound = sum(whole.bound for whole, _, _ in begun)
        self.left = list(range(number))
        self._widths = [each.width for each in seen]
        self._unexplained = [whole.without(old, factor) for whole, old, factor in begun]
        squares = [whole.products[0].diagonal()[old.stop :].unflatten(0, (number, -1)) for whole, old, _ in begun]
        self._alive = torch.stack([(each > 0).any(1) for each in squares]).any(0)

    def gains(self) -> tuple[Tensor, float]:
        """Δη of each that is left, shape ``(left,)``, and what the best of them would win by chance.

        It is less than any number where a candidate sends nothing at all.
        """
        if not self.left:
            return torch.zeros(0), 0.0
        pairs = zip(self._unexplained, self._widths, strict=True)
        own, *drawn = torch.stack([each.gains(width) for each, width in pairs]).sum(0)
        chance = max((float(each.max()) for each in drawn), default=0.0)
        return torch.where(self._alive[self.left], own, -torch.inf), max(0.0, chance)

    def take(self, position: int) -> int:
        """Let one of those that are left join the units, by its place among them; its number."""
        for i, (each, width) in enumerate(zip(self._unexplained, self._widths, strict=True)):
            block = slice(position * width, (position + 1) * width)
            self.score += each.gain(block)
            self._unexplained[i] = each.without(block)
        return self.left.pop(position)


def _part_left(proposals: Mapping[Axis, Proposals], memory: dict[str, Any]) -> float:
    """The loss, relative to what it was when this was first asked; 1 where it is larger, or no number to divide by."""
    losses = [passage.loss for each in proposals.values() for passage in each.natural.passages]
    loss = averaged_number(math.fsum(losses) / len(losses))
    first = memory.setdefault("loss", loss)
    return min(1.0, loss / first) if first > 0 and loss >= 0 else 1.0


def _units(natural: Natural, number: int, generator: torch.Generator) -> dict[Entry, Tensor]:
    """Rows of candidates, but for their outgoing weights: those of the closed form, and random ones behind them."""
    growth = natural.growth
    leading = _leading(natural, number // 4)
    rest = number - 2 * len(leading)
    drawn = torch.randn((rest, growth.incoming.width), generator=generator, device=generator.device).to(leading)
    apart = torch.randn((rest,), generator=generator, device=generator.device).to(leading)
    vectors = scaled(torch.cat([leading, -leading, drawn]), mean_norm(growth.incoming.old()))
    apart = torch.cat([apart.new_zeros(2 * len(leading)), apart])
    return expanded(growth.base, number) | growth.incoming.rows(vectors) | _shifts(natural, vectors, apart)


def _leading(natural: Natural, number: int) -> Tensor:
    """Incoming directions that are best for a linear map between, ``number`` of them or fewer: a row for each."""
    whitener = natural.moments.whitener(natural.damping)
    whitened = whitener @ _as_fed(natural)
    values, vectors = torch.linalg.eigh(whitened @ whitened.T)  # only the leading singular vectors are wanted
    rank = int((values > values[-1] * len(values) * torch.finfo(values.dtype).eps).sum())
    return vectors.flip(1)[:, : min(rank, number)].T @ whitener


def _as_fed(natural: Natural) -> Tensor:
    """M·S^(−½): the growth matrix by outputs that count alike."""
    growth, parts = natural.growth, []
    for matrix, entry in zip(growth.matrix.split(growth.outgoing.widths, 1), growth.outgoing.entries, strict=True):
        values, vectors = torch.linalg.eigh(natural.outputs(entry))
        damped = values.clamp(min=0) + natural.damping * values.mean().clamp(min=torch.finfo(values.dtype).tiny)
        # A row of what reads a unit has its indices, the outputs, and the taps.
        per_unit, outputs, *_ = row_shape(entry, growth.axis.size)
        by_output = matrix.reshape(len(matrix), per_unit, outputs, -1)
        parts.append(torch.einsum("wuot,op->wupt", by_output, (vectors * damped.rsqrt()) @ vectors.T).flatten(1))
    return torch.cat(parts, 1)


def _shifts(natural: Natural, vectors: Tensor, apart: Tensor) -> dict[Entry, Tensor]:
    """Rows of shifts that put what units get so many deviations apart from zero, shape ``(units,)``, in the mean."""
    growth, moments = natural.growth, natural.moments
    shapes = {entry: row_shape(entry, growth.axis.size) for entry in growth.base if entry.role == "shift"}
    if growth.normalised:  # by a norm, which takes away whatever was added before it
        scales = [float(rows.abs().mean()) for entry, rows in growth.base.items() if entry.role == "scale"]
        value = apart * (scales[0] if scales else 1.0)
    else:
        deviation = ((vectors @ moments.covariance) * vectors).sum(1).clamp(min=0).sqrt()
        value = (apart * deviation - vectors @ moments.mean) / max(1, len(shapes))
    return {entry: value.reshape(-1, *[1] * len(shape)).expand(-1, *shape) for entry, shape in shapes.items()}

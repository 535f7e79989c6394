"""Which single weights go off or come on: amounts, their distribution over tensors, and patterns of n in every m."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .amounts import check_fraction, units_of
from .cutoffs import Threshold
from .errors import NotPermissible
from .flips import Flips, at
from .structure.weights import Weights

#: How a sparsity is distributed over tensors: by ranking all weights together, alike, or by Erdős–Rényi-kernel.
Distribution = Literal["global", "uniform", "erk"]


@dataclass(frozen=True)
class Sparsity:
    """An amount of single weights: so many that a fraction of all weights is off afterwards.

    Args:
        fraction: Of all weights of the tensors together, from 0 to below 1.
        distribution: Over the tensors: "global" ranks all weights together; "uniform" gives each tensor the same
            sparsity; "erk" (Erdős–Rényi-kernel) makes a tensor's density proportional to the sum of its sizes over
            their product, so that small ones stay denser, and those that would be more than dense stay dense.

    Raises:
        TypeError: An option is of the wrong kind.
        ValueError: An option is none of what is said above.

    Evci et al., "Rigging the Lottery: Making All Tickets Winners" (ICML 2020), section 3.
    """

    fraction: float
    distribution: Distribution = "global"

    def __post_init__(self) -> None:
        if isinstance(self.fraction, bool) or not isinstance(self.fraction, (int, float)):
            raise TypeError(f"a sparsity is a number from 0 to below 1, not {self.fraction!r}.")
        if not 0 <= self.fraction < 1:
            raise ValueError(f"a sparsity is a number from 0 to below 1, not {self.fraction!r}.")
        if self.distribution not in get_args(Distribution):
            raise ValueError(
                f"distribution is {' or '.join(map(repr, get_args(Distribution)))}, not {self.distribution!r}."
            )

    def alive(self, shapes: Sequence[Sequence[int]]) -> list[int] | None:
        """How many weights of each tensor stay on; None where that follows from ranking all together."""
        if self.distribution == "global":
            return None
        sizes = [math.prod(shape) for shape in shapes]
        density = 1 - self.fraction
        if self.distribution == "uniform":
            return [max(1, round(density * size)) for size in sizes]
        return [max(1, round(share * size)) for share, size in zip(_erk(shapes, density), sizes, strict=True)]


def _erk(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """The density of each tensor, so that all together have the one asked for.

    >>> [round(d, 3) for d in _erk([(8, 3, 3, 3), (64, 64), (10, 64)], 0.2)]
    [0.356, 0.141, 0.523]
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    full: set[int] = set()
    while True:
        rest = density * sum(sizes) - sum(sizes[i] for i in full)
        scale = rest / max(sum(raw[i] * n for i, n in enumerate(sizes) if i not in full), 1e-12)
        over = {i for i, share in enumerate(raw) if i not in full and scale * share > 1}
        if not over:
            return [1.0 if i in full else scale * share for i, share in enumerate(raw)]
        full.add(max(over, key=raw.__getitem__))


@dataclass(frozen=True)
class Pattern:
    """An amount of single weights: of every ``m`` that lie behind each other along what they read, ``n`` stay on.

    With 2 of 4 a GPU's sparse tensor cores can run a linear layer; see :func:`regrow.to_sparse`.

    Raises:
        TypeError: An option is of the wrong kind.
        ValueError: An option is none of what is said above.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        for value in (self.n, self.m):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"a pattern is of two whole numbers, not {self.n!r}:{self.m!r}.")
        if not 0 < self.n < self.m:
            raise ValueError(f"of every m weights n stay on, with n from 1 to below m, not {self.n}:{self.m}.")

    def kept(self, weights: Weights, scores: Tensor) -> Tensor:
        """The new mask of a tensor: the n highest scores of every m.

        Raises:
            NotPermissible: Its size isn't a multiple of m.
        """
        dim = weights.inner[0]
        length = scores.shape[dim]
        if length % self.m:
            raise NotPermissible(
                f"{weights.name} reads {length} values, which isn't a multiple of {self.m}; leave it out (protect=)."
            )
        rows = scores.movedim(dim, -1)
        groups = rows.reshape(*rows.shape[:-1], -1, self.m)
        kept = torch.zeros_like(groups, dtype=torch.bool)
        kept.scatter_(-1, groups.topk(self.n, -1).indices, True)
        return kept.reshape(rows.shape).movedim(-1, dim)

    def moved(self, number: int, weights: Weights, score: Tensor, promise: Tensor) -> Flips:
        """One weight goes and one comes in each of so many groups of m, those with the most promising ones.

        Raises:
            NotPermissible: The tensor's mask isn't of this pattern.
        """
        dim, every = weights.inner[0], torch.arange(score.numel(), device=score.device).reshape(score.shape)
        fits = score.shape[dim] % self.m == 0
        flat = every.movedim(dim, -1).reshape(-1, self.m if fits else 1)
        on = weights.mask.flatten()[flat]
        if not fits or bool((on.sum(1) > self.n).any()):
            raise NotPermissible(
                f"more than {self.n} of {self.m} weights of {weights.name} are on; prune it to the pattern first."
            )
        worst = torch.where(on, score.flatten()[flat], math.inf).min(1)
        best = torch.where(on, -math.inf, promise.flatten()[flat]).max(1)
        movable = on.any(1) & ~on.all(1)
        groups = lowest(-torch.where(movable, best.values, -math.inf), min(number, int(movable.sum())))
        off, came = flat[groups, worst.indices[groups]], flat[groups, best.indices[groups]]
        return Flips(off.sort().values, came.sort().values)


#: int: so many weights; float: that fraction of those that are on; or what follows from the scores.
WeightAmount = int | float | Mapping[str, int | float] | Sparsity | Pattern | Threshold


#: A mask, or a score of each weight, in the shape of each tensor.
ByWeight = Mapping[Weights, Tensor]


def check_weight_amount(amount: Any, growing: bool = False) -> None:
    """An amount of single weights to turn off, or on.

    Raises:
        TypeError, ValueError: It is none.
    """
    if isinstance(amount, Mapping):
        for value in amount.values():
            check_weight_amount(value, growing)
    elif growing and isinstance(amount, (Pattern, Threshold)):
        raise TypeError(f"{amount} is an amount to prune; weights grow by a number, a fraction or a Sparsity.")
    elif not isinstance(amount, (Sparsity, Pattern, Threshold)):
        units_of(amount, 1)
        if not growing:
            check_fraction(amount)


def check_moving(fraction: object) -> None:
    """A fraction of the weights that are on is a number from 0 to 1.

    Raises:
        TypeError, ValueError: It isn't.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
        raise TypeError(f"a fraction of weights that move is a number from 0 to 1, not {fraction!r}.")
    if not 0 <= fraction <= 1:
        raise ValueError(f"a fraction of weights that move is a number from 0 to 1, not {fraction!r}.")


def to_turn_off(amount: WeightAmount, scores: ByWeight) -> dict[Weights, Tensor]:
    """New masks without the weights that matter least; tensors that lose none are left out.

    Args:
        scores: How much each weight matters; what is off already isn't looked at.

    Raises:
        NotPermissible: More are asked to go than are on, or a pattern doesn't fit.
        TypeError, ValueError: The amount is none, or a name in it is no tensor's.
    """
    on = {weights: weights.mask for weights in scores}
    if isinstance(amount, Mapping):
        parts = [to_turn_off(value, {weights: scores[weights]}) for weights, value in _named(amount, scores).items()]
        return {weights: mask for part in parts for weights, mask in part.items()}
    if isinstance(amount, Pattern):
        after = {w: on[w] & amount.kept(w, s.masked_fill(~on[w], -math.inf)) for w, s in scores.items()}
    elif isinstance(amount, Threshold):
        after = {w: on[w] & (s > amount.value) for w, s in scores.items()}
    elif isinstance(amount, Sparsity):
        wanted = _too_many(amount, on, sign=1)
        after = {w: on[w] & ~gone for w, gone in _picked_apart(wanted, on, scores, largest=False).items()}
    else:
        check_fraction(amount)
        number, alive = units_of(amount, _count(on)), _count(on)
        if number >= alive:
            raise NotPermissible(f"asked to prune {number:,} of the {alive:,} weights that are on; some must stay.")
        after = {w: on[w] & ~gone for w, gone in picked(number, on, scores, largest=False).items()}
    if not any(bool(mask.any()) for mask in after.values()):
        raise NotPermissible(f"{amount} would leave none of the {_count(on):,} weights that are on; some must stay.")
    return {w: mask for w, mask in after.items() if not torch.equal(mask, on[w])}


def to_turn_on(amount: WeightAmount, scores: ByWeight) -> dict[Weights, Tensor]:
    """New masks with the weights that are off and promise most; tensors that gain none are left out.

    Raises:
        NotPermissible: More are asked for than are off.
        TypeError, ValueError: As :func:`to_turn_off`.
    """
    check_weight_amount(amount, growing=True)
    off = {weights: ~weights.mask for weights in scores}
    if isinstance(amount, Mapping):
        parts = [to_turn_on(value, {weights: scores[weights]}) for weights, value in _named(amount, scores).items()]
        return {weights: mask for part in parts for weights, mask in part.items()}
    if isinstance(amount, Sparsity):
        wanted = _too_many(amount, {w: ~mask for w, mask in off.items()}, sign=-1)
        came = _picked_apart(wanted, off, scores, largest=True)
    else:
        number, dead = units_of(amount, sum(w.alive for w in scores)), _count(off)
        if number > dead:
            raise NotPermissible(f"asked to grow {number:,} weights; {dead:,} are off.")
        came = picked(number, off, scores, largest=True)
    return {w: ~off[w] | mask for w, mask in came.items() if bool(mask.any())}


def rewired(
    fraction: float, scores: ByWeight, promises: ByWeight, pattern: Pattern | None = None
) -> dict[Weights, Flips]:
    """As many weights on in each tensor: those that matter least make place for the most promising.

    Args:
        fraction: Of the weights that are on in each tensor, so many may go.
        scores: How much each weight matters.
        promises: What each weight promises that is off. One that goes competes for coming back.
        pattern: That masks have and keep.
    """
    found = {}
    for weights, score in scores.items():
        on = weights.indices
        number = round(fraction * len(on))
        if pattern is not None:
            if number:
                found[weights] = pattern.moved(number, weights, score, promises[weights])
            continue
        low = on[lowest(at(score, on), number)]
        promise = promises[weights].flatten().clone()
        promise[on] = -math.inf
        promise[low] = at(promises[weights], low)
        came = lowest(promise.neg_(), number)
        stayed = at(weights.mask, came)
        off, entered = _apart(low, came[stayed]), came[~stayed]
        if len(entered):
            found[weights] = Flips(off, entered)
    return found


def _apart(some: Tensor, others: Tensor) -> Tensor:
    """Those of some indices that aren't among others; both are in order."""
    if not len(others):
        return some
    places = torch.searchsorted(others, some).clamp_(max=len(others) - 1)
    return some[others[places] != some]


def lowest(values: Tensor, number: int) -> Tensor:
    """The indices of the ``number`` lowest values, in order; of equal ones the first.

    Of many values a sample tells which are surely among them and which surely aren't: what is between is ranked.

    >>> lowest(torch.tensor([3.0, 1.0, 2.0, 1.0]), 2)
    tensor([1, 3])
    """
    if not number:
        return torch.zeros(0, dtype=torch.long, device=values.device)
    low, high = _bracket(values, number) if len(values) > _MANY else (-math.inf, math.inf)
    chosen = values < low
    left_over = number - int(chosen.sum())
    between = ((values <= high) ^ chosen).nonzero().squeeze(1)
    if not 0 < left_over <= len(between):  # the sample was misleading
        chosen, left_over = torch.zeros_like(chosen), number
        between = torch.arange(len(values), device=values.device)
    chosen[between[_ranked_lowest(values[between], left_over)]] = True
    return chosen.nonzero().squeeze(1)


def _bracket(values: Tensor, number: int) -> tuple[float, float]:
    """Two values between which the ``number``-th lowest almost surely is, by the ranks in a sample."""
    step = next(s for s in count(len(values) // _SAMPLE) if math.gcd(s, len(values)) == 1)  # not one place of a kernel
    sample = values[::step].sort().values
    share, many = number / len(values), len(sample)
    rank, slack = share * many, 2 + 4 * math.sqrt(share * (1 - share) * many)  # four standard deviations
    low = float(sample[int(rank - slack)]) if rank >= slack else -math.inf
    return low, float(sample[int(rank + slack)]) if rank + slack < many else math.inf


def _ranked_lowest(values: Tensor, number: int) -> Tensor:
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    cut = values.kthvalue(number).values
    below = values < cut
    ties = (values == cut).nonzero().squeeze(1)[: number - int(below.sum())]
    return torch.cat([below.nonzero().squeeze(1), ties])


#: More values than this are sampled first, by so many of them.
_MANY, _SAMPLE = 65_536, 8_192


def picked(number: int, among: ByWeight, scores: ByWeight, largest: bool) -> dict[Weights, Tensor]:
    """The ``number`` weights with the lowest or largest scores, over all tensors alike; of equal ones the first."""
    found = {weights: torch.zeros_like(mask) for weights, mask in among.items()}
    if not number:
        return found
    sign = -1.0 if largest else 1.0
    ranked = torch.cat([sign * scores[w][mask].cpu() for w, mask in among.items()])
    chosen = torch.zeros(len(ranked), dtype=torch.bool)
    chosen[lowest(ranked, number)] = True
    for (weights, mask), part in zip(among.items(), chosen.split([int(m.sum()) for m in among.values()]), strict=True):
        found[weights][mask] = part.to(mask.device)
    return found


def _picked_apart(wanted: Mapping[Weights, int] | int, among: ByWeight, scores: ByWeight, largest: bool) -> ByWeight:
    if isinstance(wanted, int):
        return picked(wanted, among, scores, largest)
    return {w: picked(number, {w: among[w]}, scores, largest)[w] for w, number in wanted.items()}


def _too_many(amount: Sparsity, on: ByWeight, sign: int) -> Mapping[Weights, int] | int:
    """How many weights are on too many, or for a negative sign too few: in all, or in each tensor."""
    alive = amount.alive([mask.shape for mask in on.values()])
    if alive is None:
        size = sum(mask.numel() for mask in on.values())
        return max(0, sign * (_count(on) - round((1 - amount.fraction) * size)))
    return {w: max(0, sign * (int(mask.sum()) - n)) for (w, mask), n in zip(on.items(), alive, strict=True)}


def _count(masks: ByWeight) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def _named(amount: Mapping[str, int | float], scores: ByWeight) -> dict[Weights, int | float]:
    by_name = {weights.name: weights for weights in scores}
    for name in amount:
        if name not in by_name:
            raise ValueError(f"no weights here are called {name!r}; there are {', '.join(by_name)}.")
    return {by_name[name]: value for name, value in amount.items()}

"""Control flow: what runs depends on data, on the mode, on checkpoints; and operators nobody knows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from .attention import Between
from .family import Family, images, tokens, vectors


class Checkpointed(nn.Module):
    """Activations are computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.block = nn.Sequential(nn.Linear(8, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + checkpoint(self.block, x, use_reentrant=self.reentrant))


class CheckpointedSequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*(m for a, b in ((6, 8), (8, 7), (7, 4)) for m in (nn.Linear(a, b), nn.Tanh())))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint_sequential(self.net, 2, x, use_reentrant=False)


class Branches(nn.Module):
    """Which layer runs depends on values."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.one, self.other, self.last = (nn.Linear(*s) for s in ((6, 8), (8, 7), (8, 7), (7, 4)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        match self.how:
            case "if":
                h = self.one(h) if x.sum() > 0 else self.other(h)
            case "item":
                h = self.one(h) * x.abs().amax().item()
            case "while":
                while x.norm() > 1:
                    x, h = x / 2, h / 2
                h = self.one(h)
            case "both":
                h = torch.where(x.sum(1, keepdim=True) > 0, self.one(h), self.other(h))
            case _:
                raise ValueError(self.how)
        return self.last(h.tanh())


class Halting(nn.Module):
    """Rows that are done are left out, by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.step, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for _ in range(2):
            running = x.sum(1) > 0
            h = h.clone()
            h[running] = h[running] + self.step(h[running]).tanh()
        return self.last(h)


class Auxiliary(nn.Module):
    """A second head that runs only in train mode, and a stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.aux = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))

    def forward(self, x: Tensor) -> Any:
        h = self.norm(self.first(x)).relu()
        out = self.last(h.mean((2, 3)))
        return (out, self.aux(h)) if self.training else out


class OnlyInEval(nn.Module):
    """A step that runs only in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if not self.training:
            h = h.flip(-1).flip(-1) + h.roll(0, -1)
        return self.last(h.tanh())


class Fourier(nn.Module):
    """Mixes tokens by a Fourier transform; in FNet the features as well."""

    def __init__(self, features: bool) -> None:
        super().__init__()
        self.dims = (-1, -2) if features else (-2,)
        self.up, self.down = nn.Linear(12, 10), nn.Linear(10, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.fft.fftn(x, dim=self.dims).real
        return x + self.down(F.gelu(self.up(x)))


class GlobalFilter(nn.Module):
    """Filters images by a complex parameter in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.filter = nn.Parameter(torch.randn(8, 8, 5, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.fft.rfft2(self.first(x), norm="ortho") * torch.view_as_complex(self.filter)
        return self.last(torch.fft.irfft2(h, s=x.shape[2:], norm="ortho"))


class Dropped(nn.Module):
    """Dropouts of all kinds, noise, and stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout2d(F.alpha_dropout(self.first(x), 0.0, self.training), 0.0, self.training)
        keep = torch.ones(len(x), 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1.0)
        return self.last(h + keep * F.rrelu(self.inner(h), 0.1, 0.1, self.training))


def some_positive() -> tuple[Tensor, ...]:
    return (torch.tensor([[1.0], [-1.0], [0.5]]).expand(3, 6),)


CHECKPOINTED = """
    first   | neuron 8 | stream | first.{weight,bias} block.0.weight:1 block.3.{weight,bias} last.weight:1
    block.0 | neuron 7 |        | block.0.{weight,bias} block.1.* block.3.weight:1
"""
BRANCH = """
    first | neuron 8 | | first.{weight,bias} one.weight:1
    one   | neuron 7 | | one.{weight,bias} last.weight:1
"""

FAMILIES = [
    Family("checkpoint", lambda: Checkpointed(False), vectors(), CHECKPOINTED),
    Family("checkpoint_reentrant", lambda: Checkpointed(True), vectors(), CHECKPOINTED),
    Family(
        "checkpoint_sequence",
        CheckpointedSequence,
        vectors(),
        """
        net.0 | neuron 8 | | net.0.{weight,bias} net.2.weight:1
        net.2 | neuron 7 | | net.2.{weight,bias} net.4.weight:1
    """,
    ),
    # The layer that the example doesn't run through is frozen.
    Family("branch_if", lambda: Branches("if"), vectors(), BRANCH.replace("one", "other")),
    Family("branch_item", lambda: Branches("item"), vectors(), BRANCH),
    Family("branch_while", lambda: Branches("while"), vectors(), BRANCH),
    Family(
        "branch_both",
        lambda: Branches("both"),
        vectors(),
        """
        first | neuron 8 | | first.{weight,bias} {one,other}.weight:1
        one   | neuron 7 | | {one,other}.{weight,bias} last.weight:1
    """,
    ),
    Family(
        "halting", Halting, some_positive, "first | neuron 8 | stream | {first,step}.{weight,bias} {step,last}.weight:1"
    ),
    Family(
        "auxiliary",
        Auxiliary,
        images(),
        """
        first | neuron 8 | | first.{weight,bias} norm.* last.weight:1 aux.0.weight:1
        aux.0 | neuron 6 | | aux.0.{weight,bias} aux.3.weight:1
    """,
    ),
    Family("only_in_eval", OnlyInEval, vectors(), "first | neuron 8 | stream | first.{weight,bias} last.weight:1"),
    Family(
        "fourier",
        lambda: Between(Fourier(False)),
        tokens(),
        """
        first   | neuron 12 | stream | first.{weight,bias} body.up.weight:1 body.down.{weight,bias} last.weight:1
        body.up | neuron 10 |        | body.up.{weight,bias} body.down.weight:1
    """,
    ),
    # All features are mixed, so only the inner width is free.
    Family(
        "fourier_features",
        lambda: Between(Fourier(True)),
        tokens(),
        """
        body.up | neuron 10 | | body.up.{weight,bias} body.down.weight:1
    """,
    ),
    Family("global_filter", GlobalFilter, images(), "first | neuron 8 | | first.{weight,bias} filter last.weight:1"),
    Family(
        "dropped", Dropped, images(), "first | neuron 8 | stream | {first,inner}.{weight,bias} {inner,last}.weight:1"
    ),
]

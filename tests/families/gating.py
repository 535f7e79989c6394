"""Gates between the parts of one tensor, and tables that are looked up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Between
from .family import Family, tokens


class Gated(nn.Module):
    """A tensor split into parts that gate each other."""

    def __init__(self, how: str, hidden: int = 10) -> None:
        super().__init__()
        self.how, self.hidden = how, hidden
        self.up = nn.Linear(12, (3 if how == "three" else 2) * hidden)
        self.down = nn.Linear(hidden, 12)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        match self.how:
            case "swiglu":
                gate, value = h.chunk(2, -1)
                h = F.silu(gate) * value
            case "geglu":
                value, gate = h.split(self.hidden, -1)
                h = value * F.gelu(gate)
            case "glu":
                h = F.glu(h, -1)
            case "three":
                a, b, c = h.tensor_split(3, -1)
                h = a * torch.sigmoid(b) + torch.tanh(c)
            case "halves":
                h = h[..., : self.hidden] * h[..., self.hidden :].sigmoid()
            case _:
                value, gate = h.unflatten(-1, (-1, 2)).unbind(-1)
                h = value * gate.sigmoid()
        return x + self.down(h)


class SeparateGate(nn.Module):
    """As in Llama: three layers without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(12, 10, bias=False) for _ in range(2))
        self.down = nn.Linear(10, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.tokens, self.inner = how, nn.Embedding(11, 8, padding_idx=0), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        if self.how == "scaled":
            h = h * self.tokens.embedding_dim**0.5
        h = h + self.inner(h).relu()
        return F.linear(h, self.tokens.weight) if self.how == "functional" else self.head(h)


class Bag(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(11, 8, mode=mode), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bag(x))


class Factored(nn.Module):
    """As in ALBERT: a narrow embedding that is widened."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.wide = nn.Embedding(11, 5), nn.Linear(5, 8)
        self.kinds, self.norm, self.last = nn.Embedding(2, 5), nn.LayerNorm(5), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(self.norm(self.tokens(x) + self.kinds(torch.zeros_like(x)))))


def numbers() -> tuple[Tensor, ...]:
    return (torch.randint(1, 11, (2, 5)),)


STREAM = "first | neuron 12 | stream | first.{weight,bias} body.up.weight:1 body.down.{weight,bias} last.weight:1"
GATED = f"{STREAM}\nbody.up | neuron 10 | | body.up.{{weight,bias}} body.down.weight:1"
TIED = "tokens | neuron 8 | embedding stream | {tokens,inner}.weight:1 inner.{weight,bias}"
BAG = "bag | neuron 8 | embedding | {bag,last}.weight:1"

FAMILIES = [
    Family("gated_swiglu", lambda: Between(Gated("swiglu")), tokens(), GATED),
    Family("gated_geglu", lambda: Between(Gated("geglu")), tokens(), GATED),
    Family("gated_glu", lambda: Between(Gated("glu")), tokens(), GATED),
    Family("gated_halves", lambda: Between(Gated("halves")), tokens(), GATED),
    Family("gated_interleaved", lambda: Between(Gated("interleaved")), tokens(), GATED),
    Family(
        "gated_three",
        lambda: Between(Gated("three")),
        tokens(),
        f"""
        {STREAM}
        body.up | neuron 10 | stream | body.up.{{weight,bias}} body.down.weight:1
    """,
    ),
    Family(
        "separate_gate",
        lambda: Between(SeparateGate()),
        tokens(),
        """
        first     | neuron 12 | stream | first.{weight,bias} body.{gate,up}.weight:1 body.down.weight last.weight:1
        body.gate | neuron 10 |        | body.{gate,up}.weight body.down.weight:1
    """,
    ),
    Family("tied_module", lambda: Tied("module"), numbers, TIED),
    Family("tied_functional", lambda: Tied("functional"), numbers, TIED),
    # The code multiplies by the root of the width.
    Family("tied_scaled", lambda: Tied("scaled"), numbers, TIED.replace("stream", "stream inexact")),
    Family("bag_sum", lambda: Bag("sum"), numbers, BAG),
    Family("bag_mean", lambda: Bag("mean"), numbers, BAG),
    Family("bag_max", lambda: Bag("max"), numbers, BAG),
    Family(
        "factored",
        Factored,
        numbers,
        """
        tokens | neuron 5 | embedding stream inexact | {tokens,kinds,wide}.weight:1 norm.{weight,bias}
        wide   | neuron 8 |                          | wide.{weight,bias} last.weight:1
    """,
    ),
]

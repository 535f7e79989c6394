"""Mixtures of experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Between
from .family import Family, tokens


class Experts(nn.Module):
    """A mixture of experts: each row goes to the experts that a router picks."""

    def __init__(self, how: str, experts: int = 3) -> None:
        super().__init__()
        self.how, self.router = how, nn.Linear(12, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 12)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            if self.how == "dense":
                share = (weights * (chosen == number)).sum(-1, keepdim=True)
                out = out + share * expert(x)
            else:
                rows, place = torch.where(chosen == number)
                out.index_add_(0, rows, expert(x[rows]) * weights[rows, place, None])
        return out.view(shape)


class StackedExperts(nn.Module):
    """Experts in one parameter, met by a batched product or an einsum."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.router = how, nn.Linear(12, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 12, 10)), nn.Parameter(torch.randn(3, 10, 12))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        if self.how == "einsum":
            h = torch.einsum("bnd,edh->bneh", x, self.up).relu()
            return torch.einsum("bneh,ehd,bne->bnd", h, self.down, gates)
        flat = x.flatten(0, 1).expand(len(self.up), -1, -1)
        out = torch.bmm(torch.bmm(flat, self.up).relu(), self.down).view(-1, *x.shape)
        return (out * gates.permute(2, 0, 1)[..., None]).sum(0)


EXPERTS = """
    first            | neuron 12 | stream | first.{weight,bias} body.router.weight:1 body.experts.{0,1,2}.0.weight:1
        body.experts.{0,1,2}.2.{weight,bias} last.weight:1
    body.experts.0.0 | neuron 10 |        | body.experts.0.0.{weight,bias} body.experts.0.2.weight:1
    body.experts.1.0 | neuron 10 |        | body.experts.1.0.{weight,bias} body.experts.1.2.weight:1
    body.experts.2.0 | neuron 10 |        | body.experts.2.0.{weight,bias} body.experts.2.2.weight:1
"""
#: Where experts lie in one parameter, whole ones are units too; a softmax runs over them.
STACKED = """
    first     | neuron 12 |         | first.{weight,bias} body.router.weight:1 body.up:1
    body.router | neuron 3 | inexact | body.router.{weight,bias} body.{up,down}
    body.up   | neuron 10 |         | body.up:2 body.down:1
    body.down | neuron 12 |         | body.down:2 last.weight:1
"""

FAMILIES = [
    Family("experts_dense", lambda: Between(Experts("dense")), tokens(), EXPERTS),
    Family("experts_routed", lambda: Between(Experts("routed")), tokens(), EXPERTS),
    Family("stacked_einsum", lambda: Between(StackedExperts("einsum")), tokens(), STACKED),
    Family("stacked_bmm", lambda: Between(StackedExperts("bmm")), tokens(), STACKED),
]

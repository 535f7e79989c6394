"""Attention, by all kernels and in all layouts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .family import Family, tokens


class Between(nn.Module):
    """``last(body(first(x)))``: what is tested lies between two layers, away from the model's boundary."""

    def __init__(self, body: nn.Module, width: int = 12, ins: int = 6, outs: int | None = None) -> None:
        super().__init__()
        self.first, self.body, self.last = nn.Linear(ins, width), body, nn.Linear(outs or width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x)))


class ByHand(nn.Module):
    """Attention from two products and a softmax; the code keeps the number of heads and the width of one."""

    def __init__(self, width: int = 12, heads: int = 3, head_dim: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q, self.k, self.v = (nn.Linear(width, heads * head_dim) for _ in range(3))
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(-1)
        return x + self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


class FromShapes(nn.Module):
    """Only the number of heads is kept; everything else is read off the tensors, and the scale is a constant."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.qk, self.v, self.proj = nn.Linear(width, 24), nn.Linear(width, 9), nn.Linear(9, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n = x.shape[:2]
        q, k = self.qk(x).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        v = self.v(x).view(b, n, self.heads, -1).transpose(1, 2)
        return self.proj((0.5 * (q @ k.mT)).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


class Packed(nn.Module):
    """Query, key and value packed into one weight, as timm does it."""

    def __init__(self, how: str, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.how, self.heads, self.head_dim = how, heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x)
        match self.how:
            case "chunk":
                split = (part.view(b, n, self.heads, self.head_dim).transpose(1, 2) for part in qkv.chunk(3, -1))
            case "split":
                size = self.heads * self.head_dim
                split = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv.split(size, -1))
            case "reshape":
                split = qkv.reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
            case _:
                split = qkv.view(b, n, self.heads, 3, -1).transpose(1, 2).unbind(3)
        q, k, v = split
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


class Interleaved(nn.Module):
    """The width of a head is computed from the stream's; what the heads put out lies there feature by feature."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        out = (0.5 * q @ k.mT).softmax(-1) @ v
        return x + self.proj(out.permute(0, 2, 3, 1).reshape(b, n, c))


class Kernel(nn.Module):
    """The fused kernel, with all that it can be given."""

    def __init__(self, width: int = 12, heads: int = 4, groups: int | None = None, **options: Any) -> None:
        super().__init__()
        self.heads, self.groups, self.options = heads, groups or heads, options
        self.q, self.proj = nn.Linear(width, heads * 3), nn.Linear(heads * 3, width)
        self.k, self.v = (nn.Linear(width, self.groups * 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (h, -1)).transpose(1, 2)
            for f, h in ((self.q, self.heads), (self.k, self.groups), (self.v, self.groups))
        )
        out = F.scaled_dot_product_attention(q, k, v, **self.options)
        return x + self.proj(out.transpose(1, 2).flatten(2))


class Masked(nn.Module):
    """A mask made from positions, and a bias per head that is a parameter."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.heads = 4
        self.bias = nn.Parameter(torch.randn(4, 5, 5)) if learned else None
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        n = x.shape[1]
        mask = self.bias if self.bias is not None else torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        return self.proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class RepeatedKeys(nn.Module):
    """Grouped queries as written out: each key head is repeated for its query heads."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.heads, self.key_heads, self.head_dim = how, 6, 2, 4
        self.q, self.k, self.v = nn.Linear(12, 24), nn.Linear(12, 8), nn.Linear(12, 8)
        self.proj = nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.head_dim).transpose(1, 2)
        k, v = (f(x).view(b, n, self.key_heads, self.head_dim).transpose(1, 2) for f in (self.k, self.v))
        times = self.heads // self.key_heads
        if self.how == "interleave":
            k, v = (t.repeat_interleave(times, 1) for t in (k, v))
        elif self.how == "expand":
            k, v = (t[:, :, None].expand(-1, -1, times, -1, -1).reshape(b, -1, n, self.head_dim) for t in (k, v))
        else:
            k, v = (t.repeat(1, times, 1, 1) for t in (k, v))
        out = torch.softmax(q @ k.mT * self.head_dim**-0.5, -1) @ v
        return x + self.proj(out.transpose(1, 2).reshape(b, n, -1))


class Einsum(nn.Module):
    """Attention by einsum alone, over weights that keep heads and features apart."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(12, 3, n)) for n in (4, 4, 5))
        self.out = nn.Parameter(torch.randn(3, 5, 12))

    def forward(self, x: Tensor) -> Tensor:
        q, k = (torch.einsum("bnd,dhk->bhnk", x, w) for w in (self.q, self.k))
        v = torch.einsum("...d,dhk->...hk", x, self.v)
        weights = torch.einsum("bhnk,bhmk->bhnm", q, k).softmax(-1)
        return torch.einsum("bhnm,bmhk,hkd->bnd", weights, v, self.out)


class LinearAttention(nn.Module):
    """Without a softmax: keys meet values first."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.qkv, self.proj = nn.Linear(12, 36, bias=False), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2).relu() for t in self.qkv(x).chunk(3, -1))
        return self.proj((q @ (k.mT @ v)).transpose(1, 2).flatten(2))


class Rotary(nn.Module):
    """Rotary positions: the halves of each head's features change places."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.q, self.k, self.v, self.proj = (nn.Linear(12, 12) for _ in range(4))

    @staticmethod
    def turned(x: Tensor) -> Tensor:
        n, d = x.shape[-2:]
        rates = 10.0 ** -(torch.arange(0, d, 2, device=x.device, dtype=x.dtype) / d)
        angles = (torch.arange(n, device=x.device, dtype=x.dtype)[:, None] * rates).repeat(1, 2)
        one, other = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-other, one], -1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return self.proj(out.transpose(1, 2).flatten(2))


PACKED = """
    first         | neuron 12 |         | first.{weight,bias} body.qkv.weight:1
    body.heads    | head 3    |         | body.qkv.{weight,bias} body.proj.weight:1
    body.features | feature 4 | inexact | body.qkv.{weight,bias} body.proj.weight:1
    body.proj     | neuron 12 |         | body.proj.{weight,bias} last.weight:1
"""
MASKED = """
    first         | neuron 12 |         | first.{weight,bias} body.qkv.weight:1
    body.heads    | head 4    |         | body.qkv.{weight,bias} body.proj.weight:1
    body.features | feature 3 | inexact | body.qkv.{weight,bias} body.proj.weight:1
    body.proj     | neuron 12 |         | body.proj.{weight,bias} last.weight:1
"""
SEPARATE = """
    first         | neuron 12 | stream  | first.{weight,bias} body.{q,k,v}.weight:1 body.proj.{weight,bias}
        last.weight:1
    body.heads    | head 4    |         | body.{q,k,v}.{weight,bias} body.proj.weight:1
    body.features | feature 3 | inexact | body.{q,k}.{weight,bias}
    body.v        | feature 3 |         | body.v.{weight,bias} body.proj.weight:1
"""
JOINED = """
    first         | neuron 12 | stream  | first.{weight,bias} body.{q,k,v}.weight:1 body.proj.{weight,bias}
        last.weight:1
    body.heads    | head {heads} |      | body.{q,k,v}.{weight,bias} body.proj.weight:1
    body.features | feature 4 | inexact | body.{q,k,v}.{weight,bias} body.proj.weight:1
"""
#: A key head goes with all its query heads, or one query head of each key head goes.
REPEATED = f"""{JOINED.replace("{heads}", "2")}
    body.q        | head 3    |         | body.q.{{weight,bias}} body.proj.weight:1
"""
GROUPED = f"""{SEPARATE.replace("head 4", "head 2")}
    body.q        | head 2    |         | body.q.{{weight,bias}} body.proj.weight:1
"""
EINSUM = """
    first         | neuron 12 | | first.{weight,bias} body.{q,k,v}
    body.heads    | head 3    | | body.{q,k,v}:1 body.out
    body.features | feature 4 | | body.{q,k}:2
    body.v        | feature 5 | | body.v:2 body.out:1
    body.out      | neuron 12 | | body.out:2 last.weight:1
"""

TIED = """
    body.heads    | head 3    | stream | {stream}
    body.features | feature 4 | stream | {stream}
""".replace("{stream}", "first.{weight,bias} body.{qkv,proj}.{weight,bias} body.{qkv,proj}.weight:1 last.weight:1")

FAMILIES = [
    Family("by_hand", lambda: Between(ByHand()), tokens(), JOINED.replace("{heads}", "3")),
    Family(
        "from_shapes",
        lambda: Between(FromShapes()),
        tokens(),
        """
        first         | neuron 12 | | first.{weight,bias} body.{qk,v}.weight:1
        body.heads    | head 3    | | body.{qk,v}.{weight,bias} body.proj.weight:1
        body.features | feature 4 | | body.qk.{weight,bias}
        body.v        | feature 3 | | body.v.{weight,bias} body.proj.weight:1
        body.proj     | neuron 12 | | body.proj.{weight,bias} last.weight:1
    """,
    ),
    Family("packed_chunk", lambda: Between(Packed("chunk")), tokens(), PACKED),
    Family("packed_split", lambda: Between(Packed("split")), tokens(), PACKED),
    Family("packed_reshape", lambda: Between(Packed("reshape")), tokens(), PACKED),
    Family("packed_unbind", lambda: Between(Packed("unbind")), tokens(), PACKED),
    Family("interleaved", lambda: Between(Interleaved()), tokens(), TIED),
    Family("kernel", lambda: Between(Kernel()), tokens(), SEPARATE),
    Family("kernel_causal", lambda: Between(Kernel(is_causal=True)), tokens(), SEPARATE),
    Family("kernel_scaled", lambda: Between(Kernel(scale=0.3)), tokens(), SEPARATE.replace("inexact", "")),
    Family("kernel_grouped", lambda: Between(Kernel(groups=2, enable_gqa=True)), tokens(), GROUPED),
    Family("masked", lambda: Between(Masked(False)), tokens(), MASKED),
    Family(
        "biased",
        lambda: Between(Masked(True)),
        tokens(),
        """
        first         | neuron 12 |         | first.{weight,bias} body.qkv.weight:1
        body.heads    | head 4    |         | body.qkv.{weight,bias} body.bias body.proj.weight:1
        body.features | feature 3 | inexact | body.qkv.{weight,bias} body.proj.weight:1
        body.proj     | neuron 12 |         | body.proj.{weight,bias} last.weight:1
    """,
    ),
    Family("keys_interleaved", lambda: Between(RepeatedKeys("interleave")), tokens(), REPEATED),
    Family("keys_expanded", lambda: Between(RepeatedKeys("expand")), tokens(), REPEATED),
    Family("keys_repeated", lambda: Between(RepeatedKeys("repeat")), tokens(), REPEATED),
    Family("einsum", lambda: Between(Einsum()), tokens(), EINSUM),
    Family(
        "linear_attention",
        lambda: Between(LinearAttention()),
        tokens(),
        """
        first         | neuron 12 | | first.{weight,bias} body.qkv.weight:1
        body.heads    | head 3    | | body.qkv.weight body.proj.weight:1
        body.features | feature 4 | | body.qkv.weight body.proj.weight:1
        body.proj     | neuron 12 | | body.proj.{weight,bias} last.weight:1
    """,
    ),
    Family(
        "rotary",
        lambda: Between(Rotary()),
        tokens(),
        """
        first      | neuron 12 |        | first.{weight,bias} body.{q,k,v}.weight:1
        body.heads | head 3    | stream | body.{q,k,v}.{weight,bias} body.proj.weight:1
        body.v     | feature 4 |        | body.v.{weight,bias} body.proj.weight:1
        body.proj  | neuron 12 |        | body.proj.{weight,bias} last.weight:1
    """,
    ),
]

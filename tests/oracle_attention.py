"""Attention as a part of random programs: by hand or by the kernel, packed or not, with shared heads."""

from __future__ import annotations

from collections.abc import Callable

from oracle_draw import Builder


def attention(kernel: bool, shared: int) -> Callable[[Builder], list[int]]:
    """Query, key and value of two heads; ``shared`` query heads have a key head in common."""

    def part(b: Builder) -> list[int]:
        one, heads, inside = b.one_of(b.flat), 2, 2
        if shared > 1:
            query = _heads(b, b.linear(one, heads * shared * inside), heads * shared, "query_heads")
            key = value = _heads(b, b.linear(one, heads * inside), heads, "heads")
        elif b.choose(2):
            query, key, value = _packed(b, b.linear(one, 3 * heads * inside), heads)
        else:
            query, key, value = (_heads(b, b.linear(one, heads * inside), heads, "heads") for _ in range(3))
        out = _kernel(b, query, key, value, shared) if kernel else _by_hand(b, query, key, value, shared)
        return [b.together(b.emit("permute", out, args=((0, 2, 1, 3),)))]

    return part


def _packed(b: Builder, value: int, heads: int) -> tuple[int, int, int]:
    """Query, key and value in one, first parted and then into heads, or the other way round."""
    if b.choose(2):
        pieces = b.emit("chunk", value, args=(3, -1))
        query, key, last = (_heads(b, pieces + i, heads, "heads") for i in range(3))
        return query, key, last
    moved = b.emit("permute", b.apart(value, heads), args=((0, 2, 1, 3),))
    pieces = b.emit("chunk", moved, args=(3, -1))
    return pieces, pieces + 1, pieces + 2


def _heads(b: Builder, value: int, heads: int, name: str) -> int:
    return b.emit("permute", b.apart(value, heads, name), args=((0, 2, 1, 3),))


def _kernel(b: Builder, query: int, key: int, value: int, shared: int) -> int:
    if shared > 1 and b.choose(2):
        return b.emit("attention", query, key, value, args=(True,))
    return b.emit("attention", query, *_for_each_head(b, key, value, shared), args=(False,))


def _for_each_head(b: Builder, key: int, value: int, shared: int) -> tuple[int, int]:
    if shared == 1:
        return key, value
    one, other = (b.emit("repeat_interleave", v, args=(shared, 1)) for v in (key, value))
    return one, other


def _by_hand(b: Builder, query: int, key: int, value: int, shared: int) -> int:
    key, value = _for_each_head(b, key, value, shared)
    places = b.emit("matmul_t", query, key)
    scale = b.emit("by_size", places, query, args=(-1,)) if b.choose(2) else b.emit("by_number", places, args=(0.7,))
    return b.emit("matmul", b.emit("softmax", scale, args=(-1,)), value)

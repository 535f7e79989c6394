"""Draws the pictures of docs/structure.md from what the analysis finds: ``python docs/pictures.py``.

Each row is one dimension of one tensor, each cell one of its indices; cells of a unit have its colour, and what moves
along no axis is grey.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regrow as rg

FOLDER = Path(__file__).parent / "pictures"
CELL, GAP, LABELS, TOP = 16, 7, 190, 26
INK, GREY = "#57606a", "#d0d7de"


class Residual(nn.Module):
    """Two convolutions whose outputs are added: their channels are one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.norm, self.outer = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.outer(F.relu(self.norm(self.inner(F.relu(h)))))
        return self.head(F.adaptive_avg_pool2d(h, 2).flatten(1))


class Attention(nn.Module):
    """Packed queries, keys and values: a head is a row of a rectangle, a feature a column."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.qkv, self.out = nn.Linear(5, 36), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(((q @ k.mT) * 0.5).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


class Shuffle(nn.Module):
    """Channels dealt out to two groups: one of the first half goes with one of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h.view(len(h), 2, -1).transpose(1, 2).flatten(1))


class Gated(nn.Module):
    """One half of a layer's features is multiplied by the other."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, -1)
        return self.down(value * F.silu(gate))


def colour(unit: int, size: int) -> str:
    """A colour for each unit, far from its neighbours'."""
    red, green, blue = colorsys.hls_to_rgb((unit * 0.618) % 1 if size > 6 else unit / size, 0.62, 0.62)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def row(axis: rg.Axis, entry: rg.structure.Entry, y: int) -> list[str]:
    """One dimension of one tensor."""
    found = [f'<text x="{LABELS - 8}" y="{y + 12}" text-anchor="end">{escape(entry.name)}[{entry.dim}]</text>']
    for index, unit in enumerate(entry.unit_of.tolist()):
        fill = GREY if unit < 0 else colour(unit, axis.size)
        x = LABELS + index * CELL
        found.append(f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="2" fill="{fill}"/>')
    return found


def picture(axes: Sequence[rg.Axis]) -> str:
    """One panel for each axis."""
    parts, y, width = [], 0, 0
    for axis in axes:
        kinds = f"{axis.size} {axis.kind}s" if axis.size > 1 else f"1 {axis.kind}"
        parts.append(f'<text x="0" y="{y + 15}" class="title">{escape(axis.name)}: {kinds}</text>')
        y += TOP
        for entry in axis.entries:
            parts += row(axis, entry, y)
            width = max(width, LABELS + CELL * len(entry.unit_of))
            y += CELL + GAP
        y += GAP
    style = f"text{{font:12px ui-monospace,monospace;fill:{INK}}} .title{{font-weight:600}}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}">'
    return "\n".join([head, f"<style>{style}</style>", *parts, "</svg>", ""])


def pictures() -> dict[str, str]:
    """All pictures by file name."""
    torch.manual_seed(0)
    nets = {
        "residual": (Residual(), torch.rand(2, 3, 4, 4)),
        "attention": (Attention(), torch.rand(2, 4, 5)),
        "shuffle": (Shuffle(), torch.rand(2, 3)),
        "gated": (Gated(), torch.rand(2, 4)),
    }
    return {f"{name}.svg": picture(rg.analyze(net, x).axes) for name, (net, x) in nets.items()}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, drawn in pictures().items():
        (FOLDER / name).write_text(drawn)
        print(FOLDER / name)


if __name__ == "__main__":
    main()

"""What can grow and be pruned in which model: the table in docs/granularities.md, of which tests try every field.

``python tests/granularity.py`` writes the table into the page.
"""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "granularities.md"

MODELS = {
    "VGG": "torchvision vgg11_bn", "ResNet": "torchvision resnet18", "DenseNet": "torchvision densenet",
    "MobileNet": "torchvision mobilenet_v2", "ViT": "timm vit", "BERT": "transformers bert",
    "GPT-2": "transformers gpt2", "Llama": "transformers llama",
}  # fmt: skip
GRANULARITIES = ("weight", "neuron", "layer", "cell")
DIRECTIONS = ("grow", "prune")

#: Why a field is empty.
EMPTY: dict[tuple[str, str, str], str] = {
    ("VGG", "cell", "grow"): "its layers stand in one row, and no module holds a block of them that repeats",
    ("VGG", "cell", "prune"): "its layers stand in one row, and no module holds a block of them that repeats",
    (
        "DenseNet",
        "cell",
        "prune",
    ): "each dense layer makes its input's channels into others, which all later ones read; "
    "its own layers and its neurons can be pruned",
}


def table() -> str:
    """The table, with a note for each empty field."""
    head = [f"{granularity}, {direction}" for granularity in GRANULARITIES for direction in DIRECTIONS]
    lines = ["| model | " + " | ".join(head) + " |", "| --- " * (len(head) + 1) + "|"]
    notes: list[str] = []
    for model in MODELS:
        fields = []
        for granularity in GRANULARITIES:
            for direction in DIRECTIONS:
                why = EMPTY.get((model, granularity, direction))
                if why is None:
                    fields.append("yes")
                    continue
                note = f"{model}: {why}."
                notes += [note] * (note not in notes)
                fields.append(f"– ({notes.index(note) + 1})")
        lines.append(f"| {model} | " + " | ".join(fields) + " |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))])


def page_with_table(text: str) -> str:
    """A page with the table between its marks."""
    marks = r"(<!-- begin: granularities -->\n).*?(<!-- end: granularities -->)"
    return re.sub(marks, lambda found: f"{found[1]}{table()}\n{found[2]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))

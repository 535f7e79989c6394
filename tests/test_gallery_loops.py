"""The gallery's training loops run, learn, and go on where they were stopped."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from test_gallery import script


@pytest.fixture(autouse=True)
def _quietly() -> Any:
    with warnings.catch_warnings():
        # Lightning's remarks on small data, and on its own dependencies.
        for module in ("pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"):
            warnings.filterwarnings("ignore", module=rf"{module}.*")
        warnings.filterwarnings("ignore", message=".*(does not have many workers|tensorboardX|Checkpoint directory).*")
        yield


def same(one: nn.Module, other: nn.Module) -> bool:
    expected = other.state_dict()
    return all(torch.equal(tensor, expected[name]) for name, tensor in one.state_dict().items())


def test_a_plain_loop_grows_and_prunes_and_tells() -> None:
    model, accuracy, edits = script("loop_plain").train()
    assert accuracy > 0.9
    assert [edit["action"] for edit in edits] == ["grow"] * 4 + ["prune"] * 3
    assert model[0].out_features == edits[-1]["sizes"]["0"][1]


@pytest.mark.parametrize(
    ("name", "library", "stops"),
    [
        ("loop_lightning", "pytorch_lightning", (5, 12)),
        ("loop_transformers", "transformers", (40, 120)),
        ("loop_accelerate", "accelerate", (50, 150)),
    ],
)
def test_a_loop_of_another_library_learns_and_goes_on(
    name: str, library: str, stops: tuple[int, int], tmp_path: Path
) -> None:
    pytest.importorskip(library)
    loop = script(name)
    first, last = stops
    loop.train(tmp_path / "parts", first, say=False)
    resumed, accuracy = loop.train(tmp_path / "parts", last, say=False)
    assert accuracy > 0.85
    if name == "loop_lightning":
        return  # the order of its batches is not restored
    whole, other = loop.train(tmp_path / "whole", last, say=False)
    assert same(whole, resumed)
    assert other == accuracy

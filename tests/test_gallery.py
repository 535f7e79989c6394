"""The gallery's scripts run, and do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, GALLERY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_of_mixed_granularities_goes_on_to_the_same_bits_wherever_it_was_stopped(tmp_path: Path) -> None:
    mixed = script("mixed")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    model, loss = mixed.train(whole, say=False)
    assert loss < 0.5
    resumed = model
    for stop in (1, 20, 33, 74, 75, 140, 141, 160, 161, 175, 200, mixed.STEPS):
        resumed, other = mixed.train(parts, stop, say=False)
    expected = model.state_dict()
    assert list(resumed.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state_dict().items())
    assert other == loss

"""The code of the tutorial runs, in the order of the page, and that at the top of the README."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import regrow as rg
import regrow.method

ROOT = Path(__file__).parent.parent


def blocks_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_readme_prunes_and_grows_by_one_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page: dict[str, Any] = {}
    exec(compile(blocks_of("README.md")[0], "README.md", "exec"), page)
    model, large, x = (page[name] for name in ("model", "large", "x"))
    torchvision = pytest.importorskip("torchvision")
    again = rg.load(tmp_path / "small", torchvision.models.resnet18())
    before, less, more = (rg.measure.flops(network, x) for network in (model, again, large))
    assert 0.45 < less / before <= 0.5
    assert more > 1.3 * before
    assert again.eval()(x).shape == (2, 1000)
    printed = capsys.readouterr().out
    assert "pruned: 12 axes" in printed
    assert "grown:  12 axes" in printed


def test_the_tutorial_runs() -> None:
    blocks = blocks_of("docs/tutorial.md")
    assert len(blocks) > 8
    known, page = dict(regrow.method._METHODS), types.ModuleType("tutorial")
    sys.modules["tutorial"] = page  # dataclasses look their module up
    try:
        for number, block in enumerate(blocks, start=1):
            exec(compile(block, f"tutorial.md, block {number}", "exec"), vars(page))
    finally:
        del sys.modules["tutorial"]
        regrow.method._METHODS.clear()
        regrow.method._METHODS.update(known)

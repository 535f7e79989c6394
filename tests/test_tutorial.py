"""The tutorial's code runs, in the order of the page."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import regrow.method

PAGE = Path(__file__).parent.parent / "docs" / "tutorial.md"


def test_the_tutorial_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
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

"""The pictures in the docs are what the analysis finds."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.skipif(not DOCS.exists(), reason="the docs aren't here")
def test_the_pictures_are_drawn_from_the_analysis() -> None:
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = module.pictures()
    assert {path.name for path in (DOCS / "pictures").iterdir()} == set(drawn)
    for name, picture in drawn.items():
        assert (DOCS / "pictures" / name).read_text() == picture, f"run python docs/pictures.py: {name} is out of date"
        assert f"pictures/{name}" in (DOCS / "structure.md").read_text()

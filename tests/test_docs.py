"""The manual builds without a warning, and not if a public name is on none of its pages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import regrow as rg

ROOT = Path(__file__).parent.parent
pytest.importorskip("sphinx_gallery", reason="needs the extra docs")


@pytest.fixture
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the pages, for what is made from the gallery is put beside them."""
    root = tmp_path_factory.mktemp("manual")
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("built", "made", "__pycache__"))
    shutil.copy(ROOT / "CHANGELOG.md", root)
    (root / "tests").symlink_to(ROOT / "tests")  # the theory links to them
    return root / "docs"


def build(sources: Path) -> subprocess.CompletedProcess[str]:
    """As ``make docs`` does, but without running the how-to pages: other tests do."""
    command = ["-m", "sphinx", "--fail-on-warning", "--keep-going", "-D", "sphinx_gallery_conf.plot_gallery=0"]
    folders = [str(sources), str(sources / "built")]
    return subprocess.run([sys.executable, *command, *folders], capture_output=True, text=True)


def test_the_manual_builds_without_a_warning_and_ends_on_a_name_that_no_page_documents(sources: Path) -> None:
    done = build(sources)
    assert done.returncode == 0, done.stderr
    pages = {name: (sources / "built" / "api" / f"{name}.html").read_text() for name in ("growing", "pruning", "edits")}
    for page, name in (("growing", "GradMax"), ("pruning", "Taylor"), ("edits", "grow_")):
        assert f'id="regrow.{name}"' in pages[page]
        assert "_modules/regrow/" in pages[page]  # a link to its source
    scripts = [*(ROOT / "docs" / "gallery").glob("*.py"), *(ROOT / "docs" / "howto").glob("*.py")]
    assert len(scripts) > 15
    for script in scripts:  # each is a notebook as well
        assert (sources / "made" / script.parent.name / f"{script.stem}.ipynb").is_file()

    reference = sources / "api" / "pruning.rst"
    reference.write_text(reference.read_text().replace(".. autoclass:: regrow.Taylor\n", ""))
    undone = build(sources)
    assert undone.returncode != 0
    assert "regrow.Taylor is on no page of the reference" in undone.stderr


def test_scripts_of_the_gallery_are_short() -> None:
    for script in (ROOT / "docs" / "gallery").glob("*.py"):
        assert len(script.read_text().splitlines()) <= 150


def test_every_public_name_has_a_docstring_that_says_more_than_its_name() -> None:
    for name in rg.__all__:
        value = getattr(rg, name)
        assert len((value.__doc__ or "").split()) > 3, name

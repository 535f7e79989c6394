"""The tables of the pages are those of the measurements that are committed."""

from __future__ import annotations

import importlib
import operator
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from regrow.bench.cells import cells_of
from regrow.bench.results import Store
from regrow.bench.suites import CONFIRMATION, get_suite

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def readme() -> Any:
    """The script that fills them."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("readme")
    finally:
        sys.path.remove(folder)


def block(page: str, name: str) -> str:
    found = re.search(f"<!-- begin: {name} -->\n(.*?)\n<!-- end: {name} -->", (ROOT / page).read_text(), re.DOTALL)
    assert found is not None, (page, name)
    return found[1]


@pytest.mark.parametrize(
    ("page", "name", "made_by"),
    [
        ("README.md", "measured", "measured"),
        ("README.md", "results", "record.results"),
        ("docs/benchmark.md", "goals", "record.goals"),
        ("docs/benchmark.md", "selection", "record.selection"),
        ("docs/benchmark.md", "confirmation", "record.confirmation"),
        ("docs/benchmark.md", "exploration", "record.exploration"),
        ("docs/structure.md", "coverage", "coverage"),
        ("docs/granularities.md", "sparse training", "sparse_training"),
        ("docs/granularities.md", "sparse linear", "sparse_linear"),
        ("docs/granularities.md", "depth growth", "depth_growth"),
        ("docs/granularities.md", "depth coverage", "depth_coverage"),
        ("docs/methods.md", "second moments", "second_moments"),
        ("docs/theory.md", "theory tests", "theory_tests"),
        ("docs/methods.md", "growth", "batchnorm_growth"),
    ],
)
def test_a_table_is_that_of_the_measurements(readme: Any, page: str, name: str, made_by: str) -> None:
    assert block(page, name) == operator.attrgetter(made_by)(readme)()


@pytest.mark.parametrize(("store", "suites"), [("store", ("tuning", "poster")), ("exploration", ("exploration",))])
def test_every_run_of_record_is_one_that_a_suite_makes(store: str, suites: tuple[str, ...]) -> None:
    made = Store(ROOT / "benchmarks" / "results" / store).results()
    cells = [c for s in suites for c in cells_of(get_suite(s))]
    cells += [c for s in suites for c in cells_of(get_suite(s), CONFIRMATION, held_out=False)]
    assert made.keys() <= {cell.key for cell in cells}
    assert len(made) > 15


def test_the_theory_names_tests_that_there_are() -> None:
    sources = [path.read_text() for path in (ROOT / "tests").glob("*.py")]
    defined = {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)}
    text = (ROOT / "docs" / "theory.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 25
    assert named <= defined
    files = set(re.findall(r"`(test_\w+\.py)`", text))
    assert all((ROOT / "tests" / name).is_file() for name in files)

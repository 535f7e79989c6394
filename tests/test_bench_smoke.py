"""`regrow bench smoke`, as a user calls it: all of its runs, told again, merged, and made into a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from regrow.bench.cells import cells_of
from regrow.bench.comparison import leaderboard
from regrow.bench.markdown import table
from regrow.bench.results import Store
from regrow.bench.suites import get_suite
from regrow.cli import main


def test_the_smoke_suite_runs_and_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, cells = tmp_path / "store", list(cells_of(get_suite("smoke")))
    assert main(["bench", "smoke", "--store", str(store), "--jobs", "2"]) == 0
    assert f"{len(cells)} of {len(cells)} runs are in {store}; {len(cells)} were done now" in capsys.readouterr().out
    results = Store(store).results()
    assert set(results) == {cell.key for cell in cells}
    rows = leaderboard(list(results.values()))
    assert {row.task for row in rows} == {"digits/mlp", "spirals/mlp", "teacher/mlp"}
    by_arm = {(row.task, row.arm): row for row in rows}
    for task in ("digits/mlp", "spirals/mlp", "teacher/mlp"):
        grown, large = (by_arm[task, arm].runs[0] for arm in ("grow: gradmax", "large, 70%"))
        assert grown.flops == large.flops
        assert grown.training_flops == pytest.approx(large.training_flops, rel=0.05)
        assert grown.jump_eval == pytest.approx(0.0, abs=1e-5)
        assert by_arm[task, "shrink: l1"].runs[0].flops < 0.75 * large.flops
        assert by_arm[task, "constant: l1 + gradmax"].runs[0].flops == large.flops
    assert len(table(list(results.values())).splitlines()) == 2 + len(rows)
    assert main(["bench", "smoke", "--store", str(store)]) == 0
    assert "0 were done now" in capsys.readouterr().out
    assert main(["bench", "merge", str(store), "--store", str(tmp_path / "all")]) == 0
    assert f"{len(cells)} runs are in" in capsys.readouterr().out
    assert main(["report", str(store), "-o", str(tmp_path / "page.html")]) == 0
    assert "digits/mlp" in (tmp_path / "page.html").read_text()


def test_what_is_unknown_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in (
        (["bench", "smok"], "unknown suite smok (did you mean smoke?)"),
        (["bench", "smoke", "--arms", "grow: magic"], "has no arm 'grow: magic'"),
        (["bench", "smoke", "--jobs", "0"], "--jobs is 0, but must be at least 1"),
        (["bench", "merge", "--store", str(tmp_path)], "merge brings stores together"),
        (["bench", "merge", str(tmp_path / "none"), "--store", str(tmp_path / "all")], "is not a folder"),
    ):
        assert main(given) == 1
        assert said in capsys.readouterr().err

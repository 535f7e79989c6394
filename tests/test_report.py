"""The report: what it says of healthy, unfinished and damaged runs, and what a real browser draws of it."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regrow.bench.history import read_run
from regrow.bench.report import write_report
from regrow.bench.series import MAX_POINTS, series
from synthetic_runs import START_FRACTION, STEPS, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with one run in each setting."""
    for setting in START_FRACTION:
        write_run(tmp_path / "runs" / setting, setting)
    return tmp_path / "runs"


def report_on(*folders: Path) -> str:
    """The text of the report on these folders."""
    return write_report(folders, folders[0].parent / "report.html").read_text(encoding="utf-8")


def prose(page: str) -> str:
    """What a reader sees of the page, without the charts."""
    visible = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", visible))


# Content ----------------------------------------------------------------------------------------------------


def test_report_is_one_small_file_that_names_all_runs(runs: Path) -> None:
    page = report_on(runs)
    assert page.startswith("<!DOCTYPE html>")
    assert '<html lang="en">' in page
    assert "<title>regrow: 4 runs on digits/vgg11</title>" in page
    assert len(page) < 3_000_000
    text = prose(page)
    for label in ("static", "grow · random", "shrink · l1", "constant · random + l1"):
        assert label in text


def test_table_gives_sizes_scores_and_worst_jumps_for_people(runs: Path) -> None:
    text = prose(report_on(runs / "shrink"))
    events = read_run(runs / "shrink").events
    before, after = events[0]["parameters"], events[-1]["parameters"]
    assert f"{before / 1e6:.4g}M → {after / 1e6:.4g}M" in text
    assert f"{100 * events[-1]['test_accuracy']:.2f} %" in text
    worst = max(edit["loss_train_mode"][1] - edit["loss_train_mode"][0] for edit in events if edit["event"] == "edit")
    assert f"+{worst:#.3g}" in text


def test_summary_is_made_from_the_data(runs: Path) -> None:
    summary = re.search(r'class="summary">(.*?)</p>', report_on(runs), re.DOTALL)
    assert summary is not None
    assert "the best test accuracy" in summary[1]
    assert "“static” reached" in summary[1]
    assert "were edited 36 times" in summary[1]
    assert "did not finish" not in summary[1]


def test_edits_and_options_are_listed(runs: Path) -> None:
    text = prose(report_on(runs))
    assert "grow (random): 8 axes, " in text
    assert "versions.torch 2.8.0" in text


def test_runs_of_the_same_name_are_told_apart_by_their_options(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"a{seed}", "grow", seed=seed)
    write_run(tmp_path / "runs" / "b", "grow", seed=0, batch_norm=False)
    text = prose(report_on(tmp_path / "runs"))
    for label in ("batch_norm true, seed 0", "batch_norm true, seed 1", "batch_norm false, seed 0"):
        assert f"grow · random, {label}" in text


def test_runs_on_several_tasks_are_named_by_task(tmp_path: Path) -> None:
    for task in ("digits/vgg11", "cifar10/vgg11"):
        write_run(tmp_path / "runs" / task, "static", task=task, width=1 / len(task))
    text = prose(report_on(tmp_path / "runs"))
    assert "2 runs on 2 tasks" in text
    assert "“cifar10/vgg11 · static” reached" in text


def test_equal_runs_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, "static") for name in ("one", "two")]
    assert f"static ({folders[1]})" in prose(report_on(*folders))


def test_everything_from_files_is_escaped(tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    folder = write_run(tmp_path / "run", "grow", task=hostile, grow=hostile, note=hostile)
    assert hostile not in report_on(folder)


def test_unfinished_run_is_shown_as_such(tmp_path: Path) -> None:
    text = prose(report_on(write_run(tmp_path / "run", "grow", steps=400)))
    assert "not finished: step 400 of 1,200" in text
    assert "1 run of 1 did not finish" in text


def test_damaged_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "shrink", steps=400)
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "metrics", "st')
    assert "The last line of events.jsonl is damaged and was left out." in prose(report_on(folder))


@pytest.mark.parametrize("events", [None, "", "\n", "[1]\nnull\n", '{"event": "start", "step": 0}\n'])
def test_run_without_a_usable_event_is_shown(tmp_path: Path, events: str | None) -> None:
    folder = write_run(tmp_path / "run", "static")
    (folder / "events.jsonl").unlink()
    if events is not None:
        (folder / "events.jsonl").write_text(events)
    assert "not finished: step 0" in prose(report_on(folder))


def test_damaged_config_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "static")
    (folder / "config.json").write_text("{")
    assert "config.json is missing or damaged." in prose(report_on(folder))


def test_values_that_are_no_numbers_count_as_missing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "static", steps=0)
    metrics = {"event": "metrics", "step": 5, "train_loss": math.nan, "test_loss": "low", "parameters": None}
    edit = {
        "event": "edit",
        "step": 6,
        "sizes": [1],
        "loss_train_mode": [1],
        "loss_eval_mode": [0.5, math.inf],
    }
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in (metrics, edit))
    assert "static" in prose(report_on(folder))


def test_long_runs_are_thinned_without_losing_the_extremes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "static", steps=0)
    losses = [1.0] * 50_000
    losses[12_345] = 9.0
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(
            json.dumps({"event": "batch", "step": step, "loss": loss}) + "\n" for step, loss in enumerate(losses)
        )
    drawn = series(read_run(folder))["batches"]
    assert len(drawn["loss"]) <= MAX_POINTS
    assert drawn["step"][drawn["loss"].index(9.0)] == 12_345


def test_folder_that_is_no_run_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="neither is nor contains a run"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(ValueError, match="is not a folder"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(ValueError, match="no run folder was given"):
        write_report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_output_that_is_a_folder_is_a_clear_error(runs: Path) -> None:
    with pytest.raises(ValueError, match="name the file to write"):
        write_report([runs], runs)


# In a real browser ------------------------------------------------------------------------------------------


@pytest.fixture
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


def open_report(browser: Any, report: Path, **options: Any) -> tuple[Any, list[str]]:
    """Open a report without a network; the list collects what went wrong and what was requested."""
    context = browser.new_context(offline=True, **options)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-ready]")
    complaints.remove(report.as_uri())
    return page, complaints


def column(page: Any, index: int) -> list[str]:
    """The cells of a column of the results, top to bottom."""
    return page.eval_on_selector_all(f".results tbody tr > :nth-child({index})", "cells => cells.map(c => c.innerText)")


@needs_chromium
def test_reader_can_sort_toggle_and_scrub(runs: Path, browser: Any) -> None:
    report = write_report([runs], runs.parent / "report.html")
    page, complaints = open_report(browser, report)

    # Two charts, and one card for each run that edits its network.
    assert page.locator("#loss .scatterlayer .trace, #accuracy .scatterlayer .trace").count() > 20
    assert page.locator("#jumps .chart .scatterlayer").count() >= 3

    names = column(page, 1)
    page.get_by_role("button", name="Run").click()
    assert column(page, 1) == sorted(names)
    page.keyboard.press("Enter")
    assert column(page, 1) == sorted(names, reverse=True)
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Run")

    last_x = "() => Math.max(...document.querySelector('#loss').data.flatMap(trace => trace.x))"
    assert page.evaluate(last_x) == STEPS
    page.get_by_label("Training FLOPs").check(force=True)
    assert page.evaluate(last_x) > 1e9
    page.get_by_label("Linear").check(force=True)
    assert page.evaluate("document.querySelector('#loss').layout.yaxis.type") == "linear"

    page.locator("#gallery label", has_text="grow · random").first.click()
    page.locator("#slider").focus()
    page.keyboard.press("Home")
    assert page.locator(".layer .width").first.inner_text() == "16"
    page.keyboard.press("End")
    assert page.locator(".layer .width").first.inner_text() == "64"
    page.get_by_role("button", name="Previous edit").click()
    assert "Step 1,080" in page.locator("#moment").inner_text()
    assert complaints == []


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_fits_a_phone(runs: Path, browser: Any, scheme: str) -> None:
    report = write_report([runs], runs.parent / "report.html")
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page, complaints = open_report(browser, report, color_scheme=scheme, **options)
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert complaints == []


@needs_chromium
def test_empty_damaged_and_hostile_runs_are_drawn_without_errors(tmp_path: Path, browser: Any) -> None:
    hostile = "</script><img src=x onerror=alert(1)>{{ 1 }}"
    empty = write_run(tmp_path / "runs" / "empty", "static", steps=-1)
    write_run(tmp_path / "runs" / "partial", "grow", steps=200, grow=hostile)
    write_run(tmp_path / "runs" / "begun", "shrink", steps=0)
    edit = {"event": "edit", "step": 1, "kind": "grow", "sizes": {hostile: [1, 2]}, "text": hostile}
    with (tmp_path / "runs" / "begun" / "events.jsonl").open("a") as file:
        file.write(json.dumps(edit) + "\n{")
    for folders in ([tmp_path / "runs"], [empty]):
        page, complaints = open_report(browser, write_report(folders, tmp_path / "report.html"))
        assert complaints == []
        assert page.locator("img").count() == 0

"""The page of a store: what it says of full, empty, unfinished and damaged stores, and what a browser makes of it."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regrow.bench.board import write_board
from regrow.bench.comparison import leaderboard
from regrow.bench.errors import InputError
from regrow.bench.results import FAILURES_FILE, STORE_FILE, Store
from synthetic_store import ARMS, some_arms, synthetic_result, synthetic_results, write_store

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")

GROWING = some_arms("large, 70%", "large, 100%", "grow: random", "grow: gradmax, naive")
FEW = [*GROWING, *some_arms("half, 70%", "shrink: l1", "constant: l1 + random")]
STATIC, GROWN = GROWING[0], GROWING[2]
HOSTILE = "</script><img src=x onerror=alert(1)>'\"{{ 1 }}&amp;"
MOST_BYTES = 5_000_000


def board_of(store: Path) -> str:
    """The text of the page about a store."""
    return write_board(store, store.parent / "board.html").read_text(encoding="utf-8")


def prose(page: str) -> str:
    """What a reader sees of a page without its scripts."""
    visible = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", visible)).replace("&#34;", '"').replace("&amp;", "&")


def found(pattern: str, text: str) -> str:
    """The group of a pattern where it is first."""
    match = re.search(pattern, text, flags=re.DOTALL)
    assert match is not None
    return match[1]


def rows_of(page: str) -> dict[str, str]:
    """Arm -> its row over all seeds, as read."""
    rows = re.findall(r'<tr data-arm="\d+" data-seed="".*?</tr>', page, flags=re.DOTALL)
    return {found(r'data-value="(.*?)"', row): prose(row) for row in rows}


def data_of(page: str) -> dict[str, Any]:
    """What the page's scripts draw."""
    return json.loads(found(r'id="data">(.*?)</script>', page))


# Content ----------------------------------------------------------------------------------------------------


def test_the_page_tells_what_was_run_and_on_what(tmp_path: Path) -> None:
    page = board_of(write_store(tmp_path / "store", synthetic_results(arms=FEW)))
    text = prose(page)
    assert page.startswith("<!DOCTYPE html>")
    assert "<title>regrow: 21 runs on cifar10/vgg11</title>" in page
    assert "7 arms on 1 task (cifar10/vgg11) with 3 seeds (0, 1 and 2)" in text
    assert "measured on held-out examples, by version 1 of the protocol" in text
    assert "torch 2.14.1" in text
    assert "AMD EPYC 7B13 (2 cores)" in text
    assert "//" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_the_tables_hold_the_numbers_of_the_leaderboard(tmp_path: Path) -> None:
    results = list(synthetic_results(arms=FEW))
    shown = rows_of(board_of(write_store(tmp_path / "store", results)))
    for row in leaderboard(results):
        text = shown[row.arm.removeprefix(f"{row.setting}: ")].replace("−", "-")
        assert f"{100 * row.score.mean:.2f} ± {100 * (row.score.high - row.score.mean):.2f}" in text
        assert (row.gain is None) == (row.setting == "static")
        if row.gain is not None and row.p is not None:
            assert f"{100 * row.gain.mean:+.2f} ± {100 * (row.gain.high - row.gain.mean):.2f}" in text
            assert f" {row.p:.3f} " in text
        jump = row.worst("jump_eval")
        assert jump is None or jump < 0.1 or f"{100 * jump:+.3g} %" in text
        assert row.reached is None or f" {100 * row.reached:.0f} % " in text


def test_what_is_beyond_chance_is_said(tmp_path: Path) -> None:
    arms = some_arms("large, 70%", "grow: random", "grow: gradmax")
    results = list(synthetic_results(arms=arms, seeds=range(8)))
    for result in results:
        if result["arm"] == "grow: random":
            result["events"][-1]["test_accuracy"] += 0.3
    text = prose(board_of(write_store(tmp_path / "store", results)))
    assert re.search(
        r"Compared seed by seed with “large, 70%”\. Beyond chance at the 5 % level: “grow: random” \(\+", text
    )


def test_both_splits_and_several_tasks_have_tables_of_their_own(tmp_path: Path) -> None:
    tasks = ("cifar10/vgg11", "digits/vgg11")
    held = synthetic_results(arms=GROWING, tasks=tasks)
    fresh = synthetic_results(arms=GROWING, tasks=tasks, seeds=(100, 101), held_out=False)
    page = board_of(write_store(tmp_path / "store", [*held, *fresh]))
    assert page.count('class="leaderboard"') == 8  # two settings each
    text = prose(page)
    assert "40 runs on 2 tasks" in text
    assert "measured on held-out examples and the test set" in text
    assert "Mean rank on the test set" in text
    assert "100, 101" not in rows_of(page)["random"]  # what only the other split has isn't missing


def test_an_empty_store_is_a_page(tmp_path: Path) -> None:
    text = prose(board_of(write_store(tmp_path / "store")))
    assert "No finished run yet" in text
    assert "The store is empty" in text


def test_what_is_no_store_is_a_clear_error_and_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no store"):
        write_board(tmp_path / "nowhere", tmp_path / "board.html")
    assert not (tmp_path / "nowhere").exists()
    store = write_store(tmp_path / "store")
    with pytest.raises(InputError, match="name the file to write"):
        write_board(store, tmp_path)
    (store / STORE_FILE).write_text('{"protocol": 0}')
    with pytest.raises(InputError, match="version 0 of the protocol"):
        write_board(store, tmp_path / "board.html")
    assert not (tmp_path / "board.html").exists()


def test_a_single_seed_has_no_interval(tmp_path: Path) -> None:
    page = board_of(write_store(tmp_path / "store", synthetic_results(arms=FEW, seeds=(5,))))
    assert "±" not in rows_of(page)["random"]
    assert "too few seeds" in prose(page)
    assert 'name="seed"' not in page


def test_an_arm_without_all_of_its_runs_says_so(tmp_path: Path) -> None:
    results = [*synthetic_results(arms=GROWING, seeds=(0, 1)), *synthetic_results(arms=GROWING[:2], seeds=(2,))]
    rows = rows_of(board_of(write_store(tmp_path / "store", results)))
    assert "without seed 2" in rows["random"]
    assert "without" not in rows["large, 70%"]


def test_what_is_not_in_the_tables_is_named(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", synthetic_results(arms=GROWING, seeds=(0,)))
    store = Store(path)
    failed, done = "cifar10/vgg11 | grow: firefly | seed 0 | 0", synthetic_result(STATIC)["key"]
    for key in (failed, done):  # the second one was tried again
        store.add_failure(key, "exit status 1; <out of memory>")
    work = store.work("cifar10/vgg11 | grow: north | seed 0 | 0")
    work.mkdir(parents=True)
    (work / "events.jsonl").write_text('{"event": "metrics", "step": 70, "progress": 0.25}\n{"event"')
    order = {"task": "cifar10/vgg11", "arm": {"name": "grow: north"}, "seed": 0}
    work.with_suffix(".json").write_text(json.dumps(order))
    work.with_name("torn.json").write_text("{")
    cut_off = synthetic_result(STATIC, seed=1)
    cut_off["events"].pop()
    older = {**synthetic_result(STATIC), "key": "older"}
    store.add(cut_off)
    store.add(older)
    with (path / FAILURES_FILE).open("a") as file:
        file.write('{"key": ')
    page = board_of(path)
    text = prose(page)
    assert f"{failed} failed: exit status 1; &lt;out of memory&gt;" in text
    assert f"{done} failed" not in text
    assert "cifar10/vgg11 | grow: north | seed 0 not finished: 25.00 % at step 70" in text
    assert f"{cut_off['key']} left out: its end has no score" in text
    assert f"{done} left out: a newer one has other options" in text
    assert "4 runs failed, did not finish or were left out" in text
    assert "seed 1" in {run["label"].split(", ")[-1] for run in data_of(page)["runs"] if run["arm"] is None}


DAMAGE: list[Any] = [
    {"events": None}, {"events": [1, {"event": "end"}, {"event": 3, "step": 1}]}, {"config": None, "environment": []},
    {"seed": "x", "arm": None, "against": 3, "task": ["a"]},
]  # fmt: skip


def damaged_results() -> Iterator[dict[str, Any]]:
    """Results in which something is missing, or something else than it should be."""
    for index, damage in enumerate(DAMAGE):
        yield {**synthetic_result(GROWN), "key": f"damaged {index}", "arm": f"damaged {index}", **damage}
    for index, value in enumerate((None, float("nan"), "many", [1], {})):
        result: dict[str, Any] = {**synthetic_result(GROWN), "key": f"odd {index}", "arm": f"odd {index}"}
        for event in result["events"]:
            kept = {"event", "step"} | ({"test_accuracy", "training_flops"} if event["event"] == "end" else set())
            event |= dict.fromkeys(event.keys() - kept, value)
        yield result
    yield {"key": "nothing else"}
    yield {"key": 3, "events": [{"event": "end", "step": 1, "test_accuracy": 0.5, "training_flops": 2.0}]}


def test_missing_numbers_are_dashes(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [*synthetic_results(arms=FEW, seeds=(0,)), *damaged_results()])
    rows = rows_of(board_of(store))
    assert rows["odd 2"].count("–") >= 8
    assert "random" in rows


def test_everything_from_results_is_escaped(tmp_path: Path) -> None:
    arm = replace(GROWN, name=HOSTILE, options={**GROWN.options, "note": HOSTILE})
    result = synthetic_result(arm, task=HOSTILE) | {"environment": {"torch": HOSTILE, HOSTILE: HOSTILE}}
    store = write_store(tmp_path / "store", [result])
    Store(store).add_failure(HOSTILE, HOSTILE)
    page = board_of(store)
    assert "<img" not in page
    assert page.count("</script>") == 3  # data, plotly, the page's own
    assert data_of(page)["runs"][0]["task"] == HOSTILE


@pytest.fixture(scope="module")
def large_board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of more than 300 runs, of which two have thousands of edits."""
    results = [*synthetic_results(), *synthetic_results(range(100, 107), held_out=False)]
    assert len(results) >= 300
    for result in results[20:22]:
        events = result["events"]
        edits = [event for event in events if event["event"] == "edit"]
        edits[1] |= {"loss_eval_mode": [0.1, 77.0]}
        events[1:1] = [*edits * 400]
    folder = tmp_path_factory.mktemp("large")
    return write_board(write_store(folder / "store", results), folder / "board.html")


def test_the_page_of_300_runs_is_small_and_keeps_the_worst_edits(large_board: Path) -> None:
    assert large_board.stat().st_size < MOST_BYTES
    runs = data_of(large_board.read_text(encoding="utf-8"))["runs"]
    assert runs[20]["num_edits"] > 2000 > len(runs[20]["edits"]["step"])
    assert [0.1, 77.0] in runs[20]["edits"]["eval"]


# In a real browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small store."""
    folder = tmp_path_factory.mktemp("small")
    return write_board(write_store(folder / "store", synthetic_results(arms=FEW)), folder / "board.html")


def open_board(browser: Any, board: Path, fragment: str = "", **options: Any) -> tuple[Any, list[str]]:
    """Open a page without a network; the list collects what went wrong and what was requested."""
    page, complaints = browser.new_context(offline=True, **options).new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(board.as_uri() + fragment)
    page.wait_for_selector("html[data-ready]")
    complaints.remove(board.as_uri())
    return page, complaints


def column(page: Any, index: int) -> list[str]:
    """The cells of a column of the leaderboard of growing, as far as they are seen."""
    rows = page.locator("#board-1 tbody tr:not([hidden])")
    return [rows.nth(row).locator(":scope > *").nth(index).inner_text() for row in range(rows.count())]


def traces(page: Any, chart: str) -> int:
    """How many traces a chart of growing has, once it is drawn."""
    target = page.locator(f'#board-1 [data-chart="{chart}"]')
    target.scroll_into_view_if_needed()
    target.locator(".trace").first.wait_for()
    return target.evaluate("chart => chart.data.length")


@needs_chromium
def test_tables_are_sorted_by_click_and_by_key(board: Path, browser: Any) -> None:
    page, complaints = open_board(browser, board)
    scores = column(page, 2)
    assert page.locator("#board-1 th[aria-sort=descending]").inner_text().startswith("Final")
    page.locator("#board-1").get_by_role("button", name="Final").click()
    assert column(page, 2) == scores[::-1]
    page.locator("#board-1").get_by_role("button", name="Arm", exact=True).focus()
    page.keyboard.press("Enter")
    assert column(page, 0) == ["gradmax, naive", "random"]
    page.keyboard.press("Space")
    assert column(page, 0) == ["random", "gradmax, naive"]
    assert page.locator("#board-1 [aria-sort]").count() == 1
    assert page.locator("#board-1 [aria-sort=descending]").inner_text().startswith("Arm")
    assert complaints == []


@needs_chromium
def test_filters_act_on_tables_and_charts_and_stay_in_the_address(board: Path, browser: Any) -> None:
    page, complaints = open_board(browser, board)
    assert {chart: traces(page, chart) for chart in ("score", "loss", "jumps", "sizes")} == {
        "score": 6, "loss": 6, "jumps": 4, "sizes": 4,
    }  # two arms with their bands, two rivals; two arms in two modes; all four  # fmt: skip
    page.get_by_label("Find").fill("naive")
    assert column(page, 0) == ["gradmax, naive"]
    assert page.locator(".leaderboard:visible").count() == 1
    assert "1 of 7 arms, 3 runs" in page.locator("#found").inner_text()
    assert (traces(page, "score"), traces(page, "sizes")) == (4, 3)
    page.get_by_label("Find").fill("")
    page.get_by_role("checkbox", name="shrink").uncheck(force=True)
    assert page.locator(".leaderboard:visible").count() == 3
    page.locator("summary", has_text="Arms").click()
    page.get_by_role("checkbox", name="random", exact=True).uncheck()
    page.keyboard.press("Escape")
    assert column(page, 0) == ["gradmax, naive"]
    page.get_by_role("radio", name="2").check(force=True)
    assert "2" in column(page, 1)[0]
    assert "±" not in column(page, 2)[0]
    assert traces(page, "score") == 3  # no bands

    page.locator("#board-1 tbody tr:not([hidden])").click()
    again, more = open_board(browser, board, page.evaluate("location.hash"))
    assert column(again, 2) == column(page, 2)
    assert again.locator(".leaderboard:visible").count() == 3
    assert again.locator("#run-heading").inner_text() == "grow: gradmax, naive, seed 2"
    again.get_by_role("button", name="Reset").click()
    again.locator("#board-1 tbody tr:not([hidden])").nth(1).wait_for()
    assert re.fullmatch(r"#run=[^&]*", again.evaluate("location.hash"))
    again.locator("summary", has_text="Charts").click()
    again.get_by_label("Single runs").check()
    assert traces(again, "score") == 6 + 12
    assert complaints + more == []


@needs_chromium
def test_a_row_opens_its_run_and_the_slider_moves_its_network(board: Path, browser: Any) -> None:
    page, complaints = open_board(browser, board, reduced_motion="reduce")
    page.locator("#board-1 tbody tr", has_text="random").first.click()
    assert page.locator("#run-heading").inner_text() == "grow: random, seed 0"
    assert page.evaluate("document.activeElement.id") == "run-heading"
    assert page.locator("#edits tbody tr").count() == 6
    assert "lr" not in page.locator("#options").inner_text().split()
    assert "start_fraction" in page.locator("#options").inner_text()
    widths = page.locator(".layer .width")
    page.locator("#slider").focus()
    page.keyboard.press("Home")
    assert (widths.first.inner_text(), page.locator("#score-then").inner_text()) == ("16", "")
    page.keyboard.press("End")
    assert widths.first.inner_text() == "64"
    assert "score" in page.locator("#score-then").inner_text()
    page.get_by_role("button", name="Previous edit").click()
    page.get_by_role("button", name="Previous edit").click()
    assert int(widths.first.inner_text()) < 64
    page.locator("#edits summary").first.click()
    assert "features.0: 16 → 24" in page.locator("#edits li").first.inner_text()
    page.get_by_role("button", name="Back to the table").click()
    assert page.evaluate("document.activeElement.textContent") == "random"

    page.locator("#board-3").get_by_role("button", name="Show constant: l1 + random, seed 2").focus()
    page.keyboard.press("Enter")
    assert page.locator("#run-heading").inner_text() == "constant: l1 + random, seed 2"
    assert page.locator("#edits tbody tr").count() == 12
    page.locator("#play").focus()
    page.keyboard.press("Enter")  # from the end it starts again, and leaps from edit to edit
    assert page.locator("#play").inner_text() == "Pause"
    first = page.locator("#moment").inner_text()
    page.locator("#moment", has_not_text=first).wait_for()
    page.keyboard.press("Enter")
    assert page.locator("#play").inner_text() == "Play"
    assert complaints == []


FOCUSED = """() => {
  const one = document.activeElement;
  const at = one.matches('input:not([type=search], [type=range], .tick input)') ? one.nextElementSibling : one;
  return [one.tagName, parseFloat(getComputedStyle(at).outlineWidth), getComputedStyle(at).outlineStyle];
}"""


@needs_chromium
def test_the_keyboard_reaches_all_and_its_focus_is_seen(board: Path, browser: Any) -> None:
    page, _ = open_board(browser, board)
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        tag, width, style = page.evaluate(FOCUSED)
        assert width >= 2 and style == "solid", tag
        reached.add(tag)
    assert reached >= {"A", "INPUT", "SUMMARY", "BUTTON", "DIV"}


#: The worst contrast of visible text with what is behind it.
CONTRAST = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let worst = [21, ''];
  for (const node of document.querySelectorAll('body *:not(script, svg, svg *, option, optgroup)')) {
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim())) continue;
    if (!node.checkVisibility()) continue;
    const [a, b] = [parts(getComputedStyle(node).color), behind(node)].map(light).sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < worst[0]) worst = [(a + 0.05) / (b + 0.05), node.outerHTML];
  }
  return worst;
}"""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_legible_in_both_schemes_and_fits_a_phone(board: Path, browser: Any, scheme: str) -> None:
    from PIL import Image

    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page, complaints = open_board(browser, board, "#-arm=grow%3A+random", color_scheme=scheme, **phone)
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    page.locator('#board-1 [data-chart="score"] .trace').first.wait_for() if traces(page, "score") else None
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    worst, where = page.evaluate(CONTRAST)
    assert worst >= 4.5, where
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50
    assert (np.median(pixels) > 128) == (scheme == "light")
    assert complaints == []


@needs_chromium
def test_all_charts_are_drawn_for_paper(board: Path, browser: Any) -> None:
    page, complaints = open_board(browser, board, color_scheme="dark")
    page.locator("#board-0 .main-svg").first.wait_for()
    width = "document.querySelector('#board-0 .main-svg').clientWidth"
    before = page.evaluate(width)
    assert page.locator(".js-plotly-plot").count() < page.locator(".chart").count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".js-plotly-plot").count() == page.locator(".chart").count() == 17
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(width) != before
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(width) == before
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert complaints == []


CHOOSE_EACH = """() => {
  const choice = document.querySelector('#run-choice');
  for (const option of choice?.options ?? []) {
    choice.value = option.value;
    choice.dispatchEvent(new Event('change'));
  }
}"""


@needs_chromium
def test_empty_damaged_and_hostile_stores_are_drawn_without_errors(tmp_path: Path, browser: Any) -> None:
    hostile = replace(GROWN, name=HOSTILE, against=HOSTILE, options={**GROWN.options, "grow": HOSTILE})
    stores = {
        "empty": [],
        "unranked": list(damaged_results())[:1],
        "damaged": [*damaged_results(), *(synthetic_result(hostile, seed=seed, task=HOSTILE) for seed in (0, 1))],
    }
    for name, results in stores.items():
        store = write_store(tmp_path / name, results)
        page, complaints = open_board(browser, write_board(store, tmp_path / f"{name}.html"))
        page.evaluate(CHOOSE_EACH)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("img").count() == 0
        assert complaints == [], name


@needs_chromium
def test_the_page_of_300_runs_answers(large_board: Path, browser: Any) -> None:
    page, complaints = open_board(browser, large_board)
    page.get_by_label("Find").fill("naive")
    assert (
        f"{2 * sum('naive' in arm.name for arm in ARMS)} of {2 * len(ARMS)} arms" in page.locator("#found").inner_text()
    )
    assert complaints == []

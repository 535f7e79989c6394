"""`regrow inspect`: what it prints, its errors, that its page tells the truth, and what a real browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import regrow as rg
from regrow.bench.errors import InputError
from regrow.cli import main
from regrow.inspect.building import parameters_on_meta
from regrow.inspect.examine import examine
from regrow.inspect.order import order_of
from regrow.inspect.page import number, page_data, segments, write_page
from regrow.inspect.sources import builder
from regrow.inspect.subject import Request, Subject
from regrow.inspect.totals import Totals
from regrow.inspect.tree import Row, Tree

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")
HOSTILE = "</script><img src=x onerror=alert(1)>"


class Small(nn.Module):
    """A residual stream, a grouped convolution, a concatenation, and a module registered before it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 5)
        self.drop = nn.Dropout()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.before = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.side = nn.Conv2d(8, 4, 1)
        self.gain = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.inner(x)) * self.gain
        x = torch.cat([self.grouped(self.before(x)), self.side(x)], 1)
        return self.head(self.drop(x.mean((2, 3))))


def small() -> tuple[Subject, rg.Structure]:
    model, x = Small(), torch.randn(2, 3, 8, 8)
    return Subject("small", model, (x,)), rg.analyze(model, x)


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with functions that return models."""
    name = f"factories_{re.sub(r'[^a-z0-9]', '_', tmp_path.name.lower())}"
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn

            def net():
                return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

            def with_example():
                return net(), torch.zeros(2, 4)

            def with_keywords():
                return net(), {"input": torch.zeros(2, 4)}

            def looks_at_values():
                model = net()
                if model[0].weight.sum().item() == 0:
                    raise RuntimeError("all zero")
                return model, torch.zeros(2, 4)

            def fails():
                raise KeyError("the first line\\nthe second")

            def no_model():
                return 3

            class Holder:
                build = staticmethod(net)

            value = 3
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a command that fails."""
    assert main(["inspect", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("regrow: ")
    return line


# The command ------------------------------------------------------------------------------------------------


def test_it_prints_the_table_and_the_totals(factories: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"{factories}:with_example"]) == 0
    printed = capsys.readouterr().out
    assert f"{factories}:with_example on 2×4" in printed
    assert "fed by the model's input" in printed
    assert "58 parameters" in printed
    assert "1 axis" in printed


def test_width_is_that_of_the_table(factories: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"{factories}:with_example", "--width", "60"]) == 0
    table = capsys.readouterr().out.split("\n\n", 1)[1].rpartition("\n\n")[0]
    assert max(map(len, table.splitlines())) <= 60


@pytest.mark.parametrize("option", ["--html", "-o"])
def test_it_writes_one_page_that_needs_nothing_else(
    option: str, factories: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "page.html"
    assert main(["inspect", f"{factories}:with_example", option, str(path)]) == 0
    assert f"page: {path}" in capsys.readouterr().out
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "src=" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18"], "resnet18 is not a model; name one as timm/NAME"),
        (["timm/resnet19"], "timm has no model resnet19; did you mean resnet18"),
        (["torchvision/resnet19"], "torchvision has no model resnet19; did you mean"),
        (["torchvision/fasterrcnn_resnet50_fpn"], "is a detection model"),
        (["hf-config"], "hf-config takes a file"),
        (["hf-config", "nowhere.json"], "nowhere.json: No such file"),
        (["timm/resnet18", "config.json"], "takes no file"),
        (["config.json"], "regrow inspect hf-config config.json"),
        (["no_such_package.module:net"], "there is no module no_such_package.module"),
        (["{}:missing"], "has no missing"),
        (["{}:value"], "is no function but of type int"),
        (["{}:no_model"], "returned no torch.nn.Module but int"),
        (["{}:net"], "returned no example; give its shape"),
        (["{}:fails"], "the first line"),
        (["{}:net", "--input", "2,5"], "doesn't run on the example"),
        (["{}:net", "--input", "2,a"], "is not a shape"),
        (["{}:net", "--input", "1,4"], "its first size is the batch, which must be at least 2"),
        (["{}:net", "--input", "2,0"], "a size below 1"),
        (["{}:net", "--image-size", "0"], "--image-size is 0"),
        (["{}:with_example", "--width", "3"], "--width is 3"),
        (["{}:with_example", "-o", "."], "is a folder"),
        (["{}:with_example", "-o", "/dev/null/page.html"], "/dev/null"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], message: str, factories: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of([argument.format(factories) for argument in arguments], capsys)


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    assert "timm is not installed; run: pip install 'regrow[timm]'" in error_of(["timm/resnet18"], capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no model_type"),
        ('{"model_type": "unheard-of"}', "transformers has no model_type unheard-of"),
    ],
)
def test_a_bad_config_is_one_line(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(text)
    assert message in error_of(["hf-config", str(tmp_path / "config.json")], capsys)


# Where models come from -------------------------------------------------------------------------------------


def subject_of(source: str, file: Path | None = None, **request: Any) -> Subject:
    return examine(source, builder(source, file, Request.read(request.get("shape"), request.get("image_size"))))[0]


def test_timm_models_come_with_their_own_input_and_without_memory() -> None:
    subject = subject_of("timm/test_vit")
    assert type(subject.model) is type(timm.create_model("test_vit"))
    assert subject.shapes == "2×3×160×160"
    assert all(p.is_meta for p in subject.model.parameters())
    assert subject_of("timm/test_resnet", image_size=64).shapes == "2×3×64×64"
    assert subject_of("timm/test_vit", image_size=64).shapes == "2×3×64×64"
    assert subject_of("timm/test_resnet", shape="4,3,32,48").shapes == "4×3×32×48"


def test_torchvision_models_come_with_what_they_take() -> None:
    assert subject_of("torchvision/squeezenet1_1").shapes == "2×3×224×224"
    assert builder("torchvision/r3d_18", None, Request())().shapes == "2×3×16×112×112"
    assert builder("torchvision/inception_v3", None, Request())().shapes == "2×3×299×299"


def config(folder: Path, value: transformers.PretrainedConfig) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(value.to_dict()))
    return path


BERT: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
}


def test_hugging_face_configs_choose_their_class_and_input(tmp_path: Path) -> None:
    file = config(tmp_path, transformers.BertConfig(**BERT, architectures=["BertForMaskedLM"]))
    subject = subject_of("hf-config", file)
    assert type(subject.model) is transformers.BertForMaskedLM
    assert {name: tuple(x.shape) for name, x in subject.kwargs.items()} == {"input_ids": (2, 16)}
    assert subject.kwargs["input_ids"].max() < 50
    assert subject_of("hf-config", tmp_path, shape="3,7").shapes == "3×7"

    file = config(tmp_path, transformers.BertConfig(**BERT))
    assert type(subject_of("hf-config", file).model) is transformers.BertModel

    vit: dict[str, Any] = {**BERT, "image_size": 16, "patch_size": 8}
    file = config(tmp_path, transformers.ViTConfig(**vit))
    assert subject_of("hf-config", file).shapes == "2×3×16×16"
    assert subject_of("hf-config", file, image_size=24).shapes == "2×3×24×24"

    t5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
    file = config(tmp_path, transformers.T5Config(**t5, architectures=["T5ForConditionalGeneration"]))
    assert list(subject_of("hf-config", file).kwargs) == ["input_ids", "decoder_input_ids"]


def test_factories_may_return_examples_of_any_form(factories: str) -> None:
    assert subject_of(f"{factories}:with_example").args[0].shape == (2, 4)
    assert list(subject_of(f"{factories}:with_keywords").kwargs) == ["input"]
    assert subject_of(f"{factories}:Holder.build", shape="3,4").args[0].shape == (3, 4)


def test_code_that_looks_at_values_gets_them(factories: str) -> None:
    assert not any(p.is_meta for p in subject_of(f"{factories}:looks_at_values").model.parameters())


def test_parameters_on_meta_keep_ties_buffers_and_flags() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shared = nn.Parameter(torch.ones(3), requires_grad=False)
            self.one, self.other = shared, shared
            self.register_buffer("table", torch.arange(3))

    with parameters_on_meta():
        model = Tied()
    assert model.one is model.other
    assert model.one.is_meta and not model.one.requires_grad
    assert model.get_buffer("table").tolist() == [0, 1, 2]
    assert not Tied().one.is_meta


# The page's data --------------------------------------------------------------------------------------------


def decoded(numbers: tuple[int, ...] | list[int], size: int) -> list[int]:
    """Back from stretches to the unit of each index."""
    unit_of = [-1] * size
    for start, length, first, run in zip(*[iter(numbers)] * 4, strict=True):
        unit_of[start : start + length] = [first + i // run for i in range(length)]
    return unit_of


@given(st.lists(st.integers(-1, 4), max_size=40))
def test_stretches_say_the_unit_of_each_index(unit_of: list[int]) -> None:
    assert decoded(segments(torch.tensor(unit_of, dtype=torch.long)), len(unit_of)) == unit_of


def test_stretches_are_few_where_units_lie_regularly() -> None:
    heads = torch.arange(12).repeat_interleave(64).repeat(3)
    assert segments(heads) == (0, 768, 0, 64, 768, 768, 0, 64, 1536, 768, 0, 64)


def data_of(subject: Subject, structure: rg.Structure) -> dict[str, Any]:
    """As the browser gets it."""
    return json.loads(json.dumps(page_data(subject, structure, number(structure)), allow_nan=False))


def test_every_place_of_every_axis_is_on_the_page() -> None:
    subject, structure = small()
    data = data_of(subject, structure)
    assert len(structure.axes) > 4
    assert any(axis.counts for axis in structure.axes)
    for axis, drawn in zip(structure.axes, data["axes"], strict=True):
        assert (drawn["name"], drawn["kind"], drawn["size"]) == (axis.name, axis.kind, axis.size)
        assert drawn["tags"] == sorted(axis.tags)
        assert drawn["params"] == axis.params
        assert drawn["flops"] == axis.flops / 2
        for name in ("prunable", "growable", "exact"):
            verdict = getattr(axis, name)
            assert drawn["verdicts"][name] == (None if verdict else verdict.reason)
        expected = {(e.name, e.dim, e.role, tuple(e.unit_of.tolist())) for e in axis.entries}
        found = set()
        for cell, role, pattern in drawn["places"]:
            name, dim, size = data["cells"][cell]
            found.add((name, dim, role, tuple(decoded(data["patterns"][pattern], size))))
        assert found == expected
        assert {data["integers"][i][0] for i, _ in drawn["counts"]} == {count.key[0] for count in axis.counts}


def test_every_dimension_is_on_the_page_and_every_frozen_one_says_why() -> None:
    subject, structure = small()
    data = data_of(subject, structure)
    tensors = {**dict(subject.model.named_parameters()), **dict(subject.model.named_buffers())}
    assert [tuple(cell) for cell in data["cells"]] == [
        (name, dim, size) for name, tensor in tensors.items() for dim, size in enumerate(tensor.shape)
    ]
    expected = sorted((f.name, f.dim, f.size, f.reason) for f in structure.frozen)
    found = sorted(
        (*data["cells"][cell][:2], size, data["reasons"][reason])
        for cell, reasons in data["frozen"]
        for size, reason in reasons
    )
    assert found == expected


def test_totals_count_what_moves() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 4)
    totals = Totals.of(Subject("net", model, (x,)), rg.analyze(model, x))
    assert (totals.parameters, totals.moving, totals.axes) == (58, 56, 1)
    assert totals.flops == 2 * (4 * 8 + 8 * 2)
    assert "58 parameters" in str(totals) and "1 axis" in str(totals)


def test_rows_stand_in_execution_order_with_all_tensors() -> None:
    subject, structure = small()
    order = order_of(subject.model, subject.args, subject.kwargs)
    row = Tree(structure, order, number(structure)).row(structure.model, "model")
    labels = [inner.label for inner in row.rows]
    assert labels == ["stem", "norm", "inner", "gain", "before", "grouped", "side", "drop", "head"]
    rows = {each.path: each for each in row.walk()}
    assert [each.label for each in row.walk() if each.idle] == ["drop"]
    assert rows["inner.1"].type == "ReLU" and not rows["inner.1"].idle
    assert rows["grouped"].output == "2×8×8×8"
    assert [integer.label for integer in rows["grouped"].integers] == ["groups"]
    shown = {tensor.name for each in row.walk() for tensor in each.tensors}
    tensors = {**dict(subject.model.named_parameters()), **dict(subject.model.named_buffers())}
    assert shown == {name for name, tensor in tensors.items() if tensor.ndim}


def test_watching_a_run_leaves_the_model_as_it_was() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.BatchNorm1d(4)
            self.seen: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.inner(x)
            return self.seen if self.seen.sum() > -1e9 else x  # looks at values

    model = Remembers().train()
    order = order_of(model, (torch.randn(3, 4),), {})
    assert order.visit(model.inner).times == 1
    assert model.seen is None and model.training and model.inner.training
    assert model.inner.running_mean is not None and not model.inner.running_mean.any()


def test_shared_tensors_and_modules_are_shown_where_they_are() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(6, 4)
            self.block = nn.Linear(4, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.block(self.embed(x)).relu()))

    model, x = Shared(), torch.arange(6).reshape(2, 3)
    structure = rg.analyze(model, x)
    row = Tree(structure, order_of(model, (x,), {}), number(structure)).row(model, "model")
    rows: dict[str, Row] = {each.path: each for each in row.walk()}
    assert rows["block"].times == 2
    (head,), (embed,) = rows["head"].tensors, rows["embed"].tensors
    assert head.tied == "embed.weight"
    assert head.cells == embed.cells


def test_names_are_escaped(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(HOSTILE.replace(".", ""), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return next(self.children())(x)

    model, x = Odd(), torch.zeros(2, 4)
    page = write_page(Subject(HOSTILE, model, (x,)), rg.analyze(model, x), tmp_path / "page.html")
    assert "<img" not in page.read_text(encoding="utf-8")


def test_a_page_that_is_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name the file to write"):
        write_page(*small(), tmp_path)


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


def open_page(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str]]:
    """Open a page without a network; the list collects what went wrong and what was requested."""
    context = browser.new_context(offline=True, viewport={"width": 1440, "height": 900}, **options)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    complaints.remove(path.as_uri())
    return page, complaints


@pytest.fixture
def shown(tmp_path: Path, browser: Any) -> tuple[rg.Structure, Any, list[str]]:
    subject, structure = small()
    return structure, *open_page(browser, write_page(subject, structure, tmp_path / "page.html"))


def cell(page: Any, tensor: str, dim: int) -> Any:
    """The button of a tensor dimension."""
    found = json.loads(page.locator("#data").text_content())["cells"]
    index = next(i for i, (name, d, _) in enumerate(found) if (name, d) == (tensor, dim))
    return page.locator(f'[data-cell="{index}"]')


def lit(page: Any) -> set[tuple[str, int, str]]:
    """Tensor, dimension and role of all that is lit in the network."""
    data = json.loads(page.locator("#data").text_content())
    found = page.eval_on_selector_all(
        "#network .dim.on[data-cell]", "dims => dims.map(dim => [Number(dim.dataset.cell), dim.dataset.role])"
    )
    return {(*data["cells"][index][:2], role) for index, role in found}


def entries(axis: rg.Axis) -> set[tuple[str, int, str]]:
    return {(e.name, e.dim, e.role) for e in axis.entries}


@needs_chromium
def test_pointing_at_a_dimension_lights_all_that_moves_with_it(shown: tuple[rg.Structure, Any, list[str]]) -> None:
    structure, page, complaints = shown
    axis = structure["stem"]
    cell(page, "norm.running_var", 0).hover()
    assert lit(page) == entries(axis)
    assert page.locator("#inspector h2").inner_text() == axis.name
    assert page.locator("#tip").inner_text().startswith(axis.name)
    page.mouse.move(700, 5)
    page.locator("#network .dim.on").first.wait_for(state="detached")
    assert page.locator("#tip").is_hidden()
    assert complaints == []


@needs_chromium
def test_every_axis_in_the_list_lights_its_places_and_integers(shown: tuple[rg.Structure, Any, list[str]]) -> None:
    structure, page, complaints = shown
    for index, axis in enumerate(structure.axes):
        page.locator(f'.axis[data-axis="{index}"]').hover()
        assert lit(page) == entries(axis)
        assert page.locator("#inspector .place").count() == len(axis.entries) + len(axis.counts)
        integers = page.locator("#network .dim.integer.on").all_inner_texts()
        assert len(integers) == len(axis.counts)
    assert complaints == []


@needs_chromium
def test_a_frozen_dimension_says_why(shown: tuple[rg.Structure, Any, list[str]]) -> None:
    structure, page, _ = shown
    for frozen in structure.frozen:
        cell(page, frozen.name, frozen.dim).first.hover()
        assert frozen.reason in page.locator("#tip").inner_text()
    cell(page, "head.weight", 0).click()
    assert "is the model's output" in page.locator("#inspector").inner_text()
    page.locator(".reason", has_text="is the model's output").click()
    assert {(name, dim) for name, dim, _ in lit(page)} == {("head.weight", 0), ("head.bias", 0)}


@needs_chromium
def test_a_concatenation_shows_the_axis_under_the_pointer(shown: tuple[rg.Structure, Any, list[str]]) -> None:
    structure, page, _ = shown
    # The head reads the groups' 8 channels first, then the 4 of the side branch.
    reads = cell(page, "head.weight", 1)
    width = reads.bounding_box()["width"]
    reads.hover(position={"x": width * 11 / 12, "y": 8})
    assert page.locator("#inspector h2").inner_text() == structure["side"].name
    reads.hover(position={"x": width * 1 / 12, "y": 8})
    assert page.locator("#inspector h2").inner_text() != structure["side"].name


@needs_chromium
def test_clicks_go_through_the_axes_along_a_dimension(shown: tuple[rg.Structure, Any, list[str]]) -> None:
    structure, page, _ = shown
    along = [a for a in structure.axes if ("before.weight", 0) in {(e.name, e.dim) for e in a.entries}]
    assert len(along) == 2
    for axis in along:
        cell(page, "before.weight", 0).click()
        assert lit(page) == entries(axis)
    assert page.locator(".others button").all_inner_texts() == [axis.name for axis in along]
    page.locator(".others button").first.click()
    assert lit(page) == entries(along[0])
    for _ in along:
        cell(page, "before.weight", 0).click()
    assert page.locator("#release").count() == 0


@needs_chromium
def test_a_click_holds_an_axis_and_keys_walk_along_it(shown: tuple[rg.Structure, Any, list[str]]) -> None:
    structure, page, complaints = shown
    axis = structure["stem"]
    cell(page, "stem.weight", 0).click()
    page.mouse.move(700, 5)
    cell(page, "side.weight", 0).hover()
    assert lit(page) == entries(axis)
    page.keyboard.press("n")
    places = page.locator("#inspector .place")
    current = page.locator('#inspector .place[aria-current="true"]')
    assert current.inner_text() == places.nth(1).inner_text()
    page.keyboard.press("p")
    assert current.inner_text() == places.nth(0).inner_text()
    assert page.url.endswith("#axis=stem")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert lit(page) == entries(axis)
    page.keyboard.press("Escape")
    assert lit(page) == set()
    assert [text for text in complaints if not text.startswith("file:")] == []


@needs_chromium
def test_one_unit_shows_its_indices(shown: tuple[rg.Structure, Any, list[str]]) -> None:
    structure, page, _ = shown
    index, axis = next((i, a) for i, a in enumerate(structure.axes) if a.counts)
    page.locator(f'.axis[data-axis="{index}"]').click()
    page.locator("#unit").focus()
    page.keyboard.press("End")
    assert page.locator(".unit output").inner_text() == f"unit {axis.size - 1}"
    for number_, entry in enumerate(axis.entries):
        indices = entry.indices([axis.size - 1]).tolist()
        title = page.locator("#inspector .place").nth(number_).locator(".indices").get_attribute("title")
        written = [list(map(int, part.split("–"))) for part in title.split(", ")]
        assert [i for part in written for i in range(part[0], part[-1] + 1)] == indices


@needs_chromium
def test_the_keyboard_alone_is_enough(shown: tuple[rg.Structure, Any, list[str]]) -> None:
    structure, page, _ = shown
    page.keyboard.press("/")
    page.keyboard.type("side")
    assert page.locator(".axis").all_inner_texts()[0].startswith("side")
    assert page.locator(".axis").count() == 1
    page.locator(".axis").focus()
    page.keyboard.press("Enter")
    assert lit(page) == entries(structure["side"])
    page.keyboard.press("Escape")
    page.locator("#network .dim").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert lit(page) == entries(structure["stem"])
    page.keyboard.press("ArrowDown")
    focused = "document.activeElement.closest('.row').querySelector('.name').textContent"
    assert page.evaluate(focused) == "norm"
    page.keyboard.press("Enter")
    assert page.locator("#release").count() == 1


@needs_chromium
def test_filter_kinds_and_sorting(shown: tuple[rg.Structure, Any, list[str]]) -> None:
    structure, page, _ = shown
    heads = [axis for axis in structure.axes if axis.kind == "head"]
    page.locator("#kinds button", has_text="head").click()
    assert page.locator(".axis").count() == len(heads)
    page.locator("#kinds button", has_text="head").click()
    page.select_option("#sort", "size")
    sizes = [int(text) for text in page.locator(".axis .size").all_inner_texts()]
    assert sizes == sorted((axis.size for axis in structure.axes), reverse=True)
    page.fill("#filter", "no such axis")
    assert page.locator("#none").is_visible()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1024])
def test_it_fits_narrow_windows(scheme: str, width: int, tmp_path: Path, browser: Any) -> None:
    path = write_page(*small(), tmp_path / "page.html")
    page, complaints = open_page(browser, path, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    cell(page, "stem.weight", 0).click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("#inspector").is_visible()
    page.get_by_role("button", name="Release").click()
    assert page.locator("#inspector").is_visible() == (width > 760)
    assert complaints == []


@needs_chromium
def test_hostile_names_and_models_without_axes_are_drawn(tmp_path: Path, browser: Any) -> None:
    model = nn.Sequential()
    model.add_module(HOSTILE.replace(".", ""), nn.Linear(4, 4))
    x = torch.zeros(2, 4)
    for subject in (Subject(HOSTILE, model, (x,)), Subject("one", nn.Linear(4, 4), (x,))):
        structure = rg.analyze(subject.model, x)
        page, complaints = open_page(browser, write_page(subject, structure, tmp_path / "page.html"))
        assert complaints == []
        assert page.locator("img").count() == 0
        assert page.locator("#network .dim").count() == 3

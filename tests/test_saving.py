"""What is saved comes back in a freshly built model; what is damaged is a clear error and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import regrow as rg
import zoo
from state import differences, differing, outputs, snapshot, tensors_of, train_step

#: The same functions without their types, for calls that the types forbid.
LOOSELY: Any = rg


def edited(name: str, variant: str = "module") -> Any:
    """A model that has grown, trained and shrunk."""
    model, x = zoo.build(name, variant), zoo.example(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    structure = rg.analyze(model, x)
    for axis in structure.axes[:: max(1, len(structure.axes) // 6)]:
        rg.grow_(axis, 0.25, optimizer=optimizer, generator=torch.Generator().manual_seed(0))
    train_step(model, optimizer, x)
    for axis in (structure.axes[0], structure.axes[-1]):
        rg.prune_(axis, [0, 2], optimizer=optimizer)
    return model


ROUND_TRIPS = [
    *zoo.variants(*zoo.SMALL, "resnet18"), ("resnext50_32x4d", "module"), ("mobilenet_v3_small", "attribute")
]  # fmt: skip


@pytest.mark.parametrize(("name", "variant"), ROUND_TRIPS)
def test_a_saved_model_comes_back_in_a_fresh_one(name: str, variant: str, tmp_path: Path) -> None:
    model, x = edited(name, variant), zoo.example(name)
    rg.save(model, tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"model.safetensors", "shape.json"}
    fresh = zoo.build(name, variant)
    loaded = rg.load(tmp_path / "saved", fresh)
    assert loaded is fresh
    assert differing(tensors_of(model), tensors_of(loaded)) == []
    before, after = outputs(model, x), outputs(loaded, x)
    assert all(torch.equal(before[mode], after[mode]) for mode in before)


@pytest.mark.parametrize(("name", "variant"), zoo.variants("grouped", "separable", "tied_weight", "residual"))
def test_a_loaded_model_can_be_edited_and_trained(name: str, variant: str, tmp_path: Path) -> None:
    rg.save(edited(name, variant), tmp_path)
    loaded, x = rg.load(tmp_path, zoo.build(name, variant)), zoo.example(name)
    structure = rg.analyze(loaded, x)
    optimizer = torch.optim.Adam(loaded.parameters())
    for axis in structure.axes:
        rg.grow_(axis, 2, optimizer=optimizer)
    assert torch.isfinite(train_step(loaded, optimizer, x))


def test_attributes_and_ties_come_back(tmp_path: Path) -> None:
    model = edited("grouped")
    rg.save(model, tmp_path / "grouped")
    loaded = rg.load(tmp_path / "grouped", zoo.build("grouped"))
    for one, other in zip(model, loaded, strict=True):
        assert repr(one) == repr(other)
    rg.save(edited("tied_weight"), tmp_path / "tied")
    tied = rg.load(tmp_path / "tied", zoo.build("tied_weight"))
    assert tied.head.weight is tied.other.weight


def test_groups_in_an_attribute_come_back(tmp_path: Path) -> None:
    model = edited("grouped", "attribute")
    rg.save(model, tmp_path)
    loaded = rg.load(tmp_path, zoo.build("grouped", "attribute"))
    assert loaded.get_submodule("3").groups == model.get_submodule("3").groups == 3


def test_saving_into_an_existing_folder_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    rg.save(zoo.build("mlp"), tmp_path)
    model = edited("mlp")
    rg.save(model, str(tmp_path))
    loaded = rg.load(str(tmp_path), zoo.build("mlp"))
    assert differing(tensors_of(model), tensors_of(loaded)) == []
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "notes.txt", "shape.json"}


def test_saving_and_loading_touch_nothing_else(tmp_path: Path) -> None:
    model = edited("residual")
    before = snapshot(model)
    rg.save(model, tmp_path)
    assert differences(before, snapshot(model)) == []
    fresh = zoo.build("residual").eval()
    fresh.conv1.weight.requires_grad_(False)
    identities = {name: id(p) for name, p in fresh.named_parameters()}
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
    random = torch.get_rng_state()
    loaded = rg.load(tmp_path, fresh)
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: id(p) for name, p in loaded.named_parameters()} == identities
    assert not loaded.conv1.weight.requires_grad and not loaded.training
    train_step(loaded, optimizer, zoo.example("residual"))


def test_a_model_on_meta_is_filled_or_refused(tmp_path: Path) -> None:
    model = edited("residual")
    rg.save(model, tmp_path)
    with torch.device("meta"):
        fresh = zoo.Residual()
    try:
        loaded = rg.load(tmp_path, fresh)
    except ValueError as error:
        assert "meta" in str(error)
    else:
        assert not any(p.is_meta for p in loaded.parameters())
        assert differing(tensors_of(model), tensors_of(loaded)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_of_the_values_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    model = zoo.build("residual", dtype=dtype)
    rg.save(model, tmp_path)
    loaded = rg.load(tmp_path, zoo.build("residual", dtype=dtype))
    assert differing(tensors_of(model), tensors_of(loaded)) == []


@pytest.mark.parametrize(("name", "variant"), [*zoo.variants(*zoo.SMALL), ("mobilenet_v3_small", "module")])
def test_a_state_dict_alone_gives_a_fresh_model_its_sizes(name: str, variant: str) -> None:
    model = edited(name, variant)
    fresh = zoo.build(name, variant)
    rg.reshape_(fresh, model.state_dict())
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    fresh.load_state_dict(model.state_dict())
    if variant == "attribute" or (name, variant) == ("grouped", "module"):
        return  # how many groups there are is not in the shapes
    x = zoo.example(name)
    before, after = outputs(model, x), outputs(fresh, x)
    assert all(torch.equal(before[mode], after[mode]) for mode in before)


@pytest.mark.parametrize("change", ["missing", "unknown", "rank"])
def test_a_state_dict_of_another_model_is_refused(change: str) -> None:
    state = edited("residual").state_dict()
    match change:
        case "missing":
            del state["conv1.weight"]
        case "unknown":
            state["conv9.weight"] = torch.zeros(3)
        case "rank":
            state["conv1.weight"] = torch.zeros(3)
    fresh = zoo.build("residual")
    before = snapshot(fresh)
    with pytest.raises(ValueError, match=r"conv[19]\.weight"):
        rg.reshape_(fresh, state)
    assert differences(before, snapshot(fresh)) == []


# --------------------------------------------------------------------------------------------------
# damage


def load_is_refused(folder: Path, name: str = "residual") -> str:
    fresh = zoo.build(name)
    before = snapshot(fresh)
    with pytest.raises(ValueError) as error:
        rg.load(folder, fresh)
    assert differences(before, snapshot(fresh)) == []
    assert "\n" not in str(error.value).strip()
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "3", '"text"', "{}", '{"x": NaN}', "\x00\xff", "[" * 100_000],
    ids=["empty", "open", "null", "list", "number", "text", "no keys", "NaN", "binary", "deep"],
)
def test_a_shape_file_that_is_no_shape_file(content: str, tmp_path: Path) -> None:
    rg.save(edited("residual"), tmp_path)
    (tmp_path / "shape.json").write_text(content, encoding="latin-1")
    assert "shape.json" in load_is_refused(tmp_path)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value in nested JSON, containers included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, item in items for leaf in leaves(item, (*path, key)))]


def set_at(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


HOSTILE = [None, True, -1, 0, 1.5, 10**15, "text", [], {}, [[]], {"a": 1}, ["x"]]


@pytest.mark.parametrize("name", ["residual", "grouped"])
@pytest.mark.parametrize("hostile", HOSTILE, ids=repr)
def test_every_value_of_the_shape_file_is_checked(name: str, hostile: Any, tmp_path: Path) -> None:
    """Any single value replaced by something else is refused, or means the same as what was there."""
    model = edited(name)
    rg.save(model, tmp_path)
    file = tmp_path / "shape.json"
    good = json.loads(file.read_text())
    paths = [path for path in leaves(good) if path]
    for path in paths[:: max(1, len(paths) // 12)]:
        damaged = json.loads(file.read_text())
        set_at(damaged, path, hostile)
        if damaged == good and repr(damaged) == repr(good):
            continue
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
        (tmp_path / "bad" / "shape.json").write_text(json.dumps(damaged))
        fresh = zoo.build(name)
        before = snapshot(fresh)
        try:
            rg.load(tmp_path / "bad", fresh)
        except ValueError:
            assert differences(before, snapshot(fresh)) == [], path
        else:
            assert differing(tensors_of(model), tensors_of(fresh)) == [], (path, hostile)


@pytest.mark.parametrize("key", ["__class__", "../../etc", "conv1.weight.data", "forward", ""])
def test_keys_of_the_shape_file_reach_nothing_else(key: str, tmp_path: Path) -> None:
    """Each dictionary with one more key is refused, and nothing outside sizes can be set through it."""
    rg.save(edited("grouped"), tmp_path)
    file = tmp_path / "shape.json"
    good = json.loads(file.read_text())
    tables = [path for path in leaves(good) if isinstance(get_at(good, path), dict)]
    for path in tables[:6]:
        damaged = json.loads(json.dumps(good))
        get_at(damaged, path)[key] = 1
        file.write_text(json.dumps(damaged))
        load_is_refused(tmp_path, "grouped")


def get_at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(200))


def _huge_header(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


@pytest.mark.parametrize(
    "damage", [_truncate, _zeros, _huge_header, lambda path: path.write_bytes(b""), Path.unlink],
    ids=["truncated", "zeros", "huge header", "empty", "missing"],
)  # fmt: skip
def test_damaged_values(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    rg.save(edited("residual"), tmp_path)
    damage(tmp_path / "model.safetensors")
    assert "model.safetensors" in load_is_refused(tmp_path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    load_is_refused(tmp_path / "nowhere")
    load_is_refused(tmp_path)
    rg.save(edited("residual"), tmp_path)
    (tmp_path / "shape.json").unlink()
    assert "shape.json" in load_is_refused(tmp_path)


def test_a_model_of_another_architecture_is_refused(tmp_path: Path) -> None:
    rg.save(edited("residual"), tmp_path)
    load_is_refused(tmp_path, "concat")
    load_is_refused(tmp_path, "mlp")


def test_saving_where_one_cannot_write_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        rg.save(zoo.build("mlp"), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("argument", ["model", "folder"])
def test_saving_checks_its_arguments(argument: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError)):
        if argument == "model":
            LOOSELY.save({"state": 1}, tmp_path)
        else:
            LOOSELY.save(zoo.build("mlp"), 3)
    assert list(tmp_path.iterdir()) == []

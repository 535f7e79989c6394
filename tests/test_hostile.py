"""Whatever a folder holds, loading it is a ValueError and changes nothing, or gives a model; no code of it is run."""

from __future__ import annotations

import copy
import functools
import json
import struct
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import regrow as rg
from regrow import saving
from regrow.replaying import from_json, replay
from regrow.structure.example import named_tensors
from regrow.transaction import Transaction
from state import differences, snapshot, surroundings

#: More of them were tried than a test has time for.
EXAMPLES = 150
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(self.norm(x)).relu())


class Net(nn.Module):
    """With a list, a row, heads, and an attribute that is code."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.row = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh())
        self.act, self.sizes = torch.relu, {"heads": 2, "path": 3}

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.row(self.act(x + self.attention(x, x, x, need_weights=False)[0]))


def build() -> Net:
    torch.manual_seed(0)
    return Net()


X = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))


@functools.cache
def saved() -> tuple[bytes, str]:
    """The files of a model with all kinds of edits."""
    model = build()
    structure = rg.analyze(model, X)
    rg.grow_(structure["blocks.0.one"], 3)
    rg.prune_(structure["blocks.1.one"], 2, rg.L1())
    rg.prune_(structure.weights, 0.3, rg.Magnitude())
    rg.grow_([cell for cell in structure.cells if cell.name == "blocks.1"], 1)
    rg.prune_([cell for cell in structure.cells if cell.name == "blocks.0"], 1, loss=lambda: model(X).mean())
    rg.grow_([layer for layer in structure.layers if layer.name == "row.0"], 1, rg.Deepen(branch="1x1"), parallel=True)
    rg.grow_([layer for layer in structure.layers if layer.name == "row.2"], 1)
    with tempfile.TemporaryDirectory() as folder:
        rg.save(model, folder)
        return (Path(folder) / "model.safetensors").read_bytes(), (Path(folder) / "shape.json").read_text()


def shape() -> dict[str, Any]:
    return json.loads(saved()[1])


def test_the_shape_that_is_damaged_has_everything_in_it() -> None:
    held = shape()
    assert held["masks"] and held["sizes"] and {change["what"] for change in held["changes"]} >= {"remove", "copy"}
    assert loads(saved()[0], saved()[1])


# --------------------------------------------------------------------------------------------------
# what is watched meanwhile


class Allocated(TorchDispatchMode):
    """The largest tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() for t in pytree.tree_leaves(made) if isinstance(t, Tensor)]
        self.largest = max([self.largest, *sizes])
        return made


#: What code from a file would do; torch and regrow do none of it.
EVENTS = {"os.system", "subprocess.Popen", "pickle.find_class", "os.remove", "os.rename", "os.mkdir", "socket.connect"}
_EVENTS = {*EVENTS, "exec", "import", "ctypes.dlopen", "os.exec", "os.posix_spawn"}
_seen: list[str] = []
_watching = False


def _audit(event: str, args: tuple) -> None:
    if _watching and (event in _EVENTS or (event == "open" and "w" in str(args[1]))):
        _seen.append(f"{event} {args}")


@functools.cache
def _hook() -> None:
    """An audit hook stays for good, so there is one."""
    saved()
    loads_plainly(*saved())  # what is imported at first use is no doing of a file's
    sys.addaudithook(_audit)


@contextmanager
def watched() -> Iterator[None]:
    global _watching
    _hook()
    _seen.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
    assert _seen == []


def loads_plainly(model: bytes, text: str | bytes) -> Net:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), model, text)
        return rg.load(folder, build())


def write(folder: Path, model: bytes, text: str | bytes) -> None:
    (folder / "model.safetensors").write_bytes(model)
    (folder / "shape.json").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))


def loads(model: bytes, text: str | bytes) -> bool:
    """Whether files are loaded; if they are refused, nothing has changed, and in no case what they may not do."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, model, text)
        fresh = build()
        before, around, allocated = snapshot(fresh), surroundings(fresh), Allocated()
        try:
            with watched(), allocated:
                rg.load(folder, fresh)
            done = True
        except ValueError:
            assert differences(before, snapshot(fresh)) == []
            assert differences(without_empty(around), without_empty(surroundings(fresh))) == []
            done = False
        assert allocated.largest <= 16 * max(len(model), sum(t.nbytes for t in named_tensors(fresh).values()))
        assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "shape.json"]
        if done:
            assert differing_attributes(fresh) == []
        return done


def without_empty(state: dict[str, Any]) -> dict[str, Any]:
    """But for where changes are noted, of which there may be none."""
    return {key: value for key, value in state.items() if "_regrow_" not in key}


def differing_attributes(model: Net) -> list[str]:
    """What on the model's own modules is code or structure, and isn't what it was built with."""
    wrong = [] if model.act is torch.relu else ["act"]
    for name, module in model.named_modules():
        if type(module).__module__.split(".")[0] not in ("torch", "regrow", type(model).__module__.split(".")[0]):
            wrong.append(name)
        wrong += [f"{name}.{key}" for key in vars(module) if key.startswith("__") or key == "forward"]
        wrong += [f"{name}.{key}" for key in module._modules if not key or "." in key or key.startswith("__")]
    return wrong


# --------------------------------------------------------------------------------------------------
# fuzzing

NAMES = st.sampled_from(
    [
        "", ".", "..", "../../etc/passwd", "/etc/passwd", "__class__", "__dict__", "__init__", "forward", "act",
        "sizes", "training", "_modules", "blocks", "blocks.0", "blocks.1.one", "blocks.9", "blocks.1.__class__", "row",
        "row.0", "row.1", "row.0.weight", "attention", "attention.out_proj", "row.2", "blocks.0.one.weight",
        "os.system", "a\nb", "\x00", "\ud800", "weight", "row_1", "append", "x" * 5000,
    ]
)  # fmt: skip
INTEGERS = st.sampled_from([0, 1, 2, 3, 7, -1, -2, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400])
LEAVES = st.one_of(
    NAMES, INTEGERS, st.none(), st.booleans(), st.floats(), st.text(max_size=5),
    st.sampled_from(["remove", "copy", "behind", "beside", "list", "sequential", "place", "kept", "gAA=", "AAAA"]),
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
BRANCHES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["1x1", "3x3", "depthwise", "pool", "identity", "residual", "same", "x"]),
        "ins": INTEGERS | st.just(6),
        "outs": INTEGERS | st.just(6),
        "spatial": st.sampled_from([0, 1, 2, 3, 4, -1, 2**31 - 1]),
    },
    optional={"stride": INTEGERS, "activation": NAMES | st.just("gelu"), "norm": st.booleans() | ANYTHING},
)
CHANGES = st.fixed_dictionaries(
    {
        "what": st.sampled_from(["remove", "copy", "behind", "beside"]),
        "path": NAMES,
        "how": st.sampled_from(["list", "sequential", "place", "kept"]),
    },
    optional={
        "key": NAMES,
        "length": INTEGERS,
        "gated": st.booleans(),
        "branch": BRANCHES | st.none(),
        "of": NAMES,
        "unstrided": st.booleans(),
        "given_more": st.booleans(),
        "passed": st.lists(st.tuples(INTEGERS, INTEGERS | NAMES), max_size=3) | ANYTHING,
        "copied": st.booleans(),
        "biased": NAMES,
        "__class__": LEAVES,
    },
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in paths(item, (*path, key)))]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """The shape with some values replaced, removed, added, or exchanged."""
    held = shape()
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in paths(held) if path]))
        above = at(held, path[:-1])
        match draw(st.sampled_from(["replace", "remove", "add", "exchange"])):
            case "replace":
                above[path[-1]] = draw(ANYTHING)
            case "remove":
                del above[path[-1]]
            case "add" if isinstance(above, dict):
                above[draw(NAMES)] = draw(ANYTHING)
            case "add":
                above.insert(0, draw(ANYTHING))
            case "exchange":
                above[path[-1]] = copy.deepcopy(at(held, draw(st.sampled_from(paths(held)))))
    return held


@FUZZ
@given(damaged())
def test_a_damaged_shape(held: dict[str, Any]) -> None:
    loads(saved()[0], json.dumps(held))


@FUZZ
@given(st.data())
def test_damaged_text(data: st.DataObject) -> None:
    text = saved()[1].encode()
    place = data.draw(st.integers(0, len(text)))
    new = data.draw(st.binary(max_size=6) | st.sampled_from([b'"', b"{", b"[" * 2000, b"NaN", b"1e999", b"9" * 5000]))
    loads(saved()[0], text[:place] + new + text[place + data.draw(st.integers(0, 20)) :])


def as_changed(changes: list[Any]) -> dict[str, Tensor] | None:
    """What a model has after changes, for files that fit them; None where they are refused."""
    model = build()
    try:
        with Transaction() as writes:
            replay(writes, model, from_json(changes), 10**4)
    except ValueError:
        return None
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}


@FUZZ
@given(st.lists(CHANGES, min_size=1, max_size=3), st.dictionaries(NAMES, st.dictionaries(NAMES, INTEGERS, max_size=2)))
def test_hostile_changes_in_files_that_fit_them(changes: list[Any], sizes: dict[str, Any]) -> None:
    changes = json.loads(json.dumps(changes))
    tensors = as_changed(changes) or {name: t.detach() for name, t in named_tensors(build()).items()}
    held = {"format": 1, "tensors": {n: list(t.shape) for n, t in tensors.items()}, "sizes": sizes, "masks": {}}
    text = json.dumps({**held, "changes": changes})
    try:
        model = saving.serialize(tensors)
    except Exception:  # of names that safetensors doesn't take
        model = saved()[0]
    loads(model, text)


def integers_of() -> list[tuple[str, str]]:
    return [(module, key) for module, sizes in shape()["sizes"].items() for key in sizes]


@FUZZ
@given(st.data())
def test_hostile_sizes(data: st.DataObject) -> None:
    held = shape()
    for _ in range(data.draw(st.integers(1, 3))):
        module, key = data.draw(st.sampled_from(integers_of()))
        held["sizes"][module][key] = data.draw(INTEGERS)
    loads(saved()[0], json.dumps(held))


def raw(entries: dict[str, Any], data: bytes) -> bytes:
    """A file of safetensors with any header."""
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "I64", "U64", "U16", "I8"]
DTYPES += ["BOOL", "C64", "", "os.system"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_other_dtypes(dtype: str) -> None:
    """They come as the model's dtype if they are of its kind; nothing is copied before all are."""
    bits = {"C64": 64, "F4": 4, "F6_E2M3": 6, "BOOL": 8}.get(dtype) or int("".join(filter(str.isdigit, dtype[:3])) or 8)
    for which in ("first", "last"):
        entries: dict[str, Any] = {}
        data = b""
        own = named_tensors(build())
        for name, tensor in own.items():
            odd = name == (next(iter(own)) if which == "first" else list(own)[-1])
            size = tensor.numel() * bits // 8 if odd else 4 * tensor.numel()
            entries[name] = {"dtype": dtype if odd else "F32", "shape": list(tensor.shape)}
            entries[name]["data_offsets"] = [len(data), len(data) + size]
            data += bytes(size)
        held = {"tensors": {name: list(t.shape) for name, t in own.items()}, "sizes": {}, "masks": {}, "changes": []}
        loads(raw(entries, data), json.dumps({"format": 1, **held}))


@pytest.mark.parametrize("size", [[2**62, 4], [0, 2**63], [0, 2**40], [-1], [1] * 100, [2**31, 2**31, 2**31], [1.5]])
def test_tensors_of_sizes_that_cannot_be(size: list[Any]) -> None:
    entries = {"row.0.bias": {"dtype": "F32", "shape": size, "data_offsets": [0, 0]}}
    held = {"format": 1, "tensors": {"row.0.bias": size}, "sizes": {}, "masks": {}, "changes": []}
    assert not loads(raw(entries, b""), json.dumps(held))


# --------------------------------------------------------------------------------------------------
# one by one


def with_changes(*changes: dict[str, Any]) -> str:
    return json.dumps({**shape(), "changes": list(changes)})


COPY = {"what": "copy", "path": "row.0", "how": "sequential", "key": "row_1"}
BRANCH = {"kind": "1x1", "ins": 6, "outs": 6, "spatial": 0}
REFUSED: dict[str, list[dict[str, Any]]] = {
    "a wide branch with no inputs": [
        {"what": "beside", "path": "row.0", "how": "kept", "branch": {**BRANCH, "ins": 0, "outs": 2**30}}
    ],
    "a depthwise one with no outputs": [
        {
            "what": "beside", "path": "row.0", "how": "kept",
            "branch": {"kind": "depthwise", "ins": 2**30, "outs": 0, "spatial": 2},
        }
    ],
    "many dimensions": [{"what": "beside", "path": "row.0", "how": "kept", "branch": {**BRANCH, "spatial": 2**31 - 1}}],
    "a child without a name": [{"what": "copy", "path": "attention", "how": "place", "key": ""}],
    "a child of a dunder name": [{**COPY, "key": "__class__"}],
    "a child in place of code": [{**COPY, "key": "forward"}],
    "a child in place of another": [{**COPY, "key": "2"}],
    "a path with dots": [{**COPY, "path": "row..0"}],
    "a long tuple": [{"what": "remove", "path": "attention", "how": "place", "length": 2**30}],
    "doubling": [{"what": "copy", "path": "blocks.0", "how": "list", "of": "blocks"}] * 40,
    "a copy of the model in itself": [{"what": "copy", "path": "row.0", "how": "kept", "of": "row"}] * 40,
    "too many": [{**COPY, "key": f"n{number}"} for number in range(10_001)],
    "a tuple of arguments": [{"what": "remove", "path": "row.0", "how": "place", "passed": [[1, True]]}],
    "a bias of no layer": [{"what": "remove", "path": "row.0", "how": "place", "biased": "blocks"}],
    "cycles": [{**COPY, "path": "row.0", "of": "row"}, {**COPY, "path": "row.row_1", "key": "row_2", "of": ""}],
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_changes_that_are_refused(case: str) -> None:
    assert not loads(saved()[0], with_changes(*REFUSED[case]))


@pytest.mark.parametrize(
    ("module", "key", "value"),
    [
        ("attention", "num_heads", 0), ("", "__class__", 1), ("", "act", 1), ("blocks.0.one", "forward", 1),
        ("", "sizes", 3), ("", "sizes['__class__']", 3), ("../..", "x", 1), ("row.0", "in_features", 2**63),
        ("row.0", "in_features", 10**400), ("row.0", "in_features", True), ("row.0", "weight", 1), ("row.0", "bias", 0),
    ],
)  # fmt: skip
def test_sizes_that_are_refused(module: str, key: str, value: int) -> None:
    held = shape()
    held["sizes"].setdefault(module, {})[key] = value
    assert not loads(saved()[0], json.dumps(held))


@pytest.mark.parametrize("place", ["changes", "sizes", "passed", "length"])
def test_deep_nesting(place: str) -> None:
    """Also so deep that it can just be read, and not be written into a message."""
    for depth in (10, 500, *range(860, 1000, 10), 10_000, 10**6):
        deep = "[" * depth + "]" * depth
        if place in ("passed", "length"):
            change = {"what": "remove", "path": "row.0", "how": "place", place: "HERE"}
            held = {**shape(), "changes": [change]}
        else:
            held = {**shape(), place: "HERE"}
        assert not loads(saved()[0], json.dumps(held).replace('"HERE"', deep))


@pytest.mark.parametrize("text", ["", "A", "AAAA" * 10**5, "é", "====", "\ud800", "A\n" * 4])
def test_masks_of_wrong_lengths(text: str) -> None:
    held = shape()
    held["masks"][next(iter(held["masks"]))] = text
    assert not loads(saved()[0], json.dumps(held))


def test_keys_that_come_twice_and_other_versions() -> None:
    text = saved()[1].strip()
    assert not loads(saved()[0], text[:-1] + ', "format": 2}')
    assert not loads(saved()[0], text[:-1] + ', "changes": [{}]}')
    for version in (0, 2, -1, "1", None, [1], float("nan")):
        assert not loads(saved()[0], json.dumps({**shape(), "format": version}))


def test_a_shape_that_is_far_larger_than_the_model_isnt_read(monkeypatch: pytest.MonkeyPatch) -> None:
    loads_plainly(*saved())
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), *saved())
        with (Path(folder) / "shape.json").open("ab") as file:
            file.truncate(2**33)  # it takes no room on the disk
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match="too large"):
                rg.load(folder, build())
            assert tracemalloc.get_traced_memory()[1] < 3 * saving.MOST_BYTES
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("case", ["too many", "doubling", "a wide branch with no inputs"])
def test_memory_stays_in_proportion_to_the_files(case: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), saved()[0], with_changes(*REFUSED[case]))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        fresh = build()
        tracemalloc.start()
        try:
            with pytest.raises(ValueError):
                rg.load(folder, fresh)
            assert tracemalloc.get_traced_memory()[1] < 2**22 + 20 * size
        finally:
            tracemalloc.stop()


def test_loading_draws_no_random_numbers() -> None:
    random = torch.get_rng_state()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), *saved())
        fresh = Net()
        torch.set_rng_state(random)
        rg.load(folder, fresh)
    assert torch.equal(torch.get_rng_state(), random)

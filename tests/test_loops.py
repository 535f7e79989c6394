"""A plan gives the same numbers in every training loop: plain ones of any kind, and those of other libraries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import regrow as rg
from regrow.loops.events import as_dict, by_scalar, log_to, scalars
from regrow.shapes import shape_of, take_shape_

STEPS = 14
PLAN = rg.chain(
    rg.every(3, rg.Grow(rg.GradMax(beyond_rank="random"), 2, where="0"), stop=6),
    rg.every(2, rg.Prune(rg.L1(strength=1e-2), 2), start=6, stop=10),
    rg.at(11, rg.Grow(rg.Random(), {"3": 3})),
    rg.at(12, rg.Prune(rg.Magnitude(), rg.Sparsity(0.5), kind="weight")),
)
#: What changes by this plan, and what of it methods see at the steps of conditions.
WAITING = rg.chain(PLAN, rg.when(rg.Above("loss", 0.0), rg.Grow(rg.Random(), 1, where="3"), start=12, stop=13))

Run = tuple[nn.Module, list[str]]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(number: int, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(number, size, 6, generator=generator)
    return [(a, a[:, :3].argmax(1)) for a in x]


EXAMPLE = batches(1)[0][0]


def adam(model: nn.Module) -> Optimizer:
    return torch.optim.Adam(model.parameters(), 1e-2)


def plain(accumulate: int = 1, plan: rg.Plan = WAITING, make: Callable[[nn.Module], Optimizer] = adam) -> Run:
    """The loop that the others are held against: each step has one penalty, and so many batches."""
    model, seen, given = net(), [], batches(STEPS * accumulate)
    optimizer = make(model)
    shaper = rg.Shaper(model, optimizer, plan, example=EXAMPLE, after_edit=lambda edit: seen.append(str(edit)))
    for step in range(STEPS):
        micro = given[step * accumulate : (step + 1) * accumulate]
        losses = [F.cross_entropy(model(x), y) for x, y in micro[:1]]
        if accumulate == 1:
            (losses[0] + shaper.penalty()).backward()
        else:
            if (penalty := shaper.penalty()).requires_grad:
                penalty.backward()
            (losses[0] / accumulate).backward()
            for x, y in micro[1:]:
                losses.append(F.cross_entropy(model(x), y))
                (losses[-1] / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()
        x, y = micro[-1]
        loss = torch.stack([loss.detach() for loss in losses]).mean()
        shaper.step(lambda x=x, y=y: F.cross_entropy(model(x), y), loss=loss)
    assert len(seen) == 7
    return model, seen


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    held, wanted = model.state_dict(), expected.state_dict()
    assert list(held) == list(wanted)
    assert [name for name in held if not torch.equal(held[name], wanted[name])] == []


@pytest.fixture(autouse=True)
def _quietly() -> Any:
    with warnings.catch_warnings():
        # Other libraries' remarks on small data, on CPUs, and on their own dependencies.
        for module in ("pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics", "accelerate"):
            warnings.filterwarnings("ignore", module=rf"{module}.*")
        warnings.filterwarnings("ignore", message=".*(does not have many workers|tensorboardX|pin_memory).*")
        yield


# --------------------------------------------------------------------------------------------- plain loops


def trained(model: nn.Module, optimizer: Optimizer, plan: rg.Plan, steps: int, closed: bool = False) -> rg.Shaper:
    shaper, given = rg.Shaper(model, optimizer, plan, example=EXAMPLE), batches(steps)
    for x, y in given:

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) + shaper.penalty()
            loss.backward()
            return loss

        if closed:
            optimizer.step(closure)  # type: ignore[arg-type]
        else:
            closure()
            optimizer.step()
        optimizer.zero_grad()
        shaper.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
    return shaper


def test_a_closure_gives_the_same_numbers_as_none() -> None:
    one, other = net(), net()
    trained(one, adam(one), PLAN, STEPS)
    trained(other, adam(other), PLAN, STEPS, closed=True)
    assert_same(other, one)


def test_lbfgs_starts_afresh_after_edits_and_says_so() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3)
    plan = rg.every(2, rg.Grow(rg.Random(), 2, where="0"), stop=4)
    with pytest.warns(UserWarning, match=r"LBFGS keeps state .* starts afresh") as told:
        trained(model, optimizer, plan, 6, closed=True)
    assert len(told) == 2
    assert model[0].out_features == 12
    assert all(bool(p.isfinite().all()) for p in model.parameters())


OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and name not in ("Optimizer", "LBFGS")
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_on_through_edits(name: str) -> None:
    kind = getattr(torch.optim, name)
    model: Any = nn.Sequential(nn.Embedding(20, 6, sparse=True), net()) if name == "SparseAdam" else net()
    if name in ("SparseAdam", "Muon"):
        check_partly(name, kind)
        return
    optimizer = kind(model.parameters(), lr=1e-2)
    trained(model, optimizer, PLAN, STEPS)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim == parameter.ndim and value.ndim:
                assert all(n in (1, m) for n, m in zip(value.shape, parameter.shape, strict=True)), key


def check_partly(name: str, kind: Any) -> None:
    """One that trains matrices only, and one of sparse gradients only, each with some of the parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 6, sparse=name == "SparseAdam"), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    held = [model[0].weight] if name == "SparseAdam" else [p for p in model[1:].parameters() if p.ndim == 2]
    optimizer = kind(held, lr=1e-2)
    where = "0" if name == "SparseAdam" else "1"
    numbers, y = torch.arange(16) % 20, torch.arange(16) % 3
    shaper = rg.Shaper(model, optimizer, rg.every(2, rg.Grow(rg.Random(), 2, where=where), stop=4), example=numbers)
    for _ in range(6):
        F.cross_entropy(model(numbers), y).backward()
        optimizer.step()
        model.zero_grad()
        shaper.step()
    assert next(iter(held)).shape == ((20, 10) if name == "SparseAdam" else (12, 6))


SCHEDULERS: list[Callable[[Optimizer], Any]] = [
    lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 2e-2, total_steps=STEPS + 1),
    lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
    lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=4), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        [4],
    ),
]


@pytest.mark.parametrize("make", SCHEDULERS)
@pytest.mark.parametrize("plan", [PLAN, rg.at(2, rg.Grow(rg.Deepen(), 1, kind="layer", where="3"))])
def test_schedulers_of_learning_rates_go_on_through_edits(make: Callable[[Optimizer], Any], plan: rg.Plan) -> None:
    rates = []
    for used in (plan, rg.at(10**6, rg.Grow(rg.Random(), 1))):
        model, seen = net(), []
        optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
        scheduler, shaper = make(optimizer), rg.Shaper(model, optimizer, used, example=EXAMPLE)
        for x, y in batches(STEPS):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(1.0) if plateau else scheduler.step()
            shaper.step(lambda x=x, y=y, model=model: F.cross_entropy(model(x), y))
            seen.append([group["lr"] for group in optimizer.param_groups])
        assert {p for g in optimizer.param_groups for p in g["params"]} == set(model.parameters())
        rates.append(seen)
    assert rates[0] == rates[1]


def test_two_small_batches_are_one_large_one() -> None:
    ends = []
    for number in (1, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))  # no statistics of batches
        optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
        plan = rg.chain(
            rg.every(3, rg.Grow(rg.GradMax(beyond_rank="random"), 2), stop=6),
            rg.every(3, rg.Prune(rg.L1(strength=1e-2), 2), start=6, stop=12),
        )
        shaper = rg.Shaper(model, optimizer, plan, example=EXAMPLE)
        for x, y in batches(STEPS, 16):
            for part, labels in zip(x.chunk(number), y.chunk(number), strict=True):
                ((F.cross_entropy(model(part), labels) + shaper.penalty()) / number).backward()
            optimizer.step()
            optimizer.zero_grad()
            shaper.step(lambda x=x, y=y, model=model: F.cross_entropy(model(x), y))
        ends.append(model)
    for one, other in zip(*(model.parameters() for model in ends), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_mixed_precision_trains_on_through_edits(scaled: bool) -> None:
    model = net()
    optimizer, scaler = adam(model), torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**20)
    shaper = rg.Shaper(model, optimizer, PLAN, example=EXAMPLE)
    seen, skipped = [], 0
    for x, y in batches(40):

        def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
            with torch.autocast("cpu", torch.float16 if scaled else torch.bfloat16):
                return F.cross_entropy(model(x), y)

        scaler.scale(loss() + shaper.penalty()).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        optimizer.zero_grad()
        seen += shaper.step(lambda loss=loss: scaler.scale(loss()))
    assert len(seen) == 6
    assert bool(skipped) is scaled
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in model.parameters())
    assert all(int(model.get_parameter(name).eq(0).sum()) for name in ("0.weight", "3.weight"))  # half of them are off


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_gives_the_same_numbers(backend: str) -> None:
    """It is compiled afresh after an edit; torch gives up on what it has compiled eight times."""
    ends = []
    for compiled in (False, True):
        torch.compiler.reset()
        model = net()
        run = torch.compile(model, backend=backend) if compiled else model
        optimizer = adam(model)
        shaper = rg.Shaper(model, optimizer, PLAN, example=EXAMPLE, after_edit=lambda _: torch.compiler.reset())
        for x, y in batches(STEPS):
            (F.cross_entropy(run(x), y) + shaper.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
            shaper.step(lambda x=x, y=y, run=run: F.cross_entropy(run(x), y))
        ends.append(model)
    assert_same(ends[1], ends[0])


class Stacked(nn.Module):
    """Residual blocks in a list, whose numbers change when one leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


EDITS: dict[str, tuple[Any, bool]] = {
    "grown": (rg.Grow(rg.Random(), 2, where="first"), True),
    "pruned": (rg.Prune(rg.L1(), 2, where="first"), False),
    "a cell more": (rg.Grow(rg.Deepen(), 1, where="blocks.0", kind="cell"), True),
    "a cell less": (rg.Prune(rg.Ablation(), 1, where="blocks.1", kind="cell"), False),
    "sparse": (rg.Prune(rg.Magnitude(), 0.5, kind="weight"), False),
}


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("case", EDITS)
def test_averages_of_weights_follow(case: str, buffers: bool) -> None:
    action, same = EDITS[case]
    torch.manual_seed(0)
    model = Stacked()
    optimizer = adam(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=buffers)
    shaper = rg.Shaper(model, optimizer, rg.at(4, action), example=EXAMPLE, copies=[average])
    for step, (x, y) in enumerate(batches(8), 1):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        average.eval()
        before, old = average(EXAMPLE), [id(p) for p in average.module.parameters()]
        shaper.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
        assert [p.shape for p in average.module.parameters()] == [p.shape for p in model.parameters()]
        if step == 4 and same:
            assert torch.allclose(average(EXAMPLE), before, atol=1e-5)
        if step == 4 and case == "a cell less":
            assert all(id(p) in old for p in average.module.parameters())
            left = {id(p): p for p in average.module.parameters()}
            assert any(not torch.equal(p, q) for p, q in zip(left.values(), model.parameters(), strict=True))
    if case == "sparse":
        assert all(not bool(t[~w.mask].any()) for w in shaper.structure.weights for t in [_of(average.module, w.name)])


def test_a_copy_of_other_shapes_is_refused() -> None:
    model, other = Stacked(), Stacked()
    rg.grow_(rg.analyze(other, EXAMPLE)["first"], 2)
    with pytest.raises(ValueError, match="differs from it in first"):
        rg.Shaper(model, adam(model), rg.at(1, EDITS["grown"][0]), example=EXAMPLE, copies=[other])


def _of(model: nn.Module, name: str) -> Tensor:
    return dict(model.named_parameters())[name]


# --------------------------------------------------------------------------------------------- events


def test_edits_are_plain_values_for_any_logger() -> None:
    rows: list[dict[str, Any]] = []
    logged: list[tuple[dict[str, float], int]] = []
    tags: list[tuple[str, float, int]] = []
    hooks = [
        log_to(lambda values, step: logged.append((values, step))),
        log_to(by_scalar(lambda name, value, step: tags.append((name, value, step)))),
    ]

    def after_edit(edit: rg.Edit) -> None:
        rows.append(as_dict(edit))
        for hook in hooks:
            hook(edit)

    model = net()
    optimizer = adam(model)
    shaper = rg.Shaper(model, optimizer, PLAN, example=EXAMPLE, after_edit=after_edit)
    for x, y in batches(STEPS):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        shaper.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
    assert [row["step"] for row in rows] == [3, 6, 8, 10, 11, 12]
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0]["action"] == "grow"
    assert rows[0]["sizes"] == {"0": [8, 10]}
    assert rows[-1]["kind"] == "weight"
    assert [step for _, step in logged] == [row["step"] for row in rows]
    assert logged[0][0] == {"regrow/params": rows[0]["params"][1], "regrow/flops": rows[0]["flops"][1],
                            "regrow/size/0": 10.0}  # fmt: skip
    assert tags[:3] == [(name, value, 3) for name, value in logged[0][0].items()]


def test_scalars_have_the_prefix_that_is_asked_for() -> None:
    edit = rg.grow_(rg.analyze(net(), EXAMPLE)["0"], 1)
    assert set(scalars(edit, "")) == {"params", "flops", "size/0"}


def test_a_shape_as_plain_values_fits_a_fresh_model() -> None:
    model, _ = plain()
    shape = json.loads(json.dumps(shape_of(model)))
    other = take_shape_(net(), shape)
    assert shape_of(other) == shape
    other.load_state_dict(model.state_dict())
    assert_same(take_shape_(other, shape), model)
    with pytest.raises(ValueError, match="no parameter of this model"):
        take_shape_(nn.Linear(3, 2), shape)


def test_a_shape_with_other_layers_fits_a_fresh_model_and_no_model_that_went_another_way() -> None:
    def deepened(where: str) -> nn.Module:
        model = net()
        structure = rg.analyze(model, EXAMPLE)
        rg.grow_([layer for layer in structure.layers if layer.name == where], 1, rg.Deepen())
        return model

    model, other = deepened("3"), deepened("0")
    fresh = take_shape_(net(), shape_of(model))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(EXAMPLE), model.eval()(EXAMPLE))
    with pytest.raises(ValueError, match="in another way"):
        take_shape_(other, shape_of(model))


# --------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("lightning", "pytorch_lightning", "lightning"),
        ("transformers", "transformers", "transformers,accelerate"),
        ("accelerate", "accelerate", "accelerate"),
    ],
)
def test_a_missing_library_is_one_clear_error(
    name: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"regrow.loops.{name}", raising=False)
    with pytest.raises(ImportError, match=re.escape(f'pip install "regrow[{extra}]"')):
        __import__(f"regrow.loops.{name}")


def test_importing_regrow_imports_none_of_the_libraries() -> None:
    code = "import sys, regrow; print({'pytorch_lightning', 'transformers', 'accelerate'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def lightning_module(make: Callable[[nn.Module], Optimizer] = adam) -> Any:
    pl = pytest.importorskip("pytorch_lightning")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.told = net(), 0

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self.model(batch[0]), batch[1])
            self.log("told", loss)
            return loss

        def configure_optimizers(self) -> Optimizer:
            return make(self)

    return Module()


def lightning_trainer(folder: Path, callback: Any, steps: int, **options: Any) -> Any:
    pl = pytest.importorskip("pytorch_lightning")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    saving = pl.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
    return pl.Trainer(callbacks=[saving, callback], max_steps=steps, default_root_dir=folder, **quiet, **options)


class Loader:
    """Batches in order, which go on where a checkpoint was."""

    def __init__(self, number: int) -> None:
        self.batches, self.at = batches(number), 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.at < len(self.batches):
            self.at += 1
            yield self.batches[self.at - 1]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_gives_the_numbers_of_a_plain_loop(accumulate: int, tmp_path: Path) -> None:
    expected, said = plain(accumulate)
    from regrow.loops.lightning import RegrowCallback

    module, seen = lightning_module(), []
    callback = RegrowCallback(WAITING, example=EXAMPLE, module="model", after_edit=lambda edit: seen.append(str(edit)))
    trainer = lightning_trainer(tmp_path, callback, STEPS, accumulate_grad_batches=accumulate)
    trainer.fit(module, Loader(STEPS * accumulate))
    assert callback.shaper is not None
    assert callback.shaper.steps == STEPS
    assert seen == said
    assert_same(module.model, expected)
    assert "on_load_checkpoint" not in vars(module)
    assert "log" not in vars(module)


def test_lightning_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    expected, _ = plain()
    from regrow.loops.lightning import RegrowCallback, reshape_

    for steps in (5, 7, 13, STEPS):
        module = lightning_module()
        callback = RegrowCallback(WAITING, example=EXAMPLE, module="model")
        path = tmp_path / "last.ckpt"
        trainer = lightning_trainer(tmp_path, callback, steps)
        trainer.fit(module, Loader(STEPS), ckpt_path=str(path) if path.exists() else None)
        assert callback.shaper is not None
        assert callback.shaper.steps == steps
    assert_same(module.model, expected)
    checkpoint = torch.load(path, weights_only=True)  # plain values and tensors
    alone = reshape_(lightning_module(), checkpoint)
    alone.load_state_dict(checkpoint["state_dict"])
    assert_same(alone.model, expected)
    by_tensors = reshape_(lightning_module(), {"state_dict": checkpoint["state_dict"]})
    by_tensors.load_state_dict(checkpoint["state_dict"])


#: Layers come and go, and others change beside them.
DEEP = rg.chain(
    rg.at(2, rg.Grow(rg.Deepen(), 1, kind="layer", where="3")),
    rg.every(2, rg.Grow(rg.Random(), 1, where="0"), start=2, stop=8),
    rg.at(6, rg.Prune(rg.Magnitude(), rg.Sparsity(0.3), kind="weight")),
)


def test_lightning_resumes_with_other_layers(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from regrow.loops.lightning import RegrowCallback

    ends = []
    for name, stops in (("whole", (10,)), ("parts", (3, 7, 10))):
        module = lightning_module()
        for steps in stops:
            module = lightning_module()
            trainer = lightning_trainer(tmp_path / name, RegrowCallback(DEEP, example=EXAMPLE, module="model"), steps)
            trainer.fit(module, Loader(10), ckpt_path=str(tmp_path / name / "last.ckpt") if steps != stops[0] else None)
        ends.append(module.model)
    assert len(list(ends[0].modules())) > len(list(net().modules()))
    assert_same(ends[1], ends[0])


def test_lightning_adds_penalties_under_a_scaler_too(tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning")
    from regrow.loops.lightning import RegrowCallback

    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        module = lightning_module(lambda m: torch.optim.SGD(m.parameters(), 1e-2))
        plugin = pl.plugins.MixedPrecision("16-mixed" if scaler else "bf16-mixed", "cpu", scaler)
        plan = rg.at(20, rg.Prune(rg.L1(strength=5.0), 1, where="0"))
        callback = RegrowCallback(plan, example=EXAMPLE, module="model")
        lightning_trainer(tmp_path / str(scaler is None), callback, 6, plugins=[plugin]).fit(module, Loader(6))
        ends.append(module.model[1].weight.detach())  # which the penalty is about
    assert torch.allclose(*ends, atol=2e-2)
    assert all(float((end - 0.7).abs().max()) < 0.05 for end in ends)  # six steps by 0.05


def test_lightning_says_what_it_needs(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from regrow.loops.lightning import RegrowCallback

    with pytest.raises(ValueError, match="needs an example"):
        lightning_trainer(tmp_path, RegrowCallback(PLAN, module="model"), 1).fit(lightning_module(), Loader(1))


class WithLoss(nn.Module):
    """As models of transformers are called: with labels they return a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model = net()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.model(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def renamed(plan: rg.Plan) -> rg.Plan:
    """The plan for the same network one level further down."""
    text = rg.plan_to_json(plan)
    return rg.plan_from_json(text.replace('"0"', '"model.0"').replace('"3"', '"model.3"'))


def trainer_of(folder: Path, callback: Any, steps: int, model: nn.Module, accumulate: int = 1, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    args = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=8, seed=0, use_cpu=True, report_to=[],
        gradient_accumulation_steps=accumulate, lr_scheduler_type="constant", max_grad_norm=0, disable_tqdm=True,
        save_strategy="no", save_steps=1, train_sampling_strategy="sequential", logging_strategy="no",
        dataloader_pin_memory=False,
    )  # fmt: skip
    for name, value in options.items():
        setattr(args, name, value)
    data = [{"x": a, "labels": b} for x, y in batches(STEPS * accumulate) for a, b in zip(x, y, strict=True)]
    return transformers.Trainer(model, args, train_dataset=data, callbacks=[callback], optimizers=(adam(model), None))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_transformers_gives_the_numbers_of_a_plain_loop(accumulate: int, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    expected, said = plain(accumulate)
    from regrow.loops.transformers import RegrowCallback

    model, seen = WithLoss(), []
    callback = RegrowCallback(renamed(WAITING), example=EXAMPLE, after_edit=lambda edit: seen.append(str(edit)))
    trainer_of(tmp_path, callback, STEPS, model, accumulate).train()
    assert callback.shaper is not None
    assert callback.shaper.steps == STEPS
    assert [line.replace("model.", "") for line in seen] == said
    assert_same(model.model, expected)
    assert not model._forward_hooks


def test_transformers_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from regrow.loops.transformers import RegrowCallback

    expected, _ = plain()
    model = WithLoss()
    for number, steps in enumerate((5, 7, 13, STEPS)):
        model = WithLoss()
        trainer = trainer_of(
            tmp_path, RegrowCallback(renamed(WAITING), example=EXAMPLE), steps, model,
            save_strategy=transformers.trainer_utils.SaveStrategy.STEPS,
        )  # fmt: skip
        trainer.optimizer = None  # the Trainer makes its optimizer of the model as it was resumed
        trainer.create_optimizer = lambda *_, trainer=trainer, model=model: setattr(trainer, "optimizer", adam(model))
        trainer.train(resume_from_checkpoint=bool(number))
    assert_same(model.model, expected)
    elsewhere = trainer_of(tmp_path / "other", RegrowCallback(renamed(WAITING), example=EXAMPLE), STEPS, WithLoss())
    with pytest.raises(RuntimeError, match="name it in"):
        elsewhere.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS}"))


def test_transformers_resumes_with_other_layers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from regrow.loops.transformers import RegrowCallback

    ends, each_step = [], transformers.trainer_utils.SaveStrategy.STEPS
    for name, stops in (("whole", (10,)), ("parts", (3, 7, 10))):
        model = WithLoss()
        for steps in stops:
            model = WithLoss()
            callback = RegrowCallback(renamed(DEEP), example=EXAMPLE)
            trainer = trainer_of(tmp_path / name, callback, steps, model, save_strategy=each_step)
            trainer.optimizer = None
            trainer.train(resume_from_checkpoint=steps != stops[0])
        ends.append(model)
    assert len(list(ends[0].modules())) > len(list(WithLoss().modules()))
    assert_same(ends[1], ends[0])


def test_transformers_does_not_go_on_with_weights_under_other_names(tmp_path: Path) -> None:
    """As the Trainer does by itself for models whose weights save_pretrained renames, with a warning only."""
    transformers = pytest.importorskip("transformers")
    from regrow.loops.transformers import RegrowCallback

    def trainer(steps: int) -> Any:
        config = transformers.ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=4, patch_size=2,
            num_channels=1, num_labels=2,
        )  # fmt: skip
        images = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        args = transformers.TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        data = [{"pixel_values": image, "labels": torch.tensor(0)} for image in images]
        callback = RegrowCallback(rg.at(1, rg.Grow(rg.Random(), 2, where="*.fc1")), example=images[:2])
        return transformers.Trainer(
            transformers.ViTForImageClassification(config), args, train_dataset=data, callbacks=[callback]
        )

    trainer(1).train()
    with pytest.raises(RuntimeError, match="under other names"):
        trainer(2).train(resume_from_checkpoint=True)


def accelerated(accelerator: Any, folder: Path | None = None, steps: int = STEPS, accumulate: int = 1) -> Run:
    """The loop of Accelerate's, from where the folder has got to."""
    from regrow.loops.accelerate import AccelerateShaper

    model, seen = net(), []
    model, optimizer = accelerator.prepare(model, adam(model))
    shaper = AccelerateShaper(
        accelerator, model, optimizer, WAITING, example=EXAMPLE, after_edit=lambda edit: seen.append(str(edit))
    )
    if folder is not None and folder.exists():
        accelerator.load_state(str(folder))
    losses = []
    for x, y in batches(STEPS * accumulate)[shaper.steps * accumulate : steps * accumulate]:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(x), y)
            losses.append(loss.detach())
            accelerator.backward(loss + shaper.penalty())
            optimizer.step()
            optimizer.zero_grad()
            mean = torch.stack(losses[-accumulate:]).mean()
            shaper.step(lambda x=x, y=y: F.cross_entropy(model(x), y), loss=mean)
    assert shaper.steps == steps
    if folder is not None:
        accelerator.save_state(str(folder))
    return accelerator.unwrap_model(model), seen


def accelerator(**options: Any) -> Any:
    return pytest.importorskip("accelerate").Accelerator(cpu=True, **options)


def test_accelerate_gives_the_numbers_of_a_plain_loop() -> None:
    made = accelerator()
    expected, said = plain()
    model, seen = accelerated(made)
    assert seen == said
    assert_same(model, expected)


def test_accelerate_accumulates_as_a_plain_loop_does() -> None:
    made = accelerator(gradient_accumulation_steps=2)
    model, _ = accelerated(made, accumulate=2)
    expected = net()
    optimizer = adam(expected)
    shaper = rg.Shaper(expected, optimizer, WAITING, example=EXAMPLE)
    given = batches(2 * STEPS)
    for one, other in zip(given[::2], given[1::2], strict=True):
        losses = []
        for x, y in (one, other):
            loss = F.cross_entropy(expected(x), y)
            losses.append(loss.detach())
            ((loss + shaper.penalty()) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        x, y = other
        shaper.step(lambda x=x, y=y: F.cross_entropy(expected(x), y), loss=torch.stack(losses).mean())
    assert_same(model, expected)


def test_accelerate_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    expected, _ = plain()
    model = net()
    for steps in (5, 7, 13, STEPS):
        model, _ = accelerated(accelerator(), tmp_path / "state", steps)
    assert_same(model, expected)


def test_accelerate_says_that_new_layers_need_their_shape_first(tmp_path: Path) -> None:
    from regrow.loops.accelerate import AccelerateShaper

    def begun(model: nn.Module) -> tuple[Any, Any]:
        made = accelerator()
        model, optimizer = made.prepare(model, adam(model))
        plan = rg.at(1, rg.Grow(rg.Deepen(), 1, kind="layer", where="3"))
        return made, AccelerateShaper(made, model, optimizer, plan, example=EXAMPLE)

    made, shaper = begun(net())
    shaper.step()
    made.save_state(str(tmp_path))
    with pytest.raises(ValueError, match="before its optimizer is made"):
        begun(net())[0].load_state(str(tmp_path))
    made, other = begun(take_shape_(net(), tmp_path))
    made.load_state(str(tmp_path))
    assert other.steps == 1
    assert_same(other.shaper.model, shaper.shaper.model)

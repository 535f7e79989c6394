"""What can't be analysed is refused with one clear error, or handled right; and the model is left as it was."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import regrow as rg
from handled import HANDLED, adapted, masked
from refused import REFUSED, Fails, everything, mlp, quietly, rows
from sizes_kept import stale_sizes
from state import differences, relative_change

#: The same functions without their types, for calls that the types forbid.
LOOSELY: Any = rg


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_one_clear_error_and_nothing_changes(case: str, training: bool) -> None:
    make, x, message = REFUSED[case]
    model = quietly(make).train(training)
    before = everything(model)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)) as caught:
        rg.analyze(model, x)
    assert differences(before, everything(model)) == []
    assert "\n" not in str(caught.value)


def test_the_models_own_error_is_chained() -> None:
    with pytest.raises(ValueError, match="doesn't run") as caught:
        rg.analyze(Fails(error=ZeroDivisionError), rows())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes_and_nothing_changes(error: type[BaseException]) -> None:
    model = Fails(error=error)
    before = everything(model)
    with pytest.raises(error):
        rg.analyze(model, rows())
    assert differences(before, everything(model)) == []


def test_a_model_that_runs_but_cannot_be_followed_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ArithmeticError("of its own")

    monkeypatch.setitem(rg.structure.rules.registry._RULES, "aten::relu", broken)
    model = mlp()
    before = everything(model)
    with pytest.raises(ValueError, match=r"couldn't be followed: ArithmeticError.* a limit of regrow"):
        rg.analyze(model, rows())
    assert differences(before, everything(model)) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "net", "x": 1}, TypeError, "takes a torch.nn.Module, not str"),
        ({"model": mlp()}, TypeError, "needs an example"),
        ({"model": mlp(), "x": rows(), "args": (rows(),)}, TypeError, "x or args, not both"),
        ({"model": mlp(), "args": [rows()]}, TypeError, "args is a tuple.*list"),
        ({"model": mlp(), "args": (rows(),), "kwargs": [1]}, TypeError, "kwargs a dict.*list"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LOOSELY.analyze(**arguments)


@pytest.mark.parametrize("case", HANDLED)
def test_it_is_handled_right_and_nothing_changes(case: str) -> None:
    make, sizes = HANDLED[case]
    model = quietly(make)
    x = rows().to(next(model.parameters()).dtype)
    before = everything(model)
    structure = rg.analyze(model, x)
    assert [axis.size for axis in structure] == sizes
    assert structure.verify().ok
    assert structure.verify().unmoved == ()
    assert differences(before, everything(model)) == []


@pytest.mark.parametrize("case", HANDLED)
def test_edits_of_it_are_right(case: str) -> None:
    make, _ = HANDLED[case]
    model = quietly(make).float().eval()
    x = rows()
    for axis in rg.analyze(model, x):
        if not axis.exact:
            continue
        half = list(range(axis.size // 2))
        axis.silence_(half)
        with torch.no_grad():
            before = model(x)
            rg.prune_(axis, half)
            torch.testing.assert_close(model(x), before)
            rg.grow_(axis, 3)
            torch.testing.assert_close(model(x), before)
        assert stale_sizes(model) == []


@pytest.mark.xfail(reason="new parts of a mask are random")
def test_what_a_mask_hides_stays_hidden_and_new_units_are_seen() -> None:
    """Torch's own pruning can be made permanent after edits."""
    model: Any = masked().eval()
    x = rows()
    structure = rg.analyze(model, x)
    edit = rg.grow_(structure["2"], 2)
    new = model[2].weight_mask[edit.new]
    assert torch.equal(new, torch.ones_like(new))
    rg.prune_(structure["0"], [0, 3])
    before = model(x)
    for module, name in ((model[0], "weight"), (model[0], "bias"), (model[2], "weight")):
        torch_prune.remove(module, name)
    torch.testing.assert_close(model(x), before)
    assert stale_sizes(model) == []


def test_an_adapter_is_saved_and_merged_after_edits() -> None:
    model: Any = adapted().eval()
    x = rows()
    structure = rg.analyze(model, x)
    ranks = [axis for axis in structure if axis.size == 3]
    rg.grow_(ranks[0], 2)
    rg.prune_(structure.axes[0], [0, 1])
    before = model(x)
    assert relative_change({"eval": before}, {"eval": model.merge_and_unload()(x)}) < 1e-5
    assert [m.in_features for m in model.modules() if isinstance(m, nn.Linear)]

"""Models and examples that are refused, and what all of them are compared by."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from state import snapshot, surroundings


def mlp() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))


def rows(width: int = 6) -> Tensor:
    return torch.randn(3, width, generator=torch.Generator().manual_seed(1))


def quietly(make: Callable[[], Any]) -> Any:
    """Torch says of much of this that it is old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def everything(model: nn.Module) -> dict[str, Any]:
    """All that may not change; a scripted module has no attributes of its own."""
    if isinstance(model, torch.jit.ScriptModule) or any(nn.parameter.is_lazy(p) for p in model.parameters()):
        return surroundings(model)
    return snapshot(model) | surroundings(model)


class Fails(nn.Module):
    """Fails in some mode, after it has written to all that it can reach."""

    def __init__(self, when: str = "always", error: type[BaseException] = KeyError) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.when, self.error, self.calls, self.seen = when, error, 0, [1, 2]
        self.config = types.SimpleNamespace(width=8, cache=[], state={"steps": 0})
        self.pairs = {"a": 1}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.hidden = self.norm(self.first(x))
        self.seen.append(3)
        self.pairs["b"] = 2
        self.config.width += 1
        self.config.cache.append(self.hidden)
        self.config.state["steps"] += 1
        vars(self.last)["notes"] = "written to"
        torch.rand(2)
        if self.when in ("always", "train" if self.training else "eval"):
            raise self.error("no such thing")
        return self.last(self.hidden)


class Returning(nn.Module):
    """Returns something made from its hidden layer."""

    def __init__(self, wrapped: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last, self.wrapped = nn.Linear(6, 8), nn.Linear(8, 4), wrapped

    def forward(self, x: Tensor) -> Any:
        return self.wrapped(self.last(self.first(x).relu()))


class Wrapped(Tensor):
    """A tensor that holds another, as quantised and sharded ones do."""

    held: Any

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.held = inner
        return made

    def __init__(self, inner: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        unwrapped = torch.utils._pytree.tree_map_only(cls, lambda t: t.held, args)
        out = func(*unwrapped, **(kwargs or {}))
        return cls(out) if func is torch.ops.aten.detach.default else out


def on_two_devices() -> nn.Module:
    model = mlp()
    model[2].to("meta")
    return model


def scripted_part() -> nn.Module:
    model = mlp()
    model[2] = torch.jit.script(model[2])
    return model


def traced() -> Any:
    return torch.jit.trace(mlp(), rows())


def holding_tensors() -> nn.Module:
    model = mlp()
    model[2].weight = nn.Parameter(Wrapped(model[2].weight.detach()), requires_grad=False)
    return model


def sparse_weight() -> nn.Module:
    model = mlp()
    model.register_buffer("adjacency", torch.eye(3).to_sparse())
    return model


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return mlp()


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear})


#: What is refused: how the model is made, the example, and what the error says (what is, and what to do).
REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "fails": (Fails, rows(), r"doesn't run on the example \(float32\[3, 6\]\) in eval mode: KeyError: 'no such thing', "
              r"at refused.py:\d+ \(forward\)\. Give an example that model.eval\(\) runs on"),
    "fails in train mode": (lambda: Fails("train"), rows(), r"in train mode: KeyError.*model.train\(\)"),
    "asserts": (lambda: Fails("eval", AssertionError), rows(), "in eval mode: AssertionError"),
    "wrong shape": (mlp, rows(5), r"doesn't run on the example \(float32\[3, 5\]\).*3x5 and 6x8"),
    "wrong rank": (lambda: nn.Conv2d(3, 4, 3), torch.randn(3, 8), r"\[3, 8\].*Expected 3D"),
    "too many inputs": (mlp, (rows(), rows()), "takes 2 positional arguments but 3"),
    "no tensor": (mlp, 3, r"\(without tensors\).*must be Tensor, not int"),
    "empty": (mlp, torch.randn(0, 6), r"empty \(shape \(0, 6\)\); give one with a batch of two"),
    "sparse": (mlp, rows().to_sparse(), "torch.sparse_coo; give a dense one"),
    "two devices": (on_two_devices, rows(), "2.weight and 1 other parameters are on meta.*load all of it"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 4)), rows(), "'0' .LazyLinear. is lazy.*run it"),
    "scripted": (lambda: torch.jit.script(mlp()), rows(), "the model .RecursiveScriptModule. is scripted.*made from"),
    "scripted part": (scripted_part, rows(), "'2' .RecursiveScriptModule. is scripted.*made from"),
    "traced": (traced, rows(), "the model .TopLevelTracedModule. is scripted"),
    "quantised": (quantised, rows(), "all weights are quantised and packed .'0'.*before it is quantised"),
    "data parallel": (lambda: nn.DataParallel(mlp()), rows(), "the model .DataParallel. wraps.*analyse its .module"),
    "holds tensors": (holding_tensors, rows(), "2.weight is a Wrapped, which holds other tensors; analyse it bef"),
    "sparse buffer": (sparse_weight, rows(), "adjacency is laid out as torch.sparse_coo; make it dense"),
    "made in inference mode": (made_in_inference_mode, rows(), "0.weight was made in inference mode.*outside of it"),
    "a number": (lambda: Returning(lambda out: 3), rows(), "no tensor that the analysis can find, but 3; its output"),
    "nothing": (lambda: Returning(lambda out: None), rows(), "no tensor that the analysis can find, but None"),
    "a generator": (lambda: Returning(lambda out: (t for t in [out])), rows(), "no tensor .* generator"),
}  # fmt: skip

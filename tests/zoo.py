"""The law models: small nets with a known structure, torchvision models, and functional clones of all of them.

A *functional clone* executes the same calls as its original, but it is written with ``torch.nn.functional``
and bare parameters: there is no layer class in it. Tensor names are kept, so structures can be compared
name by name. Whatever holds for a model must hold for its clones, because structure comes from calls.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn

# --------------------------------------------------------------------------------------------------
# functional clones


class Holder(nn.Module):
    """A bare container of parameters, buffers and plain attributes; it has no forward."""


@dataclass(frozen=True)
class Ref:
    """The place of an earlier call's result among a call's arguments."""

    name: str


@dataclass(frozen=True)
class Call:
    """One step of a clone: ``function(*args)``, or ``function(holder, *args)`` for a former layer."""

    name: str
    function: Callable[..., Any]
    holder: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _convolve(holder: Any, x: Tensor, *, groups: Callable[[Holder, Tensor], int], **options: Any) -> Tensor:
    return F.conv2d(x, holder.weight, holder.bias, groups=groups(holder, x), **options)


def _groups_from_shapes(holder: Any, x: Tensor) -> int:
    return x.shape[1] // holder.weight.shape[1]


def _groups_from_attribute(holder: Any, x: Tensor) -> int:
    return holder.groups


def _batch_norm(holder: Any, x: Tensor, **options: Any) -> Tensor:
    if holder.training:
        holder.num_batches_tracked.add_(1)
    statistics = holder.running_mean, holder.running_var
    return F.batch_norm(x, *statistics, holder.weight, holder.bias, holder.training, **options)


def _linear(holder: Any, x: Tensor) -> Tensor:
    return F.linear(x, holder.weight, holder.bias)


def _dropout(holder: Any, x: Tensor) -> Tensor:
    return F.dropout(x, holder.p, holder.training)


def _without_holder(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    return lambda holder, x: function(x, **options)


def _functional(layer: nn.Module, groups: str) -> Callable[..., Tensor]:
    """The functional form of one torch.nn layer."""
    match layer:
        case nn.Conv2d():
            return partial(
                _convolve,
                groups=_groups_from_shapes if groups == "shapes" else _groups_from_attribute,
                stride=layer.stride,
                padding=layer.padding,
                dilation=layer.dilation,
            )
        case nn.BatchNorm2d():
            return partial(_batch_norm, momentum=layer.momentum, eps=layer.eps)
        case nn.Linear():
            return _linear
        case nn.Dropout():
            return _dropout
        case nn.MaxPool2d():
            sizes = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
            return _without_holder(F.max_pool2d, **sizes)
        case nn.AvgPool2d():
            return _without_holder(F.avg_pool2d, kernel_size=layer.kernel_size, stride=layer.stride)
        case nn.AdaptiveAvgPool2d():
            return _without_holder(F.adaptive_avg_pool2d, output_size=layer.output_size)
        case nn.Flatten():
            return _without_holder(torch.flatten, start_dim=layer.start_dim)
        case nn.ReLU():
            return _without_holder(F.relu, inplace=layer.inplace)
        case nn.SiLU():
            return _without_holder(F.silu, inplace=layer.inplace)
        case nn.Hardswish():
            return _without_holder(F.hardswish, inplace=layer.inplace)
        case nn.Hardsigmoid():
            return _without_holder(F.hardsigmoid, inplace=layer.inplace)
        case nn.Sigmoid():
            return _without_holder(torch.sigmoid)
        case nn.Tanh():
            return _without_holder(torch.tanh)
        case nn.Identity():
            return _without_holder(torch.clone)
        case _:
            raise NotImplementedError(f"no functional form of {type(layer).__name__}")


def _refs(value: Any) -> Any:
    as_ref: Any = lambda node: Ref(node.name)  # noqa: E731
    return fx.node.map_arg(value, as_ref)


def _resolve(value: Any, results: dict[str, Any]) -> Any:
    match value:
        case Ref():
            return results[value.name]
        case list() | tuple():
            return type(value)(_resolve(item, results) for item in value)
        case _:
            return value


class FunctionalClone(nn.Module):
    """A copy of ``model`` without layer classes.

    Args:
        model: traceable by ``torch.fx``.
        groups: ``"shapes"`` reads the number of convolution groups off the tensors at each call,
            ``"attribute"`` keeps it as an integer on the holder, as people write it.
    """

    def __init__(self, model: nn.Module, groups: str = "shapes") -> None:
        super().__init__()
        copies: dict[int, Tensor] = {}
        for path, module in model.named_modules():
            self._hold(path, module, copies, keep_groups=groups == "attribute")
        self.calls: list[Call] = []
        for node in fx.symbolic_trace(model).graph.nodes:
            self._record(node, model, groups)
        self.train(model.training)

    def _hold(self, path: str, module: nn.Module, copies: dict[int, Tensor], keep_groups: bool) -> None:
        holder: Any = self
        for part in path.split(".") if path else ():
            if part not in holder._modules:
                holder.add_module(part, Holder())
            holder = holder._modules[part]
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in copies:
                copies[id(parameter)] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            holder.register_parameter(name, None if parameter is None else copies[id(parameter)])
        for name, buffer in module._buffers.items():
            holder.register_buffer(name, None if buffer is None else buffer.clone())
        if isinstance(module, nn.Dropout):
            holder.p = module.p
        if isinstance(module, nn.Conv2d) and keep_groups:
            holder.groups = module.groups

    def _record(self, node: fx.Node, model: nn.Module, groups: str) -> None:
        args, kwargs = _refs(node.args), dict(_refs(node.kwargs))
        target: Any = node.target
        match node.op:
            case "placeholder":
                return
            case "call_module":
                layer = model.get_submodule(target)
                call = Call(node.name, _functional(layer, groups), target, args, kwargs)
            case "call_function":
                call = Call(node.name, target, None, args, kwargs)
            case "call_method":
                call = Call(node.name, getattr(Tensor, target), None, args, kwargs)
            case "get_attr":
                call = Call(node.name, operator.attrgetter(target), "", (), {})
            case _:  # "output"
                call = Call("output", lambda value: value, None, args, kwargs)
        self.calls.append(call)

    def forward(self, x: Tensor) -> Tensor:
        results: dict[str, Any] = {"x": x, "input_1": x}
        for call in self.calls:
            holder = () if call.holder is None else (self.get_submodule(call.holder),)
            args = _resolve(call.args, results)
            results[call.name] = call.function(*holder, *args, **call.kwargs)
        return results["output"]


# --------------------------------------------------------------------------------------------------
# small nets with a structure that is known by hand


class Residual(nn.Module):
    """A stem, one residual block with an inner width, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(y)))
        return self.fc(x.mean((2, 3)))


class Concat(nn.Module):
    """Two branches side by side, normalised together."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(10)
        self.mix = nn.Conv2d(10, 7, 3, padding=1)
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.left(x), self.right(x)], 1)
        return self.fc(F.relu(self.mix(F.relu(self.norm(y)))).mean((2, 3)))


class Shared(nn.Module):
    """One linear layer used twice, so its rows and its columns are the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 9)
        self.shared = nn.Linear(9, 9)
        self.last = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.shared(x))
        return self.last(F.relu(self.shared(x)))


class TiedWeight(nn.Module):
    """An autoencoder that decodes with the encoder's transposed weight, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(12, 7)
        self.hidden = nn.Linear(12, 10)
        self.head = nn.Linear(10, 5)
        self.other = nn.Linear(10, 5)
        self.other.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encoder(x))
        x = F.linear(code, self.encoder.weight.t())
        y = self.hidden(x)
        return self.head(F.relu(y)) + self.other(torch.tanh(y))


class SqueezeExcite(nn.Module):
    """A channel gate computed from the channels it gates."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        gate = F.hardsigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.fc((x * gate).mean((2, 3)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 5))


def chain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3))


def flatten() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d((2, 2)),
        nn.Flatten(),
        nn.Linear(24, 9),
        nn.ReLU(),
        nn.Linear(9, 5),
    )


def separable() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 5, 1),
    )


# --------------------------------------------------------------------------------------------------
# the zoo

SMALL: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "chain": chain,
    "residual": Residual,
    "concat": Concat,
    "flatten": flatten,
    "separable": separable,
    "grouped": grouped,
    "shared": Shared,
    "tied_weight": TiedWeight,
    "squeeze_excite": SqueezeExcite,
}
TORCHVISION = ("vgg11_bn", "resnet18", "densenet121", "resnext50_32x4d", "mobilenet_v3_small")
#: vgg11_bn as it is takes half a gigabyte, nearly all in its classifier; with a narrower one it edits as quickly as
#: the others. The full one is held to the same laws, with fewer edits.
QUICK = ("vgg11_bn_narrow", *TORCHVISION[1:])
STRUCTURE_ONLY = ("efficientnet_b0",)
WITH_GROUPS = frozenset(
    {"separable", "grouped", "resnext50_32x4d", "mobilenet_v3_small", "efficientnet_b0"}
)  # nets that have something to keep in an attribute
FLAT_INPUT = frozenset({"mlp", "shared", "tied_weight"})


def variants(*names: str) -> list[tuple[str, str]]:
    """``(name, variant)`` for each name, for use with ``pytest.mark.parametrize``."""
    return [
        (name, variant)
        for name in names
        for variant in ("module", "functional", "attribute")
        if variant != "attribute" or name in WITH_GROUPS
    ]


def example(name: str, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """An input for the model ``name``; the same one at each call."""
    generator = torch.Generator().manual_seed(1)
    if name in FLAT_INPUT:
        shape: tuple[int, ...] = (batch, 12)
    else:
        shape = (batch, 3, 8, 8) if name in SMALL else (batch, 3, 64, 64)
    return torch.randn(shape, generator=generator, dtype=dtype)


def build(name: str, variant: str = "module", dtype: torch.dtype = torch.float32) -> Any:
    """The model ``name`` in train mode, with seeded values, none of which is a convenient 0 or 1.

    A module; tests reach into it by attributes that only its own class declares, so its type is left open.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        if name in SMALL:
            model = SMALL[name]()
        elif name == "vgg11_bn_narrow":
            model = _narrow_vgg()
        else:
            model = torchvision.models.get_model(name, weights=None, num_classes=10)
        _roughen(model)
    _quieten(model)
    if variant != "module":
        model = FunctionalClone(model, groups="shapes" if variant == "functional" else "attribute")
    return model.to(dtype)


def _narrow_vgg() -> nn.Module:
    model = torchvision.models.vgg11_bn(weights=None, num_classes=10, init_weights=False)
    model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 256), nn.Linear(256, 256)
    model.classifier[6] = nn.Linear(256, 10)
    return model


def _roughen(model: nn.Module) -> None:
    """Give biases, scales and running statistics values whose misplacement shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.2)


def _quieten(model: nn.Module) -> None:
    """Switch dropout and stochastic depth off, also in train mode: outputs are compared across edits."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0


def layer_classes(model: nn.Module) -> Iterator[type]:
    """The classes of torch.nn layers in ``model``: none in a clone."""
    return (type(m) for m in model.modules() if type(m).__module__.startswith(("torch.nn", "torchvision")))

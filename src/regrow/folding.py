"""Layers that leave by being folded into the one that feeds them: norms, and linear layers behind linear ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .carry import followers
from .errors import NotPermissible
from .flips import mask_write
from .starts import TOLERANCE, relative_distance
from .structure import Layer
from .structure.running import untouched
from .structure.spans import Span, record
from .surgery import first_of, given_to, with_given
from .transaction import Transaction


def producer_of(layer: Layer) -> nn.Module:
    """The module with weights whose output a layer reads, and nothing else does.

    Raises:
        NotPermissible: There is none.
    """
    recording = record(layer.structure.model, *layer.structure._example)
    own = next(span for span in recording.spans if span.module is layer.module)
    readers = [number for number, step in enumerate(recording.steps) if own.given_by in step.reads]
    makers = [span for span in recording.spans if _makes(span, own)]
    if own.given_by is None or not makers:
        raise NotPermissible(f"{layer.name} can't be folded: no single layer makes what it reads.")
    if any(not own.start <= number < own.stop for number in readers):
        raise NotPermissible(f"{layer.name} can't be folded: others read {makers[-1].name}, too.")
    return makers[-1].module


def _makes(span: Span, own: Span) -> bool:
    has_weights = any(True for _ in span.module.parameters(recurse=False))
    return span.module is not own.module and has_weights and span.made_by is not None and span.made_by == own.given_by


@torch.no_grad()
def plan_fold(
    writes: Transaction,
    layer: Layer,
    producer: Any,
    args: tuple,
    kwargs: dict[str, Any],
    optimizer: Optimizer | None,
) -> nn.Parameter | None:
    """Plan to give the producer the weights with which it does what both do, in eval mode.

    Returns:
        The bias that it gets if it had none.

    Raises:
        NotPermissible: The layer scales and shifts no channels, and isn't linear behind a linear one.
    """
    scaling = _scaling(layer, args, kwargs)
    parameter: Any = getattr(producer, "weight", None)
    if scaling is not None:
        folded = _scaled(layer, producer, *scaling)
    elif _is_linear(layer.module) and type(producer) in (nn.Linear, nn.Conv2d, nn.Conv1d):
        folded = _chained(layer.module, producer)
    else:
        raise NotPermissible(
            f"{layer.name} can't be folded: it neither scales and shifts channels nor is linear behind a linear layer."
        )
    weight, bias = folded
    same, held = scaling is not None, producer.bias
    if not same:  # other weights, which have no past
        for tensor, new_values in ((parameter, weight), (held, bias)):
            for follower in followers(tensor, optimizer, {}) if isinstance(tensor, Tensor) else ():
                if follower.key != "grad":
                    sizes = zip(follower.tensor.shape, tensor.shape, new_values.shape, strict=True)
                    shape = [new if one == old else 1 for one, old, new in sizes]
                    follower.plan(writes, follower.tensor.new_zeros(shape))
        writes.planned.append(mask_write(producer, "weight", None))
    writes.tensor(parameter, weight, parameter.grad if same else None)
    new = nn.Parameter(bias) if held is None else None
    if new is not None:
        writes.item(producer._parameters, "bias", new)
    else:
        writes.tensor(held, bias, held.grad if same else None)
    if not same:
        name = "out_features" if isinstance(producer, nn.Linear) else "out_channels"
        writes.attribute(producer, name, weight.shape[0])
    return new


def _scaling(layer: Layer, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """What the layer multiplies each channel by and adds to it in eval mode; None if it does anything else."""
    x = given_to(args, kwargs)

    def made(given: Tensor) -> Tensor:
        now, rest = with_given(args, kwargs, given)
        return first_of(layer.module(*now, **rest))

    with untouched(layer.module), torch.no_grad():
        layer.module.eval()
        shift, one = made(torch.zeros_like(x)), made(torch.ones_like(x))
        if shift.shape != x.shape:
            return None
        scale = one - shift
        probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        if relative_distance(made(probe), scale * probe + shift) > TOLERANCE:
            return None
    along = [tensor.transpose(0, layer.channels).flatten(1) for tensor in (scale, shift)]
    if any(float((rows - rows[:, :1]).abs().max()) > TOLERANCE for rows in along):
        return None
    return along[0][:, 0], along[1][:, 0]


def _scaled(layer: Layer, producer: nn.Module, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    weight: Any = getattr(producer, "weight", None)
    if type(producer) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) or len(weight) != len(scale):
        raise NotPermissible(f"{layer.name} can't be folded into a {type(producer).__name__}.")
    bias: Any = producer.bias if producer.bias is not None else torch.zeros_like(shift)
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias * scale + shift


def _is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, or a convolution that does the same at each place."""
    if type(module) is nn.Linear:
        return True
    if type(module) not in (nn.Conv1d, nn.Conv2d):
        return False
    plain: Any = module
    return {*plain.kernel_size, *plain.stride, plain.groups} == {1} and set(plain.padding) == {0}


def _chained(module: Any, producer: Any) -> tuple[Tensor, Tensor]:
    """``W₂(W₁x + b₁) + b₂`` as one layer."""
    outer = module.weight.flatten(1)
    weight = torch.einsum("oi,i...->o...", outer, producer.weight)
    inner = producer.bias if producer.bias is not None else torch.zeros_like(outer[0])
    bias = outer @ inner
    return weight, bias if module.bias is None else bias + module.bias

"""The shapes, types and strides that a trace tells for calls on the meta device, against calls on real tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from regrow.structure import meta

aten = torch.ops.aten


def layouts() -> Iterator[tuple[str, Tensor]]:
    """Tensors of shape (2, 6, 4, 3) that lie in memory in different ways."""
    yield "in order", torch.rand(2, 6, 4, 3)
    yield "channels last", torch.rand(2, 6, 4, 3).contiguous(memory_format=torch.channels_last)
    yield "permuted", torch.rand(4, 3, 2, 6).permute(2, 3, 0, 1)
    yield "one of three", torch.rand(2, 6, 4, 9).chunk(3, -1)[1]
    yield "a slice of what is permuted", torch.rand(4, 5, 2, 6).permute(2, 3, 0, 1)[..., 1:4]
    yield "expanded", torch.rand(2, 6, 1, 3).expand(2, 6, 4, 3)


def name(value: Any) -> str:
    return str(value) if isinstance(value, torch._ops.OpOverload) else ""


#: Operator -> its arguments, given a tensor of shape (2, 6, 4, 3).
POINTWISE: dict[Any, Callable[[Tensor], tuple]] = {
    aten.gelu.default: lambda x: (x,),
    aten.hardswish_.default: lambda x: (x,),
    aten.relu_.default: lambda x: (x,),
    aten.mul.Tensor: lambda x: (x, torch.rand(4, 3)),
    aten.mul_.Tensor: lambda x: (x, torch.rand(6, 1, 3)),
    aten.add.Tensor: lambda x: (x, torch.rand(3, 4, 6, 2).permute(3, 2, 1, 0)),
    aten.div.Tensor: lambda x: (torch.rand(4, 1), x),
    aten.eq.Tensor: lambda x: (x, torch.rand(1, 4, 3)),
    aten.add.Scalar: lambda x: (x, 2),
    aten.where.self: lambda x: (x > 0.5, x, torch.rand(3)),
    aten.pow.Tensor_Scalar: lambda x: (x, 2),
}


@pytest.mark.parametrize("layout", [name for name, _ in layouts()])
@pytest.mark.parametrize("op", POINTWISE, ids=str)
def test_pointwise_results_lie_as_real_ones(op: Any, layout: str) -> None:
    x = dict(layouts())[layout]
    if op._schema.is_mutable and layout == "expanded":
        pytest.skip("can't be written to")
    check(op, POINTWISE[op](x))


OTHERS: list[tuple[Any, tuple]] = [
    *((aten.convolution.default, (torch.rand(2, 6, 9, 8), w, b, stride, [1, 0], [1, 2], False, [0, 0], groups))
      for w, b, groups in ((torch.rand(4, 3, 3, 2), None, 2), (torch.rand(6, 1, 3, 2), torch.rand(6), 6))
      for stride in ([2, 1], [1])),
    (aten.convolution.default, (torch.rand(2, 6, 9), torch.rand(4, 6, 1), None, [1], [0], [1], False, [0], 1)),
    (aten.convolution.default, (torch.rand(2, 6, 9), torch.rand(6, 4, 3), None, [2], [0], [1], True, [1], 1)),
    (aten.native_batch_norm.default,
     (torch.rand(2, 6, 4), torch.rand(6), None, torch.rand(6), torch.rand(6), False, 0.1, 1e-5)),
    (aten.native_batch_norm.default, (torch.rand(2, 6, 4), None, None, None, None, True, 0.1, 1e-5)),
    (aten.native_layer_norm.default, (torch.rand(2, 4, 6), [4, 6], torch.rand(4, 6), None, 1e-5)),
    (aten.native_group_norm.default, (torch.rand(2, 6, 4), torch.rand(6), None, 2, 6, 4, 3, 1e-5)),
    (aten._softmax.default, (torch.rand(2, 6, 4).transpose(0, 1), 1, False)),
    (aten._log_softmax.default, (torch.rand(2, 6, 4), 1, False)),
    (aten.addmm.default, (torch.rand(5), torch.rand(2, 3), torch.rand(3, 5))),
    (aten.mm.default, (torch.rand(2, 3), torch.rand(5, 3).t())),
    (aten.bmm.default, (torch.rand(4, 2, 3), torch.rand(4, 5, 3).mT)),
    (aten.mean.dim, (torch.rand(2, 6, 4), [1, -1], True)),
    (aten.mean.dim, (torch.rand(2, 6, 4), None)),
    (aten.cat.default, ([torch.rand(2, 6), torch.rand(2, 1)], -1)),
    (aten.stack.default, ([torch.rand(2, 6), torch.rand(2, 6)], -1)),
    (aten.roll.default, (torch.rand(2, 6, 4), [1, 2], [0, 2])),
    (aten.upsample_bicubic2d.default, (torch.rand(2, 6, 4, 3), [5, 9], False, None, None)),
    (aten.upsample_bilinear2d.default, (torch.rand(2, 4, 3, 6).permute(0, 3, 1, 2), [5, 9], False, None, None)),
    (aten.upsample_bilinear2d.default, (torch.rand(4, 3, 2, 6).permute(2, 3, 0, 1), [5, 9], False, None, None)),
    (aten.grid_sampler_2d.default, (torch.rand(2, 6, 4, 3), torch.rand(2, 5, 7, 2), 0, 0, True)),
    (aten.grid_sampler_2d.default, (torch.rand(2, 4, 3, 6).permute(0, 3, 1, 2), torch.rand(2, 5, 7, 2), 0, 0, True)),
    (aten.upsample_nearest1d.default, (torch.rand(2, 6, 4), [7], None)),
    (aten.upsample_trilinear3d.default, (torch.rand(2, 6, 4, 3, 2), [7, 5, 3], True, None, None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("op", "args"), OTHERS, ids=name)
def test_other_results_lie_as_real_ones(op: Any, args: tuple) -> None:
    check(op, args)


BAD: list[tuple[Any, tuple]] = [
    (aten.convolution.default, (torch.rand(2, 6, 9), torch.rand(4, 5, 3), None, [1], [0], [1], False, [0], 1)),
    (aten.convolution.default, (torch.rand(2, 6, 9), torch.rand(4, 6, 3), torch.rand(5), [1], [0], [1], False, [0], 1)),
    (aten.convolution.default, (torch.rand(2, 6, 9), torch.rand(5, 3, 3), None, [1], [0], [1], False, [0], 2)),
    (aten.convolution.default, (torch.rand(2, 6, 2), torch.rand(5, 6, 3), None, [1], [0], [1], False, [0], 1)),
    (aten.native_layer_norm.default, (torch.rand(2, 4, 6), [4, 6], torch.rand(4, 5), None, 1e-5)),
    (aten.native_group_norm.default, (torch.rand(2, 6, 4), None, None, 2, 6, 4, 4, 1e-5)),
    (aten.addmm.default, (torch.rand(5), torch.rand(2, 3), torch.rand(3, 6))),
    (aten.mm.default, (torch.rand(2, 3), torch.rand(2, 3))),
    (aten.bmm.default, (torch.rand(4, 2, 3), torch.rand(4, 2, 3))),
    (aten.cat.default, ([torch.rand(2, 6), torch.rand(3, 1)], 1)),
    (aten.stack.default, ([torch.rand(2, 6), torch.rand(2, 5)], 0)),
    (aten.mul.Tensor, (torch.rand(2, 6), torch.rand(5))),
    (aten.mul_.Tensor, (torch.rand(2, 1), torch.rand(2, 5))),
]  # fmt: skip


@pytest.mark.parametrize(("op", "args"), BAD, ids=name)
def test_what_fails_on_real_tensors_fails(op: Any, args: tuple) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        op(*args)
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        meta.call(op, on_meta(args), {})


def check(op: Any, args: tuple) -> None:
    """Twice, since the first result of a pointwise call is torch's own."""
    twins = [on_meta(args), on_meta(args)]
    found = [pytree.tree_leaves(meta.call(op, twin, {})) for twin in twins]
    expected = pytree.tree_leaves(op(*args))
    for number, twin in enumerate(twins):
        for one, other in zip(found[number], expected, strict=True):
            if other.numel():
                assert (one.shape, one.dtype, strides(one)) == (other.shape, other.dtype, strides(other))
        if op._schema.is_mutable:
            assert found[number][0] is twin[0]


def on_meta(args: tuple) -> tuple:
    def twin(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")

    return pytree.tree_map(twin, args)


def strides(tensor: Tensor) -> list[int]:
    """Those that matter: of dimensions with more than one index."""
    return [s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]

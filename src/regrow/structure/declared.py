"""The sizes that torch.nn's own modules keep as attributes, told from the shapes of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def _linear(m: nn.Linear) -> dict[str, Any]:
    return {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}


def _convolution(m: _ConvNd) -> dict[str, Any]:
    one, other = m.weight.shape[:2]
    ins, outs = (one, other * m.groups) if m.transposed else (other * m.groups, one)
    return {"in_channels": ins, "out_channels": outs}


def _batch_norm(m: _NormBase) -> dict[str, Any]:
    tensor = m.weight if m.weight is not None else m.running_mean
    return {} if tensor is None else {"num_features": tensor.shape[0]}


def _normalized_shape(m: nn.LayerNorm) -> dict[str, Any]:
    return {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)}


def _group_norm(m: nn.GroupNorm) -> dict[str, Any]:
    return {} if m.weight is None else {"num_channels": m.weight.shape[0]}


def _embedding(m: nn.Embedding) -> dict[str, Any]:
    return {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]}


def _prelu(m: nn.PReLU) -> dict[str, Any]:
    return {"num_parameters": m.weight.shape[0]}


def _recurrent(m: nn.RNNBase) -> dict[str, Any]:
    first, recurrent = (cast(Tensor, getattr(m, name)) for name in ("weight_ih_l0", "weight_hh_l0"))
    sizes = {"input_size": first.shape[1]}
    if m.proj_size:
        sizes["proj_size"] = recurrent.shape[1]
    else:
        sizes["hidden_size"] = recurrent.shape[1]
    return sizes


def _attention(m: nn.MultiheadAttention) -> dict[str, Any]:
    return {"embed_dim": m.out_proj.weight.shape[0]}


_DECLARED: list[tuple[type | tuple[type, ...], Callable[[Any], dict[str, Any]]]] = [
    (nn.Linear, _linear),
    (_ConvNd, _convolution),
    (_NormBase, _batch_norm),
    ((nn.LayerNorm, nn.RMSNorm), _normalized_shape),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (nn.MultiheadAttention, _attention),
]


def declares_sizes(module: nn.Module) -> bool:
    """Whether the sizes that a module keeps are known by the shapes of its tensors."""
    return any(isinstance(module, kind) for kind, _ in _DECLARED)


def outdated_sizes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes that no longer say what the module's tensors are, with what they should be."""
    for kind, sizes in _DECLARED:
        if isinstance(module, kind):
            for attribute, value in sizes(module).items():
                if getattr(module, attribute) != value:
                    yield attribute, value

"""The sizes that torch's own layers keep as attributes: are they those of their tensors?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.rnn import RNNCellBase

Sizes = Callable[[Any], dict[str, Any]]


def _convolution(m: Any) -> dict[str, Any]:
    one, other = m.weight.shape[:2]
    if isinstance(m, _ConvTransposeNd):
        return {"in_channels": one, "out_channels": other * m.groups}
    return {"in_channels": other * m.groups, "out_channels": one}


def _batch_norm(m: Any) -> dict[str, Any]:
    tensor = m.weight if m.weight is not None else m.running_mean
    return {} if tensor is None else {"num_features": len(tensor)}


def _recurrent(m: Any) -> dict[str, Any]:
    gates = {"LSTM": 4, "GRU": 3}.get(type(m).__name__, 1)
    first, again = m.weight_ih_l0, m.weight_hh_l0
    hidden = first.shape[0] // gates
    return {
        "input_size": first.shape[1],
        "hidden_size": hidden,
        "proj_size": again.shape[1] if again.shape[1] != hidden or m.proj_size else 0,
    }


def _attention(m: Any) -> dict[str, Any]:
    width = m.out_proj.weight.shape[0]
    packed = m.in_proj_weight is not None
    return {
        "embed_dim": width,
        "head_dim": width // m.num_heads,
        "kdim": width if packed else m.k_proj_weight.shape[1],
        "vdim": width if packed else m.v_proj_weight.shape[1],
    }


_SIZES: list[tuple[Any, Sizes]] = [
    (nn.Linear, lambda m: {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}),
    (
        nn.Bilinear,
        lambda m: dict(zip(("out_features", "in1_features", "in2_features"), m.weight.shape, strict=True)),
    ),
    (_ConvNd, _convolution),
    (_BatchNorm, _batch_norm),
    ((nn.LayerNorm, nn.RMSNorm), lambda m: {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)}),
    (nn.GroupNorm, lambda m: {} if m.weight is None else {"num_channels": len(m.weight)}),
    (
        (nn.Embedding, nn.EmbeddingBag),
        lambda m: {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]},
    ),
    (nn.PReLU, lambda m: {"num_parameters": len(m.weight)}),
    (nn.RNNBase, _recurrent),
    (RNNCellBase, lambda m: {"input_size": m.weight_ih.shape[1], "hidden_size": m.weight_hh.shape[1]}),
    (nn.MultiheadAttention, _attention),
]


def stale_sizes(model: nn.Module) -> list[str]:
    """The attributes of torch's layers that don't say what the tensors are."""
    return [
        f"{name}.{attribute} is {getattr(module, attribute)}, not {value}"
        for name, module in model.named_modules()
        for kind, sizes in _SIZES
        if isinstance(module, kind)
        for attribute, value in sizes(module).items()
        if getattr(module, attribute) != value
    ]

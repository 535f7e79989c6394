"""The sizes that torch.nn's own modules keep as attributes, told from the shapes of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def _weight(m: nn.Module) -> Tensor:
    """The weight, or the parameter of its shape that torch's hooks (pruning, weight and spectral norm) compute it from.

    What they have computed is renewed by the next call only.
    """
    own = m._parameters
    found = next((own[name] for name in ("weight", "weight_orig", "weight_v") if own.get(name) is not None), None)
    if found is not None:
        return found
    # A parametrisation may count how often it is computed in train mode, as spectral norm does.
    training = [module for module in m.modules() if module.training]
    try:
        for module in training:
            module.training = False
        return cast(Tensor, m.weight)
    finally:
        for module in training:
            module.training = True


def _linear(m: nn.Linear) -> dict[str, Any]:
    return dict(zip(("out_features", "in_features"), _weight(m).shape, strict=True))


def _convolution(m: _ConvNd) -> dict[str, Any]:
    one, other = _weight(m).shape[:2]
    ins, outs = (one, other * m.groups) if m.transposed else (other * m.groups, one)
    return {"in_channels": ins, "out_channels": outs}


def _batch_norm(m: _NormBase) -> dict[str, Any]:
    tensor = m.weight if m.weight is not None else m.running_mean
    return {} if tensor is None else {"num_features": tensor.shape[0]}


def _normalized_shape(m: nn.LayerNorm) -> dict[str, Any]:
    return {} if m.weight is None else {"normalized_shape": tuple(_weight(m).shape)}


def _group_norm(m: nn.GroupNorm) -> dict[str, Any]:
    return {} if m.weight is None else {"num_channels": _weight(m).shape[0]}


def _embedding(m: nn.Embedding | nn.EmbeddingBag) -> dict[str, Any]:
    return {"num_embeddings": _weight(m).shape[0], "embedding_dim": _weight(m).shape[1]}


def _prelu(m: nn.PReLU) -> dict[str, Any]:
    return {"num_parameters": _weight(m).shape[0]}


def _recurrent(m: nn.RNNBase) -> dict[str, Any]:
    first, recurrent = (cast(Tensor, getattr(m, name)) for name in ("weight_ih_l0", "weight_hh_l0"))
    sizes = {"input_size": first.shape[1]}
    if m.proj_size:
        sizes["proj_size"], sizes["hidden_size"] = cast(Tensor, m.weight_hr_l0).shape
    else:
        sizes["hidden_size"] = recurrent.shape[1]
    return sizes


def _recurrent_cell(m: nn.RNNCellBase) -> dict[str, Any]:
    return {"input_size": m.weight_ih.shape[1], "hidden_size": m.weight_hh.shape[1]}


def _bilinear(m: nn.Bilinear) -> dict[str, Any]:
    out, one, other = _weight(m).shape
    return {"in1_features": one, "in2_features": other, "out_features": out}


def _attention(m: nn.MultiheadAttention) -> dict[str, Any]:
    width = m.out_proj.weight.shape[0]
    key, value = (width if w is None else w.shape[1] for w in (m.k_proj_weight, m.v_proj_weight))
    return {"embed_dim": width, "head_dim": width // m.num_heads, "kdim": key, "vdim": value}


_DECLARED: list[tuple[type | tuple[type, ...], Callable[[Any], dict[str, Any]]]] = [
    (nn.Linear, _linear),
    (_ConvNd, _convolution),
    (_NormBase, _batch_norm),
    ((nn.LayerNorm, nn.RMSNorm), _normalized_shape),
    (nn.GroupNorm, _group_norm),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent_cell),
    (nn.Bilinear, _bilinear),
    (nn.MultiheadAttention, _attention),
]


def declares_sizes(module: nn.Module) -> bool:
    """Whether the sizes that a module keeps are known by the shapes of its tensors."""
    has_tensors = next(chain(module.parameters(), module.buffers()), None) is not None
    return has_tensors and any(isinstance(module, kind) for kind, _ in _DECLARED)


def declared_sizes(module: nn.Module) -> dict[str, Any]:
    """The sizes that a module keeps as attributes, as its tensors tell them."""
    return {k: v for kind, sizes in _DECLARED if isinstance(module, kind) for k, v in sizes(module).items()}


def outdated_sizes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes that no longer say what the module's tensors are, with what they should be."""
    for attribute, value in declared_sizes(module).items():
        if getattr(module, attribute) != value:
            yield attribute, value

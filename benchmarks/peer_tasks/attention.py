"""Half of the heads and half of the hidden units leave each block of a transformer; its width stays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import regrow as rg

SIZES = {"vocab_size": 100, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
BATCH, TOKENS, HEADS = 8, 64, 8
LR, MOMENTUM = 0.01, 0.9


def bert() -> nn.Module:
    """A small BERT."""
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_attention_heads=HEADS,
            max_position_embeddings=TOKENS,
            **SIZES,
        )
    )


def llama(key_value_heads: int) -> nn.Module:
    """A small Llama whose heads share keys and values in groups, or don't."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shared = {"num_attention_heads": HEADS, "num_key_value_heads": key_value_heads}
    model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=TOKENS, **shared, **SIZES))
    model.config.use_cache = False  # only the logits are wanted
    return model


def tokens() -> Tensor:
    """What they are given."""
    return torch.randint(SIZES["vocab_size"], (BATCH, TOKENS))


def torch_pruning_thins(model: nn.Module, ids: Tensor, heads: dict[nn.Module, int], kept: list[nn.Module]) -> Any:
    """Torch-Pruning: it has to be told how many heads each projection makes, and which layers keep their widths."""
    import torch_pruning as tp

    by = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean")
    whole: dict[str, Any] = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
    pruner = tp.pruner.BasePruner(model, ids, by, pruning_ratio=0.5, num_heads=heads, ignored_layers=kept, **whole)
    pruner.step()
    model.train()
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM), pruner


def heads_of_bert(model: Any) -> dict[nn.Module, int]:
    """What Torch-Pruning has to be told of BERT."""
    blocks = [block.attention.self for block in model.encoder.layer]
    return {layer: block.num_attention_heads for block in blocks for layer in (block.query, block.key, block.value)}


def heads_of_llama(model: Any) -> dict[nn.Module, int]:
    """What Torch-Pruning has to be told of Llama."""
    config, blocks = model.config, [block.self_attn for block in model.model.layers]
    shared = {layer: config.num_key_value_heads for block in blocks for layer in (block.k_proj, block.v_proj)}
    return {block.q_proj: config.num_attention_heads for block in blocks} | shared


def regrow_thins(model: nn.Module, ids: Tensor, hidden: str, optimizer: torch.optim.Optimizer) -> rg.Edit:
    """regrow: it finds the heads; ``hidden`` is a pattern of names, as ``"*.mlp.*"``."""
    structure = rg.analyze(model, ids)
    axes = [*structure.select(kind="head"), *structure.select(hidden)]
    return rg.prune_(structure, {axis.name: 0.5 for axis in axes}, rg.GroupNorm(), optimizer=optimizer)

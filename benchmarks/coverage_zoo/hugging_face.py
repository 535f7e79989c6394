"""Architectures of transformers, from small configs built here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

from regrow.inspect.subject import BATCH, numbers

from .case import Build, Case

# No two sizes are the same, so that none can be taken for another by accident.
VOCABULARY, LABELS, TOKENS, POSITIONS = 101, 7, 12, 40
HIDDEN, HEADS, KEY_VALUE_HEADS, LAYERS, INNER = 64, 4, 2, 2, 152
IMAGE, PATCH = 48, 8
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    **SPECIAL,
}
LABELLED = {**TEXT, "num_labels": LABELS}
GROUPED = {**TEXT, "num_key_value_heads": KEY_VALUE_HEADS}
HEAD_DIM = {"head_dim": HIDDEN // HEADS}
GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_inner": INNER,
    "n_positions": POSITIONS,
    **SPECIAL,
}
# Of transformers' three ways the grouped kernel only takes rows of whole 16 bytes, which half of a layer needn't have,
# and the loop over experts leaves out those that no token goes to. This one has them all in one product.
EXPERTS = {**GROUPED, "num_experts_per_tok": 2, "experts_implementation": "batched_mm"}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER + 8,
    "max_position_embeddings": POSITIONS,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    **SPECIAL,
}
VISION = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "image_size": IMAGE,
    "patch_size": PATCH,
    "num_labels": LABELS,
}
# Dropped layers and masked features would differ between the two runs that are compared.
SPEECH = {
    **LABELLED,
    "conv_dim": (24, 40),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 56,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
STATE = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, **SPECIAL}


def tokens(count: int = TOKENS) -> Tensor:
    """Random tokens, none of them special."""
    return torch.randint(3, VOCABULARY, (BATCH, count), generator=torch.Generator().manual_seed(1))


def _text() -> dict[str, Tensor]:
    return {"input_ids": tokens()}


def _translation() -> dict[str, Tensor]:
    return {"input_ids": tokens(), "decoder_input_ids": tokens(9)}


def _image() -> dict[str, Tensor]:
    return {"pixel_values": numbers(BATCH, 3, IMAGE, IMAGE)}


def _large_image() -> dict[str, Tensor]:
    return {"pixel_values": numbers(BATCH, 3, 2 * IMAGE, 2 * IMAGE)}


def _sound() -> dict[str, Tensor]:
    return {"input_values": numbers(BATCH, 1000)}


def _spectrum() -> dict[str, Tensor]:
    return {"input_values": numbers(BATCH, 64, 32)}


def _whisper() -> dict[str, Tensor]:
    return {"input_features": numbers(BATCH, 20, 60), "decoder_input_ids": tokens(9)}


def _pair() -> dict[str, Tensor]:
    return {**_text(), **_image()}


Inputs = Callable[[], dict[str, Tensor]]

_CLIP_PART = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, **SPECIAL}

#: name -> the model's class, its config, its inputs.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], Inputs]] = {
    # encoders
    "bert": ("BertForSequenceClassification", LABELLED, _text),
    "roberta": ("RobertaForSequenceClassification", {**LABELLED, "pad_token_id": 1, "bos_token_id": 0}, _text),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {**LABELLED, "dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INNER},
        _text,
    ),
    "electra": ("ElectraForSequenceClassification", {**LABELLED, "embedding_size": 48}, _text),
    "albert": ("AlbertForSequenceClassification", {**LABELLED, "embedding_size": 48}, _text),
    "deberta": (
        "DebertaForSequenceClassification",
        {**LABELLED, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": HIDDEN},
        _text,
    ),
    "deberta_v2": (
        "DebertaV2ForSequenceClassification",
        {
            **LABELLED,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "share_att_key": True,
            "position_buckets": 8,
            "pooler_hidden_size": HIDDEN,
        },
        _text,
    ),
    "mpnet": ("MPNetForSequenceClassification", LABELLED, _text),
    "modernbert": (
        "ModernBertForSequenceClassification",
        {**LABELLED, "cls_token_id": 1, "sep_token_id": 2, "num_hidden_layers": 3},
        _text,
    ),
    "roformer": ("RoFormerForSequenceClassification", {**LABELLED, "embedding_size": HIDDEN}, _text),
    "esm": (
        "EsmForSequenceClassification",
        {**LABELLED, "mask_token_id": 3, "position_embedding_type": "rotary"},
        _text,
    ),
    "fnet": ("FNetForSequenceClassification", LABELLED, _text),
    "xlnet": (
        "XLNetForSequenceClassification",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "d_inner": INNER,
            "num_labels": LABELS,
            "use_mems_eval": False,
            **SPECIAL,
        },
        _text,
    ),
    # decoders
    "gpt2": ("GPT2LMHeadModel", GPT, _text),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {**TEXT, "num_layers": LAYERS, "num_heads": HEADS, "attention_types": [[["global", "local"], 1]]},
        _text,
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", TEXT, _text),
    "gptj": ("GPTJForCausalLM", {**GPT, "rotary_dim": 8}, _text),
    "bloom": ("BloomForCausalLM", {**TEXT, "n_layer": LAYERS, "n_head": HEADS}, _text),
    "opt": (
        "OPTForCausalLM",
        {**TEXT, "ffn_dim": INNER, "word_embed_proj_dim": HIDDEN},
        _text,
    ),
    "mpt": (
        "MptForCausalLM",
        {"vocab_size": VOCABULARY, "d_model": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": POSITIONS},
        _text,
    ),
    "phi": ("PhiForCausalLM", TEXT, _text),
    "phi3": ("Phi3ForCausalLM", GROUPED, _text),
    "llama": ("LlamaForCausalLM", GROUPED, _text),
    "mistral": ("MistralForCausalLM", {**GROUPED, **HEAD_DIM, "sliding_window": 8}, _text),
    "qwen2": ("Qwen2ForCausalLM", GROUPED, _text),
    "qwen3": ("Qwen3ForCausalLM", {**GROUPED, **HEAD_DIM}, _text),
    "gemma": ("GemmaForCausalLM", {**GROUPED, **HEAD_DIM}, _text),
    "gemma2": ("Gemma2ForCausalLM", {**GROUPED, **HEAD_DIM, "sliding_window": 8}, _text),
    "falcon": ("FalconForCausalLM", {**TEXT, "ffn_hidden_size": INNER}, _text),
    "stablelm": ("StableLmForCausalLM", GROUPED, _text),
    "starcoder2": ("Starcoder2ForCausalLM", GROUPED, _text),
    "olmo2": ("Olmo2ForCausalLM", GROUPED, _text),
    "cohere": ("CohereForCausalLM", GROUPED, _text),
    "granite": ("GraniteForCausalLM", GROUPED, _text),
    # mixtures of experts
    "mixtral": ("MixtralForCausalLM", {**EXPERTS, "num_local_experts": 5}, _text),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {**EXPERTS, "num_experts": 5, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 72},
        _text,
    ),
    "olmoe": ("OlmoeForCausalLM", {**EXPERTS, "num_experts": 5}, _text),
    # encoders with decoders
    "t5": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_kv": HIDDEN // HEADS,
            "d_ff": INNER,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "decoder_start_token_id": 0,
            **SPECIAL,
        },
        _translation,
    ),
    "bart": ("BartForConditionalGeneration", BART, _translation),
    "mbart": ("MBartForConditionalGeneration", BART, _translation),
    "pegasus": ("PegasusForConditionalGeneration", BART, _translation),
    "marian": ("MarianMTModel", BART, _translation),
    # sound
    "whisper": (
        "WhisperForConditionalGeneration",
        {**BART, "num_mel_bins": 20, "max_source_positions": 30, "max_target_positions": POSITIONS},
        _whisper,
    ),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", SPEECH, _sound),
    "hubert": ("HubertForSequenceClassification", SPEECH, _sound),
    "ast": (
        "ASTForAudioClassification",
        {**VISION, "max_length": 64, "num_mel_bins": 32, "frequency_stride": 8, "time_stride": 8},
        _spectrum,
    ),
    # images
    "vit": ("ViTForImageClassification", VISION, _image),
    "deit": ("DeiTForImageClassification", VISION, _image),
    "beit": ("BeitForImageClassification", {**VISION, "use_relative_position_bias": True}, _image),
    "dinov2": ("Dinov2ForImageClassification", {**VISION, "mlp_ratio": 3}, _image),
    "swin": (
        "SwinForImageClassification",
        {
            "image_size": 2 * IMAGE,
            "patch_size": 4,
            "embed_dim": 32,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 6,
            "num_labels": LABELS,
        },
        _large_image,
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [16, 24, 40, 64], "depths": [1, 1, 2, 1], "num_labels": LABELS},
        _large_image,
    ),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [24, 48, 64], "depths": [1, 2, 1], "num_labels": LABELS},
        _large_image,
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "sr_ratios": [4, 2, 2, 1],
            "decoder_hidden_size": 56,
            "num_labels": LABELS,
        },
        _large_image,
    ),
    "clip": (
        "CLIPModel",
        {
            "text_config": {**_CLIP_PART, "vocab_size": VOCABULARY, "intermediate_size": INNER, "hidden_act": "gelu"},
            "vision_config": {**_CLIP_PART, "image_size": IMAGE, "patch_size": PATCH, "intermediate_size": INNER + 8},
            "projection_dim": 56,
        },
        _pair,
    ),
    # state spaces
    "mamba": ("MambaForCausalLM", {**STATE, "state_size": 6, "time_step_rank": 5}, _text),
    "mamba2": (
        "Mamba2ForCausalLM",
        {**STATE, "state_size": 6, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 4},
        _text,
    ),
    "rwkv": (
        "RwkvForCausalLM",
        {**STATE, "attention_hidden_size": HIDDEN, "intermediate_size": INNER, "context_length": POSITIONS},
        _text,
    ),
}


def hugging_face_zoo() -> dict[str, Build]:
    """One model of each architecture."""
    transformers.logging.set_verbosity_error()
    return {f"hf/{name}": partial(_build, *described) for name, described in ARCHITECTURES.items()}


def _build(class_name: str, options: dict[str, Any], inputs: Inputs) -> Case:
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**options)
    config.use_cache = False  # keys and values for a next call aren't compared
    return Case(model_class(config), kwargs=inputs())

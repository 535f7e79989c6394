"""Models from other people's libraries, small, with what their layers and cells are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn


def images() -> Tensor:
    return torch.randn(3, 3, 32, 32)


def tokens() -> Tensor:
    return torch.randint(64, (3, 8))


_SIZES: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}


def gpt2() -> nn.Module:
    off: dict[str, Any] = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
    sizes: dict[str, Any] = {"n_positions": 16, "n_embd": 12, "n_layer": 3, "n_head": 3}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**_SIZES, **off, **sizes))


def bert() -> nn.Module:
    off: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 32,
    }
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=64, **off, **sizes))


def llama() -> nn.Module:
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES, **sizes, num_key_value_heads=3))


def _timm(name: str, **sizes: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **sizes)


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(
        growth_rate=8,
        block_config=(2, 2, 2),  # type: ignore[arg-type]
        num_init_features=8,
        num_classes=5,
    )


#: Name -> the model, its input, and the first cells that it has.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], list[str]]] = {
    "torchvision vgg11_bn": (
        lambda: nn.Sequential(*list(torchvision.models.vgg11_bn().features)[:15], nn.Flatten(), nn.Linear(4096, 5)),  # type: ignore[arg-type]
        images, [],
    ),
    "torchvision resnet18": (
        lambda: torchvision.models.resnet18(num_classes=5), images, ["layer1.0", "layer1.1", "layer2.1", "layer3.1"],
    ),
    "torchvision densenet": (densenet, images, [f"features.denseblock1.denselayer{i}" for i in (1, 2)]),
    "torchvision mobilenet_v2": (
        lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.25, dropout=0.0),
        images, ["features.3", "features.5"],
    ),
    "timm resnet26": (_timm("resnet26"), images, ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
    "timm convnext": (
        _timm("convnext_atto", depths=(1, 2, 2, 1), dims=(8, 12, 16, 20)), images,
        ["stages.0.blocks.0", "stages.1.blocks.0", "stages.1.blocks.1"],
    ),
    "timm vit": (
        _timm("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=3, num_heads=3), images,
        ["blocks.0", "blocks.1", "blocks.2"],
    ),
    "transformers bert": (bert, tokens, [f"bert.encoder.layer.{i}" for i in range(3)]),
    "transformers gpt2": (gpt2, tokens, [f"transformer.h.{i}" for i in range(3)]),
    "transformers llama": (llama, tokens, [f"model.layers.{i}" for i in range(3)]),
}  # fmt: skip

#: The attribute of the configuration that counts cells.
COUNTED = {
    "transformers bert": "num_hidden_layers",
    "transformers gpt2": "n_layer",
    "transformers llama": "num_hidden_layers",
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The model with running statistics that aren't 0 and 1, in eval mode, and its input."""
    make, example, _ = MODELS[name]
    torch.manual_seed(0)
    model, x = make(), example()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms that do something, as after training
                parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(30):
            model.train()(x)
    return model.eval(), x

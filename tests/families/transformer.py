"""torch's own attention and transformer layers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Between
from .family import Family, tokens


class Torch(nn.Module):
    """torch's own attention."""

    def __init__(self, residual: bool = True, **options: Any) -> None:
        super().__init__()
        self.residual = residual
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True, **options)
        self.key, self.value = nn.Linear(12, options.get("kdim", 12)), nn.Linear(12, options.get("vdim", 12))

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.attention(x, self.key(x), self.value(x))
        return x + out if self.residual else out


class Pooled(Torch):
    """torch's own attention over the largest of its neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.max_pool1d(x.mT, 3, stride=1, padding=1).mT)


class Decoder(nn.Module):
    """torch's decoder layer over a memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Linear(12, 12)
        self.layer = nn.TransformerDecoderLayer(12, 2, 20, 0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.memory(x))


class Encoder(nn.Module):
    """Two of torch's encoder layers."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 20, 0.0, "gelu", batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


#: torch's attention ties the stream to the heads: one feature of each head goes with as many channels of the stream,
#: and one head with as many as it has features.
ATTENTION = """
    body.attention.heads    | head 3    | stream         |
        first.{weight,bias} body.{key,value}.{weight,bias} body.{key,value}.weight:1 last.weight:1
        body.attention.{in_proj_weight,in_proj_bias} body.attention.{in_proj_,out_proj.}weight:1
        body.attention.out_proj.{weight,bias}
    body.attention.features | feature 4 | stream inexact |
        first.{weight,bias} body.{key,value}.{weight,bias} body.{key,value}.weight:1 last.weight:1
        body.attention.{in_proj_weight,in_proj_bias} body.attention.{in_proj_,out_proj.}weight:1
        body.attention.out_proj.{weight,bias}
"""
ENCODER = """
    body.encoder.layers.0.self_attn.heads    | head 2    | stream inexact | {stream}
    body.encoder.layers.0.self_attn.features | feature 6 | stream inexact | {stream}
    body.encoder.layers.0.linear1 | neuron 20 | |
        body.encoder.layers.0.linear1.{weight,bias} body.encoder.layers.0.linear2.weight:1
    body.encoder.layers.1.linear1 | neuron 20 | |
        body.encoder.layers.1.linear1.{weight,bias} body.encoder.layers.1.linear2.weight:1
""".replace(
    "{stream}",
    """
        first.{weight,bias} last.weight:1 body.encoder.layers.{0,1}.{norm1,norm2,linear2}.{weight,bias}
        body.encoder.layers.{0,1}.linear1.weight:1 body.encoder.layers.{0,1}.self_attn.in_proj_{weight,bias,weight:1}
        body.encoder.layers.{0,1}.self_attn.out_proj.{weight,bias,weight:1}
""",
)
DECODER = """
    body.layer.self_attn.heads    | head 2    | stream inexact | {stream}
    body.layer.self_attn.features | feature 6 | stream inexact | {stream}
    body.layer.linear1 | neuron 20 | | body.layer.linear1.{weight,bias} body.layer.linear2.weight:1
""".replace(
    "{stream}",
    """
        first.{weight,bias} last.weight:1 body.memory.{weight,bias,weight:1}
        body.layer.{norm1,norm2,norm3,linear2}.{weight,bias} body.layer.linear1.weight:1
        body.layer.{self_attn,multihead_attn}.in_proj_{weight,bias,weight:1}
        body.layer.{self_attn,multihead_attn}.out_proj.{weight,bias,weight:1}
""",
)

FAMILIES = [
    Family("torch", lambda: Between(Torch()), tokens(), ATTENTION),
    Family("torch_alone", lambda: Between(Torch(False)), tokens(), ATTENTION.replace("stream", "")),
    Family("torch_pooled", lambda: Between(Pooled()), tokens(), ATTENTION),
    Family(
        "torch_biased_keys",
        lambda: Between(Torch(add_bias_kv=True, add_zero_attn=True)),
        tokens(),
        ATTENTION.replace("last.weight:1", "last.weight:1 body.attention.bias_{k,v}:2"),
    ),
    Family(
        "torch_separate",
        lambda: Between(Torch(kdim=5, vdim=7)),
        tokens(),
        """
        body.attention.heads    | head 3    | stream         | {stream}
        body.attention.features | feature 4 | stream inexact | {stream}
        body.key   | neuron 5 | | body.key.{weight,bias} body.attention.k_proj_weight:1
        body.value | neuron 7 | | body.value.{weight,bias} body.attention.v_proj_weight:1
    """.replace(
            "{stream}",
            """
            first.{weight,bias} body.{key,value}.weight:1 last.weight:1 body.attention.in_proj_bias
            body.attention.{q,k,v}_proj_weight body.attention.{q_proj_,out_proj.}weight:1
            body.attention.out_proj.{weight,bias}
    """,
        ),
    ),
    Family("encoder", lambda: Between(Encoder(False)), tokens(), ENCODER),
    Family("encoder_norm_first", lambda: Between(Encoder(True)), tokens(), ENCODER),
    Family("decoder", lambda: Between(Decoder()), tokens(), DECODER),
]

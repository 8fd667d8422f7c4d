"""What Llama, Mistral, Qwen and their like share: pre-norm layers of rotary attention and a gated MLP.

h = norm(x);  x = x + o(attention(q(h), k(h), v(h)));  x = x + down(act(gate(norm(x))) * up(norm(x)))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdeploy.arch.builder import ACTIVATIONS
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import Branch, Decoder, Layer, Norm
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.names import Names
from qdeploy.arch.rope import read_rope
from qdeploy.arch.self_attention import Rotation, SelfAttention, read_interleaved


def attention_layers(
    config: Config, windows: Sequence[int], head_dim: int, kv_heads: int, context: int, **more: Any
) -> list[SelfAttention]:
    """The attention of every layer: one rotation for all, a window per layer.

    Args:
        config: The whole config.json.
        windows: Per layer: how many keys a query sees, 0 for all.
        head_dim: Extent of a head.
        kv_heads: Key and value heads.
        context: `max_position_embeddings`.
        more: Further fields of `SelfAttention`, the same for all layers.
    """
    rope = read_rope(config, head_dim, context)
    rotation = Rotation(rope, read_interleaved(config))
    size_field = "head_dim" if config.has("head_dim") else "num_attention_heads"
    return [
        SelfAttention(
            config.size("hidden_size"),
            config.size("num_attention_heads"),
            kv_heads,
            head_dim,
            window,
            rope.context,
            head_dim**-0.5,
            rotation,
            size_field=size_field,
            **more,
        )
        for window in windows
    ]


def prenorm_decoder(
    config: Config,
    names: Names,
    attention: Sequence[SelfAttention],
    *,
    mlp_bias: bool = False,
    refused: Mapping[str, tuple[object, ...]] | None = None,
) -> Decoder:
    """A decoder with RMS norms before attention and before a gated MLP."""
    activation = config.choose("hidden_act", ACTIVATIONS, "silu")
    mlp = Mlp(config.size("hidden_size"), config.size("intermediate_size"), activation, mlp_bias)
    layers = tuple(
        Layer((Branch(block, before="input_layernorm"), Branch(mlp, before="post_attention_layernorm")))
        for block in attention
    )
    norm = Norm("rms", config.positive("rms_norm_eps", 1e-6))
    return Decoder(config.text("model_type"), names, layers, attention[0].capacity, norm, refused=refused or {})

"""What most decoders share: attention with rotary positions in every layer, and a gated MLP.

h = norm(x);  x = x + o(attention(q(h), k(h), v(h)));  x = x + down(act(gate(norm(x))) * up(norm(x)))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qdeploy.arch.builder import ACTIVATIONS
from qdeploy.arch.config import Config
from qdeploy.arch.layers import PRE, Placement
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.names import Names
from qdeploy.arch.rope import read_rope
from qdeploy.arch.self_attention import Rotation, SelfAttention, read_interleaved
from qdeploy.arch.stack import Block, Decoder, Norm

Refused = Mapping[str, tuple[object, ...]]


def attention_layers(
    config: Config,
    windows: Sequence[int],
    head_dim: int,
    kv_heads: int,
    context: int,
    *,
    interleaved: bool = False,
    **more: Any,
) -> list[SelfAttention]:
    """The attention of every layer: one rotation for all, a window per layer.

    Args:
        config: The whole config.json.
        windows: Per layer: how many keys a query sees, 0 for all.
        head_dim: Extent of a head.
        kv_heads: Key and value heads.
        context: `max_position_embeddings`.
        interleaved: Whether the family's rotary pairs are neighbours.
        more: Further fields of `SelfAttention`, the same for all layers.
    """
    rope = read_rope(config, head_dim, context)
    settings: dict[str, Any] = {
        "scale": head_dim**-0.5,
        "rotation": Rotation(rope, read_interleaved(config, interleaved)),
        "size_field": "head_dim" if config.has("head_dim") else "num_attention_heads",
        **more,
    }
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    return [SelfAttention(hidden, heads, kv_heads, head_dim, window, rope.context, **settings) for window in windows]


def gated_mlp(config: Config, field: str = "hidden_act", default: str = "silu", **more: Any) -> Mlp:
    """The MLP that `intermediate_size` and an activation describe; `more` as for `Mlp`."""
    activation = config.choose(field, ACTIVATIONS, default)
    return Mlp(config.size("hidden_size"), config.size("intermediate_size"), activation, **more)


def rms_norm(config: Config, default: float = 1e-6, **more: Any) -> Norm:
    """The RMS norm that `rms_norm_eps` describes; `more` as for `Norm`."""
    return Norm("rms", config.positive("rms_norm_eps", default), **more)


def standard_decoder(
    config: Config,
    names: Names,
    attention: Sequence[SelfAttention],
    mlp: Block | Sequence[Block],
    norm: Norm,
    *,
    placement: Placement = PRE,
    refused: Refused | None = None,
    **more: Any,
) -> Decoder:
    """A decoder of attention and MLPs (one for all layers, or one for each); `more` as for `Decoder`."""
    layers = placement.layers(attention, mlp)
    model_type = config.text("model_type")
    return Decoder(model_type, names, layers, attention[0].capacity, norm, refused=refused or {}, **more)


def with_local_rotation(
    attention: Sequence[SelfAttention], config: Config, head_dim: int, context: int
) -> list[SelfAttention]:
    """The same layers, those with a window with the rotary frequencies that `config` describes."""
    rotation = Rotation(read_rope(config, head_dim, context), name="rope.inv_freq.local")
    return [replace(block, rotation=rotation) if block.window else block for block in attention]


def without_rotation(attention: Sequence[SelfAttention], rotated: Sequence[bool]) -> list[SelfAttention]:
    """The same layers, those without rotary positions where `rotated` is false."""
    return [block if rope else replace(block, rotation=None) for block, rope in zip(attention, rotated, strict=True)]

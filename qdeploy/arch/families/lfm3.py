"""LFM3: short convolutions, attention with a window, and attention with all keys, chosen by `layer_types`.

Norms stand before and behind the branches (`use_sandwich_norm`); heads of queries and keys are normed; what a head
gives is multiplied with the sigmoid of one number that the layer's input decides (`use_attention_gate`). Layers with a
window have rotary frequencies of their own; of the others only a part of each head turns.
"""

from __future__ import annotations

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, check_layer_types, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import Placement
from qdeploy.arch.mlp import Mlp, MlpParts
from qdeploy.arch.names import Names
from qdeploy.arch.prenorm import attention_layers, with_local_rotation
from qdeploy.arch.recurrent import ShortConv
from qdeploy.arch.rope import for_layers, with_default_rotations
from qdeploy.arch.self_attention import Parts, QueryKeyNorm, SelfAttention
from qdeploy.arch.stack import Block, Decoder, Modules, Norm
from qdeploy.arch.windows import window_of
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_KINDS = ("conv", "sliding_attention", "full_attention")
_ROTATIONS = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.5},
}


def build(model: Model) -> Graph:
    """Builds the graph of an Lfm3ForCausalLM."""
    config = with_default_rotations(Config(model.config), _ROTATIONS)
    layers, hidden = layer_count(model, config), config.size("hidden_size")
    kinds = check_layer_types(config, layers, _KINDS) or [_kind(i) for i in range(layers)]
    attention = _attention(config, kinds)
    conv = ShortConv(hidden, config.size("conv_L_cache", 7), config.flag("conv_bias", False))
    mixers: list[Block] = [conv if kind == "conv" else block for kind, block in zip(kinds, attention, strict=True)]
    mlp = Mlp(
        hidden,
        config.size("intermediate_size", 7680),
        "silu",
        parts=MlpParts(gate="w1", up="w3", down="w2"),
        module="feed_forward",
    )
    decoder = Decoder(
        "lfm3",
        NAMES,
        _placement(config).layers(mixers, mlp),
        attention[0].capacity,
        _norm(config),
        modules=Modules(norm="model.embedding_norm"),
    )
    return build_decoder(model, config, decoder)


def _norm(config: Config) -> Norm:
    return Norm("rms", config.positive("norm_eps", 1e-5))


def _kind(layer: int) -> str:
    """Of a layer where the configuration does not say it."""
    return {2: "full_attention", 0: "sliding_attention" if layer else "conv"}.get(layer % 4, "conv")


def _placement(config: Config) -> Placement:
    if not config.flag("use_sandwich_norm", True):
        return Placement(before_mixer="operator_norm", before_mlp="ffn_norm")
    return Placement("operator_norm", "post_operator_norm", "ffn_norm", "post_ffn_norm")


def _attention(config: Config, kinds: list[str]) -> list[SelfAttention]:
    """As if every layer had attention; those with a convolution are passed over."""
    head_dim, kv_heads = heads_of(config, head_dim=128, kv_heads=min(4, config.size("num_attention_heads")))
    context, bias = config.size("max_position_embeddings", 128000), config.flag("attention_bias", False)
    window = window_of(config, 256)
    if "sliding_attention" in kinds and not window:
        raise config.contradiction("layer_types, sliding_window", "sliding layers without a window", "a window")
    attention = attention_layers(
        for_layers(config, "full_attention"),
        [window if kind == "sliding_attention" else 0 for kind in kinds],
        head_dim,
        kv_heads,
        context,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=QueryKeyNorm(_norm(config).epsilon),
        parts=Parts(head_gate="gate_proj" if config.flag("use_attention_gate", True) else ""),
    )
    return with_local_rotation(attention, for_layers(config, "sliding_attention"), head_dim, context)


NAMES = Names(())
FAMILY = Family(name="lfm3", heads={"lfm3": ("Lfm3ForCausalLM",)}, names=NAMES, build=build)

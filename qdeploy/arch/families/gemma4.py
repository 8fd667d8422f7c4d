"""Gemma 4 (text): per-layer embeddings, caches that layers share, and experts beside the MLP.

    x = x + norm(attention(norm(x)))
    x = x + norm(mlp(norm(x)))       with experts: x + norm(norm(mlp(norm(x))) + norm(experts(norm(x))))
    x = x + norm(down(act(gate(x)) * input of the layer))
    x = x * layer_scalar

Heads of queries, keys and values are normed, and scores are not scaled.
Layers with all keys have a head extent of their own (`global_head_dim`) and turn only a part of it; `attention_k_eq_v`
makes their values of the keys' projection. The last `num_kv_shared_layers` layers have no keys and values: each takes
those of the last layer before them of its own kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qdeploy.arch.builder import ACTIVATIONS, Builder, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, check_layer_types, heads_of
from qdeploy.arch.experts import ExpertParts, Experts, Routing
from qdeploy.arch.family import Family
from qdeploy.arch.layer_inputs import EmbeddedInputs, LayerInputGate
from qdeploy.arch.layers import BOTH
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.names import Names
from qdeploy.arch.prenorm import rms_norm
from qdeploy.arch.rope import for_layers, with_default_rotations
from qdeploy.arch.self_attention import SelfAttention
from qdeploy.arch.shared_caches import producers
from qdeploy.arch.stack import Block, Branch, Decoder, Layer, Norm
from qdeploy.arch.unscaled import KINDS, WHOLE, unscaled_attention
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

LAYERS = "model.layers"
_ROTATIONS = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
}


def build(model: Model) -> Graph:
    """Builds the graph of a Gemma4ForCausalLM."""
    config = with_default_rotations(Config(model.config), _ROTATIONS)
    config.refuse({"use_bidirectional_attention": ("vision",)})  # of images, of which there are none
    config.read.add("use_bidirectional_attention")
    layers = layer_count(model, config)
    kinds = check_layer_types(config, layers, KINDS) or [KINDS[(i + 1) % 6 > 0] for i in range(layers)]
    kinds[-1] = WHOLE
    shared = producers(config, kinds)
    attention = [_attention(config, i, kind, shared[i]) for i, kind in enumerate(kinds)]
    inputs = _inputs(config, layers)
    blocks = [_layer(config, block, inputs) for block in attention]
    decoder = Decoder(
        "gemma4_text",
        NAMES,
        tuple(blocks),
        attention[0].capacity,
        rms_norm(config),
        embedding_multiplier=config.size("hidden_size") ** 0.5,
        logits_softcap=config.positive("final_logit_softcapping") if config.has("final_logit_softcapping") else 0.0,
        layer_inputs=inputs,
    )
    return build_decoder(model, config, decoder)


def _attention(config: Config, layer: int, kind: str, shared: int | None) -> SelfAttention:
    whole, count = kind == WHOLE, config.size("num_attention_heads")
    heads = _heads(config, layer, whole)
    if count % heads[1]:
        raise config.contradiction("num_attention_heads, key and value heads", f"{count}, {heads[1]}", "a multiple")
    return unscaled_attention(
        config,
        kind,
        for_layers(config, kind),
        heads,
        config.size("max_position_embeddings", 131072),
        values_are_keys=whole and config.flag("attention_k_eq_v", False),
        shared_with=shared,
    )


def _heads(config: Config, layer: int, whole: bool) -> tuple[int, int]:
    """Extent of a head, and key heads: `per_layer_config`, or the fields of layers with all keys."""
    head_dim, kv_heads = heads_of(config, head_dim=256, kv_heads=min(4, config.size("num_attention_heads")))
    listed = config.fields.get("per_layer_config")
    config.read.update(("per_layer_config", "global_head_dim", "num_global_key_value_heads"))
    if listed is None:
        fields: Mapping[str, Any] = {"head_dim": config.size("global_head_dim", 512)} if whole else {}
        if whole and config.flag("attention_k_eq_v", False) and config.has("num_global_key_value_heads"):
            fields = {**fields, "num_key_value_heads": config.size("num_global_key_value_heads")}
    else:
        if not isinstance(listed, dict) or not all(isinstance(entry, dict) for entry in listed.values()):
            raise config.contradiction("per_layer_config", listed, "fields of layers by their numbers")
        fields = listed.get(str(layer), {})
    of_layer = Config(fields, f"{config.where}: per_layer_config: {layer}")
    of_layer.refuse({name: () for name in fields if name not in ("head_dim", "num_key_value_heads")})
    return of_layer.size("head_dim", head_dim), of_layer.size("num_key_value_heads", kv_heads)


def _activation(config: Config) -> str:
    return config.choose("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")


def _inputs(config: Config, layers: int) -> EmbeddedInputs | None:
    extent = config.fields.get("hidden_size_per_layer_input", 256)
    config.read.update(("hidden_size_per_layer_input", "vocab_size_per_layer_input"))
    if not extent:
        return None
    rows = config.size("vocab_size_per_layer_input", 262144)
    if rows < config.size("vocab_size"):
        raise config.contradiction("vocab_size_per_layer_input, vocab_size", rows, "a row per token")
    hidden, width = config.size("hidden_size"), config.size("hidden_size_per_layer_input", 256)
    return EmbeddedInputs(hidden, layers, width, rows, rms_norm(config))


def _layer(config: Config, attention: SelfAttention, inputs: EmbeddedInputs | None) -> Layer:
    wide = 2 if config.flag("use_double_wide_mlp", False) and attention.shared_with is not None else 1
    hidden, inner = config.size("hidden_size"), config.size("intermediate_size", 9216) * wide
    mlp = Mlp(hidden, inner, _activation(config))
    if config.flag("enable_moe_block", False):
        block = MlpAndExperts(mlp, _experts(config), rms_norm(config), hidden)
        second = Branch(block, "", BOTH.after_mlp)
    else:
        second = Branch(mlp, BOTH.before_mlp, BOTH.after_mlp)
        config.read.update(("num_experts", "top_k_experts", "moe_intermediate_size"))
    branches = [Branch(attention, BOTH.before_mixer, BOTH.after_mixer), second]
    if inputs is not None:
        gate = LayerInputGate(hidden, inputs.extent, _activation(config))
        branches.append(Branch(gate, "", "post_per_layer_input_norm"))
    return Layer(tuple(branches), factor="layer_scalar")


def _experts(config: Config) -> Experts:
    routing = Routing(config.size("top_k_experts"), "softmax", normalize=True, scales="router.per_expert_scale")
    return Experts(
        config.size("hidden_size"),
        config.size("moe_intermediate_size"),
        config.size("num_experts"),
        _activation(config),
        routing,
        parts=ExpertParts(router="router.proj", rows_first=True),
        module="",
    )


@dataclass(frozen=True)
class MlpAndExperts:
    """A block of a decoder's branch: norm_1(mlp(norm(x))) + norm_2(experts(norm(x))); the router norms x itself.

    Attributes:
        mlp: What every token takes.
        experts: What few tokens take.
        norm: Every norm.
        hidden: Extent of the hidden axis.
    """

    mlp: Block
    experts: Experts
    norm: Norm
    hidden: int

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds both and their sum."""
        dense = self.mlp.add(builder, layer, self._normed(builder, layer, x, "pre_feedforward_layernorm"))
        dense = self._normed(builder, layer, dense, "post_feedforward_layernorm_1")
        before = self._normed(builder, layer, x, "pre_feedforward_layernorm_2")
        chosen = self.experts.add_routed(builder, layer, before, self._seen(builder, layer, x))
        chosen = self._normed(builder, layer, chosen, "post_feedforward_layernorm_2")
        return builder.node("Add", dense, chosen, name=f"layers.{layer}.both")

    def _normed(self, builder: Builder, layer: int, x: str, module: str) -> str:
        parameters = self.norm.parameters(builder, f"{LAYERS}.{layer}.{module}", self.hidden)
        return self.norm.add(builder, x, parameters, f"layers.{layer}.{module}")

    def _seen(self, builder: Builder, layer: int, x: str) -> str:
        """What the router sees: the norm of x without a weight, times its own scale and hidden ^ -1/2."""
        scale = builder.weight(f"{LAYERS}.{layer}.router.scale", (self.hidden,), "hidden_size")
        factors = builder.model.tensors[scale].decode() * np.float32(self.hidden**-0.5)
        parameters = (builder.constant(f"layers.{layer}.router.factors", factors),)
        return replace(self.norm, offset=0.0).add(builder, x, parameters, f"layers.{layer}.router.norm")


NAMES = Names(())
FAMILY = Family(name="gemma4", heads={"gemma4_text": ("Gemma4ForCausalLM",)}, names=NAMES, build=build)

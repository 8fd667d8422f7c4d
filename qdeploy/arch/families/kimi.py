"""Kimi Linear (arXiv 2510.26692): delta rules with a decay per channel, latent attention without positions, experts.

`linear_attn_config` of published configurations lists layers from 1 on; `layer_types` says the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qdeploy.arch.builder import Builder, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, check_layer_types
from qdeploy.arch.experts import MIXTRAL, Experts
from qdeploy.arch.experts_config import REFUSED, deepseek_layers
from qdeploy.arch.family import Family
from qdeploy.arch.latent import LatentAttention
from qdeploy.arch.layers import PRE
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import rms_norm
from qdeploy.arch.recurrent import conv, gated, linear
from qdeploy.arch.stack import Block, Decoder
from qdeploy.ir.graph import Graph, State
from qdeploy.ir.model import Model

_KINDS = ("linear_attention", "full_attention")
_NEWER = {
    "num_experts": "n_routed_experts",
    "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
    "moe_renormalize": "norm_topk_prob",
    "num_expert_group": "n_group",
    "moe_router_activation_func": "scoring_func",
    "model_max_length": "max_position_embeddings",
}
_MODULE = "block_sparse_moe"


@dataclass(frozen=True)
class DeltaAttention:
    """A block of a decoder's branch: the gated delta rule, with a convolution for each of q, k and v.

    Attributes:
        hidden: Extent of the hidden axis.
        heads: Of queries, keys and values.
        size: Extent of a head.
        taps: Tokens that the convolutions see.
        epsilon: Of the norm of the result.
    """

    hidden: int
    heads: int
    size: int
    taps: int
    epsilon: float

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds projections, convolutions, the delta rule, a gated norm and the output projection."""
        source, name, wide = f"model.layers.{layer}.self_attn", f"layers.{layer}.mixer", self.heads * self.size
        mixed = [self._mixed(builder, x, source, name, layer, side) for side in "qkv"]
        a = self._low(builder, x, f"{source}.f", f"{name}.a")
        b = linear(builder, x, f"{source}.b_proj", (self.heads, self.hidden), f"{name}.b")
        stored = [
            builder.weight(f"{source}.A_log", (1, 1, self.heads, 1), "linear_num_heads"),
            builder.weight(f"{source}.dt_bias", (wide,), "linear_num_heads, linear_head_dim"),
        ]
        state = f"delta.{layer}"
        builder.states.append(State(state, self.heads, self.size, kind="recurrent", value_dim=self.size))
        heads: dict[str, Any] = {"heads": self.heads, "key_heads": self.heads, "state": state}
        out = builder.node("GatedDeltaNet", *mixed, a, b, *stored, name=f"{name}.delta", **heads)
        split = builder.node("Reshape", out, name=f"{name}.split", shape=[0, 0, self.heads, self.size])
        weight = builder.weight(f"{source}.o_norm.weight", (self.size,), "linear_head_dim")
        normed = builder.node("RMSNormalization", split, weight, name=f"{name}.norm", epsilon=self.epsilon)
        joined = builder.node("Reshape", normed, name=f"{name}.joined", shape=[0, 0, wide])
        gate = self._low(builder, x, f"{source}.g", f"{name}.gate")
        out = gated(builder, joined, gate, f"{name}.gated", "sigmoid")
        return linear(builder, out, f"{source}.o_proj", (self.hidden, wide), name)

    def _mixed(self, builder: Builder, x: str, source: str, name: str, layer: int, side: str) -> str:
        wide = self.heads * self.size
        projected = linear(builder, x, f"{source}.{side}_proj", (wide, self.hidden), f"{name}.{side}")
        return conv(builder, projected, f"{source}.{side}_conv1d", (wide, self.taps), layer, False, "silu", side)

    def _low(self, builder: Builder, x: str, module: str, name: str) -> str:
        """A projection by way of one head's extent."""
        low = linear(builder, x, f"{module}_a_proj", (self.size, self.hidden), f"{name}.low")
        return linear(builder, low, f"{module}_b_proj", (self.heads * self.size, self.size), name)


def build(model: Model) -> Graph:
    """Builds the graph of a KimiLinearForCausalLM."""
    config = _in_newer_keys(Config(model.config))
    layers, norm = layer_count(model, config), rms_norm(config, 1e-5)
    kinds = check_layer_types(config, layers, _KINDS)
    delta = DeltaAttention(
        config.size("hidden_size"),
        config.size("linear_num_heads", 32),
        config.size("linear_head_dim", 128),
        config.size("linear_conv_kernel_dim", 4),
        norm.epsilon,
    )
    context = config.size("max_position_embeddings", 1048576)
    latent = _latent(config, context)
    mixers: list[Block] = [latent if kind == "full_attention" else delta for kind in kinds]
    mlps = [_renamed(block) for block in deepseek_layers(config, layers, dense=1, scores="sigmoid")]
    refused: dict[str, tuple[object, ...]] = {
        **REFUSED,
        "attention_bias": (False,),
        "use_grouped_topk": (True,),
        "mla_use_nope": (True,),
        "num_key_value_heads": (latent.heads,),
    }
    decoder = Decoder("kimi_linear", NAMES, PRE.layers(mixers, mlps), context, norm, refused=refused)
    return build_decoder(model, config, decoder)


def _in_newer_keys(config: Config) -> Config:
    """Published names of fields under those of DeepSeek, and the layers as a list of kinds."""
    fields: dict[str, Any] = {_NEWER.get(name, name): value for name, value in config.fields.items()}
    published = fields.pop("linear_attn_config", None)
    if isinstance(published, dict):
        full = published.get("full_attn_layers") or []
        count = fields.get("num_hidden_layers", 0)
        fields["layer_types"] = [_KINDS[i + 1 in full] for i in range(count)]
        named = {"num_heads": "num_heads", "head_dim": "head_dim", "short_conv_kernel_size": "conv_kernel_dim"}
        fields |= {f"linear_{other}": published[name] for name, other in named.items() if name in published}
    return Config(fields, config.where)


def _latent(config: Config, context: int) -> LatentAttention:
    rotated, plain = config.size("qk_rope_head_dim", 64), config.size("qk_nope_head_dim", 128)
    query = config.size("q_lora_rank") if config.has("q_lora_rank") else 0
    config.read |= {"q_lora_rank", "kv_lora_rank"}
    return LatentAttention(
        config.size("hidden_size"),
        config.size("num_attention_heads"),
        plain,
        rotated,
        config.size("v_head_dim", 128),
        config.size("kv_lora_rank", 512),
        query,
        context,
        (plain + rotated) ** -0.5,
        None,
    )


def _renamed(block: Block) -> Block:
    """A block under the names of the family: experts as Mixtral calls them."""
    if isinstance(block, Experts):
        shared = block.shared
        if isinstance(shared, Mlp):
            shared = replace(shared, module=f"{_MODULE}.shared_experts")
        return replace(block, module=_MODULE, parts=MIXTRAL, shared=shared)
    return replace(block, module=_MODULE) if isinstance(block, Mlp) else block


NAMES = Names(DECODER_ROWS)
FAMILY = Family(name="kimi", heads={"kimi_linear": ("KimiLinearForCausalLM",)}, names=NAMES, build=build)

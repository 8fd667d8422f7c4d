"""GPT-NeoX and Pythia (arXiv 2204.06745): attention and MLP in parallel, one projection for queries, keys and values.

The rows of that projection are ordered by head. A part of each head is rotated (`rotary_pct`), norms are layer norms
with a bias, and so are all projections.
"""

from __future__ import annotations

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import PARALLEL, PRE
from qdeploy.arch.mlp import Mlp, MlpParts
from qdeploy.arch.names import Names
from qdeploy.arch.prenorm import attention_layers, standard_decoder
from qdeploy.arch.self_attention import Parts
from qdeploy.arch.stack import Modules, Norm
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_LAYERS = "gpt_neox.layers"


def build(model: Model) -> Graph:
    """Builds the graph of a GPTNeoXForCausalLM."""
    config = _in_newer_keys(Config(model.config))
    head_dim, heads = heads_of(config)
    bias = config.flag("attention_bias", True)
    attention = attention_layers(
        config,
        (0,) * layer_count(model, config),
        head_dim,
        heads,
        config.size("max_position_embeddings", 2048),
        qkv_bias=bias,
        o_bias=bias,
        module="attention",
        layers=_LAYERS,
        parts=Parts(fused="query_key_value", fused_by_head=True, o="dense"),
    )
    mlp = Mlp(
        config.size("hidden_size"),
        config.size("intermediate_size"),
        config.choose("hidden_act", ACTIVATIONS, "gelu"),
        bias=True,
        gated=False,
        parts=MlpParts(up="dense_h_to_4h", down="dense_4h_to_h"),
        layers=_LAYERS,
    )
    placement = PARALLEL if config.flag("use_parallel_residual", True) else PRE
    norm = Norm("layer", config.positive("layer_norm_eps", 1e-5), bias=True)
    modules = Modules("gpt_neox.embed_in", _LAYERS, "gpt_neox.final_layer_norm", "embed_out")
    decoder = standard_decoder(config, NAMES, attention, mlp, norm, placement=placement, modules=modules)
    return build_decoder(model, config, decoder)


def _in_newer_keys(config: Config) -> Config:
    """`rotary_pct` and `rotary_emb_base` under the names that other families have for them."""
    fields = dict(config.fields)
    parameters = fields.get("rope_parameters")
    if not isinstance(parameters, dict) or "partial_rotary_factor" not in parameters:
        fields.setdefault("partial_rotary_factor", config.number("rotary_pct", 0.25))
    fields.setdefault("rope_theta", config.number("rotary_emb_base", 10000.0))
    return Config(fields, config.where)


NAMES = Names(
    (
        ("gpt_neox.embed_in", "token_embd"),
        ("gpt_neox.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
        ("gpt_neox.layers.{i}.attention.query_key_value", "blk.{i}.attn_qkv"),
        ("gpt_neox.layers.{i}.attention.dense", "blk.{i}.attn_output"),
        ("gpt_neox.layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
        ("gpt_neox.layers.{i}.mlp.dense_h_to_4h", "blk.{i}.ffn_up"),
        ("gpt_neox.layers.{i}.mlp.dense_4h_to_h", "blk.{i}.ffn_down"),
        ("gpt_neox.final_layer_norm", "output_norm"),
        ("embed_out", "output"),
    )
)
FAMILY = Family(name="neox", heads={"gpt_neox": ("GPTNeoXForCausalLM",)}, names=NAMES, build=build)

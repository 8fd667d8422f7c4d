"""Phi-3 and Phi-4-mini: one projection for queries, keys and values, and one for gate and up.

LongRoPE (arXiv 2402.13753) has two tables of frequencies, one for short and one for long sequences.
"""

from __future__ import annotations

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.mlp import MlpParts
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder
from qdeploy.arch.self_attention import Parts
from qdeploy.arch.windows import one_window
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a Phi3ForCausalLM."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config)
    layers = layer_count(model, config)
    attention = attention_layers(
        config,
        one_window(config, layers),
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 4096),
        parts=Parts(fused="qkv_proj"),
    )
    mlp = gated_mlp(config, parts=MlpParts(fused="gate_up_proj"))
    refused: dict[str, tuple[object, ...]] = {"attention_bias": (False,), "mlp_bias": (False,)}
    decoder = standard_decoder(config, NAMES, attention, mlp, rms_norm(config, 1e-5), refused=refused)
    return build_decoder(model, config, decoder)


NAMES = Names(
    (
        *(row for row in DECODER_ROWS if not row[0].endswith(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))),
        ("model.layers.{i}.self_attn.qkv_proj", "blk.{i}.attn_qkv"),
        ("model.layers.{i}.mlp.gate_up_proj", "blk.{i}.ffn_up"),
    )
)
FAMILY = Family(name="phi", heads={"phi3": ("Phi3ForCausalLM",)}, names=NAMES, build=build, genai={"phi3": "phi3"})

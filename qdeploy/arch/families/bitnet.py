"""BitNet b1.58 (arXiv 2402.17764, 2504.12285): squared ReLUs, and norms before the output projections."""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.gguf import decoder_config
from qdeploy.arch.mlp import MlpParts
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder
from qdeploy.arch.self_attention import Parts
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a BitNetForCausalLM; UnsupportedError for a file whose own network leaves a tensor out."""
    config = Config(model.config)
    if model.dialect == "gguf" and "output.weight" in model.tensors:
        raise UnsupportedError(
            "bitnet.cpp multiplies with the embedding, whatever the output layer is",
            where=f"{model.path}: output.weight",
            found="an output layer",
            allowed="none",
            todo="Convert its tensors with --to ir.",
        )
    head_dim, kv_heads = heads_of(config)
    bias, norm = config.flag("attention_bias", False), rms_norm(config, 1e-5)
    attention = attention_layers(
        config,
        (0,) * layer_count(model, config),
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 2048),
        qkv_bias=bias,
        o_bias=bias,
        norm_epsilon=norm.epsilon,
        parts=Parts(norm="attn_sub_norm"),
    )
    mlp = gated_mlp(config, default="relu2", norm_epsilon=norm.epsilon, parts=MlpParts(norm="ffn_sub_norm"))
    decoder = standard_decoder(config, NAMES, attention, mlp, norm, refused={"mlp_bias": (False,)})
    return build_decoder(model, config, decoder)


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    """Files of bitnet.cpp."""
    return {**decoder_config(metadata, shapes, interleaved=False), "hidden_act": "relu2"}


_GGUF = Gguf(_gguf_config, lambda metadata: "bitnet")
NAMES = Names(
    (
        *DECODER_ROWS,
        ("model.layers.{i}.self_attn.attn_sub_norm", "blk.{i}.attn_sub_norm"),
        ("model.layers.{i}.mlp.ffn_sub_norm", "blk.{i}.ffn_sub_norm"),
    )
)
FAMILY = Family(
    name="bitnet",
    heads={"bitnet": ("BitNetForCausalLM",)},
    names=NAMES,
    build=build,
    gguf={"bitnet-b1.58": _GGUF, "bitnet-25": _GGUF},
)

"""StarCoder 2: layer norms and projections with a bias, a plain MLP, and perhaps a sliding window."""

from __future__ import annotations

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.mlp import MlpParts
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, standard_decoder
from qdeploy.arch.stack import Norm
from qdeploy.arch.windows import one_window
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of a Starcoder2ForCausalLM."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config, kv_heads=min(2, config.size("num_attention_heads")))
    bias, layers = config.flag("use_bias", True), layer_count(model, config)
    attention = attention_layers(
        config,
        one_window(config, layers),
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 4096),
        qkv_bias=bias,
        o_bias=bias,
    )
    mlp = gated_mlp(
        config, default="gelu_pytorch_tanh", gated=False, bias=bias, parts=MlpParts(up="c_fc", down="c_proj")
    )
    norm = Norm("layer", config.positive("norm_epsilon", 1e-5), bias=True)
    decoder = standard_decoder(
        config, NAMES, attention, mlp, norm, refused={"norm_type": ("layer_norm",), "mlp_type": ("default",)}
    )
    return build_decoder(model, config, decoder)


NAMES = Names(
    (
        *(row for row in DECODER_ROWS if ".mlp." not in row[0]),
        ("model.layers.{i}.mlp.c_fc", "blk.{i}.ffn_up"),
        ("model.layers.{i}.mlp.c_proj", "blk.{i}.ffn_down"),
    )
)
FAMILY = Family(name="starcoder", heads={"starcoder2": ("Starcoder2ForCausalLM",)}, names=NAMES, build=build)

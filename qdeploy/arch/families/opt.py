"""OPT (arXiv 2205.01068): learned positions from row 2 on, layer norms and projections with a bias, a plain MLP."""

from __future__ import annotations

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder
from qdeploy.arch.family import Family
from qdeploy.arch.layers import Placement
from qdeploy.arch.mlp import Mlp, MlpParts
from qdeploy.arch.names import Names
from qdeploy.arch.prenorm import standard_decoder
from qdeploy.arch.self_attention import Parts, SelfAttention
from qdeploy.arch.stack import Modules, Norm
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_LAYERS = "model.decoder.layers"
_FIRST_POSITION = 2
_NORMS = ("self_attn_layer_norm", "final_layer_norm")
_REFUSED: dict[str, tuple[object, ...]] = {
    "_remove_final_layer_norm": (False,),
    "layer_norm_elementwise_affine": (True,),
    "activation_dropout": (0, 0.0),
}


def build(model: Model) -> Graph:
    """Builds the graph of an OPTForCausalLM."""
    config = Config(model.config)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    if hidden % heads:
        raise config.contradiction("hidden_size, num_attention_heads", f"{hidden}, {heads}", "a multiple")
    size, bias = hidden // heads, config.flag("enable_bias", True)
    context = config.size("max_position_embeddings", 2048)
    attention = SelfAttention(
        hidden,
        heads,
        heads,
        size,
        0,
        context,
        size**-0.5,
        qkv_bias=bias,
        o_bias=bias,
        parts=Parts(o="out_proj"),
        layers=_LAYERS,
    )
    activation = config.choose("activation_function", ACTIVATIONS, "relu")
    parts = MlpParts(up="fc1", down="fc2")
    mlp = Mlp(hidden, config.size("ffn_dim"), activation, bias, False, parts=parts, module="", layers=_LAYERS)
    before = config.flag("do_layer_norm_before", True)
    placement = Placement(before_mixer=_NORMS[0], before_mlp=_NORMS[1])
    if not before:
        placement = Placement(after_sum_of_mixer=_NORMS[0], after_sum_of_mlp=_NORMS[1])
    modules = Modules(
        "model.decoder.embed_tokens",
        _LAYERS,
        "model.decoder.final_layer_norm" if before else "",
        positions="model.decoder.embed_positions",
    )
    decoder = standard_decoder(
        config,
        NAMES,
        [attention] * layer_count(model, config),
        mlp,
        Norm("layer", bias=True, epsilon=1e-5),
        placement=placement,
        modules=modules,
        first_position=_FIRST_POSITION,
        refused={**_REFUSED, "word_embed_proj_dim": (hidden,)},
    )
    return build_decoder(model, config, decoder)


NAMES = Names(
    (
        ("model.decoder.embed_tokens", "token_embd"),
        ("model.decoder.embed_positions", "position_embd"),
        ("model.decoder.layers.{i}.self_attn_layer_norm", "blk.{i}.attn_norm"),
        ("model.decoder.layers.{i}.self_attn.q_proj", "blk.{i}.attn_q"),
        ("model.decoder.layers.{i}.self_attn.k_proj", "blk.{i}.attn_k"),
        ("model.decoder.layers.{i}.self_attn.v_proj", "blk.{i}.attn_v"),
        ("model.decoder.layers.{i}.self_attn.out_proj", "blk.{i}.attn_output"),
        ("model.decoder.layers.{i}.final_layer_norm", "blk.{i}.ffn_norm"),
        ("model.decoder.layers.{i}.fc1", "blk.{i}.ffn_up"),
        ("model.decoder.layers.{i}.fc2", "blk.{i}.ffn_down"),
        ("model.decoder.final_layer_norm", "output_norm"),
        ("lm_head", "output"),
    )
)
FAMILY = Family(name="opt", heads={"opt": ("OPTForCausalLM",)}, names=NAMES, build=build)

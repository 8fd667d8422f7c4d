"""GPT-2: learned positions, layer norms and projections with a bias, one projection for queries, keys and values.

Its checkpoints store matrices of floats [in, out].
"""

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

_NEWER = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
}
_REFUSED: dict[str, tuple[object, ...]] = {"scale_attn_by_inverse_layer_idx": (False,)}


def build(model: Model) -> Graph:
    """Builds the graph of a GPT2LMHeadModel."""
    fields = {_NEWER.get(name, name): value for name, value in model.config.items()}
    config = Config(fields)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    if hidden % heads:
        raise config.contradiction("n_embd, n_head", f"{hidden}, {heads}", "a multiple")
    size, context = hidden // heads, config.size("max_position_embeddings", 1024)
    scale = size**-0.5 if config.flag("scale_attn_weights", True) else 1.0
    attention = SelfAttention(
        hidden,
        heads,
        heads,
        size,
        0,
        context,
        scale,
        qkv_bias=True,
        o_bias=True,
        parts=Parts(fused="c_attn", o="c_proj"),
        module="attn",
        layers="h",
    )
    activation = config.choose("activation_function", ACTIVATIONS, "gelu_new")
    inner = config.size("intermediate_size", 4 * hidden)
    mlp = Mlp(hidden, inner, activation, True, False, parts=MlpParts(up="c_fc", down="c_proj"), layers="h")
    decoder = standard_decoder(
        config,
        NAMES,
        [attention] * layer_count(model, config),
        mlp,
        Norm("layer", config.positive("layer_norm_epsilon", 1e-5), bias=True),
        placement=Placement(before_mixer="ln_1", before_mlp="ln_2"),
        modules=Modules("wte", "h", "ln_f", positions="wpe"),
        refused=_REFUSED,
    )
    return build_decoder(model, config, decoder)


NAMES = Names(
    (
        ("wte", "token_embd"),
        ("wpe", "position_embd"),
        ("h.{i}.ln_1", "blk.{i}.attn_norm"),
        ("h.{i}.attn.c_attn", "blk.{i}.attn_qkv"),
        ("h.{i}.attn.c_proj", "blk.{i}.attn_output"),
        ("h.{i}.ln_2", "blk.{i}.ffn_norm"),
        ("h.{i}.mlp.c_fc", "blk.{i}.ffn_up"),
        ("h.{i}.mlp.c_proj", "blk.{i}.ffn_down"),
        ("ln_f", "output_norm"),
        ("lm_head", "output"),
    ),
    prefixes=("transformer.", ""),
    transposed=True,
)
FAMILY = Family(name="gpt2", heads={"gpt2": ("GPT2LMHeadModel",)}, names=NAMES, build=build)

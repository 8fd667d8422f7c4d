"""Nemotron-H: each layer is one thing: Mamba-2, attention without positions, an MLP, or experts.

`hybrid_override_pattern` says which, a letter per layer: M for Mamba-2, * for attention, - for an MLP, E for experts;
`layers_block_type` says it in words. MLPs and experts have no gate, and square their ReLUs.
"""

from __future__ import annotations

from dataclasses import replace

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.experts import Experts, Routing
from qdeploy.arch.family import Family
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.names import Names
from qdeploy.arch.prenorm import attention_layers
from qdeploy.arch.recurrent import Mamba2
from qdeploy.arch.stack import Block, Branch, Decoder, Layer, Modules, Norm
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_LAYERS = "backbone.layers"
_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_WORDS = {"linear_attention": "mamba", "full_attention": "attention", **{w: w for w in _LETTERS.values()}}
_REFUSED: dict[str, tuple[object, ...]] = {"moe_latent_size": (), "sliding_window": (), "mamba_hidden_act": ("silu",)}


def build(model: Model) -> Graph:
    """Builds the graph of a NemotronHForCausalLM."""
    config = Config(model.config)
    layers, hidden = layer_count(model, config), config.size("hidden_size")
    head_dim, kv_heads = heads_of(config, head_dim=128, kv_heads=min(8, config.size("num_attention_heads")))
    bias, epsilon = config.flag("attention_bias", False), config.positive("layer_norm_epsilon", 1e-5)
    context = config.size("max_position_embeddings", 4096)
    (attention,) = attention_layers(
        config, (0,), head_dim, kv_heads, context, qkv_bias=bias, o_bias=bias, module="mixer", layers=_LAYERS
    )
    kinds = _kinds(config, layers)
    blocks: dict[str, Block] = {"attention": replace(attention, rotation=None)}
    blocks |= {"mamba": _mamba(config, hidden, epsilon)} if "mamba" in kinds else {}
    blocks |= {"mlp": _mlp(config, hidden, config.size("intermediate_size", 21504))} if "mlp" in kinds else {}
    blocks |= {"moe": _experts(config, hidden)} if "moe" in kinds else {}
    config.read |= {"n_routed_experts", "num_experts_per_tok"}
    placed = tuple(Layer((Branch(blocks[kind], before="norm"),)) for kind in kinds)
    modules = Modules("backbone.embeddings", _LAYERS, "backbone.norm_f")
    norm = Norm("rms", epsilon)
    decoder = Decoder("nemotron_h", NAMES, placed, context, norm, modules=modules, refused=_REFUSED)
    return build_decoder(model, config, decoder)


def _kinds(config: Config, layers: int) -> list[str]:
    config.read |= {"layers_block_type", "layer_types"}
    listed = config.fields.get("layers_block_type") or config.fields.get("layer_types")
    if listed is None:
        listed = [_LETTERS.get(letter, letter) for letter in config.text("hybrid_override_pattern")]
    kinds = [_WORDS.get(word, "") if isinstance(word, str) else "" for word in listed]
    if len(kinds) != layers or not all(kinds):
        raise config.contradiction("hybrid_override_pattern", listed, f"{layers} of {', '.join(_LETTERS)}")
    return kinds


def _mamba(config: Config, hidden: int, epsilon: float) -> Mamba2:
    groups = config.size("n_groups", 8)
    return Mamba2(
        hidden,
        config.size("mamba_num_heads", 128),
        config.size("mamba_head_dim", 64),
        groups,
        config.size("ssm_state_size", 128),
        config.size("conv_kernel", 4),
        epsilon,
        config.flag("use_conv_bias", True),
        config.flag("use_bias", config.flag("mamba_proj_bias", False)),
        norm_groups=groups,
        limits=(config.number("time_step_min", 0.001), 0.0),
        module="mixer",
        layers=_LAYERS,
    )


def _mlp(config: Config, hidden: int, inner: int, module: str = "mixer") -> Mlp:
    activation = config.choose("mlp_hidden_act", ACTIVATIONS, "relu2")
    bias = config.flag("mlp_bias", False)
    return Mlp(hidden, inner, activation, bias, gated=False, module=module, layers=_LAYERS)


def _experts(config: Config, hidden: int) -> Experts:
    shared = config.size("moe_shared_expert_intermediate_size", 7688)
    config.refuse({"n_shared_experts": (1,), "mlp_bias": (False,)})
    routing = Routing(
        config.size("num_experts_per_tok", 2),
        "sigmoid",
        normalize=config.flag("norm_topk_prob", True),
        scale=config.number("routed_scaling_factor", 1.0),
        groups=config.size("n_group", 1),
        kept_groups=config.size("topk_group", 1),
        epsilon=1e-20,
        bias="gate.e_score_correction_bias",
    )
    return Experts(
        hidden,
        config.size("moe_intermediate_size", 7688),
        config.size("n_routed_experts", 8),
        config.choose("mlp_hidden_act", ACTIVATIONS, "relu2"),
        routing,
        gated=False,
        shared=_mlp(config, hidden, shared, "mixer.shared_experts"),
        module="mixer",
        layers=_LAYERS,
    )


NAMES = Names(
    (
        ("backbone.embeddings", "token_embd"),
        ("backbone.norm_f", "output_norm"),
        ("lm_head", "output"),
    ),
    older=(("backbone.embeddings.weight", "backbone.embedding.weight"),),
)
FAMILY = Family(name="nemotron", heads={"nemotron_h": ("NemotronHForCausalLM",)}, names=NAMES, build=build)

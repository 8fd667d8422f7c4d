"""Mamba-2 (arXiv 2405.21060): a selective state space in every layer, and nothing besides."""

from __future__ import annotations

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder
from qdeploy.arch.family import Family
from qdeploy.arch.names import Names
from qdeploy.arch.recurrent import Mamba2
from qdeploy.arch.recurrent_config import limits
from qdeploy.arch.stack import Branch, Decoder, Layer, Modules, Norm
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_CONTEXT = 1 << 20
"""Its states have no length; so many positions are counted at most."""


def build(model: Model) -> Graph:
    """Builds the graph of a Mamba2ForCausalLM."""
    config = Config(model.config)
    layers, hidden = layer_count(model, config), config.size("hidden_size")
    epsilon, groups = config.positive("layer_norm_epsilon", 1e-5), config.size("n_groups", 8)
    config.refuse({"hidden_act": ("silu",)})
    mixer = Mamba2(
        hidden,
        config.size("num_heads", 128),
        config.size("head_dim", 64),
        groups,
        config.size("state_size", 128),
        config.size("conv_kernel", 4),
        epsilon,
        config.flag("use_conv_bias", True),
        config.flag("use_bias", False),
        norm_groups=groups,
        limits=limits(config),
        module="mixer",
        layers="backbone.layers",
    )
    if mixer.heads * mixer.head_dim != config.size("expand", 2) * hidden:
        raise config.contradiction("num_heads, head_dim, expand", f"{mixer.heads}, {mixer.head_dim}", "expand * hidden")
    modules = Modules("backbone.embeddings", "backbone.layers", "backbone.norm_f")
    layer = Layer((Branch(mixer, before="norm"),))
    norm = Norm("rms", epsilon)
    return build_decoder(model, config, Decoder("mamba2", NAMES, (layer,) * layers, _CONTEXT, norm, modules=modules))


NAMES = Names(
    (
        ("backbone.embeddings", "token_embd"),
        ("backbone.layers.{i}.norm", "blk.{i}.attn_norm"),
        ("backbone.layers.{i}.mixer.in_proj", "blk.{i}.ssm_in"),
        ("backbone.layers.{i}.mixer.conv1d", "blk.{i}.ssm_conv1d"),
        ("backbone.layers.{i}.mixer.norm", "blk.{i}.ssm_norm"),
        ("backbone.layers.{i}.mixer.out_proj", "blk.{i}.ssm_out"),
        ("backbone.norm_f", "output_norm"),
        ("lm_head", "output"),
    )
)
FAMILY = Family(name="mamba", heads={"mamba2": ("Mamba2ForCausalLM",)}, names=NAMES, build=build)

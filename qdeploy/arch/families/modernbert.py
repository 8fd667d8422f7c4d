"""ModernBERT: pre-norm layers without biases, rotary positions, windows on two of three layers (arXiv 2412.13663).

The first layer has no norm before attention, since the embeddings are normed. `local_attention` counts the keys on both
sides of a query together. Definitions and defaults are those of transformers' ModernBertModel and of its heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qdeploy.arch.bidirectional import Bidirectional, build_bidirectional
from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import check_layer_types, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import Placement
from qdeploy.arch.mlp import MlpParts
from qdeploy.arch.names import Names
from qdeploy.arch.pooling import first_token, mean
from qdeploy.arch.prenorm import attention_layers, gated_mlp, with_local_rotation
from qdeploy.arch.rope import for_layers
from qdeploy.arch.self_attention import Parts
from qdeploy.arch.stack import Decoder, Layer, Modules, Norm
from qdeploy.arch.task_heads import Head, classifier_pooling
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_THETA = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


def build(model: Model) -> Graph:
    """Builds the graph of a ModernBertModel or of one of its heads."""
    config = Config(model.config)
    head_dim, heads = heads_of(config)
    layers, context = layer_count(model, config), config.size("max_position_embeddings", 8192)
    attention = attention_layers(
        _rotation(config, "full_attention"),
        _windows(config, layers),
        head_dim,
        heads,
        context,
        bidirectional=True,
        cached=False,
        qkv_bias=config.flag("attention_bias", False),
        o_bias=config.flag("attention_bias", False),
        module="attn",
        layers="layers",
        parts=Parts(fused="Wqkv", o="Wo"),
    )
    attention = with_local_rotation(attention, _rotation(config, "sliding_attention"), head_dim, context)
    mlp = gated_mlp(
        config,
        "hidden_activation",
        "gelu",
        bias=config.flag("mlp_bias", False),
        parts=MlpParts(fused="Wi", down="Wo"),
        layers="layers",
    )
    first, *others = Placement(before_mixer="attn_norm", before_mlp="mlp_norm").layers(attention, mlp)
    without_norm = Layer((replace(first.branches[0], before=""), first.branches[1]))
    norm = Norm("layer", config.positive("norm_eps", 1e-5), bias=config.flag("norm_bias", False))
    modules = Modules("embeddings.tok_embeddings", "layers", "final_norm", "decoder")
    decoder = Decoder("modernbert", NAMES, (without_norm, *others), context, norm, modules=modules)
    return build_bidirectional(model, config, Bidirectional(decoder, _heads(config), norm="embeddings.norm"))


def _windows(config: Config, layers: int) -> list[int]:
    """Keys on one side of a query, its own included; 0 for all."""
    one_side = config.size("local_attention", 128) // 2 + 1
    kinds = check_layer_types(config, layers, ("full_attention", "sliding_attention"))
    if not kinds:
        every = config.size("global_attn_every_n_layers", 3)
        kinds = ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    return [one_side if kind == "sliding_attention" else 0 for kind in kinds]


def _rotation(config: Config, kind: str) -> Config:
    """The configuration of one kind of layers: its entry of `rope_parameters`, or an older field."""
    own = for_layers(config, kind)
    field, theta = _THETA[kind]
    if own is not config:
        own.fields = {"rope_theta": theta, **own.fields}
        return own
    return Config({**config.fields, "rope_parameters": None, "rope_theta": config.positive(field, theta)}, config.where)


def _heads(config: Config) -> dict[str, Head | None]:
    pooling = classifier_pooling(config, ("cls", "mean"))
    shared: dict[str, Any] = {
        "dense": "head.dense",
        "act": config.choose("classifier_activation", ACTIVATIONS, "gelu"),
        "norm": "head.norm",
        "dense_biased": config.flag("classifier_bias", False),
        "norm_biased": config.flag("norm_bias", False),
        "epsilon": config.positive("norm_eps", 1e-5),
    }
    return {
        "ModernBertModel": None,
        "ModernBertForMaskedLM": Head("decoder", tied=True, biased=config.flag("decoder_bias", True), **shared),
        "ModernBertForSequenceClassification": Head(
            "classifier", pool=mean if pooling == "mean" else first_token, early=pooling == "mean", **shared
        ),
        "ModernBertForTokenClassification": Head("classifier", **shared),
        "ModernBertForQuestionAnswering": Head("classifier", answers=True, **shared),
    }


NAMES = Names((), prefixes=("model.", ""))
FAMILY = Family(
    name="modernbert",
    heads={
        "modernbert": (
            "ModernBertModel",
            *(
                f"ModernBertFor{task}"
                for task in ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
            ),
        )
    },
    names=NAMES,
    build=build,
)

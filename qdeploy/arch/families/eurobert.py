"""EuroBERT: Llama's layers without the causal mask (arXiv 2503.05500).

Definitions and defaults are those of transformers' EuroBertModel and of its heads.
"""

from __future__ import annotations

from qdeploy.arch.bidirectional import Bidirectional, build_bidirectional
from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import PRE
from qdeploy.arch.names import Names
from qdeploy.arch.pooling import first_token, mean
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm
from qdeploy.arch.stack import Decoder, Modules
from qdeploy.arch.task_heads import Head, classifier_pooling
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model


def build(model: Model) -> Graph:
    """Builds the graph of an EuroBertModel or of one of its heads."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config)
    bias, layers = config.flag("attention_bias", False), layer_count(model, config)
    context = config.size("max_position_embeddings", 8192)
    attention = attention_layers(
        config,
        (0,) * layers,
        head_dim,
        kv_heads,
        context,
        bidirectional=True,
        cached=False,
        qkv_bias=bias,
        o_bias=bias,
        layers="layers",
    )
    biased = config.flag("mlp_bias", False)
    mlp = gated_mlp(config, bias=biased, layers="layers")
    refused: dict[str, tuple[object, ...]] = {"pretraining_tp": (1,), "sliding_window": ()}
    modules = Modules("embed_tokens", "layers", "norm", "lm_head")
    decoder = Decoder(
        "eurobert",
        NAMES,
        PRE.layers(attention, mlp),
        context,
        rms_norm(config, 1e-5),
        modules=modules,
        refused=refused,
    )
    return build_bidirectional(model, config, Bidirectional(decoder, _heads(config, biased)))


def _heads(config: Config, biased: bool) -> dict[str, Head | None]:
    pooling = classifier_pooling(config, ("late", "bos", "mean"))
    classifier = Head(
        "classifier",
        dense="dense",
        act="gelu",
        pool=first_token if pooling == "bos" else mean,
        early=pooling == "mean",
    )
    return {
        "EuroBertModel": None,
        "EuroBertForMaskedLM": Head("lm_head", tied=True, biased=biased),
        "EuroBertForSequenceClassification": classifier,
        "EuroBertForTokenClassification": Head("classifier"),
    }


NAMES = Names((), prefixes=("model.", ""))
FAMILY = Family(
    name="eurobert",
    heads={
        "eurobert": (
            "EuroBertModel",
            "EuroBertForMaskedLM",
            "EuroBertForSequenceClassification",
            "EuroBertForTokenClassification",
        )
    },
    names=NAMES,
    build=build,
)

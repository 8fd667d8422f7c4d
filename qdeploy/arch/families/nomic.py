"""NomicBERT: BERT's post-norm blocks with rotary positions, a gated MLP and no biases (arXiv 2402.01613).

Two spellings of config.json are read: transformers' (`hidden_size`, ...) and that of the published checkpoints
(`n_embd`, ..., after GPT-2). `fc11` is the projection that is multiplied, `fc12` the one that is activated.
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.bidirectional import Bidirectional, build_bidirectional
from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import heads_of
from qdeploy.arch.families.bert import REFUSED
from qdeploy.arch.family import Family
from qdeploy.arch.layers import Placement
from qdeploy.arch.mlp import MlpParts
from qdeploy.arch.names import Names
from qdeploy.arch.pooling import first_token
from qdeploy.arch.prenorm import attention_layers, gated_mlp
from qdeploy.arch.self_attention import Parts
from qdeploy.arch.stack import Decoder, Modules, Norm
from qdeploy.arch.task_heads import Head
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_LAYERS = "encoder.layers"
_FIELDS = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
}
"""Fields of the published checkpoints, and what transformers calls them."""
_REFUSED: dict[str, tuple[object, ...]] = {
    **{name: values for name, values in REFUSED.items() if not name.startswith("rope_")},
    "activation_function": ("swiglu",),
    "prenorm": (False,),
    "use_rms_norm": (False,),
    "parallel_block": (False,),
    "shared_kv": (False,),
    "causal": (False,),
    "qkv_proj_bias": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "rotary_emb_fraction": (1.0,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (),
    "rotary_scaling_factor": (),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "moe_every_n_layers": (0,),
}
_PREDICTIONS = "cls.predictions"
_HEADS: dict[str, Head | None] = {
    "NomicBertModel": None,
    "NomicBertForMaskedLM": Head(
        f"{_PREDICTIONS}.decoder",
        dense=f"{_PREDICTIONS}.transform.dense",
        act="hidden",
        norm=f"{_PREDICTIONS}.transform.layer_norm",
        tied=True,
        bias=f"{_PREDICTIONS}.bias",
    ),
    "NomicBertForSequenceClassification": Head("classifier", pool=first_token, dense="pooler.dense", act="tanh"),
    "NomicBertForTokenClassification": Head("classifier"),
}


def build(model: Model) -> Graph:
    """Builds the graph of a NomicBertModel or of one of its heads."""
    config = _in_usual_keys(model.config)
    head_dim, heads = heads_of(config)
    context = config.size("max_position_embeddings", 2048)
    attention = attention_layers(
        config,
        (0,) * layer_count(model, config),
        head_dim,
        heads,
        context,
        bidirectional=True,
        cached=False,
        module="attn",
        layers=_LAYERS,
        parts=Parts(fused="Wqkv", o="out_proj"),
    )
    mlp = gated_mlp(config, parts=MlpParts(gate="fc12", up="fc11", down="fc2"), layers=_LAYERS)
    placement = Placement(after_sum_of_mixer="norm1", after_sum_of_mlp="norm2")
    decoder = Decoder(
        "nomic_bert",
        NAMES,
        placement.layers(attention, mlp),
        context,
        Norm("layer", config.positive("layer_norm_eps", 1e-12), bias=True),
        modules=Modules("embeddings.word_embeddings", _LAYERS, ""),
        refused=_REFUSED,
    )
    types = "embeddings.token_type_embeddings"
    return build_bidirectional(model, config, Bidirectional(decoder, _HEADS, norm="emb_ln", types=types))


def _in_usual_keys(fields: Any) -> Config:
    usual = {**fields, **{new: fields[old] for old, new in _FIELDS.items() if old in fields and new not in fields}}
    if not usual.get("rope_parameters"):
        usual.setdefault("rope_theta", 1000.0)
    return Config(usual)


NAMES = Names((), prefixes=("", "nomic_bert.", "bert."))
FAMILY = Family(name="nomic", heads={"nomic_bert": tuple(_HEADS)}, names=NAMES, build=build)

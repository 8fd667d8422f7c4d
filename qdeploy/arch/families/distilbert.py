"""DistilBERT: BERT without token types, with fields and modules called otherwise (arXiv 1910.01108).

Definitions and defaults are those of transformers' DistilBertModel and of its heads.
"""

from __future__ import annotations

from qdeploy.arch.encoder import Encoder, Fields, Modules
from qdeploy.arch.families.bert import REFUSED
from qdeploy.arch.family import Family
from qdeploy.arch.names import Names
from qdeploy.arch.pooling import first_token
from qdeploy.arch.task_heads import Head

NAMES = Names((), prefixes=("distilbert.", ""))
HEADS: dict[str, Head | None] = {
    "DistilBertModel": None,
    "DistilBertForMaskedLM": Head(
        "vocab_projector", dense="vocab_transform", act="hidden", norm="vocab_layer_norm", tied=True
    ),
    "DistilBertForSequenceClassification": Head("classifier", pool=first_token, dense="pre_classifier", act="relu"),
    "DistilBertForTokenClassification": Head("classifier"),
    "DistilBertForQuestionAnswering": Head("qa_outputs", answers=True),
}
ENCODER = Encoder(
    NAMES,
    HEADS,
    REFUSED,  # `sinusoidal_pos_embds` changes nothing: that table is stored like a learned one
    Modules(
        layer="transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        norm="output_layer_norm",
    ),
    Fields("dim", "n_heads", "n_layers", "hidden_dim", "activation"),
    types=False,
)
FAMILY = Family(name="distilbert", heads={"distilbert": tuple(HEADS)}, names=NAMES, build=ENCODER.build)

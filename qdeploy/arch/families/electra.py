"""ELECTRA: BERT that was trained to spot replaced tokens; its embeddings may be narrower (arXiv 2003.10555).

Definitions and defaults are those of transformers' ElectraModel and of its heads.
"""

from __future__ import annotations

from qdeploy.arch.encoder import Encoder
from qdeploy.arch.families.bert import REFUSED
from qdeploy.arch.family import Family
from qdeploy.arch.names import Names
from qdeploy.arch.pooling import first_token
from qdeploy.arch.task_heads import Head

NAMES = Names((), prefixes=("electra.", ""))
HEADS: dict[str, Head | None] = {
    "ElectraModel": None,
    "ElectraForPreTraining": Head(
        "discriminator_predictions.dense_prediction", dense="discriminator_predictions.dense", act="hidden", single=True
    ),
    "ElectraForMaskedLM": Head(
        "generator_lm_head",
        dense="generator_predictions.dense",
        act="gelu",
        norm="generator_predictions.LayerNorm",
        tied=True,
        width="embedding",
    ),
    "ElectraForSequenceClassification": Head(
        "classifier.out_proj", pool=first_token, dense="classifier.dense", act="gelu"
    ),
    "ElectraForTokenClassification": Head("classifier"),
    "ElectraForQuestionAnswering": Head("qa_outputs", answers=True),
}
ENCODER = Encoder(NAMES, HEADS, REFUSED, narrow=True)
FAMILY = Family(name="electra", heads={"electra": tuple(HEADS)}, names=NAMES, build=ENCODER.build)

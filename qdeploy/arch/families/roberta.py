"""RoBERTa and XLM-RoBERTa: BERT whose places count the tokens that are no padding (arXiv 1907.11692, 1911.02116).

    place = pad + running count of tokens that are no padding; pad itself for padding

Definitions and defaults are those of transformers' RobertaModel and of its heads (CamemBERT is the same network).
"""

from __future__ import annotations

from qdeploy.arch.encoder import Encoder
from qdeploy.arch.families.bert import REFUSED
from qdeploy.arch.family import Family
from qdeploy.arch.names import Names
from qdeploy.arch.pooling import first_token
from qdeploy.arch.task_heads import Head

NAMES = Names((), prefixes=("roberta.", ""))
_HEADS: dict[str, Head | None] = {
    "Model": None,
    "ForMaskedLM": Head(
        "lm_head.decoder", dense="lm_head.dense", act="gelu", norm="lm_head.layer_norm", tied=True, bias="lm_head.bias"
    ),
    "ForSequenceClassification": Head("classifier.out_proj", pool=first_token, dense="classifier.dense", act="tanh"),
    "ForTokenClassification": Head("classifier"),
    "ForQuestionAnswering": Head("qa_outputs", answers=True),
}
_CLASSES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
ENCODER = Encoder(
    NAMES,
    {f"{name}{head}": row for name in _CLASSES.values() for head, row in _HEADS.items()},
    REFUSED,
    padded_places=True,
)
FAMILY = Family(
    name="roberta",
    heads={kind: tuple(f"{name}{head}" for head in _HEADS) for kind, name in _CLASSES.items()},
    names=NAMES,
    build=ENCODER.build,
)

"""MPNet: BERT's blocks with one table of distance biases for all layers (arXiv 2004.09297), and no token types.

Definitions and defaults are those of transformers' MPNetModel and of its heads, which always has 32 buckets.
"""

from __future__ import annotations

from qdeploy.arch.encoder import Encoder, Modules
from qdeploy.arch.families.bert import REFUSED
from qdeploy.arch.family import Family
from qdeploy.arch.names import Names
from qdeploy.arch.pooling import first_token
from qdeploy.arch.task_heads import Head

NAMES = Names((), prefixes=("", "mpnet."))
HEADS: dict[str, Head | None] = {
    "MPNetModel": None,
    "MPNetForMaskedLM": Head(
        "lm_head.decoder", dense="lm_head.dense", act="gelu", norm="lm_head.layer_norm", tied=True, bias="lm_head.bias"
    ),
    "MPNetForSequenceClassification": Head(
        "classifier.out_proj", pool=first_token, dense="classifier.dense", act="tanh"
    ),
    "MPNetForTokenClassification": Head("classifier"),
    "MPNetForQuestionAnswering": Head("qa_outputs", answers=True),
}
ENCODER = Encoder(
    NAMES,
    HEADS,
    REFUSED,
    Modules(
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        output="attention.attn.o",
        attention_norm="attention.LayerNorm",
    ),
    types=False,
    padded_places=True,
    distance_bias="encoder.relative_attention_bias",
)
FAMILY = Family(name="mpnet", heads={"mpnet": tuple(HEADS)}, names=NAMES, build=ENCODER.build)

"""BERT: an encoder with learned positions and post-norm blocks (arXiv 1810.04805), and sentence models made of it.

Definitions and defaults are those of transformers' BertModel and of its heads. A bare BertModel gives hidden states,
and so does BertForPreTraining: the pooler and the heads of pre-training are left out with a note.
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.encoder import Encoder
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.names import Names, Row
from qdeploy.arch.pooling import first_token
from qdeploy.arch.task_heads import Head

REFUSED: dict[str, tuple[object, ...]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "attention_window": (),
    "local_attention": (),
    "relative_attention": (False,),
    "use_rotary": (False,),
    "alibi": (False,),
    "conv_bert": (False,),
    "rope_scaling": (),
    "rope_parameters": (),
}
"""Fields that change the arithmetic of BERT and of what was made of it."""
_MASKED = "cls.predictions"
HEADS: dict[str, Head | None] = {
    "BertModel": None,
    "BertForPreTraining": None,
    "BertForMaskedLM": Head(
        f"{_MASKED}.decoder",
        dense=f"{_MASKED}.transform.dense",
        act="hidden",
        norm=f"{_MASKED}.transform.LayerNorm",
        tied=True,
        bias=f"{_MASKED}.bias",
    ),
    "BertForSequenceClassification": Head("classifier", pool=first_token, dense="pooler.dense", act="tanh"),
    "BertForTokenClassification": Head("classifier"),
    "BertForQuestionAnswering": Head("qa_outputs", answers=True),
}


def _gguf_config(metadata: Metadata, shapes: Shapes, kind: str) -> dict[str, Any]:
    config: dict[str, Any] = {"hidden_act": "gelu"}
    for field, name in (("type_vocab_size", "token_types.weight"), ("max_position_embeddings", "position_embd.weight")):
        if name in shapes:
            config[field] = shapes[name][0]
    return config


_ROWS: tuple[Row, ...] = (
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.position_embeddings", "position_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("embeddings.LayerNorm", "token_embd_norm"),
    ("encoder.layer.{i}.attention.self.query", "blk.{i}.attn_q"),
    ("encoder.layer.{i}.attention.self.key", "blk.{i}.attn_k"),
    ("encoder.layer.{i}.attention.self.value", "blk.{i}.attn_v"),
    ("encoder.layer.{i}.attention.output.dense", "blk.{i}.attn_output"),
    ("encoder.layer.{i}.attention.output.LayerNorm", "blk.{i}.attn_output_norm"),
    ("encoder.layer.{i}.intermediate.dense", "blk.{i}.ffn_up"),
    ("encoder.layer.{i}.output.dense", "blk.{i}.ffn_down"),
    ("encoder.layer.{i}.output.LayerNorm", "blk.{i}.layer_output_norm"),
)
NAMES = Names(
    _ROWS,
    prefixes=("", "bert."),
    older=((".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta")),  # from TensorFlow
)
ENCODER = Encoder(NAMES, HEADS, REFUSED)
FAMILY = Family(
    name="bert",
    heads={"bert": tuple(HEADS)},
    names=NAMES,
    build=ENCODER.build,
    gguf={"bert": Gguf(_gguf_config)},
)

"""BERT: an encoder with learned positions and post-norm blocks (arXiv 1810.04805), and sentence models made of it.

    x = norm(word[ids] + type[token_type_ids] + position[0..T-1])
    per layer:  x = norm(x + dense(attention(x)));  x = norm(x + dense(act(dense(x))))

Definitions and defaults are those of transformers' BertModel. Its pooler and its pre-training heads are not part of the
graph; heads of other tasks are refused.
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import ACTIVATIONS, Builder, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.family import Family, Gguf, Metadata, Shapes
from qdeploy.arch.generation import generation_of
from qdeploy.arch.names import Names, Row
from qdeploy.arch.sentence import add_sentence_embedding
from qdeploy.ir.graph import Attr, Graph, Value
from qdeploy.ir.model import Model

_REFUSED = {
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


def build(model: Model) -> Graph:
    """Builds the graph of a BertModel, with a sentence embedding where sentence-transformers' files say how."""
    return _Encoding(model).graph()


class _Encoding:
    def __init__(self, model: Model) -> None:
        self.config = Config(model.config)
        self.config.refuse(_REFUSED)
        self.builder = Builder(model, NAMES)
        self.hidden, self.heads = self.config.size("hidden_size"), self.config.size("num_attention_heads")
        self.config.refuse({"embedding_size": (self.hidden,), "num_key_value_heads": (self.heads,)})
        self.inner = self.config.size("intermediate_size")
        self.layers = layer_count(model, self.config)
        self.context = self.config.size("max_position_embeddings", 512)
        self.epsilon = self.config.positive("layer_norm_eps", 1e-12)
        self.act = self.config.choose("hidden_act", ACTIVATIONS, "gelu")
        if self.hidden % self.heads:
            raise self.config.contradiction(
                "hidden_size, num_attention_heads", f"{self.hidden}, {self.heads}", "a multiple"
            )

    def graph(self) -> Graph:
        """All nodes, in order."""
        add = self.builder
        x = self._embeddings()
        for i in range(self.layers):
            x = self._layer(i, x)
        add.node("Identity", x, name="last_hidden_state")
        outputs = [Value("last_hidden_state", "F32", ("batch", "sequence", self.hidden))]
        if add_sentence_embedding(add, self.hidden):
            outputs.append(Value("sentence_embedding", "F32", ("batch", self.hidden)))
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = tuple(Value(name, "I64", ("batch", "sequence")) for name in names)
        return add.graph(inputs, tuple(outputs), self._meta())

    def _embeddings(self) -> str:
        add, module = self.builder, "embeddings"
        word = self._table("word", self.config.size("vocab_size"), "vocab_size")
        kind = self._table("token_type", self.config.size("type_vocab_size", 2), "type_vocab_size")
        place = self._table("position", self.context, "max_position_embeddings")
        word = add.node("Gather", word, "input_ids", name=f"{module}.word", axis=0)
        kind = add.node("Gather", kind, "token_type_ids", name=f"{module}.token_type", axis=0)
        ids = add.node("Positions", "input_ids", name=f"{module}.positions")
        place = add.node("Gather", place, ids, name=f"{module}.position", axis=0)  # [T, hidden]
        total = add.node("Add", add.node("Add", word, kind, name=f"{module}.typed"), place, name=f"{module}.sum")
        return add.node("LayerNormalization", total, *self._norm(module), name=f"{module}.norm", epsilon=self.epsilon)

    def _table(self, which: str, rows: int, field: str) -> str:
        return self.builder.weight(
            f"embeddings.{which}_embeddings.weight", (rows, self.hidden), f"{field}, hidden_size"
        )

    def _layer(self, i: int, x: str) -> str:
        add, source, label = self.builder, f"encoder.layer.{i}", f"layer.{i}"
        q, k, v = (
            self._linear(x, f"{source}.attention.self.{part}", f"{label}.{part}", self.hidden, self.hidden)
            for part in ("query", "key", "value")
        )
        size = self.hidden // self.heads
        mixed = add.node(
            "Attention",
            q,
            k,
            v,
            "attention_mask",
            name=f"{label}.attention",
            heads=self.heads,
            kv_heads=self.heads,
            scale=size**-0.5,
            causal=False,
            window=0,
        )
        module = f"{source}.attention.output"
        mixed = self._linear(mixed, f"{module}.dense", f"{label}.attention.dense", self.hidden, self.hidden)
        x = self._skip(mixed, x, module, f"{label}.attention.norm")
        raised = self._linear(x, f"{source}.intermediate.dense", f"{label}.up", self.inner, self.hidden)
        active = add.activation(self.act, raised, f"{label}.act")
        lowered = self._linear(active, f"{source}.output.dense", f"{label}.down", self.hidden, self.inner)
        return self._skip(lowered, x, f"{source}.output", f"{label}.norm")

    def _linear(self, x: str, module: str, name: str, rows: int, columns: int) -> str:
        fields = "hidden_size" if rows == columns else "intermediate_size, hidden_size"
        weight = self.builder.weight(f"{module}.weight", (rows, columns), fields)
        bias = self.builder.weight(f"{module}.bias", (rows,), fields)
        return self.builder.node("Linear", x, weight, bias, name=name)

    def _skip(self, x: str, skip: str, module: str, name: str) -> str:
        norm = self._norm(module)
        return self.builder.skip_norm(x, skip, norm, name, last=True, kind="layer", epsilon=self.epsilon)

    def _norm(self, module: str) -> tuple[str, str]:
        shape = (self.hidden,)
        return (
            self.builder.weight(f"{module}.LayerNorm.weight", shape, "hidden_size"),
            self.builder.weight(f"{module}.LayerNorm.bias", shape, "hidden_size"),
        )

    def _meta(self) -> dict[str, Attr]:
        meta: dict[str, Attr] = {
            "kind": "encoder",
            "model_type": "bert",
            "context": self.context,
            "vocab": self.config.size("vocab_size"),
        }
        tokens = generation_of(self.builder.model, self.config.size("vocab_size")).tokens
        return {**meta, "pad_token_id": tokens["pad_token_id"]} if "pad_token_id" in tokens else meta


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
FAMILY = Family(
    name="bert",
    heads={"bert": ("BertModel", "BertForPreTraining", "BertForMaskedLM")},
    names=NAMES,
    build=build,
    gguf={"bert": Gguf(_gguf_config)},
)

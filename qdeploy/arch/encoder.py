"""An encoder as data: learned positions, bidirectional attention and post-norm blocks, and a head on top.

    x = norm(word[ids] + type[token_type_ids] + position[places]), projected where embeddings are narrower
    per layer:  x = norm(x + dense(attention(x)));  x = norm(x + dense(act(dense(x))))

That is BERT (arXiv 1810.04805, section 3) and what was made of it: RoBERTa, ELECTRA, DistilBERT. A family's file says
what the parameters are called, where places come from, and which heads its classes have (`task_heads.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qdeploy.arch.builder import ACTIVATIONS, Builder, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.generation import encoder_meta
from qdeploy.arch.names import Names
from qdeploy.arch.relative import add_distance_bias, buckets_by_distance
from qdeploy.arch.sentence import add_hidden_states
from qdeploy.arch.task_heads import Head, add_head
from qdeploy.ir.graph import Attr, Graph, Value
from qdeploy.ir.model import Model

_BUCKETS, _MAX_DISTANCE = 32, 128


@dataclass(frozen=True)
class Modules:
    """What the modules of an encoder are called; `{i}` is the layer.

    Attributes:
        layer: The module that holds a layer; the following ones are within it.
        query: The projection of queries; likewise key, value and output.
        key: Of keys.
        value: Of values.
        output: Behind attention.
        attention_norm: Of the sum of attention and its input.
        up: The first layer of the MLP.
        down: The second.
        norm: Of the sum of the MLP and its input.
    """

    layer: str = "encoder.layer"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    norm: str = "output.LayerNorm"


@dataclass(frozen=True)
class Fields:
    """The fields of config.json that hold the sizes."""

    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    layers: str = "num_hidden_layers"
    inner: str = "intermediate_size"
    act: str = "hidden_act"


@dataclass(frozen=True)
class Encoder:
    """A family of encoders.

    Attributes:
        names: How parameters are called.
        heads: The head of each class in `architectures`; None for hidden states.
        refused: Fields of config.json that change the arithmetic, with the values that do not.
        modules: What the modules are called.
        fields: What the sizes are called in config.json.
        types: Whether there are embeddings of token types.
        padded_places: Whether places count the tokens that are no padding, from the id of padding on (RoBERTa).
        absolute: Whether there are embeddings of positions.
        epsilon: Of all norms, where config.json does not say.
        distance_bias: The module of a table of biases by distance, of all layers; "" for none (MPNet).
        narrow: Whether embeddings may be narrower than the layers, `embedding_size` (ELECTRA).
    """

    names: Names
    heads: dict[str, Head | None]
    refused: dict[str, tuple[object, ...]]
    modules: Modules = Modules()
    fields: Fields = Fields()
    types: bool = True
    padded_places: bool = False
    narrow: bool = False
    absolute: bool = True
    epsilon: float = 1e-12
    distance_bias: str = ""

    def build(self, model: Model) -> Graph:
        """Builds the graph, with a sentence embedding where sentence-transformers' files say how."""
        return Encoding(self, model).graph()


class Encoding:
    """An encoder's graph under construction; a family whose attention is another one derives its own."""

    bias = ""

    def __init__(self, family: Encoder, model: Model) -> None:
        self.family, self.modules, fields = family, family.modules, family.fields
        self.config = Config(_usual(model.config, fields))
        self.config.refuse(family.refused)
        self.builder = Builder(model, family.names)
        self.hidden, self.heads = self.config.size("hidden_size"), self.config.size("num_attention_heads")
        self.width = self.config.size("embedding_size", self.hidden)
        allowed = self.width if family.narrow else self.hidden
        self.config.refuse({"embedding_size": (allowed,), "num_key_value_heads": (self.heads,)})
        self.inner = self.config.size("intermediate_size")
        self.layers = layer_count(model, self.config)
        self.places = self.config.size("max_position_embeddings", 512)
        self.pad = self._padding() if family.padded_places else -1
        self.epsilon = self.config.positive("layer_norm_eps", family.epsilon)
        self.act = self.config.choose("hidden_act", ACTIVATIONS, "gelu")
        if self.hidden % self.heads:
            raise self.config.contradiction(
                "hidden_size, num_attention_heads", f"{self.hidden}, {self.heads}", "a multiple"
            )

    def _padding(self) -> int:
        """The id of padding, which may be 0."""
        return 0 if self.config.fields.get("pad_token_id") == 0 else self.config.size("pad_token_id", 1)

    def graph(self) -> Graph:
        """All nodes, in order."""
        add = self.builder
        x = self._embeddings()
        self.prepare()
        for i in range(self.layers):
            x = self._layer(i, x)
        head = self.family.heads.get(self.config.class_name)  # without one, hidden states
        if head is None:
            outputs = add_hidden_states(add, x, self.hidden)
        else:
            outputs = add_head(add, self.config, head, x, self._embedding_table())
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if self.family.types else ()))
        inputs = tuple(Value(name, "I64", ("batch", "sequence")) for name in names)
        return add.graph(inputs, tuple(outputs), self._meta())

    def _embedding_table(self) -> tuple[str, int]:
        return self._table("word", self.config.size("vocab_size"), "vocab_size"), self.width

    # ---- embeddings

    def _embeddings(self) -> str:
        add, module = self.builder, "embeddings"
        total = self._gathered("word", self.config.size("vocab_size"), "vocab_size", "input_ids")
        kind = ""
        if self.family.types:
            kind = self._gathered(
                "token_type", self.config.size("type_vocab_size", 2), "type_vocab_size", "token_type_ids"
            )
        place = ""
        if self.family.absolute:
            place = self._gathered("position", self.places, "max_position_embeddings", self._places())
        total = add.node("Add", total, kind, name=f"{module}.typed") if kind else total
        total = add.node("Add", total, place, name=f"{module}.sum") if place else total
        norm = self.norm(f"{module}.LayerNorm", self.width)
        x = add.node("LayerNormalization", total, *norm, name=f"{module}.norm", epsilon=self.epsilon)
        if self.width == self.hidden:
            return x
        return self.linear(x, "embeddings_project", f"{module}.project", self.hidden, self.width)

    def _gathered(self, which: str, rows: int, field: str, ids: str) -> str:
        """Rows of a table of embeddings."""
        return self.builder.node("Gather", self._table(which, rows, field), ids, name=f"embeddings.{which}", axis=0)

    def _places(self) -> str:
        """Positions [T], or [B, T] where only tokens that are no padding have one of their own."""
        add, name = self.builder, "embeddings.positions"
        if not self.family.padded_places:
            return add.node("Positions", "input_ids", name=name)
        return add.node("TokenPositions", "input_ids", name=name, pad=self.pad)

    def _table(self, which: str, rows: int, field: str) -> str:
        shape = (rows, self.width)
        return self.builder.weight(f"embeddings.{which}_embeddings.weight", shape, f"{field}, hidden_size")

    def prepare(self) -> None:
        """Adds what all layers share: biases [1, heads, T, T] of distances, where the family has them."""
        if not self.family.distance_bias:
            return
        add = self.builder
        table = add.weight(f"{self.family.distance_bias}.weight", (_BUCKETS, self.heads), "num_attention_heads")
        places = add.node("Positions", "input_ids", name="distance.positions")
        buckets = buckets_by_distance(_BUCKETS, _MAX_DISTANCE, bidirectional=True)
        self.bias = add_distance_bias(add, table, (places, places), _MAX_DISTANCE, buckets, "distance.bias")

    def scale(self) -> float:
        """Multiplied into the scores of attention."""
        return float((self.hidden // self.heads) ** -0.5)

    def attention_bias(self, i: int, q: str, k: str) -> str:
        """What is added to the scores of layer i, whose queries and keys are q and k; "" for nothing."""
        return self.bias

    # ---- layers

    def _layer(self, i: int, x: str) -> str:
        add, names, source, label = self.builder, self.modules, f"{self.modules.layer}.{i}", f"layer.{i}"
        parts = (("query", names.query), ("key", names.key), ("value", names.value))
        q, k, v = (
            self.linear(x, f"{source}.{module}", f"{label}.{part}", self.hidden, self.hidden) for part, module in parts
        )
        mixed = add.node(
            "Attention",
            q,
            k,
            v,
            "attention_mask",
            "",
            self.attention_bias(i, q, k),
            name=f"{label}.attention",
            heads=self.heads,
            kv_heads=self.heads,
            scale=self.scale(),
            causal=False,
            window=0,
        )
        mixed = self.linear(mixed, f"{source}.{names.output}", f"{label}.attention.dense", self.hidden, self.hidden)
        x = self._skip(mixed, x, f"{source}.{names.attention_norm}", f"{label}.attention.norm")
        raised = self.linear(x, f"{source}.{names.up}", f"{label}.up", self.inner, self.hidden)
        active = add.activation(self.act, raised, f"{label}.act")
        lowered = self.linear(active, f"{source}.{names.down}", f"{label}.down", self.hidden, self.inner)
        return self._skip(lowered, x, f"{source}.{names.norm}", f"{label}.norm")

    def linear(self, x: str, module: str, name: str, rows: int, columns: int) -> str:
        """Adds a stored projection [rows, columns] with its bias."""
        fields = "hidden_size" if rows == columns else "intermediate_size, hidden_size"
        return self.builder.linear(x, module, (rows, columns), fields, name)

    def _skip(self, x: str, skip: str, module: str, name: str) -> str:
        norm = self.norm(module, self.hidden)
        return self.builder.skip_norm(x, skip, norm, name, last=True, kind="layer", epsilon=self.epsilon)

    def norm(self, module: str, size: int) -> tuple[str, str]:
        """The names of the weight and the bias of a stored norm [size]."""
        return (
            self.builder.weight(f"{module}.weight", (size,), "hidden_size"),
            self.builder.weight(f"{module}.bias", (size,), "hidden_size"),
        )

    def _meta(self) -> dict[str, Attr]:
        kind = str(self.config.fields.get("model_type", "bert"))
        return encoder_meta(self.builder.model, kind, self.places - self.pad - 1, self.config.size("vocab_size"))


def _usual(config: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """The configuration with the sizes under their usual names, too."""
    values = dict(config)
    usual = Fields()
    for name in ("hidden", "heads", "layers", "inner", "act"):
        own, common = getattr(fields, name), getattr(usual, name)
        if own != common and own in values:
            values[common] = values[own]
    return values

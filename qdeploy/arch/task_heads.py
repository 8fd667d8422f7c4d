"""Heads of encoders as data: what stands between the last hidden states and the scores of a task.

    logits = final(norm(act(dense(x))))          of every token, or of the first one

Heads decide what a graph gives: `logits` per token (masked language models, tagging), per sequence (classifiers and
cross-encoders), or `start_logits` and `end_logits` (answers as spans).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qdeploy.arch.builder import ACTIVATIONS, Builder
from qdeploy.arch.config import Config
from qdeploy.arch.pooling import Pool
from qdeploy.ir.graph import Value


@dataclass(frozen=True)
class Head:
    """A head.

    Attributes:
        final: The module of the last projection.
        pool: What makes one score of those of all tokens (`pooling.py`); None: each token has its own.
        early: Whether it is made of the hidden states, and not of the scores. Engines have products for tokens, so that
            a pool that takes a token comes late: all before is the same for every token.
        dense: A projection before the last; "" for none.
        act: The activation behind it: a name of `ACTIVATIONS`, "hidden" for that of the layers, "" for none.
        norm: A norm behind that; "" for none.
        tied: Whether the last projection is the table of embeddings, unless it is stored.
        bias: The parameter of the last projection's bias, where it is not the module's.
        width: The rows of `dense`: "hidden", or "embedding" for those of the table.
        answers: Whether two scores per token are the outputs `start_logits` and `end_logits`.
        single: Whether there is one score per token and no axis for it.
        dense_biased: Whether `dense` has a bias.
        norm_biased: Whether `norm` has one.
        biased: Whether the last projection has one.
        epsilon: Of the norm; 0 for `layer_norm_eps`.
    """

    final: str
    pool: Pool | None = None
    early: bool = False
    dense: str = ""
    act: str = ""
    norm: str = ""
    tied: bool = False
    bias: str = ""
    width: str = "hidden"
    answers: bool = False
    single: bool = False
    dense_biased: bool = True
    norm_biased: bool = True
    biased: bool = True
    epsilon: float = 0.0


def add_head(add: Builder, config: Config, head: Head, x: str, table: tuple[str, int]) -> list[Value]:
    """Adds a head behind the hidden states x [B, T, hidden].

    Args:
        add: The graph.
        config: Of the model; `id2label` or `num_labels` says how many classes there are.
        head: Which head.
        x: The hidden states.
        table: The word embeddings [vocabulary, width] and their width.

    Returns:
        The outputs of the graph.
    """
    hidden = config.size("hidden_size")
    width = hidden
    if head.pool and head.early:
        x = head.pool(add, x, "head.mean")
    if head.dense:
        width = table[1] if head.width == "embedding" else hidden
        weight = add.weight(f"{head.dense}.weight", (width, hidden), "hidden_size")
        bias = add.bias(f"{head.dense}.bias", width, head.dense_biased, "classifier_bias")
        x = add.node("Linear", x, weight, bias, name="head.dense")
        act = str(config.fields.get("hidden_act", "gelu")) if head.act == "hidden" else head.act
        x = add.activation(ACTIVATIONS.get(act, act), x, "head.act") if head.act else x
    if head.norm:
        epsilon = head.epsilon or config.positive("layer_norm_eps", 1e-12)
        parts = ("weight", "bias") if head.norm_biased else ("weight",)
        norm = [add.weight(f"{head.norm}.{part}", (width,), "hidden_size") for part in parts]
        x = add.node("LayerNormalization", x, *norm, name="head.norm", epsilon=epsilon)
    return _scores(add, config, head, x, table, width)


def _scores(add: Builder, config: Config, head: Head, x: str, table: tuple[str, int], width: int) -> list[Value]:
    labels = config.size("vocab_size") if head.tied else 1 if head.single else label_count(config)
    late = head.pool if not head.early else None
    name = "head.scores" if late or head.answers or head.single else "logits"
    stored = add.has(f"{head.final}.weight")
    weight = table[0] if head.tied and not stored else add.weight(f"{head.final}.weight", (labels, width), "id2label")
    if head.tied and stored and config.fields.get("tie_word_embeddings") is not False:  # one table under two names
        add.same(weight, table[0])
    field = "vocab_size" if head.tied else "id2label"
    bias = add.bias(head.bias or f"{head.final}.bias", labels, head.biased, field)
    if head.bias and add.has(f"{head.final}.bias"):
        add.same(add.weight(f"{head.final}.bias", (labels,), "vocab_size"), bias)
    add.node("Linear", x, weight, bias, name=name)
    if head.single:
        add.node("Squeeze", name, name="logits", axes=[2])
        return [Value("logits", "F32", ("batch", "sequence"))]
    if head.answers:
        return [_answer(add, name, place, output) for place, output in enumerate(("start_logits", "end_logits"))]
    if late:
        late(add, name, "logits")
    return [Value("logits", "F32", ("batch", labels) if head.pool else ("batch", "sequence", labels))]


def _answer(add: Builder, scores: str, place: int, output: str) -> Value:
    column = add.node("Slice", scores, name=f"{output}.column", starts=[place], ends=[place + 1], axes=[2])
    add.node("Squeeze", column, name=output, axes=[2])
    return Value(output, "F32", ("batch", "sequence"))


def classifier_pooling(config: Config, kinds: tuple[str, ...]) -> str:
    """Reads `classifier_pooling`: one of `kinds`, the first where it is absent; UnsupportedError for another."""
    return config.choose("classifier_pooling", {kind: kind for kind in kinds}, kinds[0])


def label_count(config: Config) -> int:
    """How many classes there are: `num_labels`, or the entries of `id2label`; two where neither is there."""
    named = config.fields.get("id2label")
    return config.size("num_labels", len(named) if isinstance(named, Mapping) and named else 2)

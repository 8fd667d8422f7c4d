"""DeBERTa v2 and v3: BERT's blocks with disentangled attention, mostly without absolute positions (arXiv 2006.03654).

Definitions and defaults are those of transformers' DebertaV2Model and of its heads. The convolution beside the first
layer of the largest v2 models is refused by its field.
"""

from __future__ import annotations

from qdeploy.arch.builder import ACTIVATIONS
from qdeploy.arch.config import Config
from qdeploy.arch.disentangled import PositionScores, bucket_rows, pair_rows
from qdeploy.arch.encoder import Encoder, Encoding, Modules
from qdeploy.arch.families.bert import REFUSED
from qdeploy.arch.family import Family
from qdeploy.arch.names import Names
from qdeploy.arch.pooling import first_token
from qdeploy.arch.task_heads import Head
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_REFUSED = {
    **{name: values for name, values in REFUSED.items() if name != "relative_attention"},
    "conv_kernel_size": (0,),
    "attention_head_size": (),
}
_TERMS = ("c2p", "p2c")


def build(model: Model) -> Graph:
    """Builds the graph of a DebertaV2Model or of one of its heads."""
    config = Config(model.config)
    family = Encoder(
        NAMES,
        _heads(config),
        _REFUSED,
        Modules(query="attention.self.query_proj", key="attention.self.key_proj", value="attention.self.value_proj"),
        types=config.fields.get("type_vocab_size", 0) != 0,
        absolute=config.flag("position_biased_input", True),
        epsilon=1e-7,
    )
    return _Deberta(family, model).graph()


class _Deberta(Encoding):
    """A graph whose layers score positions beside contents."""

    scores: PositionScores | None = None

    def prepare(self) -> None:
        """Adds the table of positions, normed where the configuration says so, and the rows of all pairs."""
        if not self.config.flag("relative_attention", False):
            return
        add, places = self.builder, self.config.size("max_position_embeddings", 512)
        most, buckets = _span(self.config, "max_relative_positions", places), _span(self.config, "position_buckets", 0)
        if buckets and not 1 <= buckets // 2 < most - 1:
            raise self.config.contradiction(
                "position_buckets, max_relative_positions", f"{buckets}, {most}", "half the buckets below the distances"
            )
        shape = (2 * (buckets or most), self.hidden)
        table = add.weight("encoder.rel_embeddings.weight", shape, "position_buckets, hidden_size")
        if self.config.text("norm_rel_ebd", "none").strip().lower() == "layer_norm":
            norm = self.norm("encoder.LayerNorm", self.hidden)
            table = add.node("LayerNormalization", table, *norm, name="relative.norm", epsilon=self.epsilon)
        rows = pair_rows(add, "input_ids", bucket_rows(places, buckets, most))
        kinds = _terms(self.config)
        self.scores = PositionScores(table, rows, self.heads, self.hidden // self.heads, kinds)

    def scale(self) -> float:
        """Multiplied into the scores."""
        return (self.hidden // self.heads) ** -0.5 if self.scores is None else self.scores.scale

    def attention_bias(self, i: int, q: str, k: str) -> str:
        """The scores of positions [B, heads, T, T]."""
        if self.scores is None:
            return ""
        shared, label = self.config.flag("share_att_key", False), f"layer.{i}.positions"
        modules = (
            {"c2p": "key_proj", "p2c": "query_proj"} if shared else {"c2p": "pos_key_proj", "p2c": "pos_query_proj"}
        )
        positions = {
            term: self.linear(
                self.scores.table,
                f"encoder.layer.{i}.attention.self.{modules[term]}",
                f"{label}.{term}.table",
                self.hidden,
                self.hidden,
            )
            for term in self.scores.terms
        }
        return self.scores.add(self.builder, {"c2p": q, "p2c": k}, positions, label)


def _span(config: Config, field: str, default: int) -> int:
    """A number of positions; below 1 it means the default."""
    value = config.fields.get(field, -1)
    return config.size(field) if isinstance(value, int) and value > 0 else default


def _terms(config: Config) -> tuple[str, ...]:
    named = config.fields.get("pos_att_type") or []
    kinds = named.split("|") if isinstance(named, str) else named
    if not isinstance(kinds, list) or not set(kinds) <= set(_TERMS):
        raise UnsupportedError(
            "an unsupported value in the configuration",
            where=f"{config.where}: pos_att_type",
            found=named,
            allowed="c2p, p2c",
        )
    return tuple(term for term in _TERMS if term in kinds)


def _heads(config: Config) -> dict[str, Head | None]:
    act = config.choose("pooler_hidden_act", ACTIVATIONS, "gelu")
    return {
        "DebertaV2Model": None,
        "DebertaV2ForSequenceClassification": Head("classifier", pool=first_token, dense="pooler.dense", act=act),
        "DebertaV2ForTokenClassification": Head("classifier"),
        "DebertaV2ForQuestionAnswering": Head("qa_outputs", answers=True),
    }


NAMES = Names((), prefixes=("", "deberta."))
FAMILY = Family(
    name="deberta",
    heads={
        "deberta-v2": (
            "DebertaV2Model",
            "DebertaV2ForSequenceClassification",
            "DebertaV2ForTokenClassification",
            "DebertaV2ForQuestionAnswering",
        )
    },
    names=NAMES,
    build=build,
)

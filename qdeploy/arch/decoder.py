"""A causal decoder: the layers of stack.py behind embeddings, and the logits on top.

    logits = softcap(head(hidden states) * logits_multiplier)

A head that is not stored is the embedding's tensor, used a second time.
"""

from __future__ import annotations

from qdeploy.arch.config import Config
from qdeploy.arch.family import is_headless
from qdeploy.arch.generation import generation_of
from qdeploy.arch.stack import Decoder, TokenStack, refuse_unread
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.graph import Attr, Graph, Value
from qdeploy.ir.model import Model


def heads_of(config: Config, head_dim: int | None = None, kv_heads: int | None = None) -> tuple[int, int]:
    """Reads head_dim and kv_heads, with the family's defaults where the fields are absent."""
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    kv = config.size("num_key_value_heads", kv_heads or heads)
    if heads % kv:
        raise config.contradiction("num_attention_heads, num_key_value_heads", f"{heads}, {kv}", "a multiple")
    if not config.has("head_dim") and head_dim is None and hidden % heads:
        raise config.contradiction("hidden_size, num_attention_heads", f"{hidden}, {heads}", "a multiple")
    return config.size("head_dim", head_dim or max(hidden // heads, 1)), kv


def build_decoder(model: Model, config: Config, decoder: Decoder) -> Graph:
    """Builds the graph, which is an encoder's where the output projection is no part of the model.

    Raises as `build_graph` says.
    """
    if is_headless(config.class_name):  # few are: the others start without what only these need
        from qdeploy.arch.bidirectional import build_bidirectional, encoder_of

        return build_bidirectional(model, config, encoder_of(config, decoder))
    refuse_unread(config, decoder.refused)
    return Decoding(model, config, decoder).graph()


class Decoding(TokenStack):
    """A decoder's graph under construction."""

    def graph(self) -> Graph:
        """All nodes, in order."""
        x = self.tokens()
        if self.decoder.modules.positions:
            x = self._placed(x)
        if self.decoder.layer_inputs is not None:
            self.decoder.layer_inputs.add(self.builder, x)
        self._logits(self.hidden_states(x))
        return self.builder.graph(
            (Value("input_ids", "I64", ("batch", "sequence")),),
            (Value("logits", "F32", ("batch", "sequence", self.vocab)),),
            self._meta(),
        )

    def _placed(self, x: str) -> str:
        """Adds the learned positions."""
        add, spec = self.builder, self.decoder
        rows = spec.context + spec.first_position
        table = add.weight(f"{spec.modules.positions}.weight", (rows, self.hidden), "max_position_embeddings")
        places = add.node("PositionsBehind", "input_ids", name="positions", length_of="kv.0")
        if spec.first_position:
            offset = add.node("Constant", name="positions.first", value_int=spec.first_position)
            places = add.node("Add", places, offset, name="positions.moved")
        return add.node("Add", x, add.node("Gather", table, places, name="position", axis=0), name="embed")

    def _logits(self, last: str) -> None:
        add, spec = self.builder, self.decoder
        name = "logits" if spec.logits_multiplier == 1 and not spec.logits_softcap else "logits.raw"
        bias = add.bias(f"{spec.modules.head}.bias", self.vocab, spec.head_bias, "vocab_size")
        out = add.node("Linear", last, self._head(), bias, name=name)
        if spec.logits_softcap:
            out = self._scaled(out, spec.logits_multiplier, "logits.multiplied")
            bounded = add.node("Tanh", add.scaled(out, 1 / spec.logits_softcap, "logits.small"), name="logits.bounded")
            add.scaled(bounded, spec.logits_softcap, "logits")
        else:
            self._scaled(out, spec.logits_multiplier, "logits")

    def _head(self) -> str:
        name = f"{self.decoder.modules.head}.weight"
        if not self.builder.has(name):
            self._check_tied(name)
            return self.embedding
        # Even where the config says tied, as transformers does: a head of its own may be quantized on its own.
        return self.builder.weight(name, (self.vocab, self.hidden), "vocab_size, hidden_size")

    def _check_tied(self, name: str) -> None:
        """Refuses a head that is missing where the configuration says that it is not the embedding."""
        model = self.builder.model
        if model.config.get("tie_word_embeddings") is False:
            raise BadFileError(
                "a tensor of the architecture is missing",
                where=f"tensor {name}",
                found="config.json: tie_word_embeddings is false, and no output projection is stored",
                allowed=f"shape {[self.vocab, self.hidden]}",
                todo="Fetch the missing weights, or set tie_word_embeddings to true if the embedding is meant.",
            )
        note = "no output projection is stored and config.json does not say tied or not: the embedding is used for it"
        if model.dialect == "hf" and "tie_word_embeddings" not in model.config and note not in model.notes:
            model.notes.append(note)

    def _meta(self) -> dict[str, Attr]:
        meta: dict[str, Attr] = {
            "kind": "decoder",
            "model_type": self.decoder.model_type,
            "context": self.decoder.context,
            "vocab": self.vocab,
        }
        generation = generation_of(self.builder.model, self.vocab)
        self.builder.model.notes.extend(note for note in generation.notes if note not in self.builder.model.notes)
        return {**meta, **generation.tokens}


def check_layer_types(config: Config, layers: int, allowed: tuple[str, ...]) -> list[str]:
    """Reads `layer_types` (absent: empty list); UnsupportedError for a kind of layer that is not allowed."""
    if not config.has("layer_types"):
        return []
    kinds = config.entries("layer_types", layers, str)
    for kind in kinds:
        if kind not in allowed:
            raise UnsupportedError(
                "an unsupported kind of layer",
                where=f"{config.where}: layer_types",
                found=kind,
                allowed=", ".join(allowed),
            )
    return kinds

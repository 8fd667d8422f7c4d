"""An encoder and a decoder that looks at what the encoder gives (arXiv 1706.03762, section 3.1).

    memory = encoder(input);  logits = head(decoder(decoder_input_ids, memory))

The graph keeps nothing between two runs: a longer continuation is a run of the whole decoder.
"""

from __future__ import annotations

from collections.abc import Callable

from qdeploy.arch.builder import Builder
from qdeploy.arch.config import Config
from qdeploy.arch.stack import Branch, Decoder, Layer, Stack
from qdeploy.ir.graph import Attr, Graph, Value
from qdeploy.ir.model import Model

MEMORY = "encoder_last_hidden_state"
TARGET = "decoder_input_ids"


class Towers:
    """A graph of two stacks of layers under construction.

    Args:
        model: Whose graph it is.
        config: With the sizes under their usual names.
        encoder: The layers of the encoder; likewise decoder.
        decoder: Of the decoder.

    Attributes:
        builder: The graph.
        encoder: The encoder's layers.
        decoder: The decoder's.
    """

    def __init__(self, model: Model, config: Config, encoder: Decoder, decoder: Decoder) -> None:
        self.encoder, self.decoder = Stack(model, config, encoder), Stack(model, config, decoder)
        self.builder = self.decoder.builder = self.encoder.builder
        self.hidden, self.vocab = config.size("hidden_size"), config.size("vocab_size")

    def within(self, scope: str, part: Callable[[], str]) -> str:
        """Runs a part of the construction with names of its own."""
        self.builder.scope = f"{scope}."
        name = part()
        self.builder.scope = ""
        return name

    def remember(self, x: str, length: str | int) -> Value:
        """Gives the encoder's result its name; it is an output, too."""
        self.builder.node("Identity", x, name=MEMORY)
        return Value(MEMORY, "F32", ("batch", length, self.hidden))

    def logits(self, x: str, head: str, table: str) -> Value:
        """Adds the output projection: stored under `head`, or the table of tokens."""
        add = self.builder
        shape = (self.vocab, self.hidden)
        weight = add.weight(head, shape, "vocab_size, d_model") if add.has(head) else table
        add.node("Linear", x, weight, name="logits")
        return Value("logits", "F32", ("batch", "target_sequence", self.vocab))

    def graph(self, inputs: tuple[Value, ...], outputs: tuple[Value, ...], model_type: str, context: int) -> Graph:
        """The finished graph."""
        target = Value(TARGET, "I64", ("batch", "target_sequence"))
        meta: dict[str, Attr] = {
            "kind": "encoder-decoder",
            "model_type": model_type,
            "context": context,
            "vocab": self.vocab,
        }
        return self.builder.graph((*inputs, target), outputs, meta)


def pre_norm(*branches: Branch) -> Layer:
    """A layer of branches, each with a norm before it."""
    return Layer(branches)


def embedded(add: Builder, table: str, ids: str, name: str = "embed_tokens") -> str:
    """Rows of a table of tokens."""
    return add.node("Gather", table, ids, name=name, axis=0)

"""An encoder that is built of a decoder's layers: no cache, and a head or the hidden states on top.

    x = norm(word[ids] + type[token_type_ids])          both parts only where the family has them
    layers as in stack.py; hidden states = norm(x), or x

With attention in both directions that is ModernBERT (arXiv 2412.13663), NomicBERT (arXiv 2402.01613), EuroBERT (arXiv
2503.05500) and EmbeddingGemma (arXiv 2509.20354). With causal attention it is what embedding models and rerankers make
of a causal decoder (`encoder_of`). What was made of BERT itself stands in encoder.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qdeploy.arch.config import Config
from qdeploy.arch.generation import encoder_meta
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.pooling import last_token
from qdeploy.arch.self_attention import SelfAttention
from qdeploy.arch.sentence import add_hidden_states
from qdeploy.arch.stack import Block, Branch, Decoder, Layer, TokenStack, refuse_unread
from qdeploy.arch.task_heads import Head, add_head
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Attr, Graph, Value
from qdeploy.ir.model import Model


@dataclass(frozen=True)
class Bidirectional:
    """What tells one such encoder from another.

    Attributes:
        decoder: Its layers; their attention is bidirectional.
        heads: The head of each class in `architectures`; None for hidden states.
        norm: The module of a norm of the embeddings; "" for none.
        types: The module of the table of token types; "" for none.
    """

    decoder: Decoder
    heads: Mapping[str, Head | None]
    norm: str = ""
    types: str = ""


def build_bidirectional(model: Model, config: Config, encoder: Bidirectional) -> Graph:
    """Builds the graph; raises as `build_graph` says."""
    refuse_unread(config, encoder.decoder.refused)
    return _Encoding(model, config, encoder).graph()


_SCORES = {"SequenceClassification": Head("score", pool=last_token, biased=False), "TokenClassification": Head("score")}
"""Heads that transformers puts on every causal decoder."""


def encoder_of(config: Config, decoder: Decoder) -> Bidirectional:
    """What a decoder becomes that is stored without its output projection: hidden states, or scores of classes.

    Raises:
        UnsupportedError: Its layers keep states of another kind than keys and values.
    """
    name = config.class_name
    task = name.rpartition("For")[2]
    if decoder.modules.positions:
        raise _no_encoder(name, "a table of positions")
    layers = tuple(_without_cache(layer, name) for layer in decoder.layers)
    return Bidirectional(replace(decoder, layers=layers), {name: _SCORES.get(task)})


def _without_cache(layer: Layer, name: str) -> Layer:
    return replace(layer, branches=tuple(replace(b, block=_cacheless(b, name)) for b in layer.branches))


def _cacheless(branch: Branch, name: str) -> Block:
    if isinstance(branch.block, SelfAttention):
        return replace(branch.block, cached=False)
    if not isinstance(branch.block, Mlp):
        raise _no_encoder(name, "layers that are more than attention and MLPs")
    return branch.block


def _no_encoder(name: str, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"a model without its output projection that has {reason}",
        where="config.json: architectures",
        found=name,
        todo="Convert its tensors with --to ir.",
    )


class _Encoding(TokenStack):
    """An encoder's graph under construction."""

    def __init__(self, model: Model, config: Config, encoder: Bidirectional) -> None:
        super().__init__(model, config, encoder.decoder)
        self.encoder = encoder

    def graph(self) -> Graph:
        """All nodes, in order."""
        x = self.hidden_states(self._embeddings())
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if self.encoder.types else ()))
        inputs = tuple(Value(name, "I64", ("batch", "sequence")) for name in names)
        return self.builder.graph(inputs, tuple(self._outputs(x)), self._meta())

    def _embeddings(self) -> str:
        add, norm, x = self.builder, self.decoder.norm, self.tokens()
        if self.encoder.types:
            shape = (self.config.size("type_vocab_size", 2), self.hidden)
            table = add.weight(f"{self.encoder.types}.weight", shape, "type_vocab_size, hidden_size")
            kinds = add.node("Gather", table, "token_type_ids", name="embed_types", axis=0)
            x = add.node("Add", x, kinds, name="embed")
        if self.encoder.norm:
            x = norm.add(add, x, norm.parameters(add, self.encoder.norm, self.hidden), "embed.norm")
        return x

    def _outputs(self, x: str) -> list[Value]:
        head = self.encoder.heads.get(self.config.class_name)
        if head is not None:
            return add_head(self.builder, self.config, head, x, (self.embedding, self.hidden))
        return add_hidden_states(self.builder, x, self.hidden)

    def _meta(self) -> dict[str, Attr]:
        return encoder_meta(self.builder.model, self.decoder.model_type, self.decoder.context, self.vocab)

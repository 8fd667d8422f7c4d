"""The layers of a decoder, or of an encoder that is built like one, as data, and the nodes that follow.

    x = embed(ids) * embedding_multiplier
    per layer, per branch:   x = x + multiplier * after(block(before(x)))
    hidden states = norm(x)

A branch is a block between two norms, either of which may be missing: pre-norm decoders (Llama) have the one before,
post-norm decoders (OLMo 2) the one after, others (Gemma 2) both. Branches follow each other, or read the same x and are
added up (`parallel`: Cohere, GPT-NeoX). A block is whatever mixes tokens or works on each of them; a family chooses it
per layer, so that experts, recurrent and convolutional blocks are classes of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from qdeploy.arch.builder import Builder
from qdeploy.arch.config import Config
from qdeploy.arch.names import Names
from qdeploy.ir.model import Model

REFUSED = {
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "attention_multiplier": (),
    "scale_emb": (1,),
    "scale_depth": (),
    "dim_model_base": (),
    "num_local_experts": (0,),
    "num_experts": (0,),
    "n_routed_experts": (0,),
    "num_experts_per_tok": (0,),
    "kv_lora_rank": (),
    "q_lora_rank": (),
    "clip_qkv": (),
    "attn_output_gate": (False,),
    "attention_sinks": (False,),
    "use_attention_sinks": (False,),
    "attn_sinks": (False,),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "qk_norm": (False,),
    "qkv_bias": (False,),
    "parallel_attn": (False,),
    "parallel_residual": (False,),
    "use_parallel_residual": (False,),
    "alibi": (False,),
    "use_alibi": (False,),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    "attention_chunk_size": (),
    "dual_chunk_attention_config": (),
    "attn_temperature_tuning": (False, 0),
    "cross_attention_layers": ([],),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "bidirectional_attention": (False,),
}
"""Fields that change the arithmetic, with the values that mean nothing. A family that reads one of them understands it;
every other family refuses it."""


class Block(Protocol):
    """What stands in a branch: attention, an MLP, experts, a convolution, a recurrence."""

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds the nodes of layer number `layer` on the value x [B, T, hidden]; returns the name of the result."""
        ...


class LayerInputs(Protocol):
    """What gives every layer a vector of each token, which its blocks take by name."""

    def add(self, builder: Builder, x: str) -> None:
        """Adds the nodes, which read `input_ids` and the embeddings x [B, T, hidden]."""
        ...


@dataclass(frozen=True)
class Norm:
    """A normalisation over the hidden axis.

    Attributes:
        kind: "rms" or "layer".
        epsilon: Added to the mean square or the variance.
        offset: Added to the stored weight (Gemma stores weight - 1).
        bias: Whether there is a bias; only with "layer".
    """

    kind: Literal["rms", "layer"] = "rms"
    epsilon: float = 1e-6
    offset: float = 0.0
    bias: bool = False

    def parameters(self, builder: Builder, module: str, size: int) -> tuple[str, ...]:
        """The names of weight and bias of a stored norm [size]."""
        weight = builder.shifted(builder.weight(f"{module}.weight", (size,), "hidden_size"), self.offset)
        bias = (builder.weight(f"{module}.bias", (size,), "hidden_size"),) if self.bias else ()
        return (weight, *bias)

    def add(self, builder: Builder, x: str, parameters: tuple[str, ...], name: str) -> str:
        """Adds the norm of x."""
        op = "RMSNormalization" if self.kind == "rms" else "LayerNormalization"
        return builder.node(op, x, *parameters, name=name, epsilon=self.epsilon)


@dataclass(frozen=True)
class Branch:
    """A residual branch: x + multiplier * after(block(before(x))).

    Attributes:
        block: What it computes.
        before: The module of the norm before the block, within the layer; "" for none.
        after: The same for the norm behind the block.
        scale: A stored factor per channel for what the block gives; "" for none.
        after_sum: The same for a norm behind the addition, which the next branch and its own addition take.
    """

    block: Block
    before: str = ""
    after: str = ""
    after_sum: str = ""
    scale: str = ""


@dataclass(frozen=True)
class Layer:
    """One layer: its branches, one after the other, or in parallel on the same input.

    Attributes:
        branches: In order.
        parallel: Whether all read the same input.
        factor: A stored number that the layer's result is multiplied with; "" for none.
    """

    branches: tuple[Branch, ...]
    parallel: bool = False
    factor: str = ""


@dataclass(frozen=True)
class Modules:
    """What the modules of a decoder outside of its layers are called.

    Attributes:
        embedding: The table of tokens.
        layers: What holds the layers.
        norm: The last norm; "" for none.
        head: The output projection.
        positions: The table of learned positions; "" for none.
    """

    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    positions: str = ""


@dataclass(frozen=True)
class Decoder:
    """What tells one decoder from another.

    Attributes:
        model_type: As in config.json.
        names: How parameters are called.
        layers: In order.
        context: How many positions the graph is good for.
        norm: Every norm over the hidden axis.
        residual_multiplier: Multiplied into every branch.
        embedding_multiplier: Multiplied into the embeddings.
        logits_multiplier: Multiplied into the logits.
        logits_softcap: c of c * tanh(logits / c); 0 for none.
        head_bias: Whether the output projection has a bias.
        modules: What the modules outside of the layers are called.
        first_position: The row of the table of positions that the first token takes.
        layer_inputs: Vectors of each token for each layer, besides the embeddings; None for none.
        refused: Further fields that are refused, as in `REFUSED`; an entry here replaces the one there.
    """

    model_type: str
    names: Names
    layers: tuple[Layer, ...]
    context: int
    norm: Norm
    residual_multiplier: float = 1.0
    embedding_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    logits_softcap: float = 0.0
    head_bias: bool = False
    modules: Modules = field(default_factory=Modules)
    first_position: int = 0
    layer_inputs: LayerInputs | None = None
    refused: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


def refuse_unread(config: Config, refused: Mapping[str, tuple[object, ...]]) -> None:
    """Refuses fields that change the arithmetic: those of `refused`, and those of `REFUSED` that nobody has read."""
    unread = {name: values for name, values in REFUSED.items() if name not in config.read}
    config.refuse({**unread, **refused})


class Stack:
    """The layers of a decoder, or of an encoder that is built like one, under construction.

    Args:
        model: Whose graph it is.
        config: Its config.json.
        decoder: Its layers.

    Attributes:
        builder: The graph.
        hidden: Extent of the hidden axis.
    """

    def __init__(self, model: Model, config: Config, decoder: Decoder) -> None:
        self.config, self.decoder = config, decoder
        self.builder = Builder(model, decoder.names)
        self.hidden = config.size("hidden_size")

    def hidden_states(self, x: str) -> str:
        """All layers and the last norm, where there is one."""
        update, last = "", self.decoder.modules.norm
        for i, layer in enumerate(self.decoder.layers):
            x, update = self._parallel(i, layer, x, update) if layer.parallel else self._layer(i, layer, x, update)
            if layer.factor:
                x, update = self._multiplied(i, layer.factor, 1, self._sum(x, update, f"layers.{i}.out")), ""
        return self._norm(last, x, update, "norm", last=True) if last else self._sum(x, update, "sum")

    def _layer(self, i: int, layer: Layer, x: str, update: str) -> tuple[str, str]:
        """Adds one layer; returns the residual stream and the last branch, which the next norm adds to it."""
        for place, branch in enumerate(layer.branches):
            if branch.before:
                pair = (update, x) if place else (x, update)
                h = self._norm(f"{self.decoder.modules.layers}.{i}.{branch.before}", *pair, _label(i, branch.before))
                x = f"{h}.sum" if update else x
            else:
                x = h = self._sum(x, update, f"layers.{i}.{place}.sum")
            update = self._branch(i, branch, h)
            if branch.after_sum:
                module = f"{self.decoder.modules.layers}.{i}.{branch.after_sum}"
                x, update = self._norm(module, x, update, _label(i, branch.after_sum), last=True), ""
        return x, update

    def _parallel(self, i: int, layer: Layer, x: str, update: str) -> tuple[str, str]:
        """Adds one layer whose branches all read the same x."""
        x = self._sum(x, update, f"layers.{i}.sum")
        normed: dict[str, str] = {"": x}
        total = ""
        for branch in layer.branches:
            if branch.before not in normed:
                module = f"{self.decoder.modules.layers}.{i}.{branch.before}"
                normed[branch.before] = self._norm(module, x, "", _label(i, branch.before))
            total = self._sum(self._branch(i, branch, normed[branch.before]), total, f"layers.{i}.branches")
        return x, total

    def _multiplied(self, i: int, factor: str, size: int, x: str) -> str:
        """X times a stored factor of a layer: one number, or one per channel."""
        numbers = self.builder.weight(f"{self.decoder.modules.layers}.{i}.{factor}", (size,), "hidden_size")
        return self.builder.node("Mul", x, numbers, name=f"layers.{i}.{factor}")

    def _branch(self, i: int, branch: Branch, h: str) -> str:
        out = branch.block.add(self.builder, i, h)
        if branch.after:
            out = self._norm(f"{self.decoder.modules.layers}.{i}.{branch.after}", out, "", _label(i, branch.after))
        if branch.scale:
            out = self._multiplied(i, branch.scale, self.hidden, out)
        return self._scaled(out, self.decoder.residual_multiplier, f"{out}.scaled")

    def _norm(self, module: str, x: str, update: str, name: str, last: bool = False) -> str:
        norm = self.decoder.norm
        parameters = norm.parameters(self.builder, module, self.hidden)
        if not update:  # nothing to add to the stream
            return norm.add(self.builder, x, parameters, name)
        return self.builder.skip_norm(x, update, parameters, name, last=last, kind=norm.kind, epsilon=norm.epsilon)

    def _sum(self, x: str, update: str, name: str) -> str:
        return self.builder.node("Add", x, update, name=name) if update else x

    def _scaled(self, x: str, factor: float, name: str) -> str:
        return x if factor == 1 else self.builder.scaled(x, factor, name)


class TokenStack(Stack):
    """A stack behind a table of tokens.

    Attributes:
        vocab: Rows of the table.
        embedding: Its name.
    """

    def __init__(self, model: Model, config: Config, decoder: Decoder) -> None:
        super().__init__(model, config, decoder)
        self.vocab = config.size("vocab_size")
        table = f"{decoder.modules.embedding}.weight"
        self.embedding = self.builder.weight(table, (self.vocab, self.hidden), "vocab_size, hidden_size")

    def tokens(self) -> str:
        """The embeddings of the tokens [B, T, hidden]."""
        x = self.builder.node("Gather", self.embedding, "input_ids", name="embed_tokens", axis=0)
        return self._scaled(x, self.decoder.embedding_multiplier, "embed_tokens.scaled")


def _label(i: int, module: str) -> str:
    """The name of a norm's node: `input_layernorm` of layer 3 is layers.3.input_norm."""
    return f"layers.{i}.{module.replace('layernorm', 'norm')}"

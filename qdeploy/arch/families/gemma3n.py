"""Gemma 3n (text): several streams of hidden states, per-layer embeddings, and caches that layers share.

    p = predict(streams);  h = norm(p_active)
    x = (p_active + norm(attention(h)) + laurel(h)) / sqrt(2)         laurel(h) = h + norm(right(left(h)))
    a = x + norm(mlp(norm(x)))
    s = correct(p, a)
    s_i = s_i + norm(down(act(gate(s_active * scale)) * input of the layer))     for all but the first

See `arch/streams.py` for predict and correct. Of what the gate of some layers gives, only outliers are left
(`activation_sparsity_pattern`): what is above mean + z * deviation, with z the quantile of the normal distribution.
Every layer takes its vector of each token (`arch/layer_inputs.py`). Heads of queries, keys and values are normed, and
scores are not scaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import Decoding, check_layer_types, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layer_inputs import EmbeddedInputs, LayerInputGate
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.names import Names
from qdeploy.arch.prenorm import rms_norm
from qdeploy.arch.rope import for_layers
from qdeploy.arch.self_attention import SelfAttention
from qdeploy.arch.shared_caches import producers
from qdeploy.arch.stack import Decoder, refuse_unread
from qdeploy.arch.streams import Streams
from qdeploy.arch.unscaled import KINDS, unscaled_attention
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_THETAS = {"full_attention": ("rope_theta", 1000000.0), "sliding_attention": ("rope_local_base_freq", 10000.0)}


@dataclass(frozen=True)
class Part:
    """What one layer is made of.

    Attributes:
        attention: Its attention.
        mlp: Its MLP.
        gate: What takes the layer's vector of each token.
    """

    attention: SelfAttention
    mlp: Mlp
    gate: LayerInputGate


def build(model: Model) -> Graph:
    """Builds the graph of a Gemma3nForCausalLM."""
    config = Config(model.config)
    layers = layer_count(model, config)
    kinds = check_layer_types(config, layers, KINDS) or [KINDS[(i + 1) % 5 > 0] for i in range(layers)]
    shared = producers(config, kinds, 15)
    activation = config.choose("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")
    hidden, extent = config.size("hidden_size"), config.size("hidden_size_per_layer_input", 256)
    gate = LayerInputGate(hidden, extent, activation)
    mlps = _mlps(config, layers, activation)
    parts = [Part(_attention(config, kinds[i], shared[i]), mlps[i], gate) for i in range(layers)]
    decoder = _decoder(config, layers, parts[0].attention.capacity, extent)
    refuse_unread(config, decoder.refused)
    return StreamedDecoding(model, config, decoder, _streams(config), parts).graph()


def _decoder(config: Config, layers: int, context: int, extent: int) -> Decoder:
    config.read.add("altup_coef_clip")  # of training
    rows, vocab = config.size("vocab_size_per_layer_input", 262144), config.size("vocab_size")
    norm = rms_norm(config)
    return Decoder(
        "gemma3n_text",
        NAMES,
        (),
        context,
        norm,
        embedding_multiplier=config.size("hidden_size") ** 0.5,
        logits_softcap=config.positive("final_logit_softcapping", 30.0),
        layer_inputs=EmbeddedInputs(config.size("hidden_size"), layers, extent, rows, norm, vocab),
    )


def _streams(config: Config) -> Streams:
    count = config.size("altup_num_inputs", 4)
    active = int(config.number("altup_active_idx", 0))
    if not 0 <= active < count:
        raise config.contradiction("altup_active_idx, altup_num_inputs", f"{active}, {count}", "one of the inputs")
    return Streams(count, active, config.size("hidden_size"), rms_norm(config))


def _attention(config: Config, kind: str, shared: int | None) -> SelfAttention:
    heads = heads_of(config, head_dim=256, kv_heads=min(2, config.size("num_attention_heads")))
    context = config.size("max_position_embeddings", 32768)
    return unscaled_attention(config, kind, _rotation(config, kind), heads, context, shared_with=shared)


def _rotation(config: Config, kind: str) -> Config:
    """What the configuration says of a kind of layer: its entry of `rope_parameters`, or a field of its own."""
    own = for_layers(config, kind)
    field, theta = _THETAS[kind]
    config.read.update(("rope_parameters", "rope_scaling"))
    scaling = config.fields.get("rope_scaling") if kind == "full_attention" and own is config else None
    usual = config.positive(field, theta)
    parameters = own.fields.get("rope_parameters") if own is not config else scaling
    return Config(
        {**config.fields, "rope_parameters": parameters, "rope_scaling": None, "rope_theta": usual}, config.where
    )


def _mlps(config: Config, layers: int, activation: str) -> list[Mlp]:
    """Of every layer: `intermediate_size` and `activation_sparsity_pattern` have one entry for all, or one for each."""
    hidden, inner = config.size("hidden_size"), config.fields.get("intermediate_size", 16384)
    sizes = config.sizes("intermediate_size", layers) if isinstance(inner, list) else None
    shares = _shares(config, layers)
    mlps = []
    for i in range(layers):
        size = sizes[i] if sizes else config.size("intermediate_size", 16384)
        outliers = NormalDist().inv_cdf(shares[i]) if shares[i] else None
        mlps.append(Mlp(hidden, size, activation, outliers=outliers))
    return mlps


def _shares(config: Config, layers: int) -> list[float]:
    """The share of each layer's gate that becomes 0."""
    field = "activation_sparsity_pattern"
    if not config.has(field):
        return [0.95 if layers > 10 and i < 10 else 0.0 for i in range(layers)]
    listed = config.fields[field]
    shares = (
        config.entries(field, layers, (int, float)) if isinstance(listed, list) else [config.number(field)] * layers
    )
    if not all(0 <= share < 1 for share in shares):
        raise config.contradiction(field, listed, "shares from 0 to below 1")
    return [float(share) for share in shares]


class StreamedDecoding(Decoding):
    """A graph of several streams under construction.

    Args:
        model: Whose graph it is.
        config: Its config.json.
        decoder: What stands around the layers.
        streams: The streams.
        parts: What the layers are made of.
    """

    def __init__(self, model: Model, config: Config, decoder: Decoder, streams: Streams, parts: list[Part]) -> None:
        super().__init__(model, config, decoder)
        self._streams, self._parts = streams, parts
        self._scaled_gate = config.flag("altup_correct_scale", True)

    def hidden_states(self, x: str) -> str:
        """All layers, and the last norm."""
        streams = self._streams.opened(self.builder, x)
        for i, part in enumerate(self._parts):
            predicted = self._streams.predicted(self.builder, i, streams)
            activated = self._activated(i, part, predicted[self._streams.active])
            corrected = self._streams.corrected(self.builder, i, predicted, activated)
            streams = self._with_inputs(i, part, corrected)
        return self._norm("model.norm", self._streams.closed(self.builder, streams), "", "norm")

    def _normed(self, i: int, x: str, module: str) -> str:
        return self._norm(f"model.layers.{i}.{module}", x, "", f"layers.{i}.{module}")

    def _activated(self, i: int, part: Part, x: str) -> str:
        """What a layer makes of the active stream."""
        add, label = self.builder, f"layers.{i}"
        h = self._normed(i, x, "input_layernorm")
        attended = self._normed(i, part.attention.add(add, i, h), "post_attention_layernorm")
        both = add.node("Add", x, attended, name=f"{label}.attended")
        both = add.node("Add", both, self._augmented(i, h), name=f"{label}.augmented")
        x = add.scaled(both, 2**-0.5, f"{label}.between")
        mlp = part.mlp.add(add, i, self._normed(i, x, "pre_feedforward_layernorm"))
        return add.node("Add", x, self._normed(i, mlp, "post_feedforward_layernorm"), name=f"{label}.activated")

    def _augmented(self, i: int, h: str) -> str:
        """The learned augmented residual of low rank."""
        add, source, label = self.builder, f"model.layers.{i}.laurel", f"layers.{i}.laurel"
        rank, hidden = self.config.size("laurel_rank", 64), self.hidden
        fields = "laurel_rank, hidden_size"
        left = add.linear(h, f"{source}.linear_left", (rank, hidden), fields, f"{label}.left", bias=False)
        right = add.linear(left, f"{source}.linear_right", (hidden, rank), fields, f"{label}.right", bias=False)
        return add.node("Add", h, self._normed(i, right, "laurel.post_laurel_norm"), name=label)

    def _with_inputs(self, i: int, part: Part, streams: list[str]) -> list[str]:
        """The streams, all but the first with what the layer's vectors add."""
        add, first = self.builder, streams[self._streams.active]
        factors = f"model.layers.{i}.altup.correct_output_scale"
        if not self._scaled_gate:
            add.leave_out([factors], "altup_correct_scale is false")
        else:
            scale = add.weight(factors, (self.hidden,), "hidden_size")
            first = add.node("Mul", first, scale, name=f"layers.{i}.input.from")
        update = self._normed(i, part.gate.add(add, i, first), "post_per_layer_input_norm")
        others = [add.node("Add", x, update, name=f"layers.{i}.stream.{n}") for n, x in enumerate(streams[1:], 1)]
        return [streams[0], *others]


NAMES = Names(())
FAMILY = Family(name="gemma3n", heads={"gemma3n_text": ("Gemma3nForCausalLM",)}, names=NAMES, build=build)

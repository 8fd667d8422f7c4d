"""T5: an encoder and a decoder without positions but biases of distances, and unscaled scores (arXiv 1910.10683).

    t5, mt5   the first layer of either stack holds the table of biases for all of its layers

Flan-T5, T5 1.1 and mT5 have a gated MLP and an output projection of their own; T5 itself scales what its table scores.
A T5EncoderModel gives hidden states alone. Definitions and defaults are those of transformers' models.
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import ACTIVATIONS, tower_layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.family import Family
from qdeploy.arch.mlp import Mlp, MlpParts
from qdeploy.arch.names import Names
from qdeploy.arch.relative import add_distance_bias, buckets_by_distance
from qdeploy.arch.self_attention import Parts, SelfAttention, cacheless
from qdeploy.arch.sentence import add_hidden_states
from qdeploy.arch.seq2seq import MEMORY, TARGET, Towers, embedded
from qdeploy.arch.stack import Branch, Decoder, Layer, Modules, Norm, Stack
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Attr, Graph, Value
from qdeploy.ir.model import Model

_USUAL = {
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "layer_norm_epsilon": "rms_norm_eps",
}
_PARTS = Parts("q", "k", "v", "o")
_BIAS = "distance_bias"


def build(model: Model) -> Graph:
    """Builds the graph of a T5ForConditionalGeneration or of a T5EncoderModel."""
    fields = dict(model.config)
    config = Config({**fields, **{new: fields[old] for old, new in _USUAL.items() if old in fields}})
    encoder, decoder = _stack(model, config, False), _stack(model, config, True)
    towers = Towers(model, config, encoder, decoder)
    table = _table(towers)
    inputs = tuple(Value(name, "I64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
    memory = towers.within("encoder", lambda: _run(towers.encoder, config, table, "input_ids", True))
    if config.class_name.endswith("EncoderModel"):
        return _encoder_alone(towers, inputs, memory, config)
    outputs = [towers.remember(memory, "sequence")]
    x = towers.within("decoder", lambda: _run(towers.decoder, config, table, TARGET, False))
    tied = config.fields.get("tie_word_embeddings") is not False
    if config.flag("scale_decoder_outputs", tied and config.text("model_type") == "t5"):
        x = towers.builder.scaled(x, config.size("hidden_size") ** -0.5, "decoder.scaled")
    outputs.insert(0, towers.logits(x, "lm_head.weight", table))
    return towers.graph(inputs, tuple(outputs), config.text("model_type"), config.size("n_positions", 512))


def _encoder_alone(towers: Towers, inputs: tuple[Value, ...], x: str, config: Config) -> Graph:
    add = towers.builder
    outputs = add_hidden_states(add, x, towers.hidden)
    meta: dict[str, Attr] = {"kind": "encoder", "model_type": config.text("model_type"), "vocab": towers.vocab}
    return add.graph(inputs, tuple(outputs), {**meta, "context": config.size("n_positions", 512)})


def _table(towers: Towers) -> str:
    """The table of tokens; older files store it once for each stack, too."""
    add = towers.builder
    table = add.weight("shared.weight", (towers.vocab, towers.hidden), "vocab_size, d_model")
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        if add.has(name):
            add.same(add.weight(name, (towers.vocab, towers.hidden), "vocab_size, d_model"), table)
    return table


def _run(stack: Stack, config: Config, table: str, ids: str, bidirectional: bool) -> str:
    """The hidden states of one stack."""
    add, most = stack.builder, config.size("relative_attention_max_distance", 128)
    count, heads = config.size("relative_attention_num_buckets", 32), config.size("num_attention_heads")
    first = f"{stack.decoder.modules.layers}.0.layer.0.SelfAttention.relative_attention_bias.weight"
    biases = add.weight(first, (count, heads), "relative_attention_num_buckets, num_heads")
    places = add.node("Positions", ids, name="positions")
    buckets = buckets_by_distance(count, most, bidirectional)
    add_distance_bias(add, biases, (places, places), most, buckets, _BIAS)
    return stack.hidden_states(embedded(add, table, ids))


def _stack(model: Model, config: Config, decoding: bool) -> Decoder:
    side, layers = ("decoder", "decoder.block") if decoding else ("encoder", "encoder.block")
    own: dict[str, Any] = {"bidirectional": not decoding, "mask": "" if decoding else "attention_mask"}
    attention = _attention(config, layers, module="layer.0.SelfAttention", bias=f"{side}.{_BIAS}", **own)
    branches = [Branch(attention, "layer.0.layer_norm")]
    if decoding:
        cross: dict[str, Any] = {
            "memory": MEMORY,
            "label": "cross_attn",
            "bidirectional": True,
            "mask": "attention_mask",
        }
        block = _attention(config, layers, module="layer.1.EncDecAttention", **cross)
        branches.append(Branch(block, "layer.1.layer_norm"))
    place = len(branches)
    mlp = _mlp(config, layers, f"layer.{place}.DenseReluDense")
    branches.append(Branch(mlp, f"layer.{place}.layer_norm"))
    field = "num_decoder_layers" if decoding and config.has("num_decoder_layers") else "num_layers"
    count = tower_layer_count(model, config, field, 6)
    norm = Norm("rms", config.positive("rms_norm_eps", 1e-6))
    modules = Modules("shared", layers, f"{side}.final_layer_norm", "lm_head")
    return Decoder(config.text("model_type"), NAMES, (Layer(tuple(branches)),) * count, 512, norm, modules=modules)


def _attention(config: Config, layers: str, **more: Any) -> SelfAttention:
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    size = config.size("d_kv", 64)
    return cacheless(hidden, heads, size, scale=1.0, parts=_PARTS, layers=layers, size_field="d_kv", **more)


def _mlp(config: Config, layers: str, module: str) -> Mlp:
    name = config.text("feed_forward_proj", "relu" if config.text("model_type") == "t5" else "gated-gelu")
    gated, activation = name.startswith("gated-"), name.removeprefix("gated-")
    if activation not in ACTIVATIONS:
        raise UnsupportedError("an unsupported value in the configuration", where="feed_forward_proj", found=name)
    kind = ACTIVATIONS["gelu_new" if name == "gated-gelu" else activation]
    parts = MlpParts("wi_0", "wi_1", "wo") if gated else MlpParts(up="wi", down="wo")
    inner = config.size("intermediate_size")
    return Mlp(config.size("hidden_size"), inner, kind, False, gated, parts=parts, module=module, layers=layers)


NAMES = Names((), ("", "transformer."))
FAMILY = Family(
    name="t5",
    heads={
        "t5": ("T5ForConditionalGeneration", "T5EncoderModel"),
        "mt5": ("MT5ForConditionalGeneration", "MT5EncoderModel"),
    },
    names=NAMES,
    build=build,
)

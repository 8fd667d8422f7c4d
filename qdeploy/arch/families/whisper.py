"""Whisper: log-mel frames through two convolutions and an encoder, and a decoder of text (arXiv 2212.04356).

    input_features  F32 [B, mels, 2 max_source_positions]: the front end of the authors makes them, 10 ms a frame, from
                    30 s of audio at 16 kHz: windows of 25 ms (Hann, 400 points), squared magnitudes through the stored
                    mel filters, log10 of at least 1e-10, no less than the greatest - 8, then (x + 4) / 4

Definitions and defaults are those of transformers' WhisperForConditionalGeneration.
"""

from __future__ import annotations

from typing import Any

from qdeploy.arch.builder import ACTIVATIONS, tower_layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.family import Family
from qdeploy.arch.mlp import Mlp, MlpParts
from qdeploy.arch.names import Names
from qdeploy.arch.self_attention import Parts, SelfAttention, cacheless
from qdeploy.arch.seq2seq import MEMORY, TARGET, Towers, embedded
from qdeploy.arch.stack import Branch, Decoder, Layer, Modules, Norm
from qdeploy.ir.graph import Graph, Value
from qdeploy.ir.model import Model

_FEATURES = "input_features"
_PARTS = Parts(o="out_proj", unbiased=("k",))
_REFUSED: dict[str, tuple[object, ...]] = {"use_weighted_layer_sum": (False,)}


def build(model: Model) -> Graph:
    """Builds the graph of a WhisperForConditionalGeneration."""
    config = Config({**model.config, "hidden_size": model.config.get("d_model")})
    config.refuse(_REFUSED)
    towers = Towers(model, config, _stack(model, config, "encoder"), _stack(model, config, "decoder"))
    add, vocab, hidden = towers.builder, towers.vocab, towers.hidden
    frames, places = config.size("max_source_positions", 1500), config.size("max_target_positions", 448)
    memory = towers.within("encoder", lambda: _listen(towers, config, frames))
    heard = towers.remember(memory, frames)
    table = add.weight("model.decoder.embed_tokens.weight", (vocab, hidden), "vocab_size, d_model")
    x = towers.within("decoder", lambda: _write(towers, config, table, places))
    features = Value(_FEATURES, "F32", ("batch", config.size("num_mel_bins", 80), 2 * frames))
    outputs = (towers.logits(x, "proj_out.weight", table), heard)
    return towers.graph((features,), outputs, "whisper", places)


def _listen(towers: Towers, config: Config, frames: int) -> str:
    """The encoder's hidden states [B, frames, hidden]."""
    add, hidden, x = towers.builder, towers.hidden, _FEATURES
    widths = (config.size("num_mel_bins", 80), hidden)
    activation = config.choose("activation_function", ACTIVATIONS, "gelu")
    for place, width in enumerate(widths, 1):
        module = f"model.encoder.conv{place}"
        weight = add.weight(f"{module}.weight", (hidden, width, 3), "d_model, num_mel_bins")
        bias = add.weight(f"{module}.bias", (hidden,), "d_model")
        x = add.node("Conv", x, weight, bias, name=f"conv{place}", strides=[place], pads=[1, 1])
        x = add.activation(activation, x, f"conv{place}.act")
    x = add.node("Transpose", x, name="frames", perm=[0, 2, 1])
    table = add.weight("model.encoder.embed_positions.weight", (frames, hidden), "max_source_positions, d_model")
    return towers.encoder.hidden_states(add.node("Add", x, table, name="embed"))


def _write(towers: Towers, config: Config, table: str, places: int) -> str:
    """The decoder's hidden states [B, T, hidden]."""
    add, hidden = towers.builder, towers.hidden
    x = embedded(add, table, TARGET)
    if config.flag("scale_embedding", False):
        x = add.scaled(x, hidden**0.5, "embed_tokens.scaled")
    rows = add.weight("model.decoder.embed_positions.weight", (places, hidden), "max_target_positions, d_model")
    own = add.node("Gather", rows, add.node("Positions", TARGET, name="positions"), name="embed_positions", axis=0)
    return towers.decoder.hidden_states(add.node("Add", x, own, name="embed"))


def _stack(model: Model, config: Config, side: str) -> Decoder:
    layers, decoding = f"model.{side}.layers", side == "decoder"
    attention = _attention(config, side, bidirectional=not decoding)
    branches = [Branch(attention, "self_attn_layer_norm")]
    if decoding:
        cross: dict[str, Any] = {"memory": MEMORY, "label": "cross_attn", "module": "encoder_attn"}
        block = _attention(config, side, bidirectional=True, **cross)
        branches.append(Branch(block, "encoder_attn_layer_norm"))
    activation = config.choose("activation_function", ACTIVATIONS, "gelu")
    inner, parts = config.size(f"{side}_ffn_dim", 1536), MlpParts(up="fc1", down="fc2")
    mlp = Mlp(config.size("hidden_size"), inner, activation, True, False, parts=parts, module="", layers=layers)
    branches.append(Branch(mlp, "final_layer_norm"))
    count = tower_layer_count(model, config, f"{side}_layers", 4)
    modules = Modules("", layers, f"model.{side}.layer_norm", "")
    norm = Norm("layer", 1e-5, bias=True)
    return Decoder("whisper", NAMES, (Layer(tuple(branches)),) * count, 0, norm, modules=modules)


def _attention(config: Config, side: str, **more: Any) -> SelfAttention:
    hidden, heads = config.size("hidden_size"), config.size(f"{side}_attention_heads", 6)
    if hidden % heads:
        raise config.contradiction(f"d_model, {side}_attention_heads", f"{hidden}, {heads}", "a multiple")
    layers = f"model.{side}.layers"
    return cacheless(hidden, heads, hidden // heads, qkv_bias=True, o_bias=True, parts=_PARTS, layers=layers, **more)


NAMES = Names((), ("",))
FAMILY = Family(name="whisper", heads={"whisper": ("WhisperForConditionalGeneration",)}, names=NAMES, build=build)

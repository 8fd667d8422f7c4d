"""Apertus: Llama's attention with normed heads, and a plain MLP whose activation has parameters (xIELU)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qdeploy.arch.builder import Builder, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import Placement
from qdeploy.arch.names import DECODER_ROWS, Names, renamed
from qdeploy.arch.prenorm import attention_layers, rms_norm, standard_decoder
from qdeploy.arch.recurrent import linear
from qdeploy.arch.self_attention import QueryKeyNorm
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_PLACEMENT = Placement(before_mixer="attention_layernorm", before_mlp="feedforward_layernorm")


@dataclass(frozen=True)
class _Mlp:
    """down(xielu(up(x)))."""

    hidden: int
    inner: int

    def add(self, builder: Builder, layer: int, x: str) -> str:
        source, name = f"model.layers.{layer}.mlp", f"layers.{layer}.mlp"
        up = linear(builder, x, f"{source}.up_proj", (self.inner, self.hidden), f"{name}.up")
        active = builder.node("XIELU", up, name=f"{name}.act", **self._parameters(builder, f"{source}.act_fn"))
        return linear(builder, active, f"{source}.down_proj", (self.hidden, self.inner), name)

    def _parameters(self, builder: Builder, source: str) -> dict[str, float]:
        """Stored before their softplus; `beta` and `eps` as they are."""
        shapes: dict[str, tuple[int, ...]] = {"alpha_p": (1,), "alpha_n": (1,), "beta": (), "eps": ()}
        names = {name: builder.weight(f"{source}.{name}", shape, "hidden_act") for name, shape in shapes.items()}
        stored = {name: np.float32(builder.model.tensors[own].decode().reshape(-1)[0]) for name, own in names.items()}
        positive, negative = (np.logaddexp(stored[name], np.float32(0)) for name in ("alpha_p", "alpha_n"))
        numbers = {"positive": positive, "negative": stored["beta"] + negative, "linear": stored["beta"]}
        return {name: float(value) for name, value in {**numbers, "least": stored["eps"]}.items()}


def build(model: Model) -> Graph:
    """Builds the graph of an ApertusForCausalLM."""
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config)
    bias, norm = config.flag("attention_bias", False), rms_norm(config, 1e-5)
    config.choose("hidden_act", {"xielu": "xielu"}, "xielu")
    attention = attention_layers(
        config,
        (0,) * layer_count(model, config),
        head_dim,
        kv_heads,
        config.size("max_position_embeddings", 65536),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=QueryKeyNorm(norm.epsilon),
    )
    config.read |= {"qk_norm"}
    mlp = _Mlp(config.size("hidden_size"), config.size("intermediate_size"))
    refused: dict[str, tuple[object, ...]] = {"qk_norm": (True,), "post_norm": (False,), "mlp_bias": (False,)}
    decoder = standard_decoder(config, NAMES, attention, mlp, norm, placement=_PLACEMENT, refused=refused)
    return build_decoder(model, config, decoder)


NAMES = Names(
    renamed(
        DECODER_ROWS,
        ("input_layernorm", "attention_layernorm"),
        ("post_attention_layernorm", "feedforward_layernorm"),
    )
)
FAMILY = Family(name="apertus", heads={"apertus": ("ApertusForCausalLM",)}, names=NAMES, build=build)

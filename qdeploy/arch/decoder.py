"""The decoder that Llama, Mistral and Qwen share: pre-norm blocks of rotary attention and a gated MLP.

    x = embed(ids)
    per layer:  h = norm(x);  x = x + o(attention(q(h), k(h), v(h)));  x = x + down(act(gate(norm(x))) * up(norm(x)))
    logits = head(norm(x))

What differs between the families is a `Decoder`: which projections have a bias, whether queries and keys are normed,
and how far each layer sees. A head that is not stored is the embedding's tensor, used a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from qdeploy.arch.builder import ACTIVATIONS, Builder
from qdeploy.arch.config import Config
from qdeploy.arch.rope import read_rope
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Attr, Graph, State, Value
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Float32
from qdeploy.names import ROPE_FACTORS

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
"""Fields of other families that change the arithmetic, with the values that mean nothing."""


@dataclass(frozen=True)
class Decoder:
    """What tells one family from another, and the extents that all have.

    Attributes:
        family: model_type.
        windows: Per layer: how many keys a query sees, 0 for all.
        qkv_bias: Query, key and value projections have a bias.
        o_bias: The output projection has one.
        mlp_bias: The three projections of the MLP have one.
        qk_norm: Every head of queries and keys goes through an RMS norm of its own (Qwen3).
        head_dim: Extent of a head.
        kv_heads: Key and value heads.
        context: `max_position_embeddings`.
        refused: Further fields that are refused, as in `REFUSED`; an entry here replaces the one there.
    """

    family: str
    windows: tuple[int, ...]
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    head_dim: int
    kv_heads: int
    context: int
    refused: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


def heads_of(config: Config, head_dim: int | None = None, kv_heads: int | None = None) -> tuple[int, int]:
    """Reads head_dim and kv_heads, with the family's defaults where the fields are absent."""
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    kv = config.size("num_key_value_heads", kv_heads or heads)
    if heads % kv:
        raise config.contradiction("num_attention_heads, num_key_value_heads", f"{heads}, {kv}", "a multiple")
    if not config.has("head_dim") and head_dim is None and hidden % heads:
        raise config.contradiction("hidden_size, num_attention_heads", f"{hidden}, {heads}", "a multiple")
    return config.size("head_dim", head_dim or max(hidden // heads, 1)), kv


def build_decoder(model: Model, decoder: Decoder) -> Graph:
    """Builds the graph; raises as `build_graph` says."""
    return _Decoding(model, decoder).graph()


class _Decoding:
    def __init__(self, model: Model, decoder: Decoder) -> None:
        self.config, self.decoder = Config(model.config), decoder
        self.config.refuse({**REFUSED, **decoder.refused})
        self.builder = Builder(model, decoder.family)
        self.hidden = self.config.size("hidden_size")
        self.heads = self.config.size("num_attention_heads")
        self.inner = self.config.size("intermediate_size")
        self.vocab = self.config.size("vocab_size")
        self.epsilon = self.config.positive("rms_norm_eps", 1e-6)
        self.act = self.config.choose("hidden_act", ACTIVATIONS, "silu")
        shape = (self.vocab, self.hidden)
        self.embedding = self.builder.weight("model.embed_tokens.weight", shape, "vocab_size, hidden_size")
        self._projection("model.layers.0.self_attn.q_proj", self.heads, "num_attention_heads")  # head_dim is real
        self.rope = read_rope(self.config, decoder.head_dim, decoder.context)

    def graph(self) -> Graph:
        """All nodes, in order."""
        add, layers = self.builder, len(self.decoder.windows)
        rope = self._rotation()
        x, update = add.node("Gather", self.embedding, "input_ids", name="embed_tokens", axis=0), ""
        for i in range(layers):
            x, update = self._layer(i, x, update, rope)
        last = self._norm("model.norm", x, update, "norm", last=True)
        add.node("Linear", last, self._head(), self._head_bias(), name="logits")
        return add.graph(
            (Value("input_ids", "I64", ("batch", "sequence")),),
            (Value("logits", "F32", ("batch", "sequence", self.vocab)),),
            self._meta(),
        )

    def _layer(self, i: int, x: str, update: str, rope: dict[str, Attr]) -> tuple[str, str]:
        label, source = f"layers.{i}", f"model.layers.{i}"
        h = self._norm(f"{source}.input_layernorm", x, update, f"{label}.input_norm")
        x = f"{h}.sum" if update else x
        attended = self._attention(i, h, rope)
        h = self._norm(f"{source}.post_attention_layernorm", attended, x, f"{label}.post_attention_norm")
        return f"{h}.sum", self._mlp(f"{source}.mlp", h, f"{label}.mlp")

    def _norm(self, module: str, x: str, update: str, name: str, last: bool = False) -> str:
        weight = self.builder.weight(f"{module}.weight", (self.hidden,), "hidden_size")
        if not update:  # the first layer: nothing to add yet
            return self.builder.node("RMSNormalization", x, weight, name=name, epsilon=self.epsilon)
        return self.builder.skip_norm(x, update, (weight,), name, last=last, kind="rms", epsilon=self.epsilon)

    def _attention(self, i: int, h: str, rope: dict[str, Attr]) -> str:
        add, spec, source = self.builder, self.decoder, f"model.layers.{i}.self_attn"
        label, size = f"layers.{i}.self_attn", self.decoder.head_dim
        q = self._heads(h, f"{source}.q_proj", f"{label}.q", self.heads, "num_attention_heads")
        k = self._heads(h, f"{source}.k_proj", f"{label}.k", spec.kv_heads, "num_key_value_heads")
        v = self._heads(h, f"{source}.v_proj", f"{label}.v", spec.kv_heads, "num_key_value_heads")
        add.states.append(State(f"kv.{i}", spec.kv_heads, size, capacity=self.rope.context))
        mixed = add.node(
            "Attention",
            q,
            k,
            v,
            name=label,
            heads=self.heads,
            kv_heads=spec.kv_heads,
            causal=True,
            scale=size**-0.5,
            window=spec.windows[i],
            state=f"kv.{i}",
            rope=rope,
        )
        fields = "hidden_size, num_attention_heads, head_dim"
        weight = add.weight(f"{source}.o_proj.weight", (self.hidden, self.heads * size), fields)
        bias = add.bias(f"{source}.o_proj.bias", self.hidden, spec.o_bias, "attention_bias")
        return add.node("Linear", mixed, weight, bias, name=f"{label}.o")

    def _heads(self, h: str, module: str, name: str, heads: int, field: str) -> str:
        add, spec, size = self.builder, self.decoder, self.decoder.head_dim
        weight = self._projection(module, heads, field)
        bias = add.bias(f"{module}.bias", heads * size, spec.qkv_bias, "attention_bias")
        out = add.node("Linear", h, weight, bias, name=name)
        if not spec.qk_norm or name.endswith(".v"):
            return out
        norm = add.weight(f"{module.replace('_proj', '_norm')}.weight", (size,), "head_dim")
        split = add.node("Reshape", out, name=f"{name}.split", shape=[0, 0, heads, size])  # [B, T, heads, D]
        split = add.node("RMSNormalization", split, norm, name=f"{name}.norm", epsilon=self.epsilon)
        return add.node("Reshape", split, name=f"{name}.joined", shape=[0, 0, heads * size])  # [B, T, heads * D]

    def _projection(self, module: str, heads: int, field: str) -> str:
        size = "head_dim" if self.config.has("head_dim") else "num_attention_heads"
        fields = ", ".join(dict.fromkeys((field, size, "hidden_size")))
        return self.builder.weight(f"{module}.weight", (heads * self.decoder.head_dim, self.hidden), fields)

    def _mlp(self, module: str, h: str, name: str) -> str:
        add, shape, fields = self.builder, (self.inner, self.hidden), "intermediate_size, hidden_size"
        gate, up = (add.weight(f"{module}.{part}_proj.weight", shape, fields) for part in ("gate", "up"))
        down = add.weight(f"{module}.down_proj.weight", shape[::-1], fields)
        sizes = {"gate": self.inner, "up": self.inner, "down": self.hidden}
        bias = {
            part: add.bias(f"{module}.{part}_proj.bias", n, self.decoder.mlp_bias, "mlp_bias")
            for part, n in sizes.items()
        }
        if not any(bias.values()) and self.act in ("silu", "gelu", "gelu_tanh"):
            return add.node("GatedMlp", h, gate, up, down, name=name, activation=self.act)
        gated = add.activation(self.act, add.node("Linear", h, gate, bias["gate"], name=f"{name}.gate"), f"{name}.act")
        raised = add.node("Linear", h, up, bias["up"], name=f"{name}.up")
        return add.node("Linear", add.node("Mul", gated, raised, name=f"{name}.mul"), down, bias["down"], name=name)

    def _head(self) -> str:
        if not self.builder.has("lm_head.weight"):
            return self.embedding
        # Even where the config says tied, as transformers does: a head of its own may be quantized on its own.
        return self.builder.weight("lm_head.weight", (self.vocab, self.hidden), "vocab_size, hidden_size")

    def _head_bias(self) -> str:
        return self.builder.bias("lm_head.bias", self.vocab, False, "vocab_size")

    def _rotation(self) -> dict[str, Attr]:
        """The attribute `rope` that all layers share."""
        rope, notes = self.rope, self.builder.model.notes
        if rope.note and rope.note not in notes:
            notes.append(rope.note)
        name = self.builder.constant("rope.inv_freq", rope.inv_freq / self._divisors())
        interleaved = self.config.flag("rope_interleaved", False)
        return {"inv_freq": name, "rotary_dim": rope.rotary_dim, "interleaved": interleaved, "factor": rope.factor}

    def _divisors(self) -> Float32:
        """What a GGUF file divides the frequencies by: Llama 3's scaling is kept there as a tensor."""
        tensors, shape = self.builder.model.tensors, self.rope.inv_freq.shape
        if self.builder.model.dialect != "gguf" or ROPE_FACTORS not in tensors:
            return np.ones(shape, np.float32)
        found = tensors[ROPE_FACTORS]
        if found.shape != shape:
            raise self.config.contradiction(f"head_dim; tensor {ROPE_FACTORS}", found.shape, f"shape {list(shape)}")
        factors = found.decode()
        if not np.all(np.isfinite(factors) & (factors > 0)):
            raise self.config.contradiction(f"tensor {ROPE_FACTORS}", "zero, negative or not finite", "numbers above 0")
        return factors

    def _meta(self) -> dict[str, Attr]:
        meta: dict[str, Attr] = {
            "kind": "decoder",
            "model_type": self.decoder.family,
            "context": self.rope.context,
            "vocab": self.vocab,
        }
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            token = self.config.token(name)
            if token is not None:
                meta[name] = token
        return meta


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

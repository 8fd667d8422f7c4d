"""Decoders as onnxruntime-genai's builder writes them, small, with random weights, and what ONNX Runtime gives."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from qdeploy.pack import bits as bit_stream
from tests.formats.onnx_networks import network, saved, tensor

VOCAB, HIDDEN, INNER, CONTEXT, EXPERTS = 96, 64, 96, 48, 4
MICROSOFT = "com.microsoft"


@dataclass
class Shape:
    """What a decoder is like."""

    bits: int = 4
    block: int = 32
    zeros: bool = False
    heads: int = 4
    kv_heads: int = 2
    size: int = 16
    packed: bool = True
    norms: bool = False
    shared: bool = False
    window: int = -1
    softcap: float = 0.0
    sinks: bool = False
    smooth: bool = False
    interleaved: bool = False
    fused_rope: bool = True
    activation: str = "silu"
    float_head: bool = False
    base: float = 10000.0
    experts: str = ""
    table: int = -1
    norms_behind: bool = False
    tied: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


class DecoderFile:
    """A decoder of two layers under construction."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.shape, self.rng = shape, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: dict[str, Any] = {
            "input_ids": (TensorProto.INT64, ["batch", "sequence"]),
            "attention_mask": (TensorProto.INT64, ["batch", "total"]),
        }
        self.outputs: dict[str, Any] = {"logits": (TensorProto.FLOAT, ["batch", "sequence", VOCAB])}

    def add(self, op: str, inputs: list[str], outputs: list[str] | str, domain: str = "", **attrs: Any) -> str:
        """A node; returns its first output."""
        named = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(op, inputs, named, name=named[0], domain=domain, **attrs))
        return named[0]

    def hold(self, name: str, array: np.ndarray) -> str:
        """An initializer."""
        self.initializers.append(tensor(name, array))
        return name

    def weight(self, name: str, rows: int, columns: int) -> list[str]:
        """Codes, scales and perhaps zero points of a matrix."""
        bits, block = self.shape.bits, self.shape.block
        blocks = -(-columns // block)
        codes = self.rng.integers(0, 256, (rows, blocks, block * bits // 8), dtype=np.uint8)
        scales = (self.rng.standard_normal((rows, blocks)) * 0.3 / 2**bits).astype(np.float32)
        names = [self.hold(f"{name}_Q", codes), self.hold(f"{name}_scales", scales)]
        if self.shape.zeros:
            packed = bit_stream.row_bytes(blocks, bits)
            zeros = self.rng.integers(0, 256, (rows, packed), dtype=np.uint8)
            names.append(self.hold(f"{name}_zeros", zeros))
        return names

    def linear(self, x: str, name: str, rows: int, columns: int) -> str:
        """A product with a quantized matrix."""
        how = {"K": columns, "N": rows, "bits": self.shape.bits, "block_size": self.shape.block}
        if self.shape.table >= 0:
            how = {"K": columns, "N": rows, "block_size": self.shape.block, "quant_type": self.shape.table}
            codes = self.hold(f"{name}_Q", self.rng.integers(0, 256, rows * columns // 2, dtype=np.uint8))
            sizes = self.rng.random(rows * columns // self.shape.block) * 0.2
            scales = self.hold(f"{name}_absmax", sizes.astype(np.float32))
            return self.add("MatMulBnb4", [x, codes, scales], name, MICROSOFT, **how)
        return self.add("MatMulNBits", [x, *self.weight(name, rows, columns)], name, MICROSOFT, **how)

    def norm(self, name: str, width: int) -> str:
        """A norm's weight."""
        return self.hold(name, (1 + 0.1 * self.rng.standard_normal(width)).astype(np.float32))

    def lengths(self) -> tuple[str, str]:
        """Tokens of each sequence less one, and the extent of the mask, as the builder computes them."""
        one = self.hold("one", np.array([1], np.int64))
        counted = self.add("ReduceSum", ["attention_mask", one], "counted", keepdims=0)
        last = self.add("Cast", [self.add("Sub", [counted, one], "less")], "last", to=TensorProto.INT32)
        place = self.hold("place", np.array(1, np.int64))
        extent = self.add("Gather", [self.add("Shape", ["attention_mask"], "extents"), place], "extent", axis=0)
        return last, self.add("Cast", [extent], "total", to=TensorProto.INT32)

    def tables(self) -> tuple[str, str]:
        """Cosines and sines of every place."""
        half = self.shape.size // 2
        inv_freq = (1 / self.shape.base ** (np.arange(half) / half)).astype(np.float32)
        angles = np.arange(CONTEXT, dtype=np.float32)[:, None] * inv_freq
        return self.hold("cos", np.cos(angles)), self.hold("sin", np.sin(angles))

    def rotated(self, x: str, tables: tuple[str, str]) -> str:
        """A rotation outside of attention."""
        self.inputs["position_ids"] = (TensorProto.INT64, ["batch", "sequence"])
        how = {"interleaved": int(self.shape.interleaved)}
        return self.add("RotaryEmbedding", [x, "position_ids", *tables], f"{x}.turned", MICROSOFT, **how)

    def attention(self, x: str, layer: int, lengths: tuple[str, str], tables: tuple[str, str]) -> str:
        """Projections and attention of one layer."""
        s, name = self.shape, f"layers.{layer}.attn"
        widths = [s.heads * s.size, s.kv_heads * s.size, s.kv_heads * s.size]
        both = self.linear(x, f"{name}.qkv", sum(widths), HIDDEN)
        parts = [both, "", ""]
        if not s.packed:
            sizes = self.hold(f"{name}.sizes", np.array(widths, np.int64))
            parts = [f"{name}.{part}" for part in "qkv"]
            self.add("Split", [both, sizes], parts, axis=-1)
        if s.norms:
            parts[:2] = [self.normed(part, f"{part}.norm") for part in parts[:2]]
        if not s.fused_rope:
            parts[:2] = [self.rotated(part, tables) for part in parts[:2]]
        if s.norms_behind:
            names = zip(parts[:2], "qk", strict=True)
            parts[:2] = [self.normed(part, f"{name}.behind.{side}", side) for part, side in names]
        for part in ("key", "value"):
            extents = ["batch", s.kv_heads, "past", s.size]
            self.inputs[f"past_key_values.{layer}.{part}"] = (TensorProto.FLOAT, extents)
            self.outputs[f"present.{layer}.{part}"] = (TensorProto.FLOAT, ["batch", s.kv_heads, "all", s.size])
        past, present = ([f"{kind}.{layer}.{p}" for p in ("key", "value")] for kind in ("past_key_values", "present"))
        sinks = self.hold(f"{name}.sinks", self.rng.standard_normal(s.heads).astype(np.float32)) if s.sinks else ""
        caches = list(tables) if s.fused_rope else ["", ""]
        inputs = [*parts, *past, *lengths, *caches, "", "", sinks]
        while not inputs[-1]:
            inputs.pop()
        how: dict[str, Any] = {"num_heads": s.heads, "kv_num_heads": s.kv_heads, "do_rotary": int(s.fused_rope)}
        how |= {"local_window_size": s.window, "softcap": s.softcap} | s.extra
        how |= {"rotary_interleaved": int(s.interleaved), "scale": 0.3}
        how |= {"smooth_softmax": 1} if s.smooth else {}
        mixed = self.add("GroupQueryAttention", inputs, [f"{name}.mixed", *present], MICROSOFT, **how)
        return self.linear(mixed, f"{name}.o", HIDDEN, s.heads * s.size)

    def normed(self, x: str, name: str, side: str = "") -> str:
        """A norm of every head."""
        heads = self.shape.heads if (side or x).endswith("q") else self.shape.kv_heads
        size, width = self.shape.size, heads * self.shape.size
        heads = self.add("Reshape", [x, self.hold(f"{name}.a", np.array([0, -1, size], np.int64))], f"{name}.heads")
        normal = self.add(
            "SimplifiedLayerNormalization", [heads, self.norm(f"{name}.w", size)], f"{name}.normal", epsilon=1e-6
        )
        return self.add("Reshape", [normal, self.hold(f"{name}.b", np.array([0, -1, width], np.int64))], f"{name}.out")

    def stack(self, name: str, rows: int, columns: int) -> list[str]:
        """Codes and scales of a matrix per expert, and its bias."""
        bits, block = self.shape.bits, self.shape.block
        codes = self.rng.integers(0, 256, (EXPERTS, rows, columns * bits // 8), dtype=np.uint8)
        scales = self.rng.standard_normal((EXPERTS, rows, columns // block)) * 0.3 / 2**bits
        bias = self.rng.standard_normal((EXPERTS, rows)) * 0.1
        arrays = {"qweight": codes, "scales": scales.astype(np.float32), "bias": bias.astype(np.float32)}
        return [self.hold(f"{name}.{part}", array) for part, array in arrays.items()]

    def mixture(self, x: str, layer: int) -> str:
        """Experts of one layer."""
        name, gated = f"layers.{layer}.moe", self.shape.experts == "swiglu"
        router = self.linear(x, f"{name}.router", EXPERTS, HIDDEN)
        flat = self.hold(f"{name}.flat", np.array([-1, EXPERTS], np.int64))
        logits = self.add("Reshape", [router, flat], f"{name}.logits")
        first = self.stack(f"{name}.fc1", INNER * (2 if gated else 1), HIDDEN)
        second = self.stack(f"{name}.fc2", HIDDEN, INNER)
        how: dict[str, Any] = {"k": 2, "expert_weight_bits": self.shape.bits, "block_size": self.shape.block}
        how |= {"normalize_routing_weights": 1, "activation_type": self.shape.experts}
        if gated:
            how |= {"swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 7.0}
        return self.add("QMoE", [x, logits, *first, *second], f"{name}.out", MICROSOFT, **how)

    def mlp(self, x: str, layer: int) -> str:
        """A gated MLP of one layer, or experts."""
        if self.shape.experts:
            return self.mixture(x, layer)
        name = f"layers.{layer}.mlp"
        gate, up = (self.linear(x, f"{name}.{part}", INNER, HIDDEN) for part in ("gate", "up"))
        kind = self.shape.activation
        if kind == "silu":
            active = self.add("Mul", [gate, self.add("Sigmoid", [gate], f"{name}.open")], f"{name}.active")
        elif kind == "QuickGelu":
            active = self.add("QuickGelu", [gate], f"{name}.active", MICROSOFT, alpha=1.5)
        elif kind == "FastGelu":
            active = self.add("FastGelu", [gate], f"{name}.active", MICROSOFT)
        else:
            active = self.add("Gelu", [gate], f"{name}.active", approximate="tanh")
        return self.linear(self.add("Mul", [active, up], f"{name}.product"), f"{name}.down", HIDDEN, INNER)

    def embedded(self) -> str:
        """Rows of the table, which may be the head's."""
        if self.shape.tied:
            matrix = self.hold("head", (self.rng.standard_normal((HIDDEN, VOCAB)) * 0.1).astype(np.float32))
            return self.add("Gather", [self.add("Transpose", [matrix], "turned", perm=[1, 0]), "input_ids"], "embedded")
        if not self.shape.shared:
            table = (self.rng.standard_normal((VOCAB, HIDDEN)) * 0.5).astype(np.float32)
            return self.add("Gather", [self.hold("embed", table), "input_ids"], "embedded")
        names = self.weight("head", VOCAB, HIDDEN)
        flat = self.hold("head.flat", np.array([VOCAB, HIDDEN * self.shape.bits // 8], np.int64))
        rows = self.add("Reshape", [names[0], flat], "head.rows")
        how = {"bits": self.shape.bits, "block_size": self.shape.block, "gather_axis": 0, "quantize_axis": 1}
        return self.add("GatherBlockQuantized", [rows, "input_ids", *names[1:]], "embedded", MICROSOFT, **how)

    def head(self, x: str) -> None:
        """Logits."""
        how = {"K": HIDDEN, "N": VOCAB, "bits": self.shape.bits, "block_size": self.shape.block}
        if self.shape.tied:
            self.add("MatMul", [x, "head"], "logits")
        elif self.shape.shared:
            names = [t.name for t in self.initializers if t.name in ("head_Q", "head_scales", "head_zeros")]
            self.add("MatMulNBits", [x, *names], "logits", MICROSOFT, **how)
        elif self.shape.float_head:
            matrix = (self.rng.standard_normal((HIDDEN, VOCAB)) * 0.1).astype(np.float32)
            self.add("MatMul", [x, self.hold("head", matrix)], "logits")
        else:
            self.add("MatMulNBits", [x, *self.weight("head", VOCAB, HIDDEN)], "logits", MICROSOFT, **how)

    def model(self) -> onnx.ModelProto:
        """The whole."""
        lengths, tables, x = self.lengths(), self.tables(), self.embedded()
        norm = "SimplifiedLayerNormalization"
        normal = self.add(norm, [x, self.norm("norm.0", HIDDEN)], "normal.0", epsilon=1e-5, axis=-1, stash_type=1)
        skip = "SkipSimplifiedLayerNormalization"
        for layer in range(2):
            branch = self.attention(normal, layer, lengths, tables)
            outputs = [f"mid.{layer}", "", "", f"mid.{layer}.sum"]
            weight = self.norm(f"norm.mid.{layer}", HIDDEN)
            self.add(skip, [x, branch, weight], outputs, MICROSOFT, epsilon=1e-5)
            x, normal = f"end.{layer}.sum", f"end.{layer}"
            outputs = [normal, "", "", x] if layer == 0 else [normal]
            weight = self.norm(f"norm.end.{layer}", HIDDEN)
            branch = self.mlp(f"mid.{layer}", layer)
            self.add(skip, [f"mid.{layer}.sum", branch, weight], outputs, MICROSOFT, epsilon=1e-5)
        self.head(normal)
        return network(self.nodes, self.inputs, self.outputs, self.initializers)


def write_decoder(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """A folder with a decoder and its genai_config.json."""
    model = {
        "context_length": CONTEXT,
        "vocab_size": VOCAB,
        "type": "llama",
        "eos_token_id": [2, 3],
        "bos_token_id": 1,
        "decoder": {"filename": "model.onnx", "head_size": shape.size},
    }
    saved(DecoderFile(shape, seed).model(), folder)
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": {}}))
    return folder


def feeds(path: Path, ids: np.ndarray, head_size: int) -> dict[str, np.ndarray]:
    """What such a graph takes for token ids and empty caches."""
    arrays: dict[str, np.ndarray] = {}
    for value in onnx.load(path / "model.onnx", load_external_data=False).graph.input:
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if value.name.startswith("past"):
            heads = value.type.tensor_type.shape.dim[1].dim_value
            arrays[value.name] = np.zeros((len(ids), heads, 0, head_size), kind)
        elif value.name == "position_ids":
            arrays[value.name] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).astype(kind)
        else:
            arrays[value.name] = (ids if value.name == "input_ids" else np.ones_like(ids)).astype(kind)
    return arrays

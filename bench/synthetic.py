"""Writes the synthetic Llama of the benchmarks: 0.85 billion parameters in bfloat16, 4-bit GPTQ and 4-bit AWQ.

    python bench/synthetic.py --work DIR [--kind bf16 gptq awq] [--scale 1 4]

Hidden size 2048, 16 layers, FFN 5632, 32 heads, 8 of keys and values, vocabulary 32000, head not tied: 852,559,872
parameters. `--scale 4` has 73 layers, so four times as many. Float weights are N(0, 0.02), codes are uniform, scales
such that a decoded weight has about the same spread; embedding, head and norms of the quantized kinds are float16.
The seed of a tensor is its name: the same bytes on every machine. Tensors are made piece by piece; nothing large is
ever held.

Every folder is named `llama-<kind>-x<scale>` and is complete: config, generation config and a tokenizer.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from measure import arguments
from tokenizer import write_tokenizer

HIDDEN, FFN, VOCABULARY, HEADS, KV_HEADS = 2048, 5632, 32000, 32, 8
LAYERS = {1: 16, 4: 73}
GROUP = 128
SPREAD = 0.02
SHARD_BYTES = 600_000_000
PIECE = 1 << 20  # elements that are made at a time
KINDS = ("bf16", "gptq", "awq")
DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
}
LINEARS = {  # name: (outputs, inputs)
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "self_attn.v_proj": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
QUANTIZATION: dict[str, dict[str, Any]] = {
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
        "lm_head": False,
    },
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    },
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written; `content` names how it is filled."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: str

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return int(np.prod(self.shape)) * DTYPES[self.dtype].itemsize


def folder(work: Path, kind: str, scale: int = 1) -> Path:
    """Where a model lies."""
    return work / f"llama-{kind}-x{scale}"


def make(work: Path, kind: str, scale: int = 1) -> Path:
    """Writes a model unless it is there; returns its folder."""
    target = folder(work, kind, scale)
    if (target / "config.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    shards = _shards(list(tensors(kind, LAYERS[scale])))
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(target / name, shard)
        index |= {tensor.name: name for tensor in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    _json(target / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    _json(target / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    write_tokenizer(target, VOCABULARY)
    _json(target / "config.json", config(kind, LAYERS[scale]))  # last: it says that the folder is complete
    return target


def config(kind: str, layers: int) -> dict[str, Any]:
    """config.json of a model."""
    quantized = {"quantization_config": QUANTIZATION[kind]} if kind in QUANTIZATION else {}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "hidden_act": "silu",
        "initializer_range": SPREAD,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float16" if quantized else "bfloat16",
        **quantized,
    }


def tensors(kind: str, layers: int) -> Iterator[Tensor]:
    """Every tensor of a model, in the order of the file."""
    dtype = "BF16" if kind == "bf16" else "F16"
    yield Tensor("model.embed_tokens.weight", dtype, (VOCABULARY, HIDDEN), "normal")
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        yield Tensor(f"{prefix}.input_layernorm.weight", dtype, (HIDDEN,), "norm")
        yield Tensor(f"{prefix}.post_attention_layernorm.weight", dtype, (HIDDEN,), "norm")
        for name, (outputs, inputs) in LINEARS.items():
            yield from linear(kind, f"{prefix}.{name}", outputs, inputs)
    yield Tensor("model.norm.weight", dtype, (HIDDEN,), "norm")
    yield Tensor("lm_head.weight", dtype, (VOCABULARY, HIDDEN), "normal")


def linear(kind: str, name: str, outputs: int, inputs: int) -> Iterator[Tensor]:
    """What is stored for a linear layer."""
    groups = inputs // GROUP
    if kind == "bf16":
        yield Tensor(f"{name}.weight", "BF16", (outputs, inputs), "normal")
        return
    words = (inputs // 8, outputs) if kind == "gptq" else (inputs, outputs // 8)
    yield Tensor(f"{name}.qweight", "I32", words, "codes")
    yield Tensor(f"{name}.qzeros", "I32", (groups, outputs // 8), "sevens" if kind == "gptq" else "zeros")
    yield Tensor(f"{name}.scales", "F16", (groups, outputs), "scales")
    if kind == "gptq":
        yield Tensor(f"{name}.g_idx", "I32", (inputs,), "ramp")


def write_safetensors(path: Path, stored: list[Tensor]) -> None:
    """Writes one file, piece by piece."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in stored:
        head[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in stored:
            for piece in pieces(tensor):
                file.write(piece.tobytes())


def pieces(tensor: Tensor) -> Iterator[np.ndarray[Any, Any]]:
    """The elements of a tensor, flat, in order."""
    output = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    size = int(np.prod(tensor.shape))
    for start in range(0, size, PIECE):
        count = min(PIECE, size - start)
        yield _fill(tensor.content, output, start, count).astype(DTYPES[tensor.dtype], copy=False)


def _fill(content: str, made: np.random.Generator, start: int, count: int) -> np.ndarray[Any, Any]:
    match content:
        case "normal":
            return made.standard_normal(count, np.float32) * np.float32(SPREAD)
        case "norm":
            return 1 + made.standard_normal(count, np.float32) * np.float32(SPREAD)
        case "codes":  # eight codes of 4 bits in a word
            return made.integers(-(1 << 31), 1 << 31, count, np.int64).astype(np.int32)
        case "sevens":  # version 1 stores the zero-point 8 minus one
            return np.full(count, 0x77777777, np.int32)
        case "zeros":  # asymmetric: 6 to 9
            words = np.zeros(count, np.uint32)
            for shift in range(0, 32, 4):
                words |= made.integers(6, 10, count, np.uint32) << np.uint32(shift)
            return words.view(np.int32)
        case "scales":  # uniform codes spread over 4.6 steps
            return made.uniform(0.8, 1.2, count) * (SPREAD / 4.6)
        case _:  # "ramp": the group of each column
            return np.arange(start, start + count) // GROUP


def _shards(stored: list[Tensor]) -> list[list[Tensor]]:
    """Cuts the tensors into files of about equal size."""
    total = sum(tensor.nbytes for tensor in stored)
    size = total / -(-total // SHARD_BYTES)
    shards: list[list[Tensor]] = [[]]
    written = 0
    for tensor in stored:
        if written + tensor.nbytes / 2 > size * len(shards):
            shards.append([])
        shards[-1].append(tensor)
        written += tensor.nbytes
    return shards


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--scale", nargs="+", type=int, choices=LAYERS, default=[1])
    options = parser.parse_args()
    for scale in options.scale:
        for kind in options.kind:
            path = make(options.work, kind, scale)
            size = sum(file.stat().st_size for file in path.iterdir())
            print(f"{path}: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

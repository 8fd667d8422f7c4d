"""The networks of the golden files: every kind of term that the writer can write, each in a matrix of its own.

    python -P tests/golden/networks.py FOLDER

writes the files into a folder; playing.py records what the runtime makes of them. Files that have been released are
never written again: this tells how they came to be, and makes the next ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qdeploy.arch import build_graph
from qdeploy.arch.turned import Step, Turn, turned
from qdeploy.backends.native import BACKEND
from qdeploy.backends.native.options import Options
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, LowRank, Param, QTensor, Rung, Table, Term, plain
from qdeploy.pack import planes as packing
from tests.golden import measured

Make = Callable[[str, tuple[int, int]], QTensor]

RANDOM = np.random.default_rng(20)
DECODER = {
    "vocab_size": 90,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
ENCODER = {key: value for key, value in DECODER.items() if "key_value" not in key} | {"hidden_act": "gelu"}


# ---- tensors


def _buffer(key: str, array: np.ndarray, storage: str) -> Buffer:
    return Buffer.of(key, np.ascontiguousarray(array), storage)


def _floats(key: str, shape: tuple[int, ...], storage: str = "F16", size: float = 0.02) -> Codes:
    numbers = (np.abs(RANDOM.standard_normal(shape)) + 0.5) * size
    kind = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32}[storage]
    return Codes(shape, (_buffer(key, numbers.astype(kind), storage),), PLAIN, storage.lower())


def _powers(key: str, shape: tuple[int, ...]) -> Codes:
    numbers = 2.0 ** RANDOM.integers(-8, -4, shape)
    return Codes(shape, (_buffer(key, numbers.astype(np.float32), "F32"),), PLAIN, "f32")


def _codes(name: str, shape: tuple[int, ...], top: int) -> Buffer:
    return _buffer(f"{name}.codes", RANDOM.integers(0, top, shape).astype(np.uint8), "U8")


def _groups(shape: tuple[int, int], group: int) -> tuple[int, int]:
    return shape[0], -(-shape[1] // group)


def _scale(name: str, shape: tuple[int, int], group: int, kind: str) -> Param:
    grid = _groups(shape, group)
    if kind == "powers":
        return Param(_powers(f"{name}.scale", grid), (1, group))
    if kind in ("uint8", "int8"):  # two levels: small integers, and a float for four groups
        top, storage = (40, "U8") if kind == "uint8" else (100, "I8")
        low = RANDOM.integers(1 if kind == "uint8" else -100, top, grid)
        above = Param(_floats(f"{name}.above", (grid[0], -(-grid[1] // 4)), "F16", 0.001), (1, 4))
        data = _buffer(f"{name}.scale", low.astype(np.uint8 if kind == "uint8" else np.int8), storage)
        return Param(Codes(grid, (data,), PLAIN, kind, None, above), (1, group))
    if kind == "e4m3":
        low = RANDOM.standard_normal(grid).astype(ml_dtypes.float8_e4m3fn)
        above = Param(_floats(f"{name}.above", (grid[0], -(-grid[1] // 4)), "F32", 0.02), (1, 4))
        data = _buffer(f"{name}.scale", low.view(np.uint8), "F8_E4M3")
        return Param(Codes(grid, (data,), PLAIN, "e4m3", None, above), (1, group))
    scale = _floats(f"{name}.scale", grid, kind)
    if kind == "BF16":  # one that no float16 holds
        numbers = scale.data[0].read().copy()
        numbers[0, 0] = 1e-9
        scale = Codes(grid, (_buffer(f"{name}.scale", numbers.view(ml_dtypes.bfloat16), "BF16"),), PLAIN, "bf16")
    return Param(scale, (1, group))


def integers(bits: int, group: int, scale: str = "F16", zero: str = "", offset: bool = False) -> Make:
    """Codes of some bits; the zero is none, of small integers ("uint8"), or a float ("F16", "F32")."""

    def make(name: str, shape: tuple[int, int]) -> QTensor:
        where, grid = None, _groups(shape, group)
        if zero == "uint8":
            data = _buffer(f"{name}.zero", RANDOM.integers(0, 1 << bits, grid).astype(np.uint8), "U8")
            where = Param(Codes(grid, (data,), PLAIN, "uint8"), (1, group))
        elif zero:
            where = Param(_floats(f"{name}.zero", grid, zero, (1 << bits) / 2), (1, group))
        low = Param(_floats(f"{name}.offset", grid, "F16", -0.1), (1, group)) if offset else None
        codes = _codes(name, shape, 1 << bits)
        grid_codes = Codes(shape, (codes,), PLAIN, f"uint{bits}", where, _scale(name, shape, group, scale), low)
        return QTensor(shape, "F32", (Term(grid_codes),))

    return make


def ternary(name: str, shape: tuple[int, int]) -> QTensor:
    """Codes 0, 1 and 2 that mean -1, 0 and 1."""
    codes = Codes(shape, (_codes(name, shape, 3),), PLAIN, "ternary", None, _scale(name, shape, 64, "F16"))
    return QTensor(shape, "F32", (Term(codes),))


def sorted_columns(name: str, shape: tuple[int, int]) -> QTensor:
    """Groups of columns in any order."""
    index = RANDOM.permutation(shape[1]) // 16
    grid = (shape[0], shape[1] // 16)
    scale = Param(_floats(f"{name}.scale", grid), (1, 1), _buffer(f"{name}.index", index.astype(np.int32), "I32"))
    return QTensor(shape, "F32", (Term(Codes(shape, (_codes(name, shape, 16),), PLAIN, "uint4", None, scale)),))


def table(entries: int, tables: int) -> Make:
    """Codes of scalars, of one or several tables."""

    def make(name: str, shape: tuple[int, int]) -> QTensor:
        values = _buffer(f"{name}.table", RANDOM.standard_normal((tables, entries)).astype(np.float32), "F32")
        select = None
        if tables > 1:
            chosen = _codes(f"{name}.select", _groups(shape, 16), tables)
            select = Param(Codes(_groups(shape, 16), (chosen,), PLAIN, "uint8"), (1, 16))
        scale = _scale(name, shape, 32, "F16")
        return QTensor(
            shape,
            "F32",
            (Term(Codes(shape, (_codes(name, shape, entries),), PLAIN, Table(values, select), None, scale)),),
        )

    return make


def vector(levels: int, width: int) -> Make:
    """Two codebooks of vectors along a row, whose entries are added."""

    def make(name: str, shape: tuple[int, int]) -> QTensor:
        terms, grid = [], (shape[0], shape[1] // width)
        for book in range(2):
            entries = (RANDOM.standard_normal((1, levels, 1, width)) * 2).astype(np.float16)
            kind, storage = (np.uint8, "U8") if levels <= 256 else (np.uint16, "U16")
            data = _buffer(f"{name}.codes{book}", RANDOM.integers(0, levels, grid).astype(kind), storage)
            values = _buffer(f"{name}.table{book}", entries, "F16")
            terms.append(Term(Codes(grid, (data,), PLAIN, Table(values))))
        return QTensor(shape, "F32", tuple(terms), scale=_scale(name, shape, shape[1], "F16"))

    return make


def bit_stack(name: str, shape: tuple[int, int]) -> QTensor:
    """Three planes of signs, each times a product of rank 6."""
    terms = []
    for level in range(3):
        u, v = (
            _floats(f"{name}.u{level}", (shape[0], 6), "F16", 0.05),
            _floats(f"{name}.v{level}", (6, shape[1]), "F16", 0.3),
        )
        signs = _codes(f"{name}.{level}", shape, 2)
        terms.append(Term(Codes(shape, (signs,), PLAIN, "sign", None, Param(LowRank(u, v), (1, 1)))))
    return QTensor(shape, "F32", tuple(terms))


def outliers(name: str, shape: tuple[int, int]) -> QTensor:
    """Codes of 4 bits, and a few numbers that are added to them."""
    mask = (RANDOM.random(shape) < 0.02).astype(np.uint8)
    where = Codes(shape, (_buffer(f"{name}.where", mask, "U8"),), PLAIN, "uint1")
    numbers = RANDOM.standard_normal(int(mask.sum())).astype(np.float16)
    run = Codes(shape, (_buffer(f"{name}.values", numbers, "F16"),), PLAIN, "f16")
    return QTensor(shape, "F32", (*integers(4, 32)(name, shape).terms, Term(run, where, "add")))


def minifloat(kind: str) -> Make:
    """Floats of 6 or 8 bits in blocks that share a scale."""

    def make(name: str, shape: tuple[int, int]) -> QTensor:
        codes = RANDOM.integers(0, 64 if kind == "e3m2" else 256, shape).astype(np.uint8)
        if kind != "e3m2":
            codes[(codes & 0x7F) >= (0x70 if kind == "e4m3" else 0x48)] = 1
        storage = {"e4m3": "F8_E4M3", "e5m2": "F8_E5M2"}.get(kind, "U8")
        scale = Param(_floats(f"{name}.scale", (-(-shape[0] // 16), -(-shape[1] // 32)), "F16", 0.01), (16, 32))
        return QTensor(shape, "F32", (Term(Codes(shape, (_buffer(name, codes, storage),), PLAIN, kind, None, scale)),))

    return make


def ladder(bits: int, group: int, zero: bool = False, bias: bool = True) -> Make:
    """Planes with scales of two levels, and a bias, for every one of them; or with float16 scales and zero points."""

    def make(name: str, shape: tuple[int, int]) -> QTensor:
        codes = RANDOM.integers(0, 1 << bits, shape).astype(np.uint8)
        packed = enumerate(packing.pack(codes, bits))
        planes = tuple(_buffer(f"{name}.plane.{p}", plane, "U8") for p, plane in packed)
        grid, rungs = _groups(shape, group), list[Rung]()
        for level in range(1, bits + 1):
            step = np.float32(1 << (bits - level))
            small = Codes(
                grid, (_buffer(f"{name}.s{level}", RANDOM.integers(60, 256, grid).astype("u1"), "U8"),), PLAIN, "uint8"
            )
            factor = np.full((shape[0], 1), 0.0002 * step, ml_dtypes.bfloat16)
            above = Param(
                Codes(factor.shape, (_buffer(f"{name}.f{level}", factor, "BF16"),), PLAIN, "bf16"), (1, grid[1])
            )
            scale = _floats(f"{name}.s{level}", grid, size=0.02 * float(step)) if zero else replace(small, scale=above)
            middle = np.full((1, 1), ((1 << level) - 1) / 2, np.float16)
            zeros = RANDOM.integers(0, 1 << level, grid).astype(np.float16) if zero else middle
            point = Codes(zeros.shape, (_buffer(f"{name}.z{level}", zeros, "F16"),), PLAIN, "f16")
            term = Codes(
                shape,
                planes[:level],
                Layout("planes", level),
                f"uint{level}",
                zero=Param(point, (1, group)),
                scale=Param(scale, (1, group)),
            )
            shift = RANDOM.standard_normal(shape[0]).astype(np.float16) / np.float16(8)
            own = (
                Codes(shape[:1], (_buffer(f"{name}.b{level}", shift, "F16"),), PLAIN, "f16")
                if bias and level < bits
                else None
            )
            rungs.append(Rung((level,), (Term(term),), 4.0**-level, own))
        assert rungs[-1].terms is not None
        return QTensor(shape, "F32", rungs[-1].terms, tuple(rungs))

    return make


def floats(storage: str) -> Make:
    """Floats as they are stored."""

    def make(name: str, shape: tuple[int, ...]) -> QTensor:
        kind = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32}[storage]
        base = 1.0 if name.lower().endswith("norm.weight") else 0.0
        numbers = base + RANDOM.standard_normal(shape) * 0.15
        return plain(_buffer(name, numbers.astype(kind), storage), storage.lower())

    return make


# ---- networks


def _decoder_shapes(bias: bool, norms: bool) -> Mapping[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (90, 64), "lm_head.weight": (90, 64)}
    for i in range(2):
        layer = f"model.layers.{i}"
        for part, rows, columns in (("q", 64, 64), ("k", 32, 64), ("v", 32, 64), ("o", 64, 64)):
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (rows, columns)
            if bias and part != "o":
                shapes[f"{layer}.self_attn.{part}_proj.bias"] = (rows,)
        for part, rows, columns in (("gate", 96, 64), ("up", 96, 64), ("down", 64, 96)):
            shapes[f"{layer}.mlp.{part}_proj.weight"] = (rows, columns)
        if norms:
            shapes |= {f"{layer}.self_attn.{part}_norm.weight": (16,) for part in "qk"}
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (64,)
    return shapes | {"model.norm.weight": (64,)}


def _expert_shapes(config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """Tensors of the two layers of a decoder with experts, by what the family calls them."""
    kind, inner = config["model_type"], 48
    shapes = {name: shape for name, shape in _decoder_shapes(kind == "qwen2_moe", False).items() if ".mlp." not in name}
    for i in range(2):
        layer = f"model.layers.{i}"
        mlp = f"{layer}.{'feed_forward' if kind == 'llama4_text' else 'mlp'}"
        shapes[f"{mlp}.{'router' if kind in ('gpt_oss', 'llama4_text') else 'gate'}.weight"] = (4, 64)
        for e in range(4):
            for part, rows, columns in (("gate", inner, 64), ("up", inner, 64), ("down", 64, inner)):
                shapes[f"{mlp}.experts.{e}.{part}_proj.weight"] = (rows, columns)
                if kind == "gpt_oss":
                    shapes[f"{mlp}.experts.{e}.{part}_proj.bias"] = (rows,)
        shared = {"qwen2_moe": "shared_expert", "deepseek_v3": "shared_experts", "llama4_text": "shared_expert"}
        for part, rows, columns in (("gate", inner, 64), ("up", inner, 64), ("down", 64, inner)):
            if kind in shared:
                shapes[f"{mlp}.{shared[kind]}.{part}_proj.weight"] = (rows, columns)
        shapes |= _own_shapes(kind, layer)
    if kind == "deepseek_v3":
        shapes = {name: shape for name, shape in shapes.items() if ".k_proj" not in name and ".v_proj" not in name}
    return shapes


def _own_shapes(kind: str, layer: str) -> Mapping[str, tuple[int, ...]]:
    """Tensors that one family has."""
    attention = f"{layer}.self_attn"
    if kind == "qwen2_moe":
        return {f"{layer}.mlp.shared_expert_gate.weight": (1, 64)}
    if kind == "gpt_oss":
        return {f"{attention}.sinks": (4,), f"{layer}.mlp.router.bias": (4,)}
    if kind == "deepseek_v3":
        return {
            f"{layer}.mlp.gate.e_score_correction_bias": (4,),
            f"{attention}.q_proj.weight": (4 * 24, 64),
            f"{attention}.kv_a_proj_with_mqa.weight": (32 + 8, 64),
            f"{attention}.kv_a_layernorm.weight": (32,),
            f"{attention}.kv_b_proj.weight": (4 * 32, 32),
            f"{attention}.o_proj.weight": (64, 64),
        }
    return {}


def _delta_shapes() -> Mapping[str, tuple[int, ...]]:
    """A gated delta rule in the first layer, attention with a gate in the second."""
    shapes = {name: shape for name, shape in _decoder_shapes(False, True).items() if "layers.0.self_attn" not in name}
    mixer, rows = "model.layers.0.linear_attn", {"qkv": 128, "z": 64, "a": 4, "b": 4}
    shapes |= {f"{mixer}.in_proj_{part}.weight": (count, 64) for part, count in rows.items()}
    shapes |= {f"{mixer}.A_log": (4,), f"{mixer}.dt_bias": (4,), f"{mixer}.norm.weight": (16,)}
    shapes["model.layers.1.self_attn.q_proj.weight"] = (128, 64)
    return shapes | {f"{mixer}.conv1d.weight": (128, 1, 4), f"{mixer}.out_proj.weight": (64, 64)}


def _scan_shapes() -> Mapping[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"backbone.embeddings.weight": (90, 64), "lm_head.weight": (90, 64)}
    for i in range(2):
        mixer = f"backbone.layers.{i}.mixer"
        shapes |= {f"{mixer}.in_proj.weight": (328, 64), f"{mixer}.out_proj.weight": (64, 128)}
        shapes |= {f"{mixer}.conv1d.weight": (192, 1, 4), f"{mixer}.conv1d.bias": (192,)}
        shapes |= {f"{mixer}.{name}": (8,) for name in ("A_log", "D", "dt_bias")}
        shapes |= {f"{mixer}.norm.weight": (128,), f"backbone.layers.{i}.norm.weight": (64,)}
    return shapes | {"backbone.norm_f.weight": (64,)}


def _apertus_shapes() -> Mapping[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in _decoder_shapes(False, True).items():
        name = name.replace("input_layernorm", "attention_layernorm")
        name = name.replace("post_attention_layernorm", "feedforward_layernorm")
        shapes |= {} if "gate_proj" in name else {name: shape}
    for i in range(2):
        act = f"model.layers.{i}.mlp.act_fn"
        shapes |= {f"{act}.alpha_p": (1,), f"{act}.alpha_n": (1,), f"{act}.beta": (), f"{act}.eps": ()}
    return shapes


def _cohere_shapes() -> Mapping[str, tuple[int, ...]]:
    shapes = {name: shape for name, shape in _decoder_shapes(False, False).items() if "post_attention" not in name}
    for i in range(2):
        attention = f"model.layers.{i}.self_attn"
        shapes |= {f"{attention}.q_norm.weight": (4, 16), f"{attention}.k_norm.weight": (2, 16)}
    return shapes


def _encoder_shapes() -> Mapping[str, tuple[int, ...]]:
    tables = {"word": (90, 64), "position": (64, 64), "token_type": (2, 64)}
    shapes: dict[str, tuple[int, ...]] = {f"embeddings.{k}_embeddings.weight": v for k, v in tables.items()}
    norms = ["embeddings.LayerNorm"]
    for i in range(2):
        layer = f"encoder.layer.{i}"
        parts = {f"attention.self.{part}": (64, 64) for part in ("query", "key", "value")}
        parts |= {"attention.output.dense": (64, 64), "intermediate.dense": (96, 64), "output.dense": (64, 96)}
        for part, shape in parts.items():
            shapes |= {f"{layer}.{part}.weight": shape, f"{layer}.{part}.bias": shape[:1]}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for norm in norms:
        shapes |= {f"{norm}.weight": (64,), f"{norm}.bias": (64,)}
    return shapes


def _model(name: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], forms: list[Make]) -> Model:
    """The forms go to the matrices in order, from the first one again where there are more matrices."""
    tensors, turn = {}, 0
    for tensor, shape in shapes.items():
        if len(shape) != 2:
            whole = floats("F32")(tensor, shape or (1,))  # type: ignore[arg-type]
            tensors[tensor] = replace(whole, shape=shape)
            continue
        tensors[tensor] = forms[turn % len(forms)](tensor, shape)  # type: ignore[arg-type]
        turn += 1
    side = {
        "modules.json": '[{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "p"}, {"type": "x.Normalize"}]',
        "p/config.json": f'{{"pooling_mode_{config.get("pooling", "mean_tokens")}": true}}',
    }
    files = [SourceFile(k, _buffer(k, np.frombuffer(v.encode(), np.uint8), "U8")) for k, v in side.items()]
    encoder = config["model_type"] in ("bert", "roberta")
    return Model("golden", name, tensors, config, "hf", tuple(files if encoder else ()), build_graph=build_graph)


def networks() -> dict[str, tuple[Model, Options]]:
    """The golden files by name."""
    scales = ("F16", "BF16", "F32", "powers")
    planes = [integers(bits, (16, 32, 64)[bits % 3], scales[(bits - 1) % 4]) for bits in range(1, 9)]
    elastic = [floats("BF16"), planes[7], *planes[:4], *planes[4:7], ternary, vector(256, 8), bit_stack]
    elastic += [table(16, 3), table(8, 1), outliers, minifloat("e4m3")]
    whole = [floats("F16"), floats("F32"), integers(4, 32, "F16", "uint8"), integers(8, 64, "F32", "F32")]
    whole += [integers(2, 16, "uint8", "", True), minifloat("e5m2"), sorted_columns, ternary, integers(4, 16, "int8")]
    whole += [vector(300, 4), table(16, 1), table(6, 5), integers(3, 16, "e4m3", "F16"), minifloat("e3m2")]
    whole += [integers(5, 24, "BF16", "uint8"), floats("BF16")]
    pooled = [integers(8, 64, "F32"), floats("F16"), floats("F32"), integers(4, 32), integers(8, 64), bit_stack]
    pooled += [vector(16, 4), table(16, 2), outliers, minifloat("e4m3"), integers(6, 32, "F16", "uint8")]
    return {
        "decoder-elastic": (
            _model("elastic", DECODER | {"model_type": "llama"}, _decoder_shapes(False, False), elastic),
            Options(layout="elastic"),
        ),
        "decoder-whole": (
            _model("whole", DECODER | {"model_type": "qwen2"}, _decoder_shapes(True, False), whole),
            Options(layout="whole"),
        ),
        "decoder-window": (
            _model(
                "window",
                DECODER
                | {"model_type": "qwen3", "head_dim": 16, "use_sliding_window": True, "sliding_window": 4}
                | {"max_window_layers": 1},
                _decoder_shapes(False, True),
                [integers(4, 32), integers(8, 64), bit_stack, integers(3, 16, "F16", "uint8", True)],
            ),
            Options(layout="elastic"),
        ),
        "encoder": (
            _model("encoder", ENCODER | {"model_type": "bert"}, _encoder_shapes(), pooled),
            Options(layout="elastic"),
        ),
        **_later(),
    }


EXPERTS = DECODER | {"moe_intermediate_size": 48, "num_experts_per_tok": 2, "num_local_experts": 4}
LATER: dict[str, Mapping[str, Any]] = {
    "experts": EXPERTS | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 48},
    "latent": EXPERTS
    | {"model_type": "deepseek_v3", "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 0}
    | {"num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 32, "qk_rope_head_dim": 8}
    | {"qk_nope_head_dim": 16, "v_head_dim": 16, "n_group": 2, "topk_group": 1},
    "sinks": EXPERTS
    | {"model_type": "gpt_oss", "attention_bias": False, "intermediate_size": 48, "head_dim": 16}
    | {"sliding_window": 4, "swiglu_limit": 0.05, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "chunks": EXPERTS
    | {"model_type": "llama4_text", "intermediate_size": 48, "head_dim": 16, "attention_chunk_size": 4}
    | {"no_rope_layers": [1, 0], "floor_scale": 2, "num_experts_per_tok": 1},
    "long": DECODER
    | {"model_type": "llama", "max_position_embeddings": 4}
    | {"rope_parameters": {"rope_type": "dynamic", "factor": 16.0, "rope_theta": 1e4}},
    "head-norms": DECODER | {"model_type": "cohere", "use_qk_norm": True},
    "delta": DECODER
    | {"model_type": "qwen3_5_text", "head_dim": 16, "num_hidden_layers": 2, "full_attention_interval": 2}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
    | {"linear_value_head_dim": 16, "linear_conv_kernel_dim": 4},
    "scan": {"model_type": "mamba2", "vocab_size": 90, "hidden_size": 64, "num_hidden_layers": 2}
    | {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16, "tie_word_embeddings": False},
    "xielu": DECODER | {"model_type": "apertus", "hidden_act": "xielu"},
    "ladder": DECODER | {"model_type": "llama"},
    "last-token": ENCODER | {"model_type": "roberta", "pooling": "lasttoken", "pad_token_id": 19},
    "greatest-token": ENCODER | {"model_type": "bert", "pooling": "max_tokens"},
    "hadamard": DECODER | {"model_type": "llama"},
    **measured.CONFIGS,
}
"""Networks of features that came later, a file each."""


def _later() -> dict[str, tuple[Model, Options]]:
    forms = [floats("F16"), integers(4, 32, "F16", "uint8"), integers(8, 64, "F32"), integers(3, 16)]
    networks = {}
    for name, config in LATER.items():
        shapes = _expert_shapes(config) if "moe_intermediate_size" in config else _decoder_shapes(False, False)
        own = {"head-norms": _cohere_shapes, "delta": _delta_shapes, "scan": _scan_shapes, "xielu": _apertus_shapes}
        own |= {"last-token": _encoder_shapes, "greatest-token": _encoder_shapes}
        shapes = own[name]() if name in own else shapes
        shapes = measured.shapes(name) if name in measured.CONFIGS else shapes
        ladders = [ladder(4, 32), ladder(2, 16), ladder(8, 64, bias=False), ladder(4, 32, zero=True, bias=False)]
        ladders += [ladder(3, 48, zero=True), ladder(4, 128)]
        model = _model(name, config, shapes, ladders if name == "ladder" else forms)
        if name == "hadamard":
            step = Step("Hadamard", size=16)
            model = turned(model, {weight: Turn((step,), (step,)) for weight in shapes if "_proj" in weight})
        networks[name] = (model, Options(layout="elastic"))
    return networks


def main(folder: Path) -> None:
    """Writes the files."""
    for name, (model, options) in networks().items():
        lowered = BACKEND.lower(model, folder, options)
        (folder / "model.qd").rename(folder / f"{name}.qd")
        print(name, [choice.form for choice in lowered.choices])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

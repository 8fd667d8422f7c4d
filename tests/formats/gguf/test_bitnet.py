"""I2_S of bitnet.cpp: files written from the text of its layout, and numbers that mean something else."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from packed_layers import open_, read_all
from published import Stored, write

import qdeploy
from qdeploy import registry
from qdeploy.errors import QdeployError, UnsupportedError
from qdeploy.ir.rules import check_values
from qdeploy.ir.views import Lookup, view


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def i2_s(ternary: np.ndarray, scale: float, tail: bytes = b"\0" * 28) -> bytes:
    """128 codes to 32 bytes; byte j holds codes j, j + 32, j + 64, j + 96, the first in the high bits."""
    flat, out = (ternary.reshape(-1) + 1).tolist(), bytearray()
    for start in range(0, len(flat), 128):
        block = flat[start : start + 128]
        out += bytes(block[j] << 6 | block[j + 32] << 4 | block[j + 64] << 2 | block[j + 96] for j in range(32))
    return bytes(out) + struct.pack("<f", scale) + tail


def file(
    path: Path,
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]],
    architecture: str = "bitnet-b1.58",
    **fields: float,
) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1 + len(fields))
    head += text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    for name, value in fields.items():
        head += text(f"{architecture}.{name.replace('__', '.')}")
        head += struct.pack("<Ii", 5, value) if isinstance(value, int) else struct.pack("<If", 6, value)
    data = b""
    for name, (shape, kind, raw) in tensors.items():
        data += b"\0" * (-len(data) % 32)
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", kind, len(data))
        data += raw
    head += b"\0" * (-len(head) % 32)
    path.write_bytes(head + data)
    return path


def random(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, shape)


def test_codes_and_scales_of_several_tensors(tmp_path: Path) -> None:
    first, second = random(0, (6, 256)), random(1, (5, 128))
    norm = np.arange(8, dtype=np.float32)
    tensors = {
        "blk.0.attn_q.weight": ((6, 256), 36, i2_s(first, 0.25)),
        "blk.0.attn_norm.weight": ((8,), 0, norm.tobytes()),
        "blk.0.ffn_up.weight": ((5, 128), 36, i2_s(second, 3.5, bytes(range(1, 29)))),
    }
    path = file(tmp_path / "m.gguf", tensors)
    model = open_(path)
    np.testing.assert_array_equal(model.tensors["blk.0.attn_q.weight"].decode(), first * np.float32(0.25))
    np.testing.assert_array_equal(model.tensors["blk.0.ffn_up.weight"].decode(), second * np.float32(3.5))
    np.testing.assert_array_equal(model.tensors["blk.0.attn_norm.weight"].decode(), norm)
    seen = view(model.tensors["blk.0.ffn_up.weight"])
    assert isinstance(seen, Lookup) and seen.is_ternary
    for name, tensor in model.tensors.items():
        check_values(tensor, name)
    read_all(model)
    assert all(origin.proven for origin in model.origins)


def test_the_file_comes_back_with_what_means_nothing(tmp_path: Path) -> None:
    raw = i2_s(random(2, (4, 384)), 1.5, bytes(range(1, 29)))
    path = file(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": ((4, 384), 36, raw)})
    qdeploy.convert(path, tmp_path / "package", to="ir")
    qdeploy.convert(tmp_path / "package", tmp_path / "source", to="source")
    assert (tmp_path / "source/m.gguf").read_bytes() == path.read_bytes()


def test_a_third_code_and_a_scale_that_is_no_number_are_refused_by_name(tmp_path: Path) -> None:
    raw = bytearray(i2_s(random(3, (2, 128)), 1.0))
    for change in (b"\xff" + bytes(raw[1:]), bytes(raw[:64]) + struct.pack("<f", np.nan) + bytes(raw[68:])):
        path = file(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": ((2, 128), 36, change)})
        with pytest.raises(QdeployError, match=r"blk\.0\.ffn_up\.weight"):
            qdeploy.convert(path, tmp_path / "out", to="ir")


def test_rows_that_are_no_whole_blocks_are_refused_by_name(tmp_path: Path) -> None:
    path = file(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": ((4, 96), 36, i2_s(random(4, (4, 96)), 1.0))})
    with pytest.raises(QdeployError, match=r"blk\.0\.ffn_up\.weight"):
        open_(path)


def test_the_withdrawn_type_of_the_same_number_stays_refused(tmp_path: Path) -> None:
    path = file(tmp_path / "m.gguf", {"w": ((4, 128), 36, b"\0" * (4 * 128 // 32 * 18))}, "llama")
    with pytest.raises(UnsupportedError, match="IQ4_NL_4_4"):
        open_(path).tensors["w"].decode()


@pytest.mark.parametrize(("kind", "name"), [(38, "TL1"), (39, "TL2")])
def test_tiles_that_the_file_does_not_say_are_refused_by_name(tmp_path: Path, kind: int, name: str) -> None:
    path = file(tmp_path / "m.gguf", {"w": ((4, 256), kind, b"\0" * 512)})
    with pytest.raises(UnsupportedError, match=name):
        open_(path).tensors["w"].decode()


HIDDEN, INNER, VOCABULARY, KEYS = 128, 256, 64, 64
CONFIG = {
    "model_type": "bitnet",
    "architectures": ["BitNetForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "hidden_act": "relu2",
    "tie_word_embeddings": True,
}
FIELDS = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": HIDDEN,
    "feed_forward_length": INNER,
    "attention__head_count": 4,
    "attention__head_count_kv": 2,
    "attention__layer_norm_rms_epsilon": 1e-5,
    "rope__dimension_count": 32,
    "rope__freq_base": 5e5,
    "vocab_size": VOCABULARY,
}
LINEAR = {
    "attn_q": ("self_attn.q_proj", HIDDEN, HIDDEN),
    "attn_k": ("self_attn.k_proj", KEYS, HIDDEN),
    "attn_v": ("self_attn.v_proj", KEYS, HIDDEN),
    "attn_output": ("self_attn.o_proj", HIDDEN, HIDDEN),
    "ffn_gate": ("mlp.gate_proj", INNER, HIDDEN),
    "ffn_up": ("mlp.up_proj", INNER, HIDDEN),
    "ffn_down": ("mlp.down_proj", HIDDEN, INNER),
}
NORMS = {
    "attn_norm": ("input_layernorm", HIDDEN),
    "ffn_norm": ("post_attention_layernorm", HIDDEN),
    "attn_sub_norm": ("self_attn.attn_sub_norm", HIDDEN),
    "ffn_sub_norm": ("mlp.ffn_sub_norm", INNER),
}


def network(path: Path, architecture: str, output: bool = False) -> tuple[Path, Stored]:
    """A file, and the tensors of the same model in floats."""
    numbers, tensors, floats = np.random.default_rng(5), {}, Stored()

    def add(name: str, hf: str, values: np.ndarray) -> None:
        tensors[name] = (values.shape, 0, values.astype("<f4").tobytes())
        floats[hf] = ("F32", values.astype(np.float32))

    add("token_embd.weight", "model.embed_tokens.weight", numbers.standard_normal((VOCABULARY, HIDDEN)))
    if output:
        add("output.weight", "lm_head.weight", numbers.standard_normal((VOCABULARY, HIDDEN)))
    add("output_norm.weight", "model.norm.weight", numbers.random(HIDDEN) + 0.5)
    for i in range(2):
        for name, (hf, size) in NORMS.items():
            add(f"blk.{i}.{name}.weight", f"model.layers.{i}.{hf}.weight", numbers.random(size) + 0.5)
        for name, (hf, *shape) in LINEAR.items():
            ternary, scale = numbers.integers(-1, 2, shape), np.float32(numbers.random() / 8)
            tensors[f"blk.{i}.{name}.weight"] = (tuple(shape), 36, i2_s(ternary, scale))
            floats[f"model.layers.{i}.{hf}.weight"] = ("F32", (ternary * scale).astype(np.float32))
    return file(path, tensors, architecture, **FIELDS), floats


@pytest.mark.parametrize("architecture", ["bitnet-b1.58", "bitnet-25"])
def test_the_network_is_that_of_bitnet(tmp_path: Path, architecture: str) -> None:
    path, floats = network(tmp_path / "m.gguf", architecture)
    ids = np.array([[3, 14, 15, 9, 26, 53]])
    wanted = qdeploy.load(write(tmp_path / "floats", floats, None, CONFIG)).run(input_ids=ids)["logits"]
    model = qdeploy.load(path)
    np.testing.assert_allclose(model.run(input_ids=ids)["logits"], wanted, atol=2e-5 * np.abs(wanted).max())
    for target in ("onnx", "native"):
        out = tmp_path / ("m.qd" if target == "native" else target)
        report = qdeploy.convert(path, out, to=target)
        assert sum("quantizes inputs to 8-bit int" in note and "14 layers" in note for note in report["notes"]) == 1
        text_model = registry.backend(target).text
        assert text_model is not None
        logits = text_model.logits(str(out), ids).reshape(wanted.shape)
        assert np.linalg.norm(logits - wanted) <= (5e-5 if target == "onnx" else 5e-2) * np.linalg.norm(wanted)


def test_an_output_layer_that_its_network_never_uses_is_refused_by_name(tmp_path: Path) -> None:
    path, _ = network(tmp_path / "m.gguf", "bitnet-b1.58", output=True)
    with pytest.raises(UnsupportedError, match=r"output\.weight"):
        qdeploy.load(path).run(input_ids=np.array([[1]]))

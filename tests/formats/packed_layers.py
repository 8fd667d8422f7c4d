"""Checkpoints of packed words made from the text of their layouts, with whole numbers of Python instead of arrays.

A packed run is one integer: code j adds `code << (j * bits)`. Nothing here shares a line with the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from qdeploy import registry
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import buffers
from qdeploy.store.codec import restore

ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass
class Linear:
    """A quantized layer before it is packed: codes [N, K], zeros [N, G], scales [N, G], group of each column [K]."""

    bits: int
    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    groups: np.ndarray

    @classmethod
    def random(
        cls, seed: int, rows: int, columns: int, bits: int, group: int, shuffled: bool = False, low: int = 0
    ) -> Linear:
        """A layer of random codes; zero-points from `low` on; a group of -1 is one per row."""
        rng = np.random.default_rng(seed)
        per = columns if group == -1 else group
        count = -(-columns // per)
        index = np.arange(columns) // per
        return cls(
            bits,
            rng.integers(0, 1 << bits, (rows, columns)),
            rng.integers(low, 1 << bits, (rows, count)),
            (rng.random((rows, count)) * 0.1 + 0.001).astype(np.float16),
            rng.permutation(index) if shuffled else index,
        )

    def weight(self) -> np.ndarray:
        """(code - zero) * scale, one float32 multiplication each."""
        zeros, scales = self.zeros[:, self.groups], self.scales[:, self.groups].astype(np.float32)
        return (self.codes - zeros).astype(np.float32) * scales


def words(run: Iterable[int], bits: int) -> list[int]:
    """A run of codes as 32-bit words of a little-endian bit stream."""
    number = count = 0
    for count, code in enumerate(run, 1):
        number |= int(code) << ((count - 1) * bits)
    return [number >> (32 * i) & 0xFFFFFFFF for i in range(-(-count * bits // 32))]


def gptq(name: str, layer: Linear, v1: bool = True, g_idx: bool = True) -> dict[str, np.ndarray]:
    """The stored tensors of a GPTQ layer."""
    zeros = np.array([_gptq_zeros(row, layer.bits, v1) for row in layer.zeros.T], np.uint32)
    tensors = {
        f"{name}.qweight": np.array([words(row, layer.bits) for row in layer.codes], np.uint32).T,
        f"{name}.qzeros": zeros,
        f"{name}.scales": layer.scales.T,
        f"{name}.g_idx": layer.groups.astype(np.int32),
    }
    return _plain({k: v for k, v in tensors.items() if g_idx or not k.endswith("g_idx")})


def _gptq_zeros(run: np.ndarray, bits: int, v1: bool) -> list[int]:
    if v1 and bits not in ONES:
        return words([(int(z) - 1) % (1 << bits) for z in run], bits)
    return [(w - (ONES[bits] if v1 else 0)) % (1 << 32) for w in words(run, bits)]


def awq_gemm(name: str, layer: Linear) -> dict[str, np.ndarray]:
    """The stored tensors of an AWQ layer, version gemm."""
    tensors = {"qweight": _interleaved(layer.codes.T), "qzeros": _interleaved(layer.zeros.T), "scales": layer.scales.T}
    return _plain({f"{name}.{part}": array for part, array in tensors.items()})


def _interleaved(codes: np.ndarray) -> np.ndarray:
    blocks = [[row[i : i + 8] for i in range(0, len(row), 8)] for row in codes]
    return np.array([[words([b[c] for c in AWQ_ORDER], 4)[0] for b in row] for row in blocks], np.uint32)


def awq_gemv(name: str, layer: Linear, zero_words: int) -> dict[str, np.ndarray]:
    """The stored tensors of an AWQ layer, version gemv, with zero-points and scales padded to whole words."""
    missing = 8 * zero_words - layer.zeros.shape[1]
    zeros = np.pad(layer.zeros, ((0, 0), (0, missing)))
    tensors = {
        "qweight": np.array([words(row, 4) for row in layer.codes], np.uint32),
        "qzeros": np.array([words(row, 4) for row in zeros], np.uint32),
        "scales": np.pad(layer.scales, ((0, 0), (0, missing))),
    }
    return _plain({f"{name}.{part}": array for part, array in tensors.items()})


def _plain(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: np.ascontiguousarray(v.view(np.int32) if v.dtype == np.uint32 else v) for k, v in tensors.items()}


def save(folder: Path, tensors: dict[str, np.ndarray], settings: dict[str, Any] | None, beside: str = "") -> Path:
    """Writes a checkpoint; its settings stand in config.json or in the file that is named."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    inside = {"quantization_config": settings} if settings is not None and not beside else {}
    (folder / "config.json").write_text(json.dumps({"architectures": [], **inside}))
    if beside:
        (folder / beside).write_text(json.dumps(settings))
    return folder


def open_(folder: Path) -> Model:
    """Opens a checkpoint as the command line does."""
    return registry.open_model(folder)


def read_all(model: Model) -> None:
    """Reads every buffer of every tensor once, in two uneven pieces."""
    for tensor in model.tensors.values():
        for buffer in buffers(tensor):
            cut = buffer.shape[0] * 2 // 3
            buffer.read(0, cut)
            buffer.read(cut, buffer.shape[0])


def assert_comes_back(model: Model, folder: Path) -> None:
    """Every stored tensor is proven without residue, and written again from the buffers alone it has its bytes."""
    read_all(model)
    files = {o.file: (folder / o.file).read_bytes() for o in model.origins}
    origins = {(o.file, o.name): o for o in model.origins}
    for origin in origins.values():
        assert origin.proven, origin.name
        assert not len(origin.residue()), origin.name
        assert not origin.values_only, origin.name
    seen = set()
    for tensor in model.tensors.values():
        contents = {b.key: b for b in buffers(tensor)}
        codecs = registry.format_module(tensor.source.format).codecs(tensor.source)
        for part, how in zip(tensor.source.tensors, codecs, strict=True):
            origin = origins[part.file, part.name]
            slabs = list(restore(how, [contents[k] for k in how.keys], part.shape))
            back = np.concatenate([slab for _, slab in slabs], axis=how.axis).tobytes() if slabs else b""
            assert back == files[part.file][origin.begin :][: origin.nbytes], part.name
            seen.add((part.file, part.name))
    assert seen == set(origins)


def assert_rows_agree(model: Model) -> None:
    """Decoding in row ranges gives the rows of the whole."""
    for name, tensor in model.tensors.items():
        if len(tensor.shape) != 2:
            continue
        whole, step = tensor.decode(), 37
        parts = [tensor.decode(slice(i, min(i + step, tensor.shape[0]))) for i in range(0, tensor.shape[0], step)]
        assert np.array_equal(whole, np.concatenate(parts), equal_nan=True), name

"""Checkpoints of published formats: written from the text of their layouts, held against the oracles, and damaged.

A stored tensor is a pair (storage type, array); files are put together here byte by byte.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from packed_layers import assert_comes_back, assert_rows_agree, open_

from qdeploy.errors import QdeployError
from qdeploy.ir.rules import check, check_values
from qdeploy.ir.run import Weights, run

Stored = dict[str, tuple[str, np.ndarray]]
FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}


def write(
    folder: Path,
    tensors: Stored,
    settings: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Writes config.json and model.safetensors."""
    folder.mkdir(exist_ok=True)
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    begin, parts = 0, []
    for name, (dtype, array) in tensors.items():
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, begin + len(data)]}
        begin += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    section = {"quantization_config": settings} if settings is not None else {}
    (folder / "config.json").write_text(json.dumps({**section, **(config or {})}))
    return folder


def assert_reads_as(folder: Path, parameter: str, expected: np.ndarray) -> None:
    """The parameter decodes to exactly these numbers, by rows too, and every stored byte comes back."""
    model = open_(folder)
    np.testing.assert_array_equal(model.tensors[parameter].decode(), expected.astype(np.float32))
    assert_rows_agree(model)
    assert_comes_back(model, folder)
    for name, tensor in model.tensors.items():
        check_values(tensor, name)


def oracles(testdata: Path, prefix: str) -> list[Path]:
    """Folders of real checkpoints whose names begin so; never none."""
    roots = (testdata / "checkpoints", testdata / "formats")
    results = [f for root in roots if root.is_dir() for f in sorted(root.glob(f"{prefix}*"))]
    assert results
    return results


def assert_matches_oracle(folder: Path, rounded: Any = None, transposed: bool = False, limit: float = 0.0) -> None:
    """Every weight of the oracle within one unit in the last place of its type, and all bytes come back.

    Args:
        folder: The checkpoint.
        rounded: The type in which the oracle's numbers were rounded, where it is not the oracle's own.
        transposed: Whether the oracle shows the transpose.
        limit: Error relative to the greatest weight, for libraries that round in between.
    """
    model, oracle = open_(folder), np.load(folder / "oracle.npz")
    for key in (k for k in oracle.files if k.startswith("w:")):
        expected, ours = oracle[key], model.tensors[key[2:]].decode()
        ours = ours.swapaxes(-1, -2) if transposed else ours
        if limit:
            assert np.abs(ours - expected).max() <= limit * np.abs(expected).max(), key
            continue
        ours, expected = (a.astype(rounded or expected.dtype) for a in (ours, expected))
        steps = _steps(ours, expected)
        assert steps <= 1, (folder.name, key, steps)
    assert_comes_back(model, folder)
    for name, tensor in model.tensors.items():
        check_values(tensor, name)


def assert_logits(folder: Path, limit: float) -> None:
    """The logits of a float32 forward with the weights alone are the oracle's, as a relative L2 distance."""
    model, oracle = open_(folder), np.load(folder / "oracle.npz")
    ours = run(model.graph, {"input_ids": oracle["input_ids"]}, None, Weights(model))[0]["logits"]
    expected = oracle["logits"]
    distance = np.linalg.norm(ours.reshape(expected.shape) - expected) / np.linalg.norm(expected)
    assert distance <= limit, (folder.name, distance)


def _steps(a: np.ndarray, b: np.ndarray) -> int:
    """The greatest distance in units in the last place; zeros of both signs are one number."""
    kind = f"i{a.dtype.itemsize}"
    whole = [v.view(kind).astype(np.int64) for v in (a, b)]
    low = -(1 << (8 * a.dtype.itemsize - 1))
    ordered = [np.where(v < 0, low - v, v) for v in whole]
    return int(np.abs(ordered[0] - ordered[1]).max())


def damages(stored: Stored, divisors: tuple[str, ...] = ()) -> Iterator[tuple[str, Callable[[Stored], None]]]:
    """Every way to damage every tensor of a layer, with a name; `divisors` are scales by which codes are divided."""
    for name, (dtype, array) in stored.items():
        yield f"{name} is missing", lambda t, n=name: t.pop(n)  # type: ignore[misc]
        yield f"{name} has another type", lambda t, n=name: t.update({n: ("F64", t[n][1].astype(np.float64))})  # type: ignore[misc]
        if name in divisors:
            yield f"{name} is zero", lambda t, n=name: t.update({n: (t[n][0], t[n][1] * 0)})  # type: ignore[misc]
        if array.ndim:
            yield f"{name} is short", lambda t, n=name: t.update({n: (t[n][0], t[n][1][: len(t[n][1]) // 2])})  # type: ignore[misc]
        if array.ndim > 1:
            yield (
                f"{name} is narrow",
                lambda t, n=name: t.update({n: (t[n][0], t[n][1][..., : t[n][1].shape[-1] // 2])}),
            )  # type: ignore[misc]
        if dtype in FLOATS and ("scale" in name or "zero" in name or "bias" in name or "absmax" in name):
            yield f"{name} is not a number", lambda t, n=name: t.update({n: (t[n][0], _spoiled(*t[n]))})  # type: ignore[misc]


def _spoiled(dtype: str, array: np.ndarray) -> np.ndarray:
    spoiled = array.copy()
    spoiled.reshape(-1).view(FLOATS[dtype])[-1] = np.nan
    return spoiled


def assert_damage_is_named(
    tmp_path: Path,
    stored: Stored,
    name: str,
    free: tuple[str, ...] = (),
    divisors: tuple[str, ...] = (),
    **how: Any,
) -> None:
    """Each damage is refused, when the checkpoint is opened or its data are judged, and the message names the tensor.

    Args:
        tmp_path: Where to write.
        stored: A layer that reads well.
        name: Must be in the message: the module.
        free: Damage that nothing else in the file denies, by its name.
        divisors: As of `damages`.
        how: The rest of `write`.
    """
    for number, (what, damage) in enumerate(damages(stored, divisors)):
        if what in free:
            continue
        tensors = dict(stored)
        damage(tensors)
        folder = write(tmp_path / f"damaged{number}", tensors, **how)
        with pytest.raises(QdeployError) as caught:
            model = open_(folder)
            for key, tensor in model.tensors.items():
                check(tensor, key)
                check_values(tensor, key)
            pytest.fail(f"{what}: accepted")
        assert name in str(caught.value), what


def bitnet_online(floats: np.ndarray) -> np.ndarray:
    """arXiv 2402.17764, section 2, in the type of the weights: round(w / mean |w|) within -1 and 1, times the mean."""
    wide = floats.astype(np.float32)
    factor = np.float32(1) / np.float32(max(np.abs(wide.astype(np.float64)).mean(), 1e-5))
    rounded = np.clip(np.rint(wide * factor), -1, 1) / factor
    return rounded.astype(floats.dtype).astype(np.float32)


def e2m1(codes: np.ndarray) -> np.ndarray:
    """The value of codes of FP4: sign, two bits of exponent, one of mantissa."""
    magnitude = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)[codes & 7]
    return np.where(codes & 8, -magnitude, magnitude).astype(np.float32)


def e8m0(codes: np.ndarray) -> np.ndarray:
    """Powers of two with a bias of 127."""
    return np.exp2(codes.astype(np.float64) - 127).astype(np.float32)


def low_first(codes: np.ndarray) -> np.ndarray:
    """Codes of 4 bits, two to a byte, the first in the low half."""
    return (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)


def bf16(numbers: np.ndarray) -> np.ndarray:
    """Numbers rounded to bfloat16."""
    return numbers.astype(ml_dtypes.bfloat16)


def fp8(numbers: np.ndarray) -> np.ndarray:
    """Numbers rounded to e4m3."""
    return numbers.astype(ml_dtypes.float8_e4m3fn)

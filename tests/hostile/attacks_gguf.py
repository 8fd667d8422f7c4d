"""Attacks on GGUF files."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.hostile.attacks_safetensors import Build
from tests.hostile.test_gguf import ARRAY, NAME, Q8_0, ROWS, STRING, U8, U32, entry, file, info, text

GGUF: dict[str, Build] = {}
GGUF_HARMLESS: dict[str, Build] = {}


def _written(folder: Path, content: bytes) -> Path:
    (folder / "m.gguf").write_bytes(content)
    return folder / "m.gguf"


def _many(count: int) -> bytes:
    infos = tuple(info(f"t{i}", (32,), Q8_0, 64 * i) for i in range(count))
    return file(infos=infos, data=64 * count)


for _name, _content in {
    "counts of 2^60": file(counts=(2**60, 1)),
    "counts of 2^64": file(counts=(2**64 - 1, 2**64 - 1)),
    "array length 2^40": file(entries=(NAME, entry("x", ARRAY, struct.pack("<IQ", STRING, 2**40)))),
    "array nested without end": file(entries=(NAME, entry("x", ARRAY, struct.pack("<IQ", ARRAY, 1) * 100_000))),
    "string length 2^63": file(entries=(NAME, entry("x", STRING, struct.pack("<Q", 2**63)))),
    "duplicate keys": file(entries=(NAME, NAME)),
    "duplicate names": file(infos=(ROWS, ROWS)),
    "alignment 0": file(entries=(NAME, entry("general.alignment", U32, struct.pack("<I", 0)))),
    "alignment 3": file(entries=(NAME, entry("general.alignment", U32, struct.pack("<I", 3)))),
    "shape product overflow": file(infos=(info("w", (2**32, 2**32), Q8_0, 0),)),
    "shape with a zero dimension": file(infos=(info("w", (32, 0), Q8_0, 0),)),
    "shape of rank 2^31": file(infos=(text("w") + struct.pack("<I", 2**31),)),
    "row not a multiple of the block": file(infos=(info("w", (33, 2), Q8_0, 0),)),
    "type that nobody knows": file(infos=(info("w", (32, 2), 9999, 0),)),
    "offsets overlap": file(infos=(ROWS, info("v", (32, 2), Q8_0, 0)), data=192),
    "offsets with a hole": file(infos=(ROWS, info("v", (32, 2), Q8_0, 128)), data=224),
    "offsets with trailing bytes": file(data=160),
    "offsets unaligned": file(infos=(info("w", (32, 2), Q8_0, 4),)),
    "offsets beyond the file": file(infos=(info("w", (32, 2), Q8_0, 2**63),)),
    "tensor name NUL": file(infos=(info("a\0b", (32, 2), Q8_0, 0),)),
    "tensor name of 1 MB": file(infos=(info("n" * (1 << 20), (32, 2), Q8_0, 0),)),
    "tensor name not UTF-8": file(infos=(info(b"\xff", (32, 2), Q8_0, 0),)),
    "tensors 10^5": _many(100_000),
    "truncated": file()[:-40],
    "Git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "empty": b"",
    "key of 70 kB": file(entries=(NAME, entry("k" * 70_000, U8, b"\0"))),
}.items():
    GGUF[_name] = lambda folder, content=_content: _written(folder, content)  # type: ignore[misc]

GGUF_HARMLESS["tensor name traversal"] = lambda folder: _written(
    folder, file(infos=(info("../../etc/x", (32, 2), Q8_0, 0),))
)

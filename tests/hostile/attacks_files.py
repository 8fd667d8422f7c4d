"""Attacks on files of our own (packages, native files), on archives and on pickles. All checksums are mended."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import qdeploy
from qdeploy.backends.native.checksum import crc32c, page_checksums
from qdeploy.backends.native.layout import HEADER, RECORDS, SectionId
from tests.hostile.attacks_safetensors import GPTQ, ROOT, Build

sys.path.insert(0, str(ROOT / "tests" / "formats"))

PACKAGE: dict[str, Build] = {}
NETWORK: dict[str, Build] = {}
NATIVE: dict[str, Build] = {}
ARCHIVE: dict[str, Build] = {}
PICKLE: dict[str, Build] = {}


# ---- packages


@cache
def _packages() -> Path:
    """A package of layers, and one of a network of integers, for as long as the tests run."""
    from tests.formats.tflite.test_hostile import WHOLE

    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    (folder / "n.tflite").write_bytes(WHOLE)
    qdeploy.convert(GPTQ, folder / "layers", to="ir")
    qdeploy.convert(folder / "n.tflite", folder / "network", to="ir")
    return folder


def resummed(package: Path) -> Path:
    """With checksums that are those of its content, as an attacker would write them; damaged shards are left alone."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        sums = json.loads((package / "checksums.json").read_text())
        for name, group in sums.items():
            if name.endswith(".safetensors"):
                arrays = load_file(package / name)
                sums[name] = {key: hashlib.sha256(arrays[key].tobytes()).hexdigest() for key in group if key in arrays}
        sums["manifest"] = hashlib.sha256((package / "qdeploy.json").read_bytes()).hexdigest()
        (package / "checksums.json").write_text(json.dumps(sums))
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError):
        pass  # the reader says what is wrong
    return package


def _manifest(name: str, change: Callable[[dict[str, Any]], object]) -> None:
    def build(folder: Path) -> Path:
        package = Path(shutil.copytree(_packages() / "layers", folder / "package"))
        content = json.loads((package / "qdeploy.json").read_text())
        change(content)
        (package / "qdeploy.json").write_text(json.dumps(content))
        return resummed(package)

    PACKAGE[name] = build


def _codes(manifest: dict[str, Any]) -> dict[str, Any]:
    codes: dict[str, Any] = manifest["encodings"][0]["terms"][0]["values"]
    return codes


_manifest("bits of 0", lambda m: _codes(m).update(layout=["bits", 0]))
_manifest("bits of 2^31", lambda m: _codes(m).update(layout=["bits", 1 << 31]))
_manifest("plane count 0", lambda m: _codes(m).update(layout=["planes", 0]))
_manifest("plane count 2^31", lambda m: _codes(m).update(layout=["planes", 1 << 31]))
_manifest("radix of base 0", lambda m: _codes(m).update(layout=["radix", 0, 5]))
_manifest("layout that nobody knows", lambda m: _codes(m).update(layout=["spiral", 4]))
_manifest("layout of a kind that is a list", lambda m: _codes(m).update(layout=[["bits"], 4]))
_manifest("table that is a list", lambda m: _codes(m).update(table=["uint4"]))
_manifest("group size 0", lambda m: _codes(m)["scale"].update(tile=[1, 0]))
_manifest("group size that does not divide", lambda m: _codes(m)["scale"].update(tile=[1, 127]))
_manifest("LUT too short", lambda m: _codes(m).update(table={"values": ["scale", "F16", [1, 1]]}))
_manifest("codebook that is missing", lambda m: _codes(m).update(table={"values": ["nowhere", "F16", [16]]}))
_manifest("shape product overflow", lambda m: m["encodings"][0].update(shape=[1 << 40, 1 << 40]))
_manifest("shape of rank 10^5", lambda m: m["encodings"][0].update(shape=[1] * 100_000))
_manifest("rungs that are no permutation", lambda m: m["encodings"][0].update(rungs=[{"planes": [9]}, {"planes": [0]}]))
_manifest("encoding without end", lambda m: _codes(m).update(zero=_nested(60)))
_manifest(
    "number of an encoding beyond the list", lambda m: m["tensors"].update(w=[1 << 40, "shard-00001.safetensors"])
)
_manifest("shard outside", lambda m: m["tensors"].update(w=[0, "../../secret.safetensors"]))
_manifest("feature that nobody knows", lambda m: m["requires"].append("magic"))
_manifest("file outside", lambda m: m["files"].update({"../../x": ["side", 3, 3]}))
_manifest("graph that is none", lambda m: m.update(graph={"nodes": 3}))
_manifest("shard missing", lambda m: m["tensors"].update(w=[0, "shard-00009.safetensors"]))


def _nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {
        "values": {"codes": [1], "data": [["z", "U8", [1]]], "layout": ["plain"], "table": "uint8"}
    }
    for _ in range(depth):
        inner = {"values": {**inner["values"], "zero": inner, "tile": [1]}, "tile": [1]}
    return inner


def _shard(name: str, kind: str, change: Callable[[dict[str, np.ndarray]], object], table: dict[str, Build]) -> None:
    def build(folder: Path) -> Path:
        from safetensors.numpy import load_file, save_file

        package = Path(shutil.copytree(_packages() / kind, folder / "package"))
        for shard in package.glob("shard-*.safetensors"):
            arrays = {key: array.copy() for key, array in load_file(shard).items()}
            change(arrays)
            save_file(arrays, shard)
        return resummed(package)

    table[name] = build


def _filled(end: str, value: float) -> Callable[[dict[str, np.ndarray]], object]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        for key in arrays:
            if key.split("#")[0].endswith(end) or key.endswith(end):
                arrays[key].reshape(-1)[0] = value

    return change


_shard("scale NaN", "layers", _filled("#scale", np.nan), PACKAGE)
_shard("shard of another model", "layers", lambda arrays: arrays.popitem(), PACKAGE)
_shard("dyadic shift beyond 63", "network", _filled("y/shift", 64), NETWORK)
_shard("dyadic shift of 2^30", "network", _filled("y/shift", 1 << 30), NETWORK)
_shard("dyadic shift negative", "network", _filled("y/shift", -70), NETWORK)
_shard("dyadic multiplier of -2^31", "network", _filled("y/multiplier", -(1 << 31)), NETWORK)
_shard("bias that overflows the accumulator", "network", _filled("b/codes", (1 << 31) - 1), NETWORK)


# ---- native files


def _native(
    name: str, section: SectionId | None, field: str, value: Any, place: int = 0, golden: str = "elastic"
) -> None:
    def build(folder: Path) -> Path:
        data = np.frombuffer((ROOT / f"tests/golden/decoder-{golden}.qd").read_bytes(), np.uint8).copy()
        header: Any = data[:512].view(HEADER)[0]
        rows: Any = data[:512].view(HEADER)
        if section is not None:
            at, count = (int(n) for n in header["sections"][section])
            rows = data[at : at + count * RECORDS[section].itemsize].view(RECORDS[section])
        rows[field][place] = value
        (folder / "model.qd").write_bytes(mended(data))
        return folder / "model.qd"

    NATIVE[name] = build


def mended(data: np.ndarray) -> bytes:
    """A native file with the checksums of what it holds now, as far as its header lets them be found."""
    header: Any = data[:512].view(HEADER)[0]
    front = int(header["front_end"])
    if 512 <= front <= data.size:
        header["front_crc"] = crc32c(data[512:front])
    header["header_crc"] = crc32c(data[:508])
    return data.tobytes()


_native("version of another time", None, "version", 99)
_native("front beyond the file", None, "front_end", 1 << 62)
_native("stack beyond the file", None, "stack_at", (1 << 64) - 65536)
_native("context of 2^31", None, "context", 1 << 31)
_native("vocabulary of 2^32", None, "vocab", (1 << 32) - 1)
_native("plane count 0", SectionId.TERMS, "planes", 0)
_native("plane count 255", SectionId.TERMS, "planes", 255)
_native("group size 0", SectionId.TERMS, "group", 0, 1)
_native("group size of 2^31", SectionId.TERMS, "group", 1 << 31, 1)
_native("kind of term that nobody knows", SectionId.TERMS, "kind", 999)
_native("block order that is no permutation", SectionId.BLOCKS, "at", 0, 1)
_native("block of a term beyond the list", SectionId.BLOCKS, "term", 1 << 31)
_native("block beyond the stack", SectionId.BLOCKS, "bytes", 1 << 62)
_native("rungs that shrink", SectionId.RUNGS, "bytes", 1, 1)
_native("matrix of 2^32 rows", SectionId.MATRICES, "rows", (1 << 32) - 1)
_native("matrix of terms beyond the list", SectionId.MATRICES, "first_term", 1 << 31)
_native("tensor beyond the resident part", SectionId.TENSORS, "at", 1 << 62)
_native("node that reads what is not made yet", SectionId.NODES, "inputs", (1 << 31) - 1)
_native("node of an op that nobody knows", SectionId.NODES, "op", 999)
_native("cache of 2^32 heads", SectionId.STATES, "heads", (1 << 32) - 1)
NATIVE["truncated"] = lambda folder: _cut(folder)


def _cut(folder: Path) -> Path:
    (folder / "model.qd").write_bytes((ROOT / "tests/golden/decoder-elastic.qd").read_bytes()[:-1000])
    return folder / "model.qd"


def _pages(data: np.ndarray) -> None:
    """Mends the checksums of the pages as well."""
    header: Any = data[:512].view(HEADER)[0]
    at, count = (int(n) for n in header["sections"][SectionId.PAGES])
    data[at : at + 4 * count].view("<u4")[:] = page_checksums(data[int(header["resident_at"]) :])


# ---- archives and pickles


def _npy(shape: tuple[int, ...], descr: str = "<f4", data: bytes = bytes(64)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def _zip(path: Path, entries: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


for _name, _entries in {
    "bomb of 512 MB": {"x.npy": _npy((1 << 27,), data=bytes(1 << 29))},
    "promise of 2^42 bytes": {"x.npy": _npy((1 << 40,))},
    "shape product overflow": {"x.npy": _npy((1 << 40, 1 << 40))},
    "shape of rank 10^3": {"x.npy": _npy((1,) * 1000)},
    "objects": {"x.npy": _npy((1,), "|O")},
    "complex numbers": {"x.npy": _npy((8,), "<c8")},
    "texts": {"x.npy": _npy((4,), "<U4")},
    "array cut short": {"x.npy": _npy((1000,))},
    "array that is none": {"x.npy": b"not an array"},
}.items():
    ARCHIVE[_name] = lambda folder, entries=_entries: _zip(folder / "data.npz", entries)  # type: ignore[misc]
ARCHIVE["entries 10^5"] = lambda folder: _zip(
    folder / "data.npz", {f"e{i}.npy": b"" for i in range(100_000)}, zipfile.ZIP_STORED
)
ARCHIVE["cut short"] = lambda folder: _bytes(
    folder / "data.npz", _zip(folder / "a", {"x.npy": _npy((16,))}).read_bytes()[:-9]
)
ARCHIVE["FIFO"] = lambda folder: _fifo(folder / "data.npz")
ARCHIVE["Git-LFS pointer"] = lambda folder: _bytes(folder / "data.npz", b"version https://git-lfs.github.com/spec/v1\n")


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _torch(folder: Path, pickled: bytes, **more: bytes) -> Path:
    entries = {"archive/data.pkl": pickled, "archive/data/0": bytes(64)} | more
    return _zip(folder / "c.pt", entries, zipfile.ZIP_STORED)


for _name, _pickled in {
    "opcode that calls os.system": b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.",
    "opcode that calls through a lookup": b"\x80\x02cpkgutil\nresolve_name\nX\x09\0\0\0os:system\x85R.",
    "opcode that builds an object": b"\x80\x02c__builtin__\nobject\n)\x81}b.",
    "opcode of a huge length": b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b".",
    "opcode that nobody knows": b"\x80\x02\xfe.",
    "opcodes that pop an empty stack": b"\x80\x02RRR.",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 500_000 + b".",
    "pickle cut short": b"\x80\x02X\xff\0\0\0abc",
    "persistent id of another kind": b"\x80\x02X\x01\0\0\0aQ.",
}.items():
    PICKLE[_name] = lambda folder, pickled=_pickled: _torch(folder, pickled)  # type: ignore[misc]
PICKLE_HARMLESS: dict[str, Build] = {
    "zip slip": lambda folder: _torch(folder, b"\x80\x02}.", **{"archive/../../../../tmp/slipped": b"x"}),
    "opcode with a memo of 2^31": lambda folder: _torch(folder, b"\x80\x02}r\xff\xff\xff\x7f."),
}
PICKLE["entries 10^5"] = lambda folder: _zip(
    folder / "c.pt", {f"archive/data/{i}": b"" for i in range(100_000)}, zipfile.ZIP_STORED
)

"""Writing a package: plan all offsets from descriptions, fill the shards, commit with the manifest.

The form itself stands at the top of `ir/package.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qdeploy.ir.encoding import features, tensor_to_json
from qdeploy.ir.graph import Graph
from qdeploy.ir.graph_json import graph_to_json
from qdeploy.ir.model import Model
from qdeploy.ir.package import FORMAT, MANIFEST, RESIDUE, place
from qdeploy.ir.package_sums import CHECKSUMS
from qdeploy.ir.tensor import Buffer, QTensor, buffers
from qdeploy.progress import Progress
from qdeploy.store.origin import Origin
from qdeploy.store.output import Staged, finite, json_bytes
from qdeploy.store.storage import storage_dtype

SHARD_BYTES = 256 << 20
"""What an interrupted run loses at most, and what is filled in parallel."""
SLAB_BYTES = 8 << 20


@dataclass(frozen=True)
class Entry:
    """A buffer in a shard: entry name and content."""

    name: str
    buffer: Buffer


@dataclass(frozen=True)
class Shard:
    """A shard as planned: its file name and its entries in the order of their bytes."""

    file: str
    entries: tuple[Entry, ...]

    def header(self) -> bytes:
        """The safetensors header, length field included; a multiple of 8 bytes long."""
        table, at = {}, 0
        for entry in self.entries:
            buffer = entry.buffer
            table[entry.name] = {
                "dtype": buffer.dtype,
                "shape": list(buffer.shape),
                "data_offsets": [at, at + buffer.nbytes],
            }
            at += buffer.nbytes
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


@dataclass
class Plan:
    """Everything about a package but its bytes: shards, and where each tensor stands."""

    shards: list[Shard]
    encodings: list[Any]
    tensors: dict[str, tuple[int, str]]
    constants: dict[str, tuple[int, str]]
    requires: list[str] = field(default_factory=list)

    def identity(self) -> str:
        """What distinguishes this plan from any other: the headers of its shards and its encodings."""
        digest = hashlib.sha256(json.dumps([self.encodings, self.tensors, self.constants]).encode())
        for shard in self.shards:
            digest.update(shard.header())
        return digest.hexdigest()


def plan_package(
    tensors: Mapping[str, QTensor], constants: Mapping[str, QTensor], shard_bytes: int = SHARD_BYTES
) -> Plan:
    """Plans a package; pure: it reads descriptions, never data."""
    planner = _Planner(shard_bytes)
    placed = {name: planner.place(name, tensor) for name, tensor in tensors.items()}
    fixed = {name: planner.place(name, tensor) for name, tensor in constants.items()}
    planner.close_shard()
    requires = sorted(set().union(*(features(e) for e in planner.encodings)) if planner.encodings else set())
    return Plan(planner.shards, planner.encodings, placed, fixed, requires)


class _Planner:
    def __init__(self, shard_bytes: int) -> None:
        self.limit = shard_bytes
        self.shards: list[Shard] = []
        self.encodings: list[Any] = []
        self._numbers: dict[str, int] = {}
        self._open: list[Entry] = []
        self._size = 0

    def place(self, name: str, tensor: QTensor) -> tuple[int, str]:
        tree = tensor_to_json(tensor)
        number = self._numbers.setdefault(json.dumps(tree, sort_keys=True), len(self.encodings))
        if number == len(self.encodings):
            self.encodings.append(tree)
        # Wider elements first: all buffers stay aligned to their element without padding in between.
        distinct = sorted({b.key: b for b in buffers(tensor)}.values(), key=lambda b: -_itemsize(b))
        size = sum(b.nbytes for b in distinct)
        if self._open and self._size + size > self.limit:
            self.close_shard()
        file = f"shard-{len(self.shards) + 1:05d}.safetensors"
        for buffer in distinct:
            self._align(_itemsize(buffer))
            self._open.append(Entry(f"{name}#{buffer.key}", buffer))
            self._size += buffer.nbytes
        return number, file

    def close_shard(self) -> None:
        if self._open:
            self.shards.append(Shard(f"shard-{len(self.shards) + 1:05d}.safetensors", tuple(self._open)))
        self._open, self._size = [], 0

    def _align(self, itemsize: int) -> None:
        missing = -self._size % itemsize
        if missing:
            zeros = Buffer.of("pad", np.zeros(missing, np.uint8), "U8")
            self._open.append(Entry(f"#pad.{self._size}", zeros))
            self._size += missing


def _itemsize(buffer: Buffer) -> int:
    return storage_dtype(buffer.dtype).itemsize


def write_package(
    model: Model, graph: Graph | None, stage: Staged, plan: Plan, progress: Progress, jobs: int = 1
) -> None:
    """Fills a staged folder; the manifest is written last.

    Args:
        model: What is written. Reading its tensors proves them (see store/origin.py).
        graph: Its network, if it has one.
        stage: The folder, possibly with shards of an interrupted run of the same plan.
        plan: From `plan_package` over the same tensors.
        progress: Told of every slab.
        jobs: Shards that are filled at the same time.
    """
    progress.start("writing the package", sum(e.buffer.nbytes for s in plan.shards for e in s.entries))
    ledger = _Ledger(model)
    sums = _each(lambda shard: _fill(ledger, shard, stage, progress), plan.shards, jobs)
    checksums: dict[str, Any] = {shard.file: shard_sums for shard, shard_sums in zip(plan.shards, sums, strict=True)}
    residue = ledger.residue_shard()
    if residue.entries:
        checksums[RESIDUE] = _write_shard(residue, stage, progress)
    checksums["files"] = {
        place(f.path, f.role): stage.write(place(f.path, f.role), _slabs(f.data)) for f in model.files
    }
    manifest = _manifest(model, graph, plan, ledger)
    checksums["manifest"] = hashlib.sha256(json_bytes(manifest)).hexdigest()
    stage.write_json(CHECKSUMS, checksums)
    stage.write_json(MANIFEST, manifest)


def _each(work: Callable[[Shard], dict[str, str]], shards: list[Shard], jobs: int) -> list[dict[str, str]]:
    if jobs == 1:
        return [work(shard) for shard in shards]
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(work, shards))


def _fill(ledger: _Ledger, shard: Shard, stage: Staged, progress: Progress) -> dict[str, str]:
    done = stage.path / f"{shard.file}.done"
    if done.exists() and (stage.path / shard.file).exists():
        kept = json.loads(done.read_text())
        ledger.take(kept["ledger"])
        progress.advance(sum(e.buffer.nbytes for e in shard.entries), f"{shard.file} (kept)")
        return dict(kept["sums"])
    sums = _write_shard(shard, stage, progress)
    stage.write_json(f"{shard.file}.done", {"sums": sums, "ledger": ledger.of({e.name for e in shard.entries})})
    return sums


def _write_shard(shard: Shard, stage: Staged, progress: Progress) -> dict[str, str]:
    sums: dict[str, str] = {}
    stage.write(shard.file, _shard_chunks(shard, sums, progress), hashed=False)
    return sums


class _Ledger:
    """The proofs of a model's stored tensors, as they are remembered with a shard and gathered at the end."""

    def __init__(self, model: Model) -> None:
        self._tensors = model.tensors
        self.origins = {(o.file, o.name): o for o in model.origins}
        self.numbers = {key: i for i, key in enumerate(self.origins)}

    def of(self, entries: set[str]) -> list[Any]:
        """What is known of the stored tensors behind some entries of a shard."""
        names = {entry.rsplit("#", 1)[0] for entry in entries}
        parts = [p for n in sorted(names & set(self._tensors)) if (s := self._tensors[n].source) for p in s.tensors]
        origins = [self.origins[(p.file, p.name)] for p in parts if (p.file, p.name) in self.origins]
        return [[o.file, o.name, o.state()] for o in origins]

    def take(self, rows: list[Any]) -> None:
        """Gives back what a shard remembered."""
        for file, name, state in rows:
            self.origins[(file, name)].set_state(state)

    def source(self, name: str) -> list[Any] | None:
        """A tensor's row under `sources`."""
        source = self._tensors[name].source
        if source is None:
            return None
        numbers = [self.numbers[(p.file, p.name)] for p in source.tensors if (p.file, p.name) in self.numbers]
        parts = [self.origins[(p.file, p.name)] for p in source.tensors if (p.file, p.name) in self.origins]
        exact = "values" if any(o.values_only for o in parts) else source.exact
        return [source.format, source.writer, dict(source.args), exact, numbers]

    def residue_shard(self) -> Shard:
        """The bytes that packing does not give back: [(stored tensor in its source u32, offset u64, xor u8)]."""
        entries = []
        for name, tensor in self._tensors.items():
            parts = tensor.source.tensors if tensor.source else ()
            rows = [
                _residue_rows(i, self.origins[(p.file, p.name)])
                for i, p in enumerate(parts)
                if (p.file, p.name) in self.origins
            ]
            joined = np.concatenate([r for r in rows if len(r)]) if any(len(r) for r in rows) else None
            if joined is not None:
                entries.append(Entry(f"{name}#residue", Buffer.of("residue", joined, "U8")))
        return Shard(RESIDUE, tuple(entries))


def _residue_rows(number: int, origin: Origin) -> Any:
    differences = origin.residue()
    rows = np.zeros(len(differences), dtype=[("tensor", "<u4"), ("offset", "<u8"), ("xor", "u1")])  # 13 bytes, packed
    rows["tensor"], rows["offset"], rows["xor"] = number, differences["offset"], differences["xor"]
    return rows.view(np.uint8).reshape(len(differences), 13)


def _manifest(model: Model, graph: Graph | None, plan: Plan, ledger: _Ledger) -> dict[str, Any]:
    requires = set(plan.requires) | ({"residue"} if ledger.residue_shard().entries else set())
    return {
        "format": FORMAT,
        "requires": sorted(requires | ({"graph"} if graph else set())),
        "model": {"format": model.format, "dialect": model.dialect, "notes": list(model.notes)},
        "config": finite(dict(model.config)),
        "graph": None if graph is None else graph_to_json(graph),
        "encodings": plan.encodings,
        "tensors": {name: list(row) for name, row in plan.tensors.items()},
        "constants": {name: list(row) for name, row in plan.constants.items()},
        "sources": {name: row for name in plan.tensors if (row := ledger.source(name)) is not None},
        "stored": [[o.file, o.name, o.kind, list(o.shape), o.axis, o.begin, o.dtype] for o in ledger.origins.values()],
        "files": {f.path: [f.role, f.data.nbytes, f.total] for f in model.files},
        "extra": {},
    }


def _shard_chunks(shard: Shard, sums: dict[str, str], progress: Progress) -> Iterator[Any]:
    yield shard.header()
    for entry in shard.entries:
        digest = hashlib.sha256()
        for chunk in _slabs(entry.buffer):
            digest.update(chunk)
            yield chunk
            progress.advance(chunk.nbytes, entry.name)
        sums[entry.name] = digest.hexdigest()


def _slabs(buffer: Buffer) -> Iterator[Any]:
    step = max(1, SLAB_BYTES // max(1, buffer.row_bytes))
    for start in range(0, buffer.shape[0], step):
        yield np.ascontiguousarray(buffer.read(start, min(start + step, buffer.shape[0]))).view(np.uint8).reshape(-1)

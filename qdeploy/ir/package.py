"""A package on disk: a folder that holds a model, readable with a JSON parser and a safetensors reader.

    qdeploy.json            the manifest, written last:
        format: 1           the form of this file
        requires: [...]     what a reader must know to decode the tensors ("layout:bits", "index", "type:uint4", ...)
        model               {format, dialect, notes} of the source it was read from
        config              the architecture's configuration
        graph               the network (qdeploy/ir/graph.py), or null
        encodings: [...]    distinct descriptions of tensors (qdeploy/ir/encoding.py)
        tensors             name -> [number of its encoding, shard]
        constants           the same for tensors that the graph brings itself
        sources             name -> [format, writer, args, exact, [number of a stored tensor, ...]]
        stored: [...]       every tensor of the source files: [file, name, type, shape, axis, first byte, element type]
        files               path -> [role, size, size of the whole file (heads)]: what else the source held
        extra               kept as it is, never interpreted
    shard-00001.safetensors ...   buffer `key` of tensor `name` is the entry "name#key"
    files/<path>, source/<file>.head   files of role "side" and "derived"; of role "head" or "rest"
    checksums.json          SHA-256 of every entry of every shard, of every file, and of the manifest

All offsets are planned first, from descriptions alone: the same source gives the same bytes. Shards are then filled in
parallel, each under a temporary name until it is whole; a run that was interrupted continues with the shards that are
missing. The manifest comes last and commits. `requires` takes the place of version numbers: a reader refuses what it
does not know, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir import rules
from qdeploy.ir.dtype import is_known
from qdeploy.ir.encoding import tensor_from_json
from qdeploy.ir.graph import Graph
from qdeploy.ir.graph_json import graph_from_json
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.package_form import MANIFEST_FORM
from qdeploy.ir.package_sums import Checksums, sha256_of
from qdeploy.ir.tensor import Buffer, QTensor, Rows, Source, SourceTensor
from qdeploy.store.codec import VerbatimRows
from qdeploy.store.folder import Folder
from qdeploy.store.form import check
from qdeploy.store.origin import Origin
from qdeploy.store.safetensors import SafetensorsFile, TensorEntry

FORMAT = 1
_BUFFERS = 8
"""That a tensor may have, on the average of a shard."""
MANIFEST, RESIDUE = "qdeploy.json", "residue.safetensors"
FEATURES = frozenset(
    {"lowrank", "where", "index", "divide", "rungs", "bias", "table", "residue", "graph"}
    | {f"layout:{kind}" for kind in ("plain", "bits", "planes", "radix")}
)
"""What `requires` may name besides the number types ("type:uint4", ...)."""


def place(path: str, role: str) -> str:
    """Where a carried file stands in the package."""
    return f"source/{path}.{role}" if role in ("head", "rest") else f"files/{path}"


class Package:
    """An opened package: its manifest, its shards, and the tensors that they describe."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.manifest = self._read_manifest()
        self._sums = Checksums(folder, sha256_of(self._manifest_bytes())) if not folder.options.no_verify else None
        self.shards: dict[str, SafetensorsFile] = {}
        self.origins: dict[str, Origin] = {}
        self.stored = [self._stored(row) for row in self.manifest["stored"]]

    def model(self) -> Model:
        """The model that was written."""
        described = self.manifest["model"]
        has_graph = self.manifest["graph"] is not None
        tensors = LazyTensors(self.manifest["tensors"], self.tensor)
        return Model(
            "package",
            str(self.folder.path),
            tensors,
            self.manifest["config"],
            described["dialect"],
            self.files(),
            (),
            (lambda _: self.graph()) if has_graph else None,
            list(described["notes"]),
        )

    def tensor(self, name: str) -> QTensor:
        """A tensor or constant; BadFileError where its description breaks a rule or its bytes are not there."""
        row = self.manifest["tensors"].get(name) or self.manifest["constants"].get(name)
        if not (isinstance(row, list) and len(row) == 2 and isinstance(row[1], str)):
            raise BadFileError("a tensor has no place", where=name, found=row, allowed="[encoding, shard]")
        number, file = row
        encodings = self.manifest["encodings"]
        if not isinstance(number, int) or not 0 <= number < len(encodings):
            raise BadFileError("no such encoding", where=name, found=number, allowed=f"0..{len(encodings) - 1}")

        def resolve(key: str, dtype: str, shape: tuple[int, ...]) -> Buffer:
            entry = self.entry(file, f"{name}#{key}")
            if (entry.dtype, entry.shape) != (dtype, shape):
                raise BadFileError(
                    "a buffer is not what its description says",
                    where=f"{file}: {name}#{key}",
                    found=f"{entry.dtype} {entry.shape}",
                    allowed=f"{dtype} {shape}",
                )
            return Buffer(key, dtype, shape, self._rows(file, entry))

        tensor = tensor_from_json(encodings[number], resolve, name)
        rules.check(tensor, name)
        source = self._source(name)
        return (
            tensor
            if source is None
            else QTensor(tensor.shape, tensor.dtype, tensor.terms, tensor.rungs, tensor.scale, tensor.offset, source)
        )

    def graph(self) -> Graph:
        """The network with its constants."""
        graph = graph_from_json(self.manifest["graph"], {n: self.tensor(n) for n in self.manifest["constants"]})
        check_graph(graph, self.manifest["tensors"])
        return graph

    def entry(self, file: str, name: str) -> TensorEntry:
        """An entry of a shard."""
        self._open_shard(file)
        entries = self.shards[file].entries
        if name not in entries:
            raise BadFileError("a buffer is missing", where=file, found=name)
        return entries[name]

    def _open_shard(self, file: str) -> None:
        if file not in self.shards:
            if not self.folder.has(file):
                raise BadFileError("a shard is missing", where=str(self.folder.path), found=file)
            self.shards[file] = SafetensorsFile(self.folder, file, _BUFFERS)

    def files(self) -> tuple[SourceFile, ...]:
        """The carried files, each read by range."""
        carried = []
        for path, row in self.manifest["files"].items():
            role, size, total = row
            carried.append(SourceFile(path, self._carried(place(path, role), size), role, total))
        return tuple(carried)

    def _carried(self, name: str, size: int) -> Buffer:
        if self.folder.size(name) != size:
            raise BadFileError(
                "a carried file has another size", where=name, found=self.folder.size(name), allowed=str(size)
            )
        rows = self.folder.rows(name)
        return Buffer(name, "U8", (size,), rows if self._sums is None else self._sums.file(name, rows, size))

    def _rows(self, file: str, entry: TensorEntry) -> Rows:
        """The rows of an entry, whose bytes are compared with their checksum when they are first read."""
        rows = VerbatimRows(entry, self._origin(entry))
        return rows if self._sums is None else self._sums.entry(file, entry, rows)

    def verify(self) -> Iterator[tuple[str, int]]:
        """Recomputes every checksum; yields (what, bytes), raises BadFileError at the first that differs."""
        sums = Checksums(self.folder, sha256_of(self._manifest_bytes()))
        for path, row in self.manifest["files"].items():
            name = place(path, row[0])
            sums.check_file(name, self._carried(name, row[1]).nbytes)
            yield name, row[1]
        rows = [*self.manifest["tensors"].values(), *self.manifest["constants"].values()]
        for file in sorted({row[1] for row in rows}) + ([RESIDUE] if self.folder.has(RESIDUE) else []):
            self._open_shard(file)
            for name, entry in self.shards[file].entries.items():
                sums.check_entry(file, entry)
                yield f"{file}: {name}", entry.end - entry.begin

    def _origin(self, entry: TensorEntry) -> Origin:
        return self.origins.setdefault(entry.name, Origin(entry.file.name, entry.name, entry.dtype, entry.shape))

    def _source(self, name: str) -> Source | None:
        row = self.manifest["sources"].get(name)
        if row is None:
            return None
        format_, writer, args, exact, numbers = row
        if max(numbers, default=0) >= len(self.stored) > 0 or (numbers and not self.stored):
            raise BadFileError("no such stored tensor", where=f"{MANIFEST}: sources: {name}", found=max(numbers))
        parts = tuple(self.stored[i] for i in numbers)
        residue = None
        if self.folder.has(RESIDUE) and f"{name}#residue" in self._residue().entries:
            entry = self.entry(RESIDUE, f"{name}#residue")
            residue = Buffer("residue", entry.dtype, entry.shape, self._rows(RESIDUE, entry))
        if exact not in ("bytes", "values", "recovered"):
            raise BadFileError("no such exactness", where=f"{MANIFEST}: sources: {name}", found=exact)
        return Source(format_, writer, args, parts, residue, exact)

    def _residue(self) -> SafetensorsFile:
        if RESIDUE not in self.shards:
            self.shards[RESIDUE] = SafetensorsFile(self.folder, RESIDUE, _BUFFERS)
        return self.shards[RESIDUE]

    def _stored(self, row: Any) -> SourceTensor:
        file, name, kind, shape, *_ = row
        return SourceTensor(file, name, kind, tuple(shape))

    def _manifest_bytes(self) -> bytes:
        file = self.folder.open(MANIFEST)
        try:
            return file.read(0, file.size)
        finally:
            file.close()

    def _read_manifest(self) -> dict[str, Any]:
        manifest: Any = self.folder.json(MANIFEST)
        if isinstance(manifest, dict) and manifest.get("format") == FORMAT:
            check(manifest, MANIFEST_FORM, MANIFEST)
        elif not isinstance(manifest, dict):
            raise BadFileError("not the manifest of a package", where=MANIFEST, found=type(manifest).__name__)
        if manifest.get("format") != FORMAT:
            raise UnsupportedError(
                "a package of another form",
                where=MANIFEST,
                found=manifest.get("format"),
                allowed=str(FORMAT),
                todo="Use a newer qdeploy.",
            )
        unknown = sorted(name for name in set(manifest["requires"]) - FEATURES if not _is_known_type(name))
        if unknown:
            raise UnsupportedError(
                "the package needs what this version does not know",
                where=MANIFEST,
                found=", ".join(unknown),
                todo="Use a newer qdeploy.",
            )
        return manifest


class LazyTensors(Mapping[str, QTensor]):
    """Tensors that are described at their first use."""

    def __init__(self, names: Mapping[str, Any], make: Callable[[str], QTensor]) -> None:
        self._names, self._make = names, make
        self._described: dict[str, QTensor] = {}

    def __getitem__(self, name: str) -> QTensor:
        if name not in self._described:
            if name not in self._names:
                raise KeyError(name)
            self._described[name] = self._make(name)
        return self._described[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _is_known_type(requirement: str) -> bool:
    """Whether an entry of `requires` is a number type, here or in an extension."""
    return requirement.startswith("type:") and is_known(requirement.removeprefix("type:"))

"""Core ML packages (.mlpackage) with an ML program: linear, palettized, sparse and joint compression.

    program.py     the protobuf message, field by field
    constants.py   stored values, and the constexpr operations that decompress them
    graph.py       the graph; operators.py, operator by operator

A package is a folder with Manifest.json, Data/com.apple.CoreML/model.mlmodel and weights beside it; weights are proven
to come back byte for byte. Nothing of Apple's is needed to read one. (Format: coremltools 9, mlmodel/format.)
"""

from __future__ import annotations

from qdeploy.errors import AmbiguousError, BadFileError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import Buffer
from qdeploy.store.folder import Folder

NAME = "coreml"
TITLE = "Core ML package (.mlpackage): linear, palettized, sparse and joint weights of an ML program"
WRITES = False

_SUFFIX = ".mlmodel"
_LIMIT = 256 << 20


def sniff(folder: Folder) -> Sniff:
    """Declared by the name of a file."""
    names = [folder.only] if folder.only else _models(folder)
    return Sniff(95, "a Core ML model") if names and all(n.endswith(_SUFFIX) for n in names) else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the package; of its weights nothing is read yet.

    Raises:
        BadFileError: The message is damaged, or a value leaves its file.
        UnsupportedError: It is no ML program, or a kind of constants that is not read.
        AmbiguousError: A folder holds several models.
    """
    from qdeploy.formats.coreml.constants import Values
    from qdeploy.formats.coreml.graph import Network
    from qdeploy.formats.coreml.program import parse

    names = [folder.only] if folder.only else _models(folder)
    if len(names) != 1:
        raise AmbiguousError(
            "several models in one folder",
            where=str(folder.path),
            found=", ".join(names),
            todo="Name the package that is meant.",
        )
    function = parse(_content(folder, names[0]), names[0])
    values = Values(folder, names[0], function)
    network = Network(names[0], function, values)
    origins = tuple(stored.origin for stored in values.stored.values())
    weights = {origin.file for origin in origins}
    side = [] if folder.only else [n for n in folder.names() if n not in weights]
    files = tuple(SourceFile(n, Buffer(n, "U8", (folder.size(n),), folder.rows(n))) for n in side)
    path = str(folder.path / folder.only)
    return Model(NAME, path, values.tensors, {}, NAME, files, origins, lambda _: network.graph())


def _models(folder: Folder) -> list[str]:
    return [name for name in folder.names() if name.endswith(_SUFFIX)]


def _content(folder: Folder, name: str) -> bytes:
    file = folder.open(name)
    try:
        if file.size > _LIMIT:
            raise BadFileError("a model description is too long", where=name, found=f"{file.size} bytes")
        return bytes(file.read(0, file.size))
    finally:
        file.close()

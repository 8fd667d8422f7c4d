"""OpenVINO IR: an .xml file with the network, and a .bin file with its constants.

    document.py    layers, ports and edges
    constants.py   constants, and what NNCF compresses: INT8, INT4, NF4, MXFP4, FP8 weights, symmetric and not
    graph.py       the graph; operators.py, operator by operator

Tensors are proven to come back byte for byte, and so the whole .bin file is. (Format: docs.openvino.ai, "OpenVINO IR
format", version 11; nncf 3.4, quantization/algorithms/weight_compression.)
"""

from __future__ import annotations

from qdeploy.errors import AmbiguousError, BadFileError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import Buffer
from qdeploy.store.folder import Folder

NAME = "openvino"
TITLE = "OpenVINO IR: float, INT8, INT4, NF4, MXFP4 and FP8 weights (.xml and .bin)"
WRITES = False

_SUFFIX = ".xml"
_LIMIT = 256 << 20


def sniff(folder: Folder) -> Sniff:
    """Declared by the first element of the document."""
    name = folder.only or next((n for n in _networks(folder)), "")
    if not name.endswith(_SUFFIX):
        return NOT_MINE
    file = folder.open(name)
    try:
        head = bytes(file.read(0, min(file.size, 4096)))
    finally:
        file.close()
    return Sniff(95, "an OpenVINO network") if b"<net" in head else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the network; nothing but the document is read yet.

    Raises:
        BadFileError: The document is damaged, or a constant leaves its file.
        UnsupportedError: An element type that is not read.
        AmbiguousError: A folder holds several networks.
    """
    from qdeploy.formats.openvino.constants import Weights, open_constants
    from qdeploy.formats.openvino.document import parse
    from qdeploy.formats.openvino.graph import Network

    name = _file(folder)
    binary = f"{name.removesuffix(_SUFFIX)}.bin"
    layers = parse(_content(folder, name), name)
    constants = open_constants(folder, binary, layers)
    weights = Weights(layers, constants)
    network = Network(name, layers, constants, weights)
    side = [] if folder.only else [n for n in folder.names() if n != binary]
    files = tuple(SourceFile(n, Buffer(n, "U8", (folder.size(n),), folder.rows(n))) for n in side)
    origins = tuple(constant.stored.origin for constant in constants.values())
    path = str(folder.path / folder.only)
    return Model(NAME, path, weights.tensors, {}, NAME, files, origins, lambda _: network.graph())


def _networks(folder: Folder) -> list[str]:
    names = set(folder.names())
    return sorted(n for n in names if n.endswith(_SUFFIX) and f"{n.removesuffix(_SUFFIX)}.bin" in names)


def _file(folder: Folder) -> str:
    names = [folder.only] if folder.only else [n for n in _networks(folder) if "/" not in n]
    if len(names) != 1:
        raise AmbiguousError(
            "several networks in one folder" if names else "no .xml file with a .bin file beside it",
            where=str(folder.path),
            found=", ".join(names) or "none",
            todo="Name the file that is meant.",
        )
    return names[0]


def _content(folder: Folder, name: str) -> bytes:
    file = folder.open(name)
    try:
        if file.size > _LIMIT:
            raise BadFileError("a document is too long", where=name, found=f"{file.size} bytes")
        return bytes(file.read(0, file.size))
    finally:
        file.close()

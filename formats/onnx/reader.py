"""ONNX files as a source: float networks, QDQ, QOperator, dynamic quantization and MatMulNBits.

    scan.py          the protobuf message without its weights, and where these lie
    initializers.py  initializers: inline, in external data, or typed; stored.py, how they become codes
    constant_outputs.py   outputs that no node makes
    functions.py     functions in the place of their calls
    soundness.py     what a message may not leave open; nodes behind what they take
    claims.py        which initializers are one quantized weight; quantized.py, what they mean; mixtures.py, experts
    decoder/         networks that keep keys and values, as decoders
    graph.py         nodes as rows of the table of ops; nodes.py, operator by operator
    attributes.py    attributes as JSON values

A folder holds model.onnx, or one .onnx file; everything besides it and its external data is carried as it is. Tensors
are proven to come back byte for byte; the protobuf container is not, since its libraries write it in many ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qdeploy.errors import AmbiguousError, BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.onnx.decoder.generator import genai_config
from qdeploy.ir.graph import OBSTACLE, Graph
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import Buffer
from qdeploy.store.folder import Folder

if TYPE_CHECKING:
    from qdeploy.formats.onnx.graph import Network

NAME = "onnx"
TITLE = "ONNX network: float, QDQ, QOperator, MatMulNBits (inline or external data)"
WRITES = False

_SUFFIX, _DEFAULT = ".onnx", "model.onnx"


def sniff(folder: Folder) -> Sniff:
    """Declared by the name of a file; the protobuf container has no magic."""
    if folder.only:
        return Sniff(90, "an .onnx file") if folder.only.endswith(_SUFFIX) else NOT_MINE
    if not any(n.endswith(_SUFFIX) and "/" not in n for n in folder.names()):
        return NOT_MINE
    weights = any(n.endswith((".safetensors", ".gguf")) and "/" not in n for n in folder.names())
    return Sniff(40 if weights else 85, "a folder with an .onnx file")


def read(folder: Folder) -> Model:
    """Opens the network; nothing but the graph is read yet.

    Raises:
        BadFileError: The message is damaged, a tensor leaves its file, or a location leads outside of the folder.
        UnsupportedError: The onnx package is not installed, or an element type is not read.
        AmbiguousError: A folder holds several networks.
    """
    from qdeploy.formats.onnx.constant_outputs import with_identities
    from qdeploy.formats.onnx.functions import inlined
    from qdeploy.formats.onnx.graph import Network
    from qdeploy.formats.onnx.initializers import open_initializers
    from qdeploy.formats.onnx.scan import scan
    from qdeploy.formats.onnx.soundness import check_message, in_order

    name = _file(folder)
    file = folder.open(name)
    try:
        skeleton, spans = scan(file)
    finally:
        file.close()
    proto = inlined(_parse(skeleton, name), len(skeleton), name)
    check_message(proto, name)
    proto = in_order(with_identities(proto))
    stored = open_initializers(folder, name, proto.graph.initializer, spans)
    network = Network(proto, stored, name, folder)
    own = {name, *(s.origin.file for s in network.stored.values())}
    side = [] if folder.only else [n for n in folder.names() if n not in own]
    files = tuple(SourceFile(n, Buffer(n, "U8", (folder.size(n),), folder.rows(n))) for n in side)
    origins = tuple(s.origin for s in stored if s.exact)
    config = genai_config(folder)
    path = str(folder.path / folder.only)
    return Model(
        NAME, path, network.tensors, {}, "onnx", files, origins, lambda model: _graph(network, config, model.notes)
    )


def _graph(network: Network, config: Mapping[str, Any], notes: list[str]) -> Graph:
    """The network, as the decoder that it is where it is one; otherwise what stands in the way is noted."""
    from qdeploy.formats.onnx.decoder.reading import ObstacleError, as_decoder, is_decoder

    graph = network.graph()
    if not is_decoder(graph):
        return graph
    try:
        return as_decoder(graph, network.tensors, network.settings, config)
    except ObstacleError as obstacle:
        notes.append(f"a network that keeps keys and values, but not read as a decoder: {obstacle}")
        return replace(graph, meta={**graph.meta, OBSTACLE: str(obstacle)})


def _file(folder: Folder) -> str:
    names = [folder.only] if folder.only else [n for n in folder.names() if n.endswith(_SUFFIX) and "/" not in n]
    if len(names) > 1 and _DEFAULT in names:
        return _DEFAULT
    if len(names) != 1:
        raise AmbiguousError(
            "several networks in one folder" if names else "no .onnx file in the folder itself",
            where=str(folder.path),
            found=", ".join(names) or "none",
            todo="Name the file that is meant.",
        )
    return names[0]


def _parse(skeleton: bytes, where: str) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise UnsupportedError(
            f"reading ONNX needs a package that is not installed: {error.name}",
            where=where,
            todo="pip install 'qdeploy[onnx]'",
        ) from error
    try:
        return onnx.ModelProto.FromString(skeleton)
    except DecodeError as error:
        raise BadFileError(
            "not an ONNX file: its graph does not parse",
            where=where,
            todo="The file is damaged or truncated; fetch it again.",
        ) from error

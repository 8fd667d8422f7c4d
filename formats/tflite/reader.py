"""TFLite files as a source: int8 and int16x8 networks, dynamic range, float16 and float32.

    image.py       the FlatBuffers tables, verified
    schema.py      what they say, and where the weights lie; fields.py, which of their fields are read
    stored.py      tensors over the bytes of their buffers
    graph.py       the graph: which of two forms a network has, names, constants
    integers.py     operators of integer networks, in the arithmetic of TFLite's reference kernels
    floats.py       operators of float networks, with weights of any kind; the table of all of them
    sparse.py       tensors of which only some elements are stored

A network whose values are all codes becomes an integer graph, exact to the last bit; float values at its ends (a
QUANTIZE behind the input, a DEQUANTIZE before the output) are left to the caller, who finds scales and zero points in
the graph's meta. Every other network becomes a graph of float rows: weights that are int8 or float16 stay so. A file is
one .tflite file, or a folder that holds one.
"""

from __future__ import annotations

from dataclasses import replace

from qdeploy.errors import AmbiguousError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import Buffer
from qdeploy.store.folder import File, Folder

NAME = "tflite"
TITLE = "TFLite network: int8, int16x8, dynamic range, float16, float32"
WRITES = False
SIGNATURES = True
"""A file may hold several networks, of which `--signature` names one."""
_SUFFIX = ".tflite"


def sniff(folder: Folder) -> Sniff:
    """Declared by the name of a file."""
    if folder.only:
        return Sniff(90, "a .tflite file") if folder.only.endswith(_SUFFIX) else NOT_MINE
    named = any(n.endswith(_SUFFIX) and "/" not in n for n in folder.names())
    return Sniff(80, "a folder with a .tflite file") if named else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the network; of its weights nothing is read yet.

    Raises:
        BadFileError: The file is damaged, or what it says contradicts itself.
        UnsupportedError: The schema package is not installed, or the file holds a type that is not read.
        AmbiguousError: A folder or file holds several networks.
    """
    name = _file(folder)
    file = folder.open(name)
    try:
        model = opened(folder, name, file)
    finally:
        file.close()
    side = [] if folder.only else [n for n in folder.names() if n != name]
    files = tuple(SourceFile(n, Buffer(n, "U8", (folder.size(n),), folder.rows(n))) for n in side)
    return replace(model, files=files)


def opened(folder: Folder, name: str, network: File, begin: int = 0) -> Model:
    """The network of a file of the folder, without what lies beside it; raises as `read`.

    Args:
        folder: The folder.
        name: The file's name there.
        network: The file, or the part of it that is the network.
        begin: Where that part begins in the file.
    """
    from qdeploy.formats.tflite.graph import build_graph
    from qdeploy.formats.tflite.schema import parse
    from qdeploy.formats.tflite.stored import open_tensors

    parsed = parse(network, folder.options.signature)
    if begin:
        parsed.tensors[:] = [
            replace(t, data=(t.data[0] + begin, t.data[1])) if t.data is not None else t for t in parsed.tensors
        ]
    names, stored = open_tensors(folder, name, parsed)
    blocks = {i for t in parsed.tensors if t.blocks is not None for i in (t.blocks.scales, t.blocks.zeros)}
    tensors = {names[i]: part.tensor() for i, part in stored.items() if i not in blocks}
    origins = tuple(part.stored.origin for part in stored.values())
    return Model(
        NAME,
        str(folder.path / folder.only),
        tensors,
        {},
        NAME,
        (),
        origins,
        lambda _: build_graph(name, parsed, names, stored),
        notes=[f"networks of the file that were not asked for: {', '.join(parsed.others)}"] if parsed.others else [],
    )


def _file(folder: Folder) -> str:
    names = [folder.only] if folder.only else [n for n in folder.names() if n.endswith(_SUFFIX) and "/" not in n]
    if len(names) != 1:
        raise AmbiguousError(
            "several networks in one folder" if names else "no .tflite file in the folder itself",
            where=str(folder.path),
            found=", ".join(names) or "none",
            todo="Name the file that is meant.",
        )
    return names[0]

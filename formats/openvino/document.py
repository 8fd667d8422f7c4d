"""The XML of an OpenVINO network: layers, their ports, and the edges between them.

net
layers   layer id, name, type, version
data     attributes of the operator; of a Const element_type, shape, offset and size in the .bin file
input    port id, with a dim per axis
output   port id, precision, names, with a dim per axis; -1: free
edges    edge from-layer, from-port, to-layer, to-port
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field

from qdeploy.errors import BadFileError

_LIMIT = 256 << 20
_MOST_LAYERS = 1 << 20

Port = tuple[int, int]
"""A layer by its number, and one of its output ports."""


@dataclass(frozen=True)
class Output:
    """An output port.

    Attributes:
        precision: Its element type, in OpenVINO's spelling ("FP16", "I64").
        shape: Extents, -1 where one is free.
        names: What the values are called outside.
    """

    precision: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One application of an operator.

    Attributes:
        number: Its id.
        name: Its name; unique.
        kind: The operator's type.
        version: The set of operators that it is of ("opset1").
        data: Its attributes as text.
        inputs: Where its inputs come from, in the order of its ports.
        outputs: By port.
    """

    number: int
    name: str
    kind: str
    version: str
    data: Mapping[str, str]
    inputs: tuple[Port, ...] = ()
    outputs: Mapping[int, Output] = field(default_factory=dict)

    @property
    def result(self) -> Port:
        """Its first output."""
        return (self.number, min(self.outputs, default=0))


def parse(data: bytes, where: str) -> tuple[Layer, ...]:
    """Reads a document.

    Args:
        data: The content of the file.
        where: Its name, for errors.

    Returns:
        The layers, each behind those that it takes values of.

    Raises:
        BadFileError: It is no such document, or contradicts itself.
    """
    if len(data) > _LIMIT or b"<!" in data.replace(b"<!--", b""):
        raise BadFileError("an XML document with definitions, or too long", where=where, found=f"{len(data)} bytes")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise BadFileError("not an XML document", where=where, found=str(error)) from error
    layers, edges = root.find("layers"), root.find("edges")
    if root.tag != "net" or layers is None or edges is None:
        raise BadFileError("not an OpenVINO network", where=where, found=root.tag, allowed="net with layers and edges")
    return _sorted(_layers(layers, _edges(edges, where), where), where)


def _layers(element: ElementTree.Element, edges: Mapping[tuple[int, int], Port], where: str) -> dict[int, Layer]:
    layers: dict[int, Layer] = {}
    names: set[str] = set()
    for item in element:
        number, name = _integer(item.get("id"), where), item.get("name") or ""
        data = item.find("data")
        ports = [_integer(port.get("id"), where) for port in item.findall("input/port")]
        missing = [port for port in ports if (number, port) not in edges]
        if not name or name in names or number in layers or missing or len(layers) > _MOST_LAYERS:
            raise BadFileError(
                "a layer without a name of its own, or without an input", where=f"{where}: layer {number}", found=name
            )
        names.add(name)
        outputs = {_integer(p.get("id"), where): _output(p, where) for p in item.findall("output/port")}
        layers[number] = Layer(
            number,
            name,
            item.get("type") or "",
            item.get("version") or "",
            dict(data.attrib) if data is not None else {},
            tuple(edges[number, port] for port in ports),
            outputs,
        )
    return layers


def _output(port: ElementTree.Element, where: str) -> Output:
    shape = tuple(_integer(dim.text, where) for dim in port.findall("dim"))
    names = tuple(name for name in (port.get("names") or "").split(",") if name)
    return Output(port.get("precision") or "", shape, names)


def _edges(element: ElementTree.Element, where: str) -> dict[tuple[int, int], Port]:
    edges: dict[tuple[int, int], Port] = {}
    for edge in element:
        ends = [_integer(edge.get(key), where) for key in ("to-layer", "to-port", "from-layer", "from-port")]
        if (ends[0], ends[1]) in edges:
            raise BadFileError("an input with two edges", where=f"{where}: layer {ends[0]}", found=f"port {ends[1]}")
        edges[ends[0], ends[1]] = (ends[2], ends[3])
    return edges


def _integer(text: str | None, where: str) -> int:
    cleaned = (text or "").strip()
    digits = cleaned.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(cleaned) > 18:
        raise BadFileError("a number is missing", where=where, found=cleaned[:40])
    return int(cleaned)


def _sorted(layers: Mapping[int, Layer], where: str) -> tuple[Layer, ...]:
    """Every layer behind its inputs; without recursion, since chains may be long."""
    done: dict[int, Layer] = {}
    for start in layers.values():
        stack, open_ = [(start, iter(start.inputs))], {start.number}
        while stack:
            layer, inputs = stack[-1]
            number = next((number for number, _ in inputs if number not in done), None)
            if number is None:
                done[layer.number] = layer
                open_.discard(layer.number)
                stack.pop()
                continue
            if number not in layers or number in open_:
                raise BadFileError("an edge that leads nowhere, or in a circle", where=f"{where}: {layer.name}")
            stack.append((layers[number], iter(layers[number].inputs)))
            open_.add(number)
    for layer in done.values():
        for number, port in layer.inputs:
            if port not in done[number].outputs:
                raise BadFileError("an edge from a port that is not there", where=f"{where}: {layer.name}", found=port)
    return tuple(done.values())

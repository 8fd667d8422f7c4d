"""A small builder of ONNX protobufs: nodes, constants, and initializers that lie in the external data file.

`onnx` itself gives the message types; no graph library stands between, since `import onnx_ir` alone costs a third of
the CPU time of a whole conversion, and all that is needed here is to append.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, overload

import numpy as np
import onnx

from qdeploy.backends.onnx.external import Blob, ExternalData, Placed
from qdeploy.errors import UnsupportedError
from qdeploy.ir.dtype import of_element, of_onnx, onnx_rows
from qdeploy.ir.tensor import Array
from qdeploy.ir.views.params import RowReader

OPSET, IR_VERSION = 21, 10
"""The lowest that has everything we emit: ONNX Runtime 1.20 reads it."""
MICROSOFT, QDEPLOY = "com.microsoft", "qdeploy"
MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"


def onnx_type(element: str) -> int:
    """The number in ONNX of an element type; raises UnsupportedError for one that ONNX does not have."""
    row = of_element(element)
    if row is None or not row.onnx:
        raise UnsupportedError(
            "ONNX has no such element type", found=element, allowed=", ".join(known.element for known in onnx_rows())
        )
    return row.onnx


def itemsize(number: int) -> int:
    """Bytes of an element of a type of ONNX; raises UnsupportedError for types of less than a byte, which have none."""
    row = of_onnx(number)
    if row is None or row.bits < 8:
        raise UnsupportedError("elements of this type of ONNX are not whole bytes", found=number)
    return row.bits // 8


class GraphBuilder:
    """Collects a graph. Values are names; a node's outputs are given or made up.

    Attributes:
        explicit_zeros: Whether int8 weights with a scale per row say that their zero points are 0: with the session
            option session.x64quantprecision, ONNX Runtime makes such weights unsigned and gives them one zero point
            alone, which does not load.
    """

    def __init__(self, name: str = "qdeploy") -> None:
        self.graph = onnx.GraphProto(name=name)
        self.data = ExternalData()
        self.functions: dict[str, onnx.FunctionProto] = {}
        self._places: dict[str, Placed] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._declared: set[str] = set()
        self._counter = 0
        self.memo: dict[tuple[Any, ...], str] = {}
        self.imports = {"": OPSET, MICROSOFT: 1}
        self.reserved: Collection[str] = ()
        self.source_opset = OPSET
        self.explicit_zeros = False

    def fresh(self, hint: str) -> str:
        """An unused value name."""
        self._counter += 1
        while f"{hint}_{self._counter}" in self.reserved:
            self._counter += 1
        return f"{hint}_{self._counter}"

    def require(self, domain: str, version: int) -> None:
        """Notes that something of a version of a domain is used."""
        self.imports[domain] = max(version, self.imports.get(domain, 1))

    def require_operator(self, op: str, version: int) -> None:
        """Notes that an operator is used as a version of ONNX has it."""
        with suppress(onnx.defs.SchemaError):  # an operator that ONNX Runtime alone has in this domain
            self.require("", onnx.defs.get_schema(op, version).since_version)

    @overload
    def node(self, op: str, inputs: Sequence[str], outputs: str = "", domain: str = "", **attrs: Any) -> str: ...
    @overload
    def node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attrs: Any
    ) -> tuple[str, ...]: ...
    def node(
        self, op: str, inputs: Sequence[str], outputs: str | Sequence[str] = "", domain: str = "", **attrs: Any
    ) -> str | tuple[str, ...]:
        """Appends a node and returns its output name, or the tuple of them where several names were given."""
        names = (outputs or self.fresh(op),) if isinstance(outputs, str) else tuple(outputs)
        node = self.graph.node.add(op_type=op, domain=domain, input=inputs, output=names)
        node.name = f"{op}_{len(self.graph.node)}"
        node.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in attrs.items())
        if not domain and self.source_opset > OPSET:
            self.require_operator(op, self.source_opset)
        return names[0] if isinstance(outputs, str) else names

    def once(self, op: str, inputs: Sequence[str], domain: str = "", **attrs: Any) -> str:
        """As `node`, but the same op on the same inputs is emitted once."""
        key = (op, tuple(inputs), domain, repr(sorted(attrs.items())))
        if key not in self.memo:
            self.memo[key] = self.node(op, inputs, domain=domain, **attrs)
        return self.memo[key]

    def constant(self, array: Array | Sequence[Any] | float | int, dtype: str = "") -> str:
        """A small constant that stands in the graph itself; equal ones are one."""
        return self.tensor(np.atleast_1d(np.array(array, dtype or None)))

    def tensor(self, array: Array | Sequence[Any] | float | int, dtype: str = "") -> str:
        """As `constant`, but a number stays one without axes."""
        value = np.array(array, dtype or None, order="C")
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = self._constants[key] = self.fresh("constant")
            self.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return self._constants[key]

    def zeros(self, name: str, shape: tuple[int, ...]) -> str:
        """Zeros of int8 under a name of their own, in the graph itself."""
        if name not in self._declared:
            self._declared.add(name)
            self.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.int8), name))
        return name

    def extent(self, rows: int, unit: int = 1) -> int:
        """How many rows of a weight this graph has, or units of rows: all, unless it is a sample (see checking.py)."""
        return -(-rows // unit)

    def initializer(
        self,
        name: str,
        dtype: int,
        shape: Sequence[int],
        rows: RowReader,
        weight: int = 1,
        range_of: str = "",
        shared: bool = False,
    ) -> str:
        """Declares an initializer in the data file.

        Args:
            name: Its name; a second declaration under the same name is the same initializer.
            dtype: Element type of ONNX.
            shape: Its shape.
            rows: Gives rows [start, stop) of its first axis, in the bytes of `dtype`.
            weight: See `Blob.weight`.
            range_of: Name of the range of the file (default: `name`); initializers of one range share its bytes.
            shared: Whether all rows of the weight use all of it (a codebook); see checking.py.
        """
        if name in self._declared:
            return name
        self._declared.add(name)
        key = range_of or name
        if key not in self._places:
            self._places[key] = self.data.place(Blob(key, tuple(shape), itemsize(dtype), rows, weight))
        place = self._places[key]
        tensor = self.graph.initializer.add(name=name, data_type=dtype, dims=shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entries = (("location", DATA_FILE), ("offset", place.offset), ("length", place.blob.nbytes))
        for entry, value in entries:
            tensor.external_data.add(key=entry, value=str(value))
        return name

    def places(self) -> Mapping[str, Placed]:
        """Where each range of the data file lies, by the name of the initializer that brought it."""
        return self._places

    def owned_bytes(self, tensors: Collection[str]) -> Mapping[str, int]:
        """Size of everything in the data file that belongs to a tensor (`name`, `name.part`, ...), by tensor."""
        sizes: dict[str, int] = {}
        for name, place in self._places.items():
            while name not in tensors and "." in name:
                name = name.rpartition(".")[0]
            sizes[name] = sizes.get(name, 0) + place.blob.nbytes
        return sizes

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declares an input of the graph."""
        self.graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declares an output of the graph."""
        self.graph.output.append(onnx.helper.make_tensor_value_info(name, dtype, shape))
        return name

    def function(self, proto: onnx.FunctionProto) -> None:
        """Adds a model-local function once."""
        self.functions.setdefault(proto.name, proto)

    def _container(self) -> int:
        """The least version of the container that the version of ONNX needs, by onnx's own table."""
        version = self.imports[""]
        if version <= OPSET:
            return IR_VERSION
        try:
            return max(IR_VERSION, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)]))
        except ValueError as error:
            raise UnsupportedError(
                "the installed onnx package does not know this version of ONNX",
                found=version,
                allowed=f"up to {onnx.defs.onnx_opset_version()}",
                todo="pip install --upgrade onnx",
            ) from error

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        model = onnx.ModelProto(ir_version=self._container(), producer_name="qdeploy", graph=self.graph)
        for domain, version in self.imports.items():
            model.opset_import.add(domain=domain, version=version)
        if self.functions:
            model.opset_import.add(domain=QDEPLOY, version=1)
            model.functions.extend(self.functions.values())
        return model

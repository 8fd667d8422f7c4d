"""ONNX nodes to rows of the table, by operator.

Most operators are a row of the same name. The importers here are for those whose form changed between versions of
ONNX (axes as an attribute or as an input), whose row has attributes where ONNX has inputs, or that are a row of another
name. An importer returns False where it cannot say the same; the node then becomes Opaque.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.formats.onnx.attributes import FLOAT, TENSOR, attributes, known
from qdeploy.formats.onnx.graph import Network, row_takes
from qdeploy.formats.onnx.initializers import element_of, typed_units
from qdeploy.formats.onnx.mixtures import MICROSOFT, import_experts
from qdeploy.formats.onnx.qonnx import DOMAINS, OPERATORS, import_quant
from qdeploy.formats.onnx.versions import CURRENT, rewritten, same_since
from qdeploy.ir.ops.image import COORDINATES
from qdeploy.ir.ops.table import OPS

Importer = Callable[[Network, Any, dict[str, Any]], bool]

_MICROSOFT_ROWS = frozenset({"QGemm", "QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool"})
_SAME_IN_MICROSOFT = frozenset({"QuantizeLinear", "DequantizeLinear", "Gelu"})
_SEVERAL = frozenset({"Split", "DynamicQuantizeLinear", "SkipNorm", "TopK"})
"""Rows with more than one output."""


def import_node(network: Network, node: Any) -> None:
    """Adds what a node means: as rows, as rows after it was rewritten to today's version of ONNX, or as Opaque."""
    if _imported(network, node):
        return
    if node.domain not in ("", "ai.onnx"):
        network.opaque(node)
        return
    parts = rewritten(node, network.version(""), network.known) if network.version("") < CURRENT else None
    for part in parts or ():
        with network.current():
            if not _constant(network, part) and not _imported(network, part):
                network.opaque(part, 0 if part is not node else _unchanged(node, network.versions.get("", 1)))
    if parts is None:
        network.opaque(node)


def _unchanged(node: Any, version: int) -> int:
    """The version of a node that means the same today: its own, unless onnx counts it as another one."""
    import onnx

    try:
        now = onnx.defs.get_schema(node.op_type, CURRENT)
        return version if onnx.defs.get_schema(node.op_type, version).since_version == now.since_version else CURRENT
    except onnx.defs.SchemaError:
        return version


def _constant(network: Network, node: Any) -> bool:
    """A constant that a rewrite brought: a number, or a list of numbers."""
    if node.op_type != "Constant" or len(node.attribute) != 1 or node.attribute[0].type != TENSOR:
        return False
    proto = node.attribute[0].t
    row = element_of(proto, node.output[0])
    units = typed_units(proto, row, node.output[0])
    if len(proto.dims):
        network.alias(node.output[0], network.constant(units.reshape(tuple(proto.dims)), row.element))
        return True
    key = "value_int" if row.element == "I64" else "value_float"
    network.add("Constant", (), (node.output[0],), {key: units[0].item()})
    return True


def _imported(network: Network, node: Any) -> bool:
    domain = "" if node.domain == "ai.onnx" else node.domain
    special = _SPECIAL.get((domain, node.op_type))
    try:
        return special(network, node, attributes(node)) if special else _same(network, node, domain)
    except (AttributeError, IndexError, TypeError, ValueError) as error:  # too few inputs, attributes of other types
        raise BadFileError(
            f"a node does not fit its operator: {error}",
            where=f"node {node.name or node.output[0]}",
            found=node.op_type,
        ) from error


def _same(network: Network, node: Any, domain: str) -> bool:
    op, version = node.op_type, network.version(domain)
    if op not in OPS or OPS[op].source == "qdeploy":
        return False
    if domain == MICROSOFT:
        if op not in _MICROSOFT_ROWS | _SAME_IN_MICROSOFT:
            return False
    elif domain or op in _MICROSOFT_ROWS or version < same_since(op):
        return False
    return _row(network, node, op, node.input, attributes(node))


def _row(network: Network, node: Any, op: str, inputs: Any, settings: Mapping[str, Any]) -> bool:
    """Adds a row if it takes these inputs and attributes."""
    attrs = known(node.op_type, node.domain, network.version(node.domain), settings, OPS[op].attributes)
    names = list(inputs)
    while names and not names[-1]:
        names.pop()
    if attrs is None or not row_takes(op, names) or (op not in _SEVERAL and any(node.output[1:])):
        return False
    outputs = list(node.output) if op in _SEVERAL else [node.output[0]]
    network.add(op, [network.value(name) for name in names], outputs, attrs, node.name)
    return True


def _listed(network: Network, node: Any, settings: dict[str, Any], op: str, keys: tuple[str, ...]) -> bool:
    """Lists of integers that stand in attributes, in constant inputs, or are computed: attributes if all are known."""
    attrs, names = dict(settings), list(node.input)
    if any(key in attrs for key in keys):
        return _row(network, node, op, names[:1], _accepted(op, attrs, keys))
    lists: dict[str, Any] = {}
    for key, name in zip(keys, names[1:], strict=False):
        array = network.static(name) if name else None
        if name and array is None:
            return _row(network, node, op, names, _accepted(op, attrs, keys))
        if array is not None:
            lists[key] = [int(n) for n in array.reshape(-1)]
    return _row(network, node, op, names[:1], attrs | lists)


def _accepted(op: str, attrs: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in attrs.items() if key in OPS[op].attributes or key not in keys}


def _with_lists(*keys: str) -> Importer:
    return lambda network, node, attrs: _listed(network, node, attrs, node.op_type, keys)


def _reduce(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    if len(node.input) > 1 and node.input[1] and network.static(node.input[1]) is None:
        return False  # rows take axes as an attribute only
    return _listed(network, node, attrs, node.op_type, ("axes",))


def _clip(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    """Limits in attributes; or, where they are computed or not float32, Max and Min."""
    names = [*node.input, "", ""][:3]
    if {"min", "max"} & set(attrs) and network.known.types.get(names[0], FLOAT) != FLOAT:
        return False  # the limits are of the type of the value
    limits = {key: network.static(name) for key, name in zip(("min", "max"), names[1:], strict=True) if name}
    if all(array is not None and array.dtype == np.float32 for array in limits.values()):
        constants = {key: float(array.reshape(())) for key, array in limits.items() if array is not None}
        return _row(network, node, "Clip", names[:1], attrs | constants)
    value, last = names[0], "Max" if not names[2] else "Min"
    value = network.value(value)
    for op, name in (("Max", names[1]), ("Min", names[2])):
        if name:
            output = node.output[0] if op == last else f"{node.output[0]}/{op.lower()}"
            value = network.add(op, (value, network.value(name)), (output,))
    return True


def _pad(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    if "pads" not in attrs:
        return _row(network, node, "Pad", node.input, attrs)
    if network.known.types.get(node.input[0], FLOAT) != FLOAT:
        return False  # the fill is of the type of the value
    pads = network.constant(np.array(attrs.pop("pads"), np.int64), "I64")
    fill = network.constant(np.array(attrs.pop("value", 0.0), np.float32), "F32")
    return _row(network, node, "Pad", (node.input[0], pads, fill), attrs)


def _split(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    inputs = list(node.input)
    if "split" in attrs:
        inputs = [inputs[0], network.constant(np.array(attrs.pop("split"), np.int64), "I64")]
    elif len(inputs) < 2:
        attrs.setdefault("num_outputs", len(node.output))
    return _row(network, node, "Split", inputs, attrs)


def _dropout(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    training = len(node.input) > 2 and node.input[2]
    if network.version("") < 7 and not attrs.get("is_test"):
        training = True
    if training or any(node.output[1:]):
        return False
    return _row(network, node, "Identity", node.input[:1], {})


def _constant_of_shape(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    fill: dict[str, Any] = {}
    for a in node.attribute:
        if a.name != "value" or a.type != TENSOR:
            return False
        row = element_of(a.t, node.name)
        units = typed_units(a.t, row, node.name)
        if row.bits < 8 or units.size != 1:
            return False
        fill = {"value": units[0].item(), "dtype": row.element}
    network.add("ConstantOfShape", (network.value(node.input[0]),), node.output, fill, node.name)
    return True


_CASTS_BY_DEFAULT = {"saturate": 1, "round_mode": "up"}


def _cast(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    kept = known("Cast", node.domain, network.version(""), attrs, OPS["Cast"].attributes)
    if kept is None:
        return False
    settings = {key: value for key, value in kept.items() if _CASTS_BY_DEFAULT.get(key) != value}
    network.add("Cast", (network.value(node.input[0]),), (node.output[0],), settings)
    return True


def _resize(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    """Nearest and linear, where every place of the result has its place in the source.

    Corners that are aligned by factors meet at no whole place, and libraries differ in where.
    """
    mode, way = attrs.get("mode", "nearest"), attrs.get("coordinate_transformation_mode", "half_pixel")
    by_factors = way == "align_corners" and not any(node.input[3:4])
    known_way = mode in ("nearest", "linear") and way in COORDINATES and not by_factors
    return known_way and network.version("") >= 11 and _row(network, node, "Resize", node.input, attrs)


def _top_k(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    """K is an input since version 10; unsorted results have no order that could be told."""
    return network.version("") >= 10 and attrs.get("sorted", 1) == 1 and _row(network, node, "TopK", node.input, attrs)


def _layer_normalization(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    if attrs.pop("axis", -1) != -1 or attrs.pop("stash_type", 1) != 1:
        return False
    op = "LayerNormalization" if node.op_type == "LayerNormalization" else "RMSNormalization"
    return _row(network, node, op, node.input, attrs)


def _skip_norm(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    rms = node.op_type == "SkipSimplifiedLayerNormalization"
    outputs, most = [*node.output, "", "", ""][:4], 3 if rms else 4
    if any(node.input[most:]) or outputs[1] or outputs[2] or set(attrs) - {"epsilon"}:
        return False
    settings = {"kind": "rms" if rms else "layer", "epsilon": float(attrs.get("epsilon", 1e-12))}
    made_outputs = (outputs[0], outputs[3]) if outputs[3] else (outputs[0],)
    network.add("SkipNorm", [network.value(name) for name in node.input], made_outputs, settings, node.name)
    return True


def _fused_mat_mul(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    """X @ W.T over a matrix of the model; other forms stay as they are."""
    weight = network.stored.get(node.input[1])
    same = {"transB": 1, "alpha": 1.0, "transA": 0, "transBatchA": 0, "transBatchB": 0}
    if weight is None or len(weight.shape) != 2 or weight.dtype.element != "F32" or attrs.get("transB") != 1:
        return False
    if any(same.get(key) != value for key, value in attrs.items()):
        return False
    network.add("Linear", (network.value(node.input[0]), node.input[1]), node.output, {}, node.name)
    return True


def _mat_mul_n_bits(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    weight, bias = network.claims.weight(node), [*node.input, "", "", "", ""][5]
    if not weight:
        return False
    x, kind = network.value(node.input[0]), network.claimed[weight].dtype
    if kind == "F32":
        network.add("Linear", (x, weight, network.value(bias)), node.output, {}, node.name)
        return True
    wide = network.cast(x, "F32", f"{node.output[0]}/x")  # in float32, between casts
    wide_bias = network.cast(network.value(bias), "F32", f"{node.output[0]}/bias") if bias else ""
    product = network.add("Linear", (wide, weight, wide_bias), (f"{node.output[0]}/f32",), {}, node.name)
    network.cast(product, kind, node.output[0])
    return True


def _gather_block_quantized(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    """Rows of a claimed table."""
    weight, output = network.claims.weight(node), node.output[0]
    if not weight:
        return False
    kind = network.claimed[weight].dtype
    wide = output if kind == "F32" else f"{output}/f32"
    network.add("Gather", (weight, network.value(node.input[1])), (wide,), {"axis": 0}, node.name)
    if kind != "F32":
        network.cast(wide, kind, output)
    return True


def _dequantize(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    weight, output = network.claims.weight(node), node.output[0]
    if not weight:
        return _same(network, node, "" if node.domain == "ai.onnx" else node.domain)
    if network.claimed[weight].dtype != "F32":
        network.cast(weight, network.claimed[weight].dtype, output)
    elif network.is_output(output):
        network.add("Identity", (weight,), (output,), {}, node.name)
    else:
        network.alias(output, weight)
    return True


_SPECIAL: Mapping[tuple[str, str], Importer] = {
    ("", "Reshape"): _with_lists("shape"),
    ("", "Squeeze"): _with_lists("axes"),
    ("", "Unsqueeze"): _with_lists("axes"),
    ("", "Slice"): _with_lists("starts", "ends", "axes", "steps"),
    **{("", f"Reduce{kind}"): _reduce for kind in ("Sum", "Mean", "Max", "Min", "Prod")},
    ("", "Clip"): _clip,
    ("", "Pad"): _pad,
    ("", "Split"): _split,
    ("", "Dropout"): _dropout,
    ("", "Resize"): _resize,
    ("", "TopK"): _top_k,
    ("", "Cast"): _cast,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "LayerNormalization"): _layer_normalization,
    ("", "RMSNormalization"): _layer_normalization,
    ("", "SimplifiedLayerNormalization"): _layer_normalization,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip_norm,
    (MICROSOFT, "SkipLayerNormalization"): _skip_norm,
    (MICROSOFT, "FusedMatMul"): _fused_mat_mul,
    (MICROSOFT, "MatMulNBits"): _mat_mul_n_bits,
    (MICROSOFT, "MatMulBnb4"): _mat_mul_n_bits,
    (MICROSOFT, "GatherBlockQuantized"): _gather_block_quantized,
    (MICROSOFT, "QMoE"): import_experts,
    **{(domain, op): import_quant for domain in DOMAINS for op in OPERATORS},
    ("", "DequantizeLinear"): _dequantize,
    (MICROSOFT, "DequantizeLinear"): _dequantize,
}
"""Importers by (domain, operator)."""

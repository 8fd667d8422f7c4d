"""The model file, as its bytes lie: what runtime/src/format.h says, in numpy. A test parses the header and compares.

    [Header 512 bytes]
    [front]     the sections of the header's table, each 64-byte aligned: matrices, terms, blocks, rungs, tensors,
                values, nodes, states, attributes (32-bit words), metadata (bytes), page checksums. Under `front_crc`.
    [resident]  page-aligned; the small tensors that are always there, each 64-byte aligned
    [stack]     page-aligned; blocks in the order of the rungs, each 64-byte aligned

Little-endian, without padding. A page is 65536 bytes; the section `pages` holds the CRC-32C of every page from
`resident_at` on, of which the last is cut at the end of the file. Rung r means that blocks 0 .. r - 1 are there.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

from qdeploy.ir.dtype import dtype

VERSION = 1
PAGE, LINE = 65536, 64
ROWS = 16
"""Rows of a row block."""
TILE = 512
"""Columns of a tile of sign planes."""
MAX_PLANES = 8
"""Of a term."""
MAX_RANK = 64
"""Of a term of a bit stack."""
NONE = 0xFFFFFFFF


class Feature(IntFlag):
    """What later versions have added to the format, by bits of the header; a reader must know all that a file needs."""

    EXPERTS = 1 << 0
    HEADS = 1 << 1
    ATTENTION = 1 << 2
    RECURRENCE = 1 << 3
    XIELU = 1 << 4
    LADDER = 1 << 5
    SEQUENCES = 1 << 6
    HADAMARD = 1 << 7
    MEASURES = 1 << 8


class SectionId(IntEnum):
    """Places in the header's table of sections."""

    MATRICES = 0
    TERMS = 1
    BLOCKS = 2
    RUNGS = 3
    TENSORS = 4
    VALUES = 5
    NODES = 6
    STATES = 7
    ATTRIBUTES = 8
    METADATA = 9
    PAGES = 10


class TermKind(IntEnum):
    """How the codes of a term lie (interleave.py)."""

    NIBBLES = 1
    PAIRS = 2
    BYTES = 3
    PLANES = 4
    TABLE4 = 5
    TABLE3 = 6
    FLOATS = 7
    VECTOR = 8
    BITSTACK = 9
    SPARSE = 10


class NumberKind(IntEnum):
    """Of params and of the elements of FLOATS; the numbers stand in the rows of qdeploy/ir/dtype.py."""

    NO = 0
    F32 = dtype("f32").native
    F16 = dtype("f16").native
    BF16 = dtype("bf16").native
    E8M0 = dtype("e8m0").native
    U8 = dtype("uint8").native
    I8 = dtype("int8").native
    E4M3 = dtype("e4m3").native
    E5M2 = dtype("e5m2").native


class TensorKind(IntEnum):
    """Of resident tensors."""

    FLOAT32 = 0
    INT32 = 1
    INT8 = 2


class GraphKind(IntEnum):
    """Of a network."""

    DECODER = 0
    ENCODER = 1


class ValueKind(IntEnum):
    """What a node passes on."""

    PER_TOKEN = 0
    PER_SEQUENCE = 1
    IDS = 2


class Role(IntEnum):
    """Of a value."""

    INNER = 0
    INPUT = 1
    OUTPUT = 2


class Op(IntEnum):
    """What a node does."""

    EMBED = 1
    LINEAR = 2
    RMS_NORM = 3
    LAYER_NORM = 4
    SKIP_RMS_NORM = 5
    SKIP_LAYER_NORM = 6
    ATTENTION = 7
    GATE = 8
    ACTIVATE = 9
    ADD = 10
    MUL = 11
    POSITIONS = 12
    MEAN_POOL = 13
    FIRST = 14
    L2_NORM = 15
    SELECT = 16
    JOIN = 17
    ROTATE = 18
    HEAD_NORM = 19
    CLIP = 20
    SCALE = 21
    ROUTE = 22
    EXPERTS = 23
    CONV = 24
    DELTA = 25
    SCAN = 26
    XIELU = 27
    LAST = 28
    GREATEST = 29
    TOKEN_POSITIONS = 30
    HADAMARD = 31
    OUTLIERS = 32
    MAGNITUDE = 33


FEATURES = {
    Op.SELECT: Feature.HEADS,
    Op.JOIN: Feature.HEADS,
    Op.ROTATE: Feature.HEADS,
    Op.HEAD_NORM: Feature.HEADS,
    Op.CLIP: Feature.HEADS,
    Op.SCALE: Feature.HEADS,
    Op.ROUTE: Feature.EXPERTS,
    Op.EXPERTS: Feature.EXPERTS,
    Op.CONV: Feature.RECURRENCE,
    Op.DELTA: Feature.RECURRENCE,
    Op.SCAN: Feature.RECURRENCE,
    Op.XIELU: Feature.XIELU,
    Op.LAST: Feature.SEQUENCES,
    Op.GREATEST: Feature.SEQUENCES,
    Op.TOKEN_POSITIONS: Feature.SEQUENCES,
    Op.HADAMARD: Feature.HADAMARD,
    Op.OUTLIERS: Feature.MEASURES,
    Op.MAGNITUDE: Feature.MEASURES,
}
"""What an op needs of a reader, for those that came later."""


class StateKind(IntEnum):
    """What a state holds."""

    KV = 0
    CONV = 1
    RECURRENT = 2


class Scores(IntEnum):
    """Of ROUTE."""

    SOFTMAX = 0
    SIGMOID = 1
    SOFTMAX_OF_CHOSEN = 2
    MIXER = 3


class Activation(IntEnum):
    """Of GATE and ACTIVATE."""

    SILU = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3
    TANH = 4
    SIGMOID = 5


SECTION = np.dtype([("at", "<u8"), ("count", "<u8")])
HEADER = np.dtype(
    [
        ("magic", "u1", 8),
        ("version", "<u4"),
        ("front_crc", "<u4"),
        ("front_end", "<u8"),
        ("resident_at", "<u8"),
        ("resident_bytes", "<u8"),
        ("stack_at", "<u8"),
        ("stack_bytes", "<u8"),
        ("file_bytes", "<u8"),
        ("floor_rung", "<u4"),
        ("kind", "<u4"),
        ("vocab", "<u4"),
        ("context", "<u4"),
        ("slot_width", "<u4"),
        ("logits_value", "<u4"),
        ("parameters", "<u8"),
        ("content_sha256", "u1", 32),
        ("sections", SECTION, len(SectionId)),
        ("features", "<u8"),
        ("reserved", "u1", 192),
        ("reserved2", "<u4"),
        ("header_crc", "<u4"),
    ]
)
PARAM = np.dtype(
    [
        ("at", "<u8"),
        ("super_at", "<u8"),
        ("super_span", "<u4"),
        ("kind", "u1"),
        ("super_kind", "u1"),
        ("reserved", "<u2"),
    ]
)
TERM = np.dtype(
    [
        ("kind", "<u2"),
        ("planes", "u1"),
        ("element", "u1"),
        ("first_block", "<u4"),
        ("group", "<u4"),
        ("groups", "<u4"),
        ("zero_for_all", "<f4"),
        ("rank", "<u4"),
        ("width", "<u4"),
        ("books", "<u4"),
        ("levels", "<u4"),
        ("tables", "<u4"),
        ("table_tensor", "<u4"),
        ("itable_tensor", "<u4"),
        ("table_unit", "<f4"),
        ("entries", "<u4"),
        ("codes_at", "<u8"),
        ("select_at", "<u8"),
        ("scale", PARAM),
        ("zero", PARAM),
        ("offset", PARAM),
        ("bias_at", "<u8"),
        ("bias_kind", "u1"),
        ("ladder", "u1"),
        ("reserved", "u1", 38),
    ]
)
MATRIX = np.dtype(
    [
        ("rows", "<u4"),
        ("columns", "<u4"),
        ("padded_columns", "<u4"),
        ("first_term", "<u4"),
        ("terms", "<u4"),
        ("map_tensor", "<u4"),
        ("scale_tensor", "<u4"),
        ("name_at", "<u4"),
        ("reserved", "u1", 32),
    ]
)
BLOCK = np.dtype([("at", "<u8"), ("bytes", "<u8"), ("term", "<u4"), ("plane", "<u4"), ("reserved", "<u4", 2)])
RUNG = np.dtype([("bytes", "<u8"), ("error", "<f8")])
TENSOR = np.dtype([("at", "<u8"), ("bytes", "<u8"), ("kind", "<u4"), ("count", "<u4"), ("reserved", "<u8")])
VALUE = np.dtype(
    [
        ("kind", "<u4"),
        ("width", "<u4"),
        ("slot", "<u4"),
        ("name_at", "<u4"),
        ("role", "<u4"),
        ("reserved", "<u4", 3),
    ]
)
NODE = np.dtype(
    [
        ("op", "<u2"),
        ("reserved", "<u2"),
        ("inputs", "<u4", 4),
        ("outputs", "<u4", 2),
        ("matrix", "<u4"),
        ("tensors", "<u4", 2),
        ("state", "<u4"),
        ("attr", "<u4"),
        ("attrs", "<u4"),
        ("reserved2", "<u4", 3),
    ]
)
STATE = np.dtype([("heads", "<u4"), ("head_dim", "<u4"), ("value_dim", "<u4"), ("kind", "<u4")])
META_ENTRY = np.dtype([("key_at", "<u4"), ("key_bytes", "<u4"), ("value_at", "<u8"), ("value_bytes", "<u8")])

RECORDS = {
    SectionId.MATRICES: MATRIX,
    SectionId.TERMS: TERM,
    SectionId.BLOCKS: BLOCK,
    SectionId.RUNGS: RUNG,
    SectionId.TENSORS: TENSOR,
    SectionId.VALUES: VALUE,
    SectionId.NODES: NODE,
    SectionId.STATES: STATE,
    SectionId.ATTRIBUTES: np.dtype("<u4"),
    SectionId.METADATA: np.dtype("u1"),
    SectionId.PAGES: np.dtype("<u4"),
}
"""What each section is an array of."""

STRUCTS = {
    "Section": SECTION,
    "Header": HEADER,
    "Param": PARAM,
    "Term": TERM,
    "Matrix": MATRIX,
    "Block": BLOCK,
    "RungRecord": RUNG,
    "Tensor": TENSOR,
    "Value": VALUE,
    "Node": NODE,
    "State": STATE,
    "MetaEntry": META_ENTRY,
}
"""The same, by their names in format.h."""


def aligned(size: int, unit: int) -> int:
    """The least multiple of `unit` that is not below `size`."""
    return -(-size // unit) * unit

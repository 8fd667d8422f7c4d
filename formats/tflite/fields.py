"""Which fields of the schema are read, which change nothing, and which are refused where they are set.

A table of a FlatBuffers file may have fields that its reader has never heard of. To leave one out in silence could
change what a tensor or an operator means, so every field is in one of three lists: what is read, what is known to
change no number (`IGNORED`), and the rest, which is named and refused.
"""

from __future__ import annotations

from typing import Any

OPTIONS = {
    "ADD": ("AddOptions", "FusedActivationFunction"),
    "SUB": ("SubOptions", "FusedActivationFunction"),
    "MUL": ("MulOptions", "FusedActivationFunction"),
    "DIV": ("DivOptions", "FusedActivationFunction"),
    "CONV_2D": (
        "Conv2DOptions",
        "Padding",
        "StrideW",
        "StrideH",
        "FusedActivationFunction",
        "DilationWFactor",
        "DilationHFactor",
    ),
    "DEPTHWISE_CONV_2D": (
        "DepthwiseConv2DOptions",
        "Padding",
        "StrideW",
        "StrideH",
        "DepthMultiplier",
        "FusedActivationFunction",
        "DilationWFactor",
        "DilationHFactor",
    ),
    **dict.fromkeys(
        ("AVERAGE_POOL_2D", "MAX_POOL_2D"),
        ("Pool2DOptions", "Padding", "StrideW", "StrideH", "FilterWidth", "FilterHeight", "FusedActivationFunction"),
    ),
    "FULLY_CONNECTED": ("FullyConnectedOptions", "FusedActivationFunction", "WeightsFormat", "KeepNumDims"),
    "SOFTMAX": ("SoftmaxOptions", "Beta"),
    "CONCATENATION": ("ConcatenationOptions", "Axis", "FusedActivationFunction"),
    "MEAN": ("ReducerOptions", "KeepDims"),
    "SQUEEZE": ("SqueezeOptions",),
    "RESHAPE": ("ReshapeOptions",),
    "LEAKY_RELU": ("LeakyReluOptions", "Alpha"),
    **dict.fromkeys(
        ("SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"),
        ("ReducerOptions", "KeepDims"),
    ),
    "RESIZE_BILINEAR": ("ResizeBilinearOptions", "AlignCorners", "HalfPixelCenters"),
    "RESIZE_NEAREST_NEIGHBOR": ("ResizeNearestNeighborOptions", "AlignCorners", "HalfPixelCenters"),
    "TRANSPOSE_CONV": ("TransposeConvOptions", "Padding", "StrideW", "StrideH", "FusedActivationFunction"),
    "GATHER": ("GatherOptions", "Axis", "BatchDims"),
    "PACK": ("PackOptions", "Axis", "ValuesCount"),
    "UNPACK": ("UnpackOptions", "Axis", "Num"),
    "STRIDED_SLICE": (
        "StridedSliceOptions",
        "BeginMask",
        "EndMask",
        "EllipsisMask",
        "NewAxisMask",
        "ShrinkAxisMask",
        "Offset",
    ),
    "BATCH_MATMUL": ("BatchMatMulOptions", "AdjX", "AdjY"),
    "GELU": ("GeluOptions", "Approximate"),
    "CUMSUM": ("CumsumOptions", "Exclusive", "Reverse"),
    "DEPTH_TO_SPACE": ("DepthToSpaceOptions", "BlockSize"),
    "SPACE_TO_DEPTH": ("SpaceToDepthOptions", "BlockSize"),
    "MIRROR_PAD": ("MirrorPadOptions", "Mode"),
    "L2_NORMALIZATION": ("L2NormOptions", "FusedActivationFunction"),
    "SPLIT": ("SplitOptions", "NumSplits"),
    "SPLIT_V": ("SplitVOptions", "NumSplits"),
    "CAST": ("CastOptions", "InDataType", "OutDataType"),
    "ARG_MAX": ("ArgMaxOptions", "OutputType"),
    "ARG_MIN": ("ArgMinOptions", "OutputType"),
    "SHAPE": ("ShapeOptions", "OutType"),
}
"""The options of an operator: their class in the schema, and what is read of it."""


IGNORED = {
    "Tensor": ("HasRank",),
    "QuantizationParameters": ("Min", "Max"),
    "Operator": ("CustomOptionsFormat", "DebugMetadataIndex"),
    "Options": ("PotScaleInt16", "AsymmetricQuantizeInputs", "QuantizedBiasType"),
}
"""Fields that change no number: records of the converter, how CUSTOM operators (refused) encode options, and wishes to
kernels. PotScaleInt16 is not read by TFLite's kernels either, which look at the scales; activations of hybrid layers
stay float here; a bias says its type itself."""

_UNREAD: dict[str, dict[int, tuple[str, str]]] = {
    "Tensor": {5: ("IsVariable", "Bool"), 9: ("VariantTensors", "[]")},
    "QuantizationParameters": {},
    "Operator": {
        5: ("CustomOptions", "[]"),
        7: ("MutatingVariableInputs", "[]"),
        8: ("Intermediates", "[]"),
        9: ("LargeCustomOptionsOffset", "Uint64"),
        10: ("LargeCustomOptionsSize", "Uint64"),
        11: ("BuiltinOptions2Type", "Uint8"),
    },
}
"""Slot -> name, and how it is set: a scalar other than 0, a vector with elements, a table."""
_SLOTS = {"Tensor": 10, "QuantizationParameters": 7, "Operator": 14}
_OPTION_SLOTS = {
    "AddOptions": 2,
    "SubOptions": 2,
    "MulOptions": 1,
    "DivOptions": 1,
    "Conv2DOptions": 7,
    "DepthwiseConv2DOptions": 7,
    "Pool2DOptions": 6,
    "FullyConnectedOptions": 5,
    "SoftmaxOptions": 1,
    "ConcatenationOptions": 2,
    "ReducerOptions": 1,
    "SqueezeOptions": 1,
    "ReshapeOptions": 1,
    "LeakyReluOptions": 1,
    "ResizeBilinearOptions": 4,
    "ResizeNearestNeighborOptions": 2,
    "TransposeConvOptions": 5,
    "GatherOptions": 2,
    "PackOptions": 2,
    "UnpackOptions": 2,
    "StridedSliceOptions": 6,
    "BatchMatMulOptions": 3,
    "GeluOptions": 1,
    "CumsumOptions": 2,
    "DepthToSpaceOptions": 1,
    "SpaceToDepthOptions": 1,
    "MirrorPadOptions": 1,
    "L2NormOptions": 1,
    "SplitOptions": 1,
    "SplitVOptions": 1,
    "CastOptions": 2,
    "ArgMaxOptions": 1,
    "ArgMinOptions": 1,
    "ShapeOptions": 1,
}
"""How many fields each table has; all of them are read or ignored."""


def unread_fields(kind: str, table: Any) -> tuple[str, ...]:
    """The names of fields that are set in a table of the schema package and not understood."""
    import flatbuffers

    names = []
    for slot, (name, form) in _UNREAD[kind].items():
        place = table.Offset(4 + 2 * slot)
        if not place:
            continue
        if form == "[]":
            is_set = table.VectorLen(place) > 0
        else:
            flags = getattr(flatbuffers.number_types, f"{form}Flags") if form else None
            is_set = flags is None or bool(table.Get(flags, table.Pos + place))
        names += [name] if is_set else []
    return (*names, *fields_beyond(table, _SLOTS[kind]))


def unread_options(kind: str, table: Any) -> tuple[str, ...]:
    """The same for the options of an operator."""
    return fields_beyond(table, _OPTION_SLOTS.get(OPTIONS.get(kind, ("",))[0], 0))


def fields_beyond(table: Any, known: int) -> tuple[str, ...]:
    """Fields behind the last that the schema had when this was written, where they are set."""
    import flatbuffers

    vtable = table.Pos - table.Get(flatbuffers.number_types.Int32Flags, table.Pos)
    size = table.Get(flatbuffers.number_types.Uint16Flags, vtable)
    slots = range(known, (size - 4) // 2)
    return tuple(f"field {slot}" for slot in slots if table.Offset(4 + 2 * slot))

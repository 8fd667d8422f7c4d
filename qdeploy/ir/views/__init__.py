"""What a tensor is to an engine: one view per tensor, from a closed set. Nothing else walks the trees of tensors."""

from qdeploy.ir.views.grouped import Grouped
from qdeploy.ir.views.kinds import (
    Affine,
    Coded,
    Decoded,
    Floats,
    Integers,
    Lookup,
    Masked,
    Minifloat,
    SignLowRank,
    Sum,
    Vector,
    View,
    first_codes,
)
from qdeploy.ir.views.recognise import view
from qdeploy.ir.views.tables import GroupedFloats, GroupedTable

__all__ = [
    "Affine",
    "Coded",
    "Decoded",
    "Floats",
    "Grouped",
    "GroupedFloats",
    "GroupedTable",
    "Integers",
    "Lookup",
    "Masked",
    "Minifloat",
    "SignLowRank",
    "Sum",
    "Vector",
    "View",
    "first_codes",
    "view",
]

"""The rule table: which form a weight takes, and why.

Measured on ONNX Runtime 1.31 (CPU); a *cliff* is a combination that dequantizes the whole matrix at every call, 30 to
100 times slower:

    bits   float32 activations (accuracy_level 0)      int8 activations (accuracy_level 4)
    2      cliff                                       fast with blocks of 32, 64, 128; cliff with 16 and 256
    4      fast, exact                                 fastest
    8      cliff                                       fast

No rule below gives a cliff. What has no fast form says "slow" in its reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qdeploy.backends.onnx.blockbooks import BlockBooksForm, block_form
from qdeploy.backends.onnx.blocks import BLOCKS, BLOCKS_2BIT, blocking
from qdeploy.backends.onnx.codebooks import CodebookForm, table_form, vector_form
from qdeploy.backends.onnx.forms import FloatForm, Form
from qdeploy.backends.onnx.lowrank import SignLowRankForm, sign_lowrank_form
from qdeploy.backends.onnx.minifloat import MinifloatForm, minifloat_form
from qdeploy.backends.onnx.requantize import requantized
from qdeploy.backends.onnx.weights import AffineForm
from qdeploy.ir.decode import slabs
from qdeploy.ir.tensor import Array, Codes, QTensor
from qdeploy.ir.views import Coded, Floats, Grouped, Lookup, Minifloat, SignLowRank, Vector, View, view
from qdeploy.store.storage import storage_dtype


@dataclass(frozen=True)
class Ruling:
    """A form, with its reason."""

    form: Form
    reason: str
    lossless: bool = True


def rule(name: str, tensor: QTensor, activations: str, requantize: bool = False) -> Ruling:
    """Chooses the form of a tensor.

    Args:
        name: Its name.
        tensor: The tensor.
        activations: "exact" or "int8".
        requantize: Whether a matrix without a packed form is rounded, in place of being stored as floats.
    """
    stored = float_form(name, tensor)
    if stored is not None:
        return Ruling(stored, f"stored as {stored.storage} and widened to float32 in the graph")
    seen = view(tensor)
    whole = seen.grouped if isinstance(seen, Coded | Vector) else None
    if whole is not None:
        form, reason = affine_form(name, whole, activations)
        return Ruling(form, reason, whole.exact)
    slow = _slow_form(name, seen)
    if slow is not None:
        return Ruling(slow, f"slow: {slow.reason}")
    if requantize and len(tensor.shape) == 2:
        rounded, snr = requantized(tensor)
        form, reason = affine_form(name, rounded, activations)
        return Ruling(form, f"requantized, signal to noise {snr:.1f} dB; {reason}", lossless=False)
    whole_floats = decoded_form(name, tensor)
    return Ruling(whole_floats, f"slow: no form holds {describe(tensor)}, so it is stored as what it decodes to")


def float_form(name: str, tensor: QTensor) -> FloatForm | None:
    """The form of an unquantized tensor, or None."""
    seen = view(tensor)
    return FloatForm(name, tensor, seen.dtype.storage, seen.rows) if isinstance(seen, Floats) else None


def decoded_form(name: str, tensor: QTensor) -> FloatForm:
    """Anything, as the floats that it decodes to, in the smallest type that holds all of them."""
    left = ["F16", "BF16", "F32"]
    for part in slabs(tensor):
        numbers = tensor.decode(part)
        left = [storage for storage in left if storage == "F32" or _holds(storage, numbers)]
    dtype = storage_dtype(left[0])

    def read(start: int, stop: int) -> Array:
        return tensor.decode(slice(start, stop)).astype(dtype)

    return FloatForm(name, tensor, left[0], read)


def _holds(storage: str, numbers: Array) -> bool:
    """Whether every number comes back from a type as it was, by its bits."""
    with np.errstate(all="ignore"):
        back = numbers.astype(storage_dtype(storage)).astype(np.float32)
    return np.array_equal(back.view(np.uint32), numbers.view(np.uint32))


def _slow_form(name: str, seen: View) -> MinifloatForm | SignLowRankForm | CodebookForm | BlockBooksForm | None:
    """The form of a matrix that is not integers, or None."""
    if isinstance(seen, SignLowRank):
        return sign_lowrank_form(name, seen)
    if isinstance(seen, Vector):
        return vector_form(name, seen) or block_form(name, seen)
    exact = minifloat_form(name, seen) if isinstance(seen, Minifloat) else None
    return exact or (table_form(name, seen) if isinstance(seen, Minifloat | Lookup) else None)


def affine_form(name: str, whole: Grouped, activations: str) -> tuple[AffineForm, str]:
    """The container of an affine whole, and why."""
    if activations == "int8":
        two = blocking(whole, BLOCKS_2BIT, 2)
        if whole.bits <= 2 and two.columns is None:
            return AffineForm(name, whole, two, 2, False, 4), _why(whole, 2, "int8 activations, 2-bit kernel")
        bits = 4 if whole.bits <= 4 else 8
        return (
            AffineForm(name, whole, blocking(whole, BLOCKS, bits), bits, False, 4),
            _why(whole, bits, f"int8 activations, {bits}-bit kernel"),
        )
    if whole.bits <= 4:
        return (
            AffineForm(name, whole, blocking(whole, BLOCKS, 4), 4, False, 0),
            _why(whole, 4, "float32 activations are fast with 4 bits only"),
        )
    return (
        AffineForm(name, whole, blocking(whole, BLOCKS, 8), 4, True, 0),
        _why(whole, 8, "float32 activations are fast with 4 bits only: high and low nibbles apart"),
    )


def _why(whole: Grouped, bits: int, kernel: str) -> str:
    parts = [kernel]
    if whole.bits < bits:
        parts.append(f"{whole.bits}-bit codes in a {bits}-bit container")
    if whole.index is not None:
        parts.append("columns permuted for act-order")
    if whole.offset is not None:
        parts.append("offsets added as block sums")
    if not whole.exact:
        parts.append("a quotient or product of stored parameters is rounded to float32")
    return "; ".join(parts)


def describe(tensor: QTensor) -> str:
    """The encoding in a few words, for an error."""
    kinds = []
    for term in tensor.terms:
        values = term.values
        table = values.table if isinstance(values, Codes) else "low rank"
        kinds.append(table if isinstance(table, str) else f"codebook {list(table.values.shape)}")
    return f"{' + '.join(kinds)} codes, shape {list(tensor.shape)}"

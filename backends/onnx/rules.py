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

from qdeploy.backends.onnx.blocks import BLOCKS, BLOCKS_2BIT, blocking
from qdeploy.backends.onnx.codebooks import codebook_form
from qdeploy.backends.onnx.forms import FloatForm, Form
from qdeploy.backends.onnx.lowrank import sign_lowrank_form
from qdeploy.backends.onnx.minifloat import minifloat_form
from qdeploy.backends.onnx.requantize import requantized
from qdeploy.backends.onnx.weights import AffineForm
from qdeploy.errors import UnsupportedError
from qdeploy.ir.tensor import Codes, QTensor
from qdeploy.ir.views.affine import Affine, affine

FLOAT_TABLES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "f64": "F64"}
"""Number formats that stay as they are."""


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
        requantize: Whether a tensor without a lossless form may be rounded.

    Raises:
        UnsupportedError: No form holds this encoding without loss.
    """
    stored = float_form(name, tensor)
    if stored is not None:
        return Ruling(stored, f"stored as {stored.storage} and widened to float32 in the graph")
    view = affine(tensor)
    if view is not None:
        form, reason = affine_form(name, view, activations)
        return Ruling(form, reason, view.exact)
    made = minifloat_form(name, tensor) or sign_lowrank_form(name, tensor) or codebook_form(name, tensor)
    if made is not None:
        return Ruling(made, f"slow: {made.reason}")
    if requantize and len(tensor.shape) == 2:
        view, snr = requantized(tensor)
        form, reason = affine_form(name, view, activations)
        return Ruling(form, f"requantized, signal to noise {snr:.1f} dB; {reason}", lossless=False)
    raise UnsupportedError(
        "no form of ONNX Runtime holds this encoding without loss",
        where=name,
        found=describe(tensor),
        todo="Pass --requantize to round it to 4 or 8 bits; the loss is reported.",
    )


def float_form(name: str, tensor: QTensor) -> FloatForm | None:
    """The form of an unquantized tensor, or None."""
    if len(tensor.terms) != 1 or tensor.scale or tensor.offset or tensor.terms[0].where is not None:
        return None
    codes = tensor.terms[0].values
    if not isinstance(codes, Codes) or codes.zero or codes.scale or codes.offset or codes.layout.kind != "plain":
        return None
    if not isinstance(codes.table, str) or codes.table not in FLOAT_TABLES or codes.shape != (tensor.shape or (1,)):
        return None
    return FloatForm(name, tensor, FLOAT_TABLES[codes.table], codes.data[0].read)


def affine_form(name: str, view: Affine, activations: str) -> tuple[AffineForm, str]:
    """The container of an affine view, and why."""
    if activations == "int8":
        two = blocking(view, BLOCKS_2BIT, 2)
        if view.bits <= 2 and two.columns is None:
            return AffineForm(name, view, two, 2, False, 4), _why(view, 2, "int8 activations, 2-bit kernel")
        bits = 4 if view.bits <= 4 else 8
        return (
            AffineForm(name, view, blocking(view, BLOCKS, bits), bits, False, 4),
            _why(view, bits, f"int8 activations, {bits}-bit kernel"),
        )
    if view.bits <= 4:
        return (
            AffineForm(name, view, blocking(view, BLOCKS, 4), 4, False, 0),
            _why(view, 4, "float32 activations are fast with 4 bits only"),
        )
    return (
        AffineForm(name, view, blocking(view, BLOCKS, 8), 4, True, 0),
        _why(view, 8, "float32 activations are fast with 4 bits only: high and low nibbles apart"),
    )


def _why(view: Affine, bits: int, kernel: str) -> str:
    parts = [kernel]
    if view.bits < bits:
        parts.append(f"{view.bits}-bit codes in a {bits}-bit container")
    if view.index is not None:
        parts.append("columns permuted for act-order")
    if view.offset is not None:
        parts.append("offsets added as block sums")
    if not view.exact:
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

"""Weights that a MatMul takes as [K, N], quantized in blocks along K: their transpose is what MatMulNBits holds.

Left as DequantizeLinear and MatMul they would be correct too, but ONNX Runtime then makes a MatMulNBits of its own
whose activations it rounds to 8 bits (`session.qdq_matmulnbits_accuracy_level` is 4 by default).
"""

from __future__ import annotations

from qdeploy.backends.onnx.passthrough import stored_form
from qdeploy.ir.dtype import dtype
from qdeploy.ir.tensor import QTensor, Term
from qdeploy.ir.transposed import transposed_codes


def transposed_weight(name: str, tensor: QTensor) -> QTensor | None:
    """The transpose of a matrix of at most 8 bits in blocks along its first axis; None for anything else."""
    form = stored_form(name, tensor)
    if form is None or not form.block or form.axis != 0 or len(tensor.shape) != 2:
        return None
    codes, row = form.codes, dtype(str(form.codes.table))
    if not row.is_integer or row.bits not in (2, 4, 8):
        return None
    transposed = transposed_codes(codes)
    return None if transposed is None else QTensor(tensor.shape[::-1], tensor.dtype, (Term(transposed),))

"""Sequences of one length through an encoder of the native runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.native.library import call, library

_SEQUENCES = 64
"""Of a call, so that it can be cancelled."""


def alike(ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """The places of sequences of equal length, which one call takes without padding."""
    groups: dict[int, list[int]] = {}
    for place, tokens in enumerate(ids):
        groups.setdefault(len(tokens), []).append(place)
    return [rows[at : at + _SEQUENCES] for rows in groups.values() for at in range(0, len(rows), _SEQUENCES)]


def run_encoder(
    session: Any,
    ids: npt.NDArray[np.int32],
    output: str,
    out: npt.NDArray[np.float32],
    where: str,
    mask: npt.NDArray[np.int32] | None = None,
    types: npt.NDArray[np.int32] | None = None,
) -> None:
    """Writes an output of an encoder.

    Args:
        session: Of the model, in C.
        ids: int32 [sequences, tokens].
        output: Its name.
        out: float32 of its shape.
        where: The model's path, for errors.
        mask: int32 of the shape of ids, 0 where a token is padding; None: none is.
        types: int32 of the shape of ids, which of several texts a token belongs to; None: there is one.
    """
    ffi, lib = library()
    arrays = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids) if mask is None else mask,
        "token_type_ids": np.zeros_like(ids) if types is None else types,
    }
    names = [ffi.new("char[]", name.encode()) for name in (*arrays, output)]
    inputs = ffi.new("qd_tensor[]", len(arrays))
    for tensor, name, array in zip(inputs, names, arrays.values(), strict=False):
        tensor.name, tensor.dtype, tensor.rank = name, lib.QD_I32, 2
        tensor.shape[0], tensor.shape[1] = array.shape
        tensor.data, tensor.bytes = ffi.from_buffer("char[]", array) if array.size else ffi.NULL, array.nbytes
    wanted = ffi.new("qd_tensor *")
    wanted.name, wanted.dtype, wanted.bytes = names[-1], lib.QD_F32, out.nbytes
    wanted.data = ffi.from_buffer("char[]", out)
    call(lib.qd_run, session, inputs, len(arrays), wanted, 1, where=where)

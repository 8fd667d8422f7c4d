"""Settings of compressed-tensors, and its older words."""

from __future__ import annotations

from typing import Any

import numpy as np
from packed_layers import words


def group(form: str, bits: int, kind: str = "int", strategy: str = "group", size: int | None = 16, **more: Any) -> Any:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": size, "symmetric": True, **more}
    return {"targets": ["Linear"], "format": form, "weights": weights, "input_activations": None}


def settings(*groups: Any, ignore: tuple[str, ...] = ("lm_head",)) -> dict[str, Any]:
    named = {f"group_{i}": row for i, row in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "config_groups": named, "ignore": list(ignore), "format": "dense"}


def spaced_words(run: np.ndarray, bits: int) -> list[int]:
    """floor(32 / bits) codes to a word."""
    per = 32 // bits
    return [words(run[i : i + per], bits)[0] for i in range(0, len(run), per)]

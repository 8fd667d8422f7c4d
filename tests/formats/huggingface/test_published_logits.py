"""Logits of whole checkpoints against their libraries', at the tolerances that the libraries' arithmetic leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from published import assert_logits, oracles

FAMILIES = ("tinyllama", "tinyllama2", "tinyqwen2", "tinyqwen3", "tinybitnet")
"""Networks whose graph is built."""


@pytest.mark.parametrize(
    ("prefix", "limit"),
    [
        ("hqq", 1e-5),
        ("quanto-", 1e-5),
        ("torchao-int8wo", 1e-5),
        ("torchao-intx4", 1e-5),
        ("torchao-fp8wo", 1e-5),
        ("torchao-mxfp8", 1e-5),
        ("torchao-int8da", 5e-2),  # its inputs have 8 bits
        ("torchao-", 5e-2),
        ("bnb-", 5e-2),  # computed in bfloat16, int8 with inputs of 8 bits
        ("mlx-", 1e-5),
        ("modelopt-nvfp4", 1e-5),
        ("modelopt-w4a16nvfp4", 1e-5),
        ("modelopt-mxfp4", 1e-5),
        ("modelopt-fp8-block", 1e-5),
        ("modelopt-int", 1e-5),  # inputs are scaled first
        ("bitnet-", 1e-5),
        ("fbgemm-", 1e-5),
        ("aqlm-", 1e-5),
        ("quark-", 1e-5),
        ("vptq-", 1e-5),
        ("ct-nvfp4a16", 1e-2),  # bfloat16 weights of the library
        ("ct-mixed", 1e-2),
        ("ct-w", 1e-1),  # 8-bit inputs, or bfloat16
        ("ct-fp8", 1e-1),
        ("ct-mx", 1e-1),
        ("fp8-", 5e-2),  # bfloat16
        ("autoround-fp8static", 1e-1),  # its inputs have 8 bits
    ],
)
def test_logits_of_the_library(testdata: Path, prefix: str, limit: float) -> None:
    folders = [f for f in oracles(testdata, prefix) if f.name.endswith(FAMILIES)]
    assert folders
    for folder in folders:
        assert_logits(folder, limit)

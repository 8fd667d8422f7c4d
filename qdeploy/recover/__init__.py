"""Grid recovery: float weights that lie on a grid become the codes and scales that they were made from.

Many releases are fake-quantized: the floats of a matrix are `level * scale`, rounded to the type in which they are
stored (Gemma's QAT releases, and what the code of BitMoD, ABQ-LLM, EQ-Net and Double Rounding writes). Recovery is no
quantization: it succeeds only where decoding gives every stored float again, and it looks at every one.

    spec.py      what a user writes: auto, or FAMILY[:group=N|row|tensor]
    families.py  the levels that there are: one row per family
    intervals.py which real numbers a stored float is the rounding of
    solve.py     levels and an interval of scales for groups of floats
    scales.py    the scale within an interval that a 16-bit type can hold
    matrix.py    a whole matrix: looks for its grid, proves it, and describes it as terms
    model.py     the matrices of a model, and what is said of them

Zeros are compared as numbers: an integer code has no negative zero, and fake quantization writes one for every small
negative weight.
"""

from __future__ import annotations

from qdeploy.recover.model import detected, recover_model
from qdeploy.recover.spec import parse

__all__ = ["detected", "parse", "recover_model"]
